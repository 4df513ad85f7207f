"""The comparison as one self-contained HTML page: what was gained, with what spread, why, and where the draft fails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, BinaryIO

from drafts.methods import own_name
from drafts.pictures import draw_acceptance, draw_by_concurrency, draw_comparison, draw_costs
from drafts.table import HEADS, in_order, table_cells
from drafts.ties import describe_differences

DRIFT = 0.10
"""Served and predicted speed-ups that differ by more than this share are pointed out."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p.lead { font-size: 1.1rem } .note { color: #5c6773; font-size: .9rem }
img { max-width: 100% } table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e2e6ea; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.first td { border-top: 2px solid #b8c0c8 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .9rem }
dt { font-weight: 600 } dd { margin: 0 }
pre { background: #f5f7f9; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem }
"""


def _image(draw: Callable[[BinaryIO], None], text: str) -> str:
    """A picture inside the page; ``text`` says what it shows."""
    file = io.BytesIO()
    draw(file)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(text, quote=True)}" src="data:image/png;base64,{data}">'


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part)


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _where(row: dict[str, Any]) -> str:
    """The condition of a row in words."""
    drawn = "greedy" if row["temperature"] == 0 else f"T = {row['temperature']:g}"
    loaded = f"{row['rate']:g} arrivals a second" if row.get("rate") else f"{row['concurrency']} at a time"
    return f"{row['kind']}, {drawn}, {loaded}"


def verdict(rows: Sequence[dict[str, Any]], method: str = "draft") -> list[str]:
    """One sentence for each condition at the lowest concurrency: how ``method`` did, and what did best."""
    lowest = min(row["concurrency"] for row in rows)
    found = []
    for row in rows:
        if row["method"] != method or row["concurrency"] != lowest or row.get("rate"):
            continue
        same = [other for other in rows if _where(other) == _where(row)]
        best = max(same, key=lambda other: other["speedup"])
        ahead = "nothing else was faster" if best is row else f"{best['method']} was faster: {best['speedup']:.2f}x"
        spread = f"{row['speedup_low']:.2f} to {row['speedup_high']:.2f} over turns"
        found.append(f"{_where(row)}: {row['speedup']:.2f}x plain ({spread}); {ahead}.")
    return found


def drifts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where the served speed-up is not what was predicted."""
    found = []
    for row in rows:
        predicted = row.get("predicted_speedup")
        if predicted and abs(row["speedup"] / predicted - 1) > DRIFT:
            found.append(f"{row['method']}, {_where(row)}: predicted {predicted:.2f}x, served {row['speedup']:.2f}x")
    return found


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in HEADS)
    lines, before = [], ""
    for row in in_order(rows):
        cells = "".join(f"<td>{escape(text)}</td>" for text in table_cells(row))
        lines.append(f'<tr class="{"first" if _where(row) != before else ""}">{cells}</tr>')
        before = _where(row)
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>"


METHODS = {
    "plain": "the target alone, one token a step",
    "ngram": "no draft: proposes what followed the same few tokens earlier in prompt and answer",
    "suffix": "no draft: proposes what followed the longest match in this or an earlier answer; its memory is empty at first",
    "draft": "the pair as it was chosen",
    "draft_parallel": "a draft that proposes all its tokens in one pass",
    "draft_sequential": "the pair's draft, one token after another",
    "draft_greedy": "a draft that proposes its likeliest tokens at any temperature",
    "sibling": "a small model that was not cut out of the target",
}  # fmt: skip
"""What the methods are, for whoever has not read the documentation."""

COLUMNS = {
    "T": "temperature; 0 is greedy",
    "ttft ms": "time to the first token, median",
    "speed-up": "over plain in the same turns, in brackets the range of single turns",
    "predicted": "what was expected when the pair was chosen",
    "w/o loops": "the speed-up without prompts whose output repeats itself",
    "accept.": "share of draft tokens that the target accepts",
    "length": "tokens that a step with draft tokens brings on average, the target's own included",
    "identical": "greedy outputs that are plain's, letter for letter",
    "looping": "outputs that repeat themselves",
}
"""What the columns of the table are."""


def _terms(meanings: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in meanings.items())
    return f"<dl>{lines}</dl>"


def _methods(record: dict[str, Any]) -> dict[str, str]:
    """What each method of the comparison is, and how long its draft was trained."""
    trained, found = record.get("trained", {}), {}
    for name in dict.fromkeys(row["method"] for row in in_order(record["rows"])):
        spent = trained.get(name, {})
        training = f", trained for {spent['train_seconds']:,.0f} s" if spent.get("train_seconds") else ""
        found[name] = METHODS.get(name, "another draft of the target, given to this comparison") + training
    return found


def _caveats(record: dict[str, Any]) -> list[str]:
    """What a reader should know of the outputs: differences from plain, unseen prompts, the target's own sampling parameters."""
    found = []
    if "differing_outputs" in record:
        found.append(describe_differences(record))
    if lists := record.get("trained_on"):
        found.append(_seen(record["training_prompts"], lists))
    if record.get("sampling_defaults"):
        told = ", ".join(f"{name} {value:g}" for name, value in record["sampling_defaults"].items())
        found.append(
            f"The target's generation_config.json sets {told} for requests that do not say otherwise, as here."
        )
    return found


def _seen(file: str | None, lists: dict[str, bool]) -> str:
    """Whether drafts have seen the prompts in training, as far as that was checked."""
    unknown = [] if file is not None else [name for name, has in lists.items() if not has]
    checked = "No prompt, and no file that prompts were made from, is among the training prompts of {} (checked)."
    unchecked = (
        "Whether {} has seen these prompts in training was not checked: no list lies beside it, and no --training-prompts were "
        "given."
    )
    known = [name for name in lists if name not in unknown]
    told = [line.format(", ".join(names)) for line, names in ((checked, known), (unchecked, unknown)) if names]
    return " ".join(told)


def _loops(rows: Sequence[dict[str, Any]]) -> str:
    """Share of looping outputs by kind and temperature, for the plain target."""
    plain = [row for row in rows if row["method"] == "plain"]
    shares = dict.fromkeys((row["kind"], row["temperature"]) for row in plain)
    parts = []
    for kind, temperature in shares:
        same = [row for row in plain if (row["kind"], row["temperature"]) == (kind, temperature)]
        share = sum(row["looping_outputs"] for row in same) / len(same)
        parts.append(f"{kind} at T = {temperature:g}: {share:.0%}")
    return "; ".join(parts)


def _examples(examples: Sequence[dict[str, Any]]) -> list[str]:
    parts = []
    for example in examples:
        caption = (
            f"{example['kind']}, T = {example['temperature']:g}: mean acceptance length {example['mean_acceptance_length']:.2f} "
            f"over {example['num_drafts']} steps"
        )
        parts += [
            _paragraph(caption, "note"),
            f"<pre>{escape(example['prompt'])}<b>{escape(example['text'])}</b></pre>",
        ]
    return parts


def _lead(record: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What comes of it in a few sentences."""
    if "speculative_config" in record and record["speculative_config"] is None:
        return ["The pair was chosen to be served without a draft: its speed is plain's."]
    return verdict(rows, own_name(record.get("speculative_config")))


def html(record: dict[str, Any]) -> str:
    """The page for what ``compare`` wrote.

    Args:
        record: rows, settings, hardware; with ``choice`` (what ``choose`` decided) where the pair has it.
    """
    rows = in_order(record["rows"])
    choice = record.get("choice") or {}
    drifted = drifts(rows)
    costs = choice.get("costs") or []
    drafted = any(sum(row["acceptance_histogram"]) for row in rows if row["method"] != "ngram")
    hardware, size = record["hardware"], record["settings"]["block_size"]
    turn = "prompt" if size == 1 else f"{size} prompts"
    in_turns = record.get("in_turns", True)
    order = f"methods taking turns after every {turn}" if in_turns else "one method after the other"
    body = [
        "<h1>What the draft gains</h1>",
        _paragraph(
            f"{record['date']}, {hardware['cpu']}, {hardware['cores']} cores. Through the gateway, {order}, computing in "
            f"{record.get('dtype', 'bfloat16')}.", "note",
        ),
        *(_paragraph(line, "lead") for line in _lead(record, rows)),
        _section(
            "Speed-up over plain decoding",
            _image(lambda file: draw_comparison(rows, file), "speed-up by method, kind and concurrency"),
            _image(lambda file: draw_by_concurrency(rows, file), "speed-up over requests at a time"),
            _paragraph(
                "Output tokens per second over plain's in the same run; lines span the turns. Under a given rate of "
                "arrivals: the time of requests for each output token, plain's over the method's.", "note",
            ),
            _paragraph(f"More than {DRIFT:.0%} from the prediction: {'; '.join(drifted)}.") if drifted else "",
        ),
        _section(
            "Acceptance",
            _image(lambda file: draw_acceptance(rows, file), "share of steps that accept each draft position"),
            _paragraph("A draft token counts only if all before it were accepted.", "note"),
        ) if drafted else "",
        _section(
            "Where the time of a step goes",
            _image(lambda file: draw_costs(costs, file), "cost of checking and of drafting, in plain steps"),
            _paragraph(
                "In plain steps at the same number of requests: v is a step that checks the draft tokens without having to "
                "draft them, c one draft token. Measured when the pair was chosen.", "note",
            ),
        ) if costs else "",
        _section("The choice", _paragraph(choice["reason"])) if choice else "",
        _section("Looping outputs", _paragraph(
            f"Outputs that repeat themselves are easy to draft. Share of the target's own: {_loops(rows)}. "
            "The column w/o loops leaves those prompts out."
        )),
        _section("Where the draft fails", *_examples(record["examples"])) if record.get("examples") else "",
        _section("Outputs and prompts", *map(_paragraph, caveats)) if (caveats := _caveats(record)) else "",
        _section("Methods", _terms(_methods(record))),
        _section("All figures", _table(rows), _terms(COLUMNS)),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>What the draft gains</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )
