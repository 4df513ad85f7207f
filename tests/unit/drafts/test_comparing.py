from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drafts import methods
from drafts.comparing import CompareSettings, blocks_for, methods_of, sampling_defaults, trained
from drafts.prompts import Prompt
from server.pair import Pair, ServingFile
from stages.errors import InputError

KEYS = {"path": "x", "sha256": "0", "tokenizer_sha256": "0"}


def pair(config: dict[str, Any] | None) -> Pair:
    serving = ServingFile.model_validate({
        "schema_version": 1, "served_model_name": "m", "target": KEYS, "max_model_len": 64,
        "draft": KEYS if config else None, "speculative_config": config,
    })  # fmt: skip
    return Pair(file=Path("f"), serving=serving, target=Path("t"), draft=Path("/the/draft") if config else None)


DRAFTED = pair({"method": "draft_model", "num_speculative_tokens": 3, "draft_sample_method": "probabilistic"})


@pytest.mark.parametrize("installed", [True, False])
def test_free_competitors_stand_beside_the_draft(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "suffix_installed", lambda: installed)
    names = [method.name for method in methods_of(DRAFTED, {})]
    assert names == ["plain", "ngram", *(["suffix"] if installed else []), "draft"]
    assert "draft" not in [method.name for method in methods_of(pair(None), {})]


def test_a_pair_that_decodes_by_suffixes_is_compared_under_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"method": "suffix", "num_speculative_tokens": 5}
    made = pair(config).model_copy(update={"draft": None})
    monkeypatch.setattr(methods, "suffix_installed", lambda: True)
    found = methods_of(made, {})
    assert [method.name for method in found] == ["plain", "ngram", "suffix"]
    assert found[-1].speculative_config == config
    monkeypatch.setattr(methods, "suffix_installed", lambda: False)
    with pytest.raises(InputError, match="arctic-inference, is not installed"):
        methods_of(made, {})


def test_another_draft_is_served_as_the_pairs_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    by_name = {method.name: method.speculative_config for method in methods_of(DRAFTED, {"sibling": tmp_path})}
    assert by_name["sibling"] == {**DRAFTED.speculative_config, "model": str(tmp_path)}  # type: ignore[dict-item]


@pytest.mark.parametrize("chosen", [True, False])
def test_a_draft_that_can_propose_in_one_pass_is_compared_in_both_ways(tmp_path: Path, chosen: bool) -> None:
    (tmp_path / "config.json").write_text('{"pard_token": 7}')
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    way = {"parallel_drafting": True} if chosen else {}
    made = pair({"method": "draft_model", "num_speculative_tokens": 3, **way})
    found = methods_of(made.model_copy(update={"draft": tmp_path}), {"sibling": plain})
    configs = {method.name: method.speculative_config or {} for method in found}
    assert bool(configs["draft"].get("parallel_drafting")) == chosen
    other = configs["draft_sequential" if chosen else "draft_parallel"]
    assert bool(other.get("parallel_drafting")) != chosen
    assert "parallel_drafting" not in configs["sibling"]


def test_a_draft_for_one_pass_can_stand_beside_a_pair_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="was not trained to propose tokens in one pass"):
        methods_of(DRAFTED, {"draft_parallel": tmp_path})
    (tmp_path / "config.json").write_text('{"pard_token": 7}')
    schedule = {"num_speculative_tokens_per_batch_size": [[1, 2, 3], [3, 4, 1], [5, 8, 0]]}
    scheduled = pair({**DRAFTED.serving.speculative_config, **schedule})  # type: ignore[dict-item]
    configs = {m.name: m.speculative_config or {} for m in methods_of(scheduled, {"draft_parallel": tmp_path})}
    at_once, one_by_one = (
        configs[name]["num_speculative_tokens_per_batch_size"] for name in ("draft_parallel", "draft")
    )
    assert (at_once, one_by_one) == (
        [[1, 2, 3], [3, 4, 3], [5, 8, 0]],
        schedule["num_speculative_tokens_per_batch_size"],
    )
    assert configs["draft_parallel"]["parallel_drafting"] is True
    assert "parallel_drafting" not in configs["draft"]
    (tmp_path / "run.json").write_text('{"settings": {"parallel_tokens": 2}}')
    (fewer,) = (
        m.speculative_config or {}
        for m in methods_of(scheduled, {"draft_parallel": tmp_path})
        if m.name == "draft_parallel"
    )
    assert (fewer["num_speculative_tokens"], fewer["num_speculative_tokens_per_batch_size"]) == (
        2, [[1, 2, 2], [3, 4, 2], [5, 8, 0]]
    ), "more than it was trained for"  # fmt: skip
    own = pair({"method": "draft_model", "num_speculative_tokens": 3}).model_copy(update={"draft": tmp_path})
    with pytest.raises(InputError, match="is the pair's own draft"):
        methods_of(own, {"draft_parallel": tmp_path})


def test_a_draft_can_be_served_with_greedy_drafting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    configs = {m.name: m.speculative_config or {} for m in methods_of(DRAFTED, {"draft_greedy": tmp_path})}
    assert configs["draft_greedy"]["draft_sample_method"] == "greedy"
    assert configs["draft"]["draft_sample_method"] == "probabilistic"


def test_more_prompts_are_taken_where_many_are_asked_at_a_time() -> None:
    prompts = [Prompt(prompt=str(i), kind="code") for i in range(12)]
    settings = CompareSettings(
        prompts_per_kind=2, concurrencies=(1, 4), rates=(3.0,), temperatures=(0.0,), waves=2, repeats=1
    )
    found = [(b.condition.concurrency, b.condition.rate, len(b.prompts)) for b in blocks_for(prompts, settings)]
    assert found == 2 * [(1, None, 2)] + 2 * [(4, None, 8)] + 2 * [(4, 3.0, 2)]
    everything = CompareSettings(concurrencies=(1, 4), temperatures=(0.0,))
    assert all(len(block.prompts) == 12 for block in blocks_for(prompts, everything))


def test_other_drafts_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no draft"):
        methods_of(DRAFTED, {"sibling": tmp_path})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="'ngram' is the name of a method"):
        methods_of(DRAFTED, {"ngram": tmp_path})


def test_other_drafts_are_compared_with_a_pair_that_has_none_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = {method.name: method.speculative_config for method in methods_of(pair(None), {"sibling": tmp_path}, 3)}
    config = found["sibling"]
    assert config is not None
    assert (config["method"], config["model"], config["num_speculative_tokens"]) == ("draft_model", str(tmp_path), 3)
    assert "draft" not in found


def test_what_the_target_sets_for_requests_that_say_nothing_is_told(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path, ()) == {}
    (tmp_path / "generation_config.json").write_text(
        '{"top_k": 20, "top_p": 1.0, "repetition_penalty": 1.1, "eos_token_id": 2}'
    )
    assert sampling_defaults(tmp_path, ()) == {"top_k": 20, "repetition_penalty": 1.1}
    assert sampling_defaults(tmp_path, ("--generation-config", "vllm")) == {}


def test_what_a_draft_was_trained_for_is_read_where_it_is_known(tmp_path: Path) -> None:
    assert trained(tmp_path) == {"train_seconds": None, "train_tokens": None}
    (tmp_path / "run.json").write_text('{"position": {"seconds": 240.3, "tokens": 9500}}')
    assert trained(tmp_path) == {"train_seconds": 240.3, "train_tokens": 9500}
