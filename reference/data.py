"""Tokenizer, token arrays and training windows made from the corpus."""

from __future__ import annotations

import random

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reference.corpus import SourceFile

END, USER, ASSISTANT, SYSTEM, MASK, PAD = (
    "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|mask|>", "<|pad|>",
)  # fmt: skip
SPECIAL_TOKENS = [END, USER, ASSISTANT, SYSTEM, MASK, PAD]
VOCAB_SIZE = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + '; use system, user or assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(files: list[SourceFile], chats: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of 4,096 tokens on training text only (deterministic: no sampling in the trainer)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [file.text for file in files] + [chat["answer"] for chat in chats]
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def chat_text(chat: dict[str, str]) -> str:
    """One chat record as the template renders it, answer and end token included."""
    return f"{USER}{chat['question']}{ASSISTANT}{chat['answer']}{END}"


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Encodes documents to uint16 arrays; each ends with the end token."""
    end = tokenizer.convert_tokens_to_ids(END)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [np.asarray(ids if ids and ids[-1] == end else [*ids, end], dtype=np.uint16) for ids in rows]


class Windows:
    """Endless stream of windows of ``length + 1`` tokens drawn from several sources with given shares.

    Each source is its documents in an order shuffled anew every epoch, joined and cut; the state is the pair
    (epoch, position) of each source, so that a resumed run continues with the window it would have seen.
    """

    def __init__(self, sources: dict[str, list[np.ndarray]], shares: dict[str, float], length: int, seed: int):
        self.sources, self.shares, self.length, self.seed = sources, shares, length, seed
        self.state = {name: [0, 0] for name in sources}
        self.drawn = 0
        self._joined: dict[str, np.ndarray] = {}

    def _epoch(self, name: str) -> np.ndarray:
        """The source's documents in this epoch's order, joined."""
        if name not in self._joined:
            order = list(range(len(self.sources[name])))
            random.Random(f"{self.seed}-{name}-{self.state[name][0]}").shuffle(order)
            self._joined[name] = np.concatenate([self.sources[name][i] for i in order])
        return self._joined[name]

    def next(self) -> np.ndarray:
        """The next window, int64 of shape [length + 1]."""
        names = sorted(self.sources)
        rng = random.Random(f"{self.seed}-{self.drawn}")
        name = rng.choices(names, [self.shares[n] for n in names])[0]
        self.drawn += 1
        start = self.state[name][1]
        if start + self.length + 1 > len(self._epoch(name)):
            self.state[name] = [self.state[name][0] + 1, 0]
            del self._joined[name]
            start = 0
        self.state[name][1] = start + self.length
        return self._epoch(name)[start : start + self.length + 1].astype(np.int64)
