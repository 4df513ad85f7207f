"""Joins what `make results-draft` measured into draft.json: ``python -m benchmarks.draft LEVERS.yaml SWEEP COMPARISON SHAPES``.

A lever's rows come from ``understudy sweep``, which judges without an engine: they have acceptance. Speed they have where the
second comparison served them, one lever of each shape.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from drafts.comparing import IN_ONE_PASS
from drafts.methods import own_name
from drafts.predicting import answered_sooner
from drafts.sweeping import Sweep, slug
from stages.folders import write_text
from stages.provenance import read
from stages.settings import read_yaml

SPENT = ("train_seconds", "train_tokens")

FILE = Path(__file__).parent / "draft.json"


def lever_rows(sweep: list[dict[str, Any]], record: dict[str, Any], shapes: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each lever, kind and temperature, with as many draft tokens as the comparison served at one request.

    ``speedup`` is given for the levers that ``shapes`` served, one of each shape, ``predicted_speedup`` for all that have such a
    shape: what a step with them costs is known from there.
    """
    tokens = tokens_at_one(record)
    served, rows = served_levers(sweep, shapes), []
    names = {_shape(row): name for row in sweep if (name := served.get(row["lever"])) not in (None, IN_ONE_PASS)}
    for row in sweep:
        one_by_one = "sibling" if _from_scratch(row) else "draft"
        judged = [(one_by_one, found, found["acceptance_lengths"], names.get(_shape(row))) for found in row["figures"]]
        judged += [
            (IN_ONE_PASS, f, f["parallel_lengths"], IN_ONE_PASS) for f in row["figures"] if f.get("parallel_lengths")
        ]
        for method, found, lengths, alike in judged:
            length = lengths[min(tokens, len(lengths)) - 1]
            beside = _alone(shapes, found["kind"], found["temperature"])
            own = served.get(row["lever"]) == alike and alike in beside
            rows.append({
                "lever": row["lever"], "method": method,
                "kind": found["kind"], "temperature": found["temperature"], "concurrency": 1,
                "num_speculative_tokens": tokens, "mean_acceptance_length": length,
                "acceptance_rate": (length - 1) / tokens, "overlap": found["overlap"], "agreement": found["agreement"],
                "acceptance_lengths": list(lengths),
                "greedy_drafting_lengths": None if method == IN_ONE_PASS else found["greedy_drafting_lengths"],
                "num_positions": found["positions"],
                "kept_layers": row["kept_layers"], "train_seconds": row["train_seconds"], "train_tokens": row["train_tokens"],
                "predicted_speedup": _expected(beside, alike, length), "speedup": beside[alike]["speedup"] if own else None,
            })  # fmt: skip
    return rows


def served_levers(sweep: list[dict[str, Any]], shapes: dict[str, Any]) -> dict[str, str]:
    """Names in the comparison of shapes by lever; they are told by the folders that the sweep gave its drafts."""
    names = {Path(folder).name: name for name, folder in shapes["settings"]["drafts"].items()}
    return {row["lever"]: names[slug(row["lever"])] for row in sweep if slug(row["lever"]) in names}


def _alone(record: dict[str, Any], kind: str, temperature: float) -> dict[str, dict[str, Any]]:
    """A comparison's rows of one request at a time, by method."""
    place = (kind, temperature, 1, None)
    return {
        row["method"]: row
        for row in record["rows"]
        if (row["kind"], row["temperature"], row["concurrency"], row.get("rate")) == place
    }


def step_in_plain_steps(row: dict[str, Any], plain: dict[str, Any]) -> float:
    """A served draft's step over plain's, at one request: a step brings as many tokens as the acceptance length says."""
    return float(row["tpot_s"] * row["mean_acceptance_length"] / plain["tpot_s"])


def _expected(beside: dict[str, dict[str, Any]], alike: str | None, length: float) -> float | None:
    """The speed-up at one request of a draft that costs what one of its shape did, as ``drafts.predicting`` has it.

    Args:
        beside: what was served, by method: steps, first tokens and the answers' length are theirs.
        alike: the one of its shape.
    """
    if alike not in beside or "plain" not in beside:
        return None
    plain, own = beside["plain"], beside[alike]
    later = plain["output_tokens"] / (plain["num_prompts"] * plain["repeats"]) - 1
    token = plain["tpot_s"]
    step = step_in_plain_steps(own, plain) * token
    return answered_sooner(later, length, (token, plain["ttft_s"]), (step, own["ttft_s"]))


def _from_scratch(row: dict[str, Any]) -> bool:
    return bool(row["settings"].get("recover", {}).get("from_scratch"))


def _shape(row: dict[str, Any]) -> tuple[int, Any]:
    """What a draft costs by: layers, and width of their MLPs."""
    return len(row["kept_layers"]), row["settings"].get("prune", {}).get("mlp_width")


SWEPT = {"draft": "recipe"}
"""Levers whose drafts are served, by the method's name in draft.json: trained on the sweep's budget."""
BUILT = {
    "chosen": "the reference build", "draft_greedy": "the reference build", "sibling": "from scratch, as long",
    IN_ONE_PASS: "in one pass, as long",
}  # fmt: skip
"""Drafts with the reference build's budget that are served, by the method's name in draft.json."""
NAMES = {"recipe": "draft", "draft": "chosen"}
"""The comparison's names that are others in draft.json: the pair that was built is what ``choose`` chose."""


def chosen_name(config: dict[str, Any] | None) -> str:
    """The comparison's name of what ``choose`` chose."""
    return "plain" if config is None else own_name(config)


def spent_on(method: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the training of a draft of the build's budget took; nothing where none is served under that name."""
    name = "draft" if method in ("chosen", "draft_greedy") else method
    spent = record.get("trained", {}).get(name)
    return {"lever": BUILT[method], **spent} if spent else {}


def tokens_at_one(record: dict[str, Any]) -> int:
    """Draft tokens that drafts were served with at one request."""
    config = record["speculative_config"] or {}
    if config.get("method") != "draft_model":
        return int(record["settings"]["num_speculative_tokens"])
    schedule = config.get("num_speculative_tokens_per_batch_size", [])
    own = [tokens for low, high, tokens in schedule if low <= 1 <= high]
    return int(own[0] if own else config["num_speculative_tokens"])


def joined(sweep: list[dict[str, Any]], record: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """The content of draft.json; what was chosen stands there as ``chosen``, beside its own name where it is no draft.

    Args:
        sweep: what ``understudy sweep`` gave.
        record: the comparison.
        shapes: a comparison at one request of levers whose drafts have different shapes.
    """
    spent, judged = {row["lever"]: row for row in sweep}, lever_rows(sweep, record, shapes)
    expected = {(row["lever"], row["kind"], row["temperature"]): row["predicted_speedup"] for row in judged}
    config = record["speculative_config"]
    taken = chosen_name(config)
    served = []
    for row in record["rows"]:
        named = [NAMES.get(row["method"], row["method"])]
        named += ["chosen"] if row["method"] == taken and taken != "draft" else []
        for method in named:
            trained = spent_on(method, record) if method in BUILT else spent.get(SWEPT.get(method, ""), {})
            found = {key: trained.get(key) for key in ("lever", *SPENT)}
            alone = (row["concurrency"], row.get("rate")) == (1, None)
            if alone and row["predicted_speedup"] is None:
                found["predicted_speedup"] = expected.get((SWEPT.get(method), row["kind"], row["temperature"]))
            served.append({**row, "method": method, **found})
    kept = (
        "settings", "inputs", "speculative_config", "versions", "hardware", "date", "git_revision", "choice", "enforce_eager",
    )  # fmt: skip
    folders = {name: lever for lever, name in served_levers(sweep, shapes).items()}
    of_shapes = [{**row, "lever": folders.get(row["method"])} for row in shapes["rows"]]
    return {"rows": [*judged, *served], "shapes": of_shapes, **{key: record[key] for key in kept}}


def trained_on(sweep: list[dict[str, Any]]) -> dict[str, Any]:
    """Machine and day of a lever's training, which need not be those of the comparison: a sweep is resumed where it stopped."""
    made = read(Path(sweep[0]["draft"])) or {}
    return {key: made.get(key) for key in ("hardware", "date", "git_revision")}


def longer(record: dict[str, Any]) -> dict[str, Any]:
    """A comparison whose answers are long enough to loop, with what was chosen under that name."""
    rows = [{**row, "method": NAMES.get(row["method"], row["method"])} for row in record["rows"]]
    return {"rows": rows, **{key: record[key] for key in ("settings", "date", "git_revision")}}


def main(arguments: list[str]) -> None:
    """Reads the sweep's file, what it gave, and three comparisons; writes draft.json beside this module."""
    file, *measured = map(Path, arguments)
    sweep, record, shapes, long = (json.loads(path.read_text(encoding="utf-8")) for path in measured)
    asked = read_yaml(file, Sweep).model_dump(mode="json", exclude={"levers"})
    found = {**joined(sweep, record, shapes), "long": longer(long), "sweep": asked | trained_on(sweep)}
    write_text(FILE, json.dumps(found, indent=1) + "\n")
    print(f"{FILE.parent.name}/{FILE.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
