"""What is said of greedy outputs that are not plain's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drafts import ties
from drafts.ties import describe_differences, judge_differences

RECORD = {"method": "draft", "prompt_id": "1", "kind": "code", "concurrency": 4, "text": "a", "plain_text": "b"}


def compared(differing: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    return {
        "rows": [{"identical_outputs": 0.5}, {"identical_outputs": None}],
        "differing_outputs": differing,
        "dtype": dtype,
    }


def test_a_target_that_does_not_fit_into_memory_is_not_loaded_to_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    monkeypatch.setattr(ties, "hardware", lambda: {"memory_gib": 5999 / 2**30})
    judged = judge_differences(tmp_path, [RECORD], {}, None, "bfloat16")
    kept = {key: value for key, value in RECORD.items() if "text" not in key}
    assert judged == [{**kept, "tie": None, "judged": False}]
    assert "whether at ties was not judged" in describe_differences(compared(judged, "bfloat16"))
    monkeypatch.setattr(ties, "hardware", lambda: {"memory_gib": 6001 / 2**30})
    assert ties.fits(tmp_path)


def test_ties_are_told_from_other_differences() -> None:
    judged = [{"tie": True}, {"tie": False}, {"tie": None}]
    said = describe_differences(compared(judged, "float32"))
    assert said.startswith(
        "3 greedy outputs (each prompt and method counted once) differ from plain's; 1 of them part at a tie"
    )
    assert describe_differences(compared([], "float32")) == "Every greedy output was identical to plain's."


def test_nothing_is_said_of_greedy_outputs_where_none_were_asked_for() -> None:
    record = {"rows": [{"identical_outputs": None}], "differing_outputs": [], "dtype": "float32"}
    assert "Nothing was asked greedily" in describe_differences(record)
