"""A narrowed model as it is exported says in the real engine what it says in transformers, plain or with layers of unlike widths.

One engine start for each case, and one for each way that a narrowed model's draft is run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from pruning.checkpoint import cut_config_of, load_layers, load_model, write_checkpoint
from pruning.export import write_width
from pruning.plan import WidthPlan
from pruning.settings import Export
from server.acceptance import AcceptanceRecord, read_acceptance
from server.engine import LocalEngine
from server.engine_command import EngineSettings
from server.launching import launch_single
from server.sampling_check import complete
from stages.provenance import Run

pytestmark = pytest.mark.engine

VOCAB, NEW_TOKENS, CHANNELS = 128, 24, 160
WIDTHS, GROUPS = (96, 17, 160, 8), ((0, 2), (1,), (0, 1, 2), (2,))
PROMPTS = [[(7 * i + 13 * j) % (VOCAB - 1) + 1 for j in range(12 + i)] for i in range(4)]


SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": CHANNELS, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 32, "max_position_embeddings": 256, "initializer_range": 0.15,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "Qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "Llama": LlamaConfig(**SHAPE, tie_word_embeddings=False, mlp_bias=True),
    "Qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "Mistral": MistralConfig(**SHAPE, tie_word_embeddings=False, sliding_window=16),
}
"""Four layers with three key-value heads, each read by two query heads; embeddings tied and not, biases in attention and in FFNs
(as FLAP writes them), a window shorter than the answers."""


def target(family: str) -> PreTrainedModel:
    """A random model with norms that are not ones and biases that are not zeros."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


CASES: list[tuple[str, Export]] = [
    *((family, "ragged") for family in CONFIGS),
    ("Llama", "uniform"),
    ("Qwen3", "uniform"),
]


def plan(family: str, export: Export) -> WidthPlan:
    widths, groups = (WIDTHS, GROUPS) if export == "ragged" else ((72,) * 4, ((0, 2), (1, 2), (0, 1), (0, 2)))
    generator = torch.Generator().manual_seed(1)
    channels = [torch.randperm(CHANNELS, generator=generator)[:width].sort().values.tolist() for width in widths]
    return WidthPlan(
        target_sha256="any", architecture=f"{family}ForCausalLM", num_layers=4, method="nuteprune", criterion="masks",
        export=export, sparsity=0.5, realised_sparsity=0.5, num_channels=CHANNELS, num_groups=3,
        kept_channels=tuple(map(tuple, channels)), kept_groups=groups,
    )  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, Export]:
    found: tuple[str, Export] = request.param
    return found


@pytest.fixture(scope="module")
def folder(case: tuple[str, Export], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("narrowed")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w1", eos_token="w0").save_pretrained(root / "target")
    target(case[0]).save_pretrained(root / "target")
    write_width(root / "target", plan(*case), Run("prune", {}, {}), root / "narrowed")
    return root / "narrowed"


@pytest.fixture(scope="module")
def engine(folder: Path, engines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log_file = tmp_path_factory.mktemp("log") / "engine.log"
    settings = EngineSettings(model=folder, max_model_len=256, dtype="float32", log_file=log_file)
    with LocalEngine(settings, launch=launch_single()) as running:
        yield running.url


def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    tokens: list[int] = made[0, len(prompt) :].tolist()
    return tokens


def prompt_logprobs(model: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    return logprobs[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


def ask(url: str, prompt: list[int]) -> dict[str, Any]:
    options = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True, "prompt_logprobs": 0}
    answer = complete(url, {"model": "model", "prompt": prompt, "return_token_ids": True, **options}, 120)
    choice: dict[str, Any] = answer["choices"][0]
    return choice


def test_the_engine_says_what_transformers_says(case: tuple[str, Export], folder: Path, engine: str) -> None:
    model = load_model(folder)
    family, export = case
    prefix = "UnderstudyRagged" if export == "ragged" else ""
    assert type(model).__name__ == f"{prefix}{family}ForCausalLM"
    for prompt in PROMPTS:
        choice = ask(engine, prompt)
        assert choice["token_ids"] == greedy(model, prompt)
        found = [
            place[str(token)]["logprob"] for place, token in zip(choice["prompt_logprobs"][1:], prompt[1:], strict=True)
        ]
        torch.testing.assert_close(torch.tensor(found), prompt_logprobs(model, prompt), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("method", "direct"), [("greedy", False), ("probabilistic", True)])
def test_a_narrowed_model_gets_a_draft_of_itself(
    method: str, direct: bool, case: tuple[str, Export], folder: Path, engines: None, tmp_path: Path
) -> None:
    """Two of its layers, each as wide as it is there, propose; what is said is the narrowed model's own, whoever runs them."""
    if case not in (("Llama", "ragged"), ("Qwen3", "uniform")):
        pytest.skip("one ragged and one plain model are enough")
    kept = (0, 2)
    (tmp_path / "draft").mkdir()
    write_checkpoint(load_layers(folder, kept), folder, tmp_path / "draft", cut_config_of(folder, kept))
    model = load_model(folder)
    drafted = {
        "method": "draft_model", "model": str(tmp_path / "draft"), "num_speculative_tokens": 3, "draft_sample_method": method,
    }  # fmt: skip
    settings = EngineSettings(
        model=folder,
        max_model_len=256,
        dtype="float32",
        log_file=tmp_path / "engine.log",
        speculative_config=drafted,
        direct_drafting=direct,
    )
    with LocalEngine(settings, launch=launch_single()) as running:
        for prompt in PROMPTS:
            answer = complete(
                running.url,
                {"model": "model", "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True,
                 "return_token_ids": True},
                120,
            )  # fmt: skip
            assert answer["choices"][0]["token_ids"] == greedy(model, prompt)
            record = read_acceptance(answer)
            assert isinstance(record, AcceptanceRecord)
            assert record.num_draft_tokens > 0
    assert ("drafting directly from" in (tmp_path / "engine.log").read_text(encoding="utf-8")) is direct
