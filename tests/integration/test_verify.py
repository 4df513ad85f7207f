"""A pico pair in the real engine: verified lossless with the repair, found out without it. Four engine starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from drafts.exact import ExactTarget
from drafts.verdict import SampledResult
from drafts.verifying import VerifySettings, judge_samples, read_prompted, sampled_outputs, verify
from server.engine import LocalEngine
from server.engine_command import EngineSettings
from server.pair import Pair, read_pair
from server.sampling_check import check_engine, complete
from server.sampling_repair import SWITCH
from stages.errors import CheckFailed
from stages.hashing import checkpoint_hash, tokenizer_hash

pytestmark = pytest.mark.engine

VOCAB = 128


def pico_llama(num_layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=num_layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=False,
        initializer_range=0.1, bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def pico_target() -> LlamaForCausalLM:
    """Weights large enough that the next token is uncertain but not evenly spread (about 2.7 nats)."""
    torch.manual_seed(0)
    target = pico_llama(4)
    torch.nn.init.normal_(target.model.embed_tokens.weight, std=1.0)
    torch.nn.init.normal_(target.lm_head.weight, std=0.3)
    return target


def first_layer(target: LlamaForCausalLM) -> LlamaForCausalLM:
    draft = pico_llama(1)
    draft.load_state_dict(target.state_dict(), strict=False)
    return draft


def save(model: LlamaForCausalLM, folder: Path) -> dict[str, Any]:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w1", eos_token="w0").save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return {"path": str(folder), "sha256": checkpoint_hash(folder), "tokenizer_sha256": tokenizer_hash(folder)}


def serving(target: dict[str, Any], draft: dict[str, Any], **speculation: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "served_model_name": "pico", "target": target, "draft": draft, "max_model_len": 256,
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 3, **speculation},
        "expected": None, "reason": "for a test",
    }  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pairs of the same checkpoints, ``default`` and ``probabilistic``, and prompts."""
    folder = tmp_path_factory.mktemp("pairs")
    model = pico_target()
    draft = save(first_layer(model), folder / "draft")
    target = save(model, folder / "target")
    for name, options in (("default", {}), ("probabilistic", {"draft_sample_method": "probabilistic"})):
        (folder / name).mkdir()
        (folder / name / "serving.json").write_text(json.dumps(serving(target, draft, **options)))
    texts = [" ".join(f"w{(7 * i + 13 * j) % VOCAB}" for j in range(5)) for i in range(1, 9)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def exact(pairs: Path) -> ExactTarget:
    return ExactTarget(pairs / "target")


@contextmanager
def engine(pair: Pair, log_file: Path, **environment: str) -> Iterator[str]:
    settings = EngineSettings(
        model=pair.target, served_model_name="pico", speculative_config=pair.speculative_config, max_model_len=256,
        log_file=log_file, environment=environment,
    )  # fmt: skip
    with LocalEngine(settings) as running:
        yield running.url


def settings_for(folder: Path, **changes: Any) -> VerifySettings:
    return VerifySettings(prompts=folder / "prompts.jsonl", log_folder=folder / "logs", num_samples=2048, **changes)


def sample_and_judge(url: str, pair: Pair, exact: ExactTarget, settings: VerifySettings, temperature: float) -> SampledResult:
    prompt = read_prompted(pair, settings)[0]
    samples = sampled_outputs(url, "pico", prompt, temperature, settings)
    return judge_samples(exact, prompt, temperature, samples, settings)


def test_a_repaired_pair_with_probabilistic_drafting_is_lossless(pairs: Path) -> None:
    report = verify(pairs / "probabilistic", settings_for(pairs, temperatures=(1.0, 0.6)))
    print(*report.lines(), sep="\n")
    assert report.passed
    assert report.greedy.num_prompts == 8
    assert all(result.fit.df > 50 and result.detectable < 0.2 for result in report.sampled)


def test_a_repaired_engine_with_default_drafting_samples_right_and_survives_top_k(pairs: Path, exact: ExactTarget) -> None:
    pair = read_pair(pairs / "default")
    with engine(pair, pairs / "default.log") as url:
        result = sample_and_judge(url, pair, exact, settings_for(pairs), 1.0)
        print(result.line(), check_engine(url, "pico").line(), sep="\n")
        answer = complete(url, {"model": "pico", "prompt": "w5 w6", "top_k": 5, "temperature": 1.0, "max_tokens": 8}, 60)
    assert result.passed
    assert answer["usage"]["completion_tokens"] >= 1


def test_the_engine_as_installed_is_found_out(pairs: Path, exact: ExactTarget) -> None:
    pair = read_pair(pairs / "default")
    with engine(pair, pairs / "installed.log", **{SWITCH: "off"}) as url:
        with pytest.raises(CheckFailed, match="does not sample from the model's distribution") as caught:
            check_engine(url, "pico")
        result = sample_and_judge(url, pair, exact, settings_for(pairs), 1.0)
    print(caught.value, result.line(), sep="\n")
    assert "\n" not in str(caught.value)
    assert not result.passed
