"""The report stands by itself, says what a reader must know, and shows prompts as text."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import pytest

from drafts.blocks import Cell, Condition
from drafts.cells import rows_of
from drafts.client import Answer
from drafts.comparing import add_predictions, failures
from drafts.prompts import Prompt
from drafts.report import drifts, html, verdict
from drafts.table import as_csv
from server.acceptance import AcceptanceRecord
from server.pair import Pair, ServingFile

PROMPTS = [Prompt(kind="code", prompt=f"def f{i}(): <script>{i}") for i in range(4)]
KEYS = {"path": "x", "sha256": "0", "tokenizer_sha256": "0"}


def cells(concurrency: int, temperature: float, draft_s: float) -> list[Cell]:
    condition = Condition("code", concurrency, temperature)

    def answer(place: int, seconds: float, speculation: AcceptanceRecord | None = None) -> Answer:
        return Answer(PROMPTS[place].id, "code", f"out {place} & more", "length", 5, 20, 0.1, seconds, speculation)

    accepted = [AcceptanceRecord(10, 30, a, (10 - a, a, 0, 0)) for a in (9, 1, 5, 7)]
    return [
        Cell("plain", condition, 0, tuple(answer(i, 2.0) for i in range(4)), 8.0),
        Cell("draft", condition, 0, tuple(answer(i, draft_s, accepted[i]) for i in range(4)), 4 * draft_s),
    ]


ALL = [*cells(1, 0.0, 1.0), *cells(1, 1.0, 1.0), *cells(4, 0.0, 2.5)]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    made = rows_of(ALL, str.split)
    predictions = [
        {"kind": "code", "temperature": t, "concurrency": 1, "speedup": s} for t, s in ((0.0, 2.1), (1.0, 1.5))
    ]
    serving = ServingFile.model_validate({
        "schema_version": 1, "served_model_name": "m", "target": KEYS, "max_model_len": 64,
        "expected": {"speedup": 2.0, "predictions": predictions},
    })  # fmt: skip
    add_predictions(made, Pair(file="f", serving=serving, target="t", draft=None))  # type: ignore[arg-type]
    return made


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    cost = {
        "concurrency": 1, "num_speculative_tokens": 3, "verify": 1.1, "verify_low": 1.0, "verify_high": 1.3, "draft": 0.05
    }  # fmt: skip
    return {
        "rows": rows, "settings": {"block_size": 4}, "hardware": {"cpu": "a <cpu>", "cores": 2}, "date": "2026-01-01",
        "choice": {"reason": "because", "costs": [cost]}, "examples": failures(ALL, {p.id: p for p in PROMPTS}),
    }  # fmt: skip


def test_only_what_is_far_from_its_prediction_is_pointed_out(rows: list[dict[str, Any]]) -> None:
    assert drifts(rows) == ["draft, code, T = 1, 1 at a time: predicted 1.50x, served 2.00x"]


def test_the_verdict_names_what_was_faster(rows: list[dict[str, Any]]) -> None:
    assert verdict(rows)[0].startswith("code, greedy, 1 at a time: 2.00x plain")
    assert verdict(rows)[0].endswith("nothing else was faster.")
    faster = [{**row, "method": "ngram", "speedup": 2.2} for row in rows if row["method"] == "draft"]
    assert verdict([*rows, *faster])[0].endswith("ngram was faster: 2.20x.")


def test_of_a_pair_that_decodes_by_suffixes_the_verdict_is_on_that(rows: list[dict[str, Any]]) -> None:
    renamed = [{**row, "method": "suffix"} if row["method"] == "draft" else row for row in rows]
    assert verdict(renamed) == []
    assert verdict(renamed, "suffix") == verdict(rows)
    page = html({**record(renamed), "speculative_config": {"method": "suffix", "num_speculative_tokens": 8}})
    assert "2.00x plain" in page


def test_the_worst_accepted_answers_are_the_examples() -> None:
    found = failures(ALL, {p.id: p for p in PROMPTS})
    assert [(f["temperature"], round(f["mean_acceptance_length"], 1)) for f in found] == [
        (0.0, 1.1),
        (0.0, 1.5),
        (1.0, 1.1),
        (1.0, 1.5),
    ]
    assert found[0]["text"] == "out 1 & more"


def test_the_page_stands_by_itself_and_escapes_what_it_shows(rows: list[dict[str, Any]]) -> None:
    page = html(record(rows))
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"(?:src|href)=.(?!data:)", page)
    assert "<script" not in page
    assert "out 1 &amp; more" in page
    assert "a &lt;cpu&gt;" in page
    assert "because" in page
    for heading in ("Speed-up over plain", "Acceptance", "time of a step", "Looping", "draft fails", "All figures"):
        assert heading in page


def test_a_pair_without_a_draft_has_a_report_too(rows: list[dict[str, Any]]) -> None:
    plain = [row for row in rows if row["method"] == "plain"]
    page = html({**record(plain), "choice": None, "examples": []})
    assert "draft fails" not in page
    assert "All figures" in page


def test_csv_has_every_row(rows: list[dict[str, Any]]) -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert len(read) == len(rows)
    assert {float(row["speedup"]) for row in read} == {row["speedup"] for row in rows}


def test_the_page_says_what_methods_and_columns_are_and_what_to_know_of_the_outputs(rows: list[dict[str, Any]]) -> None:
    judged = {"method": "draft", "prompt_id": "1", "kind": "code", "concurrency": 1, "tie": True}
    more = {
        "trained": {"draft": {"train_seconds": 240.2, "train_tokens": 5}}, "training_prompts": None, "in_turns": False,
        "trained_on": {"draft": True, "sibling": False},
        "sampling_defaults": {"top_k": 20, "top_p": 0.95}, "differing_outputs": [judged], "dtype": "float32",
    }  # fmt: skip
    page = html({**record(rows), **more})
    assert "<dt>draft</dt><dd>the pair as it was chosen, trained for 240 s</dd>" in page
    assert "<dt>plain</dt><dd>the target alone, one token a step</dd>" in page
    assert "<dt>ngram</dt>" not in page, "it was not compared"
    assert "<dt>length</dt>" in page
    assert "1 greedy output (each prompt and method counted once) differ from plain" in page
    assert "1 of them part at a tie of float32" in page
    assert "is among the training prompts of draft (checked)" in page
    assert "Whether sibling has seen these prompts in training was not checked" in page
    assert "sets top_k 20, top_p 0.95 for requests" in page
    assert "one method after the other" in page
    calm = html({**record(rows), **more, "differing_outputs": [], "training_prompts": "hash", "in_turns": True})
    assert "Every greedy output was identical" in calm
    assert "is among the training prompts of draft, sibling (checked)" in calm
    assert "taking turns after every 4 prompts" in calm


def test_of_a_pair_that_is_served_without_a_draft_the_page_says_so(rows: list[dict[str, Any]]) -> None:
    page = html({**record([row for row in rows if row["method"] == "plain"]), "speculative_config": None})
    assert "chosen to be served without a draft" in page
