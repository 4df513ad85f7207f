"""Joins what `make results-draft` measured into draft.json: ``python -m benchmarks.draft LEVERS.yaml SWEEP.json COMPARISON.json``.

A lever's rows come from ``understudy sweep``, which judges without an engine: they have acceptance, but no served speed. The
comparison's rows have both.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from drafts.methods import own_name
from drafts.predicting import answered_sooner
from drafts.sweeping import Sweep
from stages.errors import InputError
from stages.folders import write_text
from stages.provenance import read
from stages.settings import read_yaml

SPENT = ("train_seconds", "train_tokens")

FILE = Path(__file__).parent / "draft.json"


def lever_rows(sweep: list[dict[str, Any]], record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each lever, kind and temperature, with as many draft tokens as the comparison served at one request.

    ``predicted_speedup`` is given for drafts of the served one's shape: theirs is the cost of a draft token that was measured.
    """
    tokens = (record["speculative_config"] or {}).get("num_speculative_tokens") or 1
    plain = [row for row in sweep if not row["settings"]]
    if not plain:
        raise InputError(
            "the sweep has no lever without settings, which is the recipe itself; add one, e.g. recipe: {}"
        )
    shape = _shape(plain[0])
    rows = []
    for row in sweep:
        known = _shape(row) == shape
        one_by_one = "sibling" if _from_scratch(row) else "draft"
        judged = [(one_by_one, found, found["acceptance_lengths"]) for found in row["figures"]]
        judged += [("draft_parallel", f, f["parallel_lengths"]) for f in row["figures"] if f.get("parallel_lengths")]
        for method, found, lengths in judged:
            length = lengths[min(tokens, len(lengths)) - 1]
            own = known and method != "draft_parallel"
            predicted = _expected(record, found["kind"], found["temperature"], length, tokens) if own else None
            rows.append({
                "lever": row["lever"], "method": method,
                "kind": found["kind"], "temperature": found["temperature"], "concurrency": 1,
                "num_speculative_tokens": tokens, "mean_acceptance_length": length,
                "acceptance_rate": (length - 1) / tokens, "overlap": found["overlap"], "agreement": found["agreement"],
                "acceptance_lengths": list(lengths),
                "greedy_drafting_lengths": None if method == "draft_parallel" else found["greedy_drafting_lengths"],
                "num_positions": found["positions"],
                "kept_layers": row["kept_layers"], "train_seconds": row["train_seconds"], "train_tokens": row["train_tokens"],
                "predicted_speedup": predicted, "speedup": None,
            })  # fmt: skip
    return rows


def _expected(record: dict[str, Any], kind: str, temperature: float, length: float, tokens: int) -> float | None:
    """The speed-up at one request of a draft that costs what the served one does, as ``drafts.predicting`` has it.

    First tokens and the answers' length are those that the comparison served.
    """
    step = _step(record, tokens)
    place = (kind, temperature, 1, None)
    served = {
        row["method"]: row
        for row in record["rows"]
        if (row["kind"], row["temperature"], row["concurrency"], row.get("rate")) == place
    }
    if step is None or "plain" not in served or "draft" not in served:
        return None
    plain, first = served["plain"], served["draft"]["ttft_s"]
    later = plain["output_tokens"] / (plain["num_prompts"] * plain["repeats"]) - 1
    token = plain["tpot_s"]
    return answered_sooner(later, length, (token, plain["ttft_s"]), (step * token, first))


def _from_scratch(row: dict[str, Any]) -> bool:
    return bool(row["settings"].get("recover", {}).get("from_scratch"))


def _shape(row: dict[str, Any]) -> tuple[int, Any]:
    """What a draft costs by: layers, and width of their MLPs."""
    return len(row["kept_layers"]), row["settings"].get("prune", {}).get("mlp_width")


def _step(record: dict[str, Any], tokens: int) -> float | None:
    """A speculative step at one request in plain steps, from the costs that ``choose`` read; None where it has none."""
    costs = [cost for cost in (record["choice"] or {}).get("costs", []) if cost["concurrency"] == 1]
    return costs[0]["steps"][min(tokens, len(costs[0]["steps"])) - 1] if costs else None


SWEPT = {"draft": "recipe", "draft_parallel": "in one pass"}
"""Levers whose drafts are served, by the method's name in draft.json: trained on the sweep's budget."""
BUILT = {"chosen": "the reference build", "draft_greedy": "the reference build", "sibling": "from scratch, as long"}
"""Drafts with the reference build's budget that are served, by the method's name in draft.json."""
NAMES = {"recipe": "draft", "draft": "chosen"}
"""The comparison's names that are others in draft.json: the pair that was built is what ``choose`` chose."""


def chosen_name(config: dict[str, Any] | None) -> str:
    """The comparison's name of what ``choose`` chose."""
    return "plain" if config is None else own_name(config)


def spent_on(method: str, config: dict[str, Any] | None, others: dict[str, str]) -> dict[str, Any]:
    """What the training of a draft of the build's budget took; nothing where none is served under that name.

    Args:
        config: of the pair; what it drafts with is ``chosen``.
        others: folders of the other drafts by the comparison's name.
    """
    folder = (config or {}).get("model") if method == "chosen" else others.get(method)
    if folder is None:
        return {}
    position = (read(Path(folder)) or {}).get("position", {})
    return {"lever": BUILT[method], "train_seconds": position.get("seconds"), "train_tokens": position.get("tokens")}


def joined(sweep: list[dict[str, Any]], record: dict[str, Any]) -> dict[str, Any]:
    """The content of draft.json; what was chosen stands there as ``chosen``, beside its own name where it is no draft."""
    spent, judged = {row["lever"]: row for row in sweep}, lever_rows(sweep, record)
    expected = {(row["lever"], row["kind"], row["temperature"]): row["predicted_speedup"] for row in judged}
    config = record["speculative_config"]
    taken = chosen_name(config)
    served = []
    for row in record["rows"]:
        named = [NAMES.get(row["method"], row["method"])]
        named += ["chosen"] if row["method"] == taken and taken != "draft" else []
        for method in named:
            others = record["settings"].get("drafts", {})
            trained = spent_on(method, config, others) if method in BUILT else spent.get(SWEPT.get(method, ""), {})
            found = {key: trained.get(key) for key in ("lever", *SPENT)}
            alone = (row["concurrency"], row.get("rate")) == (1, None)
            if alone and row["predicted_speedup"] is None:
                found["predicted_speedup"] = expected.get((SWEPT.get(method), row["kind"], row["temperature"]))
            served.append({**row, "method": method, **found})
    kept = (
        "settings",
        "inputs",
        "speculative_config",
        "versions",
        "hardware",
        "date",
        "git_revision",
        "choice",
        "enforce_eager",
    )
    return {"rows": [*judged, *served], **{key: record[key] for key in kept}}


def trained_on(sweep: list[dict[str, Any]]) -> dict[str, Any]:
    """Machine and day of a lever's training, which need not be those of the comparison: a sweep is resumed where it stopped."""
    made = read(Path(sweep[0]["draft"])) or {}
    return {key: made.get(key) for key in ("hardware", "date", "git_revision")}


def main(arguments: list[str]) -> None:
    """Reads the sweep's file, what it gave, and the comparison; writes draft.json beside this module."""
    file, *measured = map(Path, arguments)
    sweep, record = (json.loads(path.read_text(encoding="utf-8")) for path in measured)
    asked = read_yaml(file, Sweep).model_dump(mode="json", exclude={"levers"})
    write_text(FILE, json.dumps({**joined(sweep, record), "sweep": asked | trained_on(sweep)}, indent=1) + "\n")
    print(f"{FILE.parent.name}/{FILE.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
