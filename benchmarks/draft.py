"""Joins what `make results-draft` measured into draft.json.

``python -m benchmarks.draft LEVERS.yaml BUILD MEASURED SWEEP COMPARISON SHAPES LONG``. A lever's rows come from ``understudy
sweep``, which judges without an engine: they have acceptance. Speed they have where the second comparison served them, one lever
of each shape.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from drafts.comparing import GREEDILY, IN_ONE_PASS
from drafts.measurements import Measurements
from drafts.methods import own_name
from drafts.pairing import read_measurements
from drafts.predicting import answered_sooner, cost_split, plain_cost, step_seconds
from drafts.sweeping import Sweep, slug
from pruning.checkpoint import load_config
from pruning.sizes import sizes
from stages.folders import write_text
from stages.provenance import read
from stages.settings import read_yaml

SPENT = ("train_seconds", "train_tokens")

FILE = Path(__file__).parent / "draft.json"


def lever_rows(
    sweep: list[dict[str, Any]], record: dict[str, Any], shapes: dict[str, Any], measured: Measurements | None = None
) -> list[dict[str, Any]]:
    """A row for each lever, kind and temperature, with as many draft tokens as the comparison served at one request.

    ``speedup`` is given for the levers that ``shapes`` served, one of each shape; ``predicted_speedup`` for all that propose one
    token after another, from ``measured`` and what they weigh.
    """
    tokens, served, rows = tokens_at_one(record), served_levers(sweep, shapes), []
    for row in sweep:
        one_by_one = "sibling" if _from_scratch(row) else "draft"
        judged = [(one_by_one, found, found["acceptance_lengths"]) for found in row["figures"]]
        judged += [(IN_ONE_PASS, f, f["parallel_lengths"]) for f in row["figures"] if f.get("parallel_lengths")]
        for method, found, lengths in judged:
            own_tokens = min(tokens, len(lengths))
            length = lengths[own_tokens - 1]
            name = served.get(row["lever"])
            beside = _alone(shapes, found["kind"], found["temperature"])
            own = name in beside and (name == IN_ONE_PASS) == (method == IN_ONE_PASS)
            predicted = None
            if measured and method != IN_ONE_PASS and "weight" in row:
                predicted = expected(measured, found["kind"], length, own_tokens, row["weight"])
            rows.append({
                "lever": row["lever"], "method": method,
                "kind": found["kind"], "temperature": found["temperature"], "concurrency": 1,
                "num_speculative_tokens": own_tokens, "mean_acceptance_length": length,
                "acceptance_rate": (length - 1) / own_tokens, "overlap": found["overlap"], "agreement": found["agreement"],
                "acceptance_lengths": list(lengths),
                "greedy_drafting_lengths": None if method == IN_ONE_PASS else found["greedy_drafting_lengths"],
                "num_positions": found["positions"],
                "kept_layers": row["kept_layers"], "train_seconds": row["train_seconds"], "train_tokens": row["train_tokens"],
                "predicted_speedup": predicted, "speedup": beside[name]["speedup"] if own else None,
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


def expected(measured: Measurements, kind: str, length: float, tokens: int, weight: float) -> float | None:
    """The speed-up at one request that a draft should have, before it is served: by the formula of ``drafts.predicting``.

    Args:
        measured: what ``measure`` found of the pair's draft, on other prompts.
        length: judged mean acceptance length with ``tokens`` draft tokens.
        weight: weights that a token is multiplied with in this draft over those in the pair's: what a draft token costs and the
            prompt's reading are taken to go with them.
    """
    split, first = cost_split(measured.costs, 1), {f.method: f for f in measured.first_tokens if f.kind == kind}
    if split is None or not {"plain", "draft"} <= first.keys():
        return None
    plain = plain_cost(measured.costs, 1).seconds
    step = step_seconds(measured.costs, tokens, 1) + (weight - 1) * split.draft * plain * tokens
    reads = first["plain"].seconds
    drafted_reads = reads + weight * (first["draft"].seconds - reads)
    return answered_sooner(first["plain"].later_tokens, length, (plain, reads), (step, drafted_reads))


def limits(measured: Measurements) -> list[dict[str, Any]]:
    """What a perfect draft would gain at one request, by kind and number of tokens, and what 2.5x would take.

    Returns:
        rows of kind, num_speculative_tokens, step (in plain steps), first_token_s, drafted_first_token_s, plain_s (a plain step),
        later_tokens, perfect_speedup, and length_for_2_5, the mean acceptance length at which answers come 2.5 times as soon.
    """
    rows = []
    for kind in dict.fromkeys(f.kind for f in measured.first_tokens):
        first = {f.method: f for f in measured.first_tokens if f.kind == kind}
        plain, later = plain_cost(measured.costs, 1).seconds, first["plain"].later_tokens
        reads, drafted_reads = first["plain"].seconds, first["draft"].seconds
        for tokens in (4, 6):
            step = step_seconds(measured.costs, tokens, 1)
            left = (later * plain + reads) / 2.5 - drafted_reads
            rows.append({
                "kind": kind, "num_speculative_tokens": tokens, "step": step / plain, "first_token_s": reads,
                "drafted_first_token_s": drafted_reads, "plain_s": plain, "later_tokens": later,
                "perfect_speedup": answered_sooner(later, tokens + 1, (plain, reads), (step, drafted_reads)),
                "length_for_2_5": later * step / left if left > 0 else None,
            })  # fmt: skip
    return rows


def _from_scratch(row: dict[str, Any]) -> bool:
    return bool(row["settings"].get("recover", {}).get("from_scratch"))


SWEPT = {"recipe": "recipe"}
"""Levers whose drafts are served, by the comparison's name: trained on the sweep's budget."""
GREEDY_LEVER = "the reference build, greedy drafting"
BUILT = {
    "draft": "the reference build", GREEDILY: GREEDY_LEVER, "sibling": "from scratch, as long",
    IN_ONE_PASS: "in one pass, as long",
}  # fmt: skip
"""Levers of the served drafts that have the reference build's budget, by the comparison's name."""
NAMES = {"recipe": "draft", "draft": "chosen", GREEDILY: "draft"}
"""The comparison's names that are others in draft.json: the pair that was built is what ``choose`` chose."""


def chosen_name(config: dict[str, Any] | None) -> str:
    """The comparison's name of what ``choose`` chose."""
    return "plain" if config is None else own_name(config)


def spent_on(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the training of a draft of the build's budget took, by the comparison's name; nothing where none is served so."""
    spent = record.get("trained", {}).get("draft" if name == GREEDILY else name)
    return {"lever": BUILT[name], **spent} if spent else {}


def tokens_at_one(record: dict[str, Any]) -> int:
    """Draft tokens that drafts were served with at one request."""
    config = record["speculative_config"] or {}
    if config.get("method") != "draft_model":
        return int(record["settings"]["num_speculative_tokens"])
    schedule = config.get("num_speculative_tokens_per_batch_size", [])
    own = [tokens for low, high, tokens in schedule if low <= 1 <= high]
    return int(own[0] if own else config["num_speculative_tokens"])


def joined(
    sweep: list[dict[str, Any]], record: dict[str, Any], shapes: dict[str, Any], measured: Measurements | None = None
) -> dict[str, Any]:
    """The content of draft.json; what was chosen stands there as ``chosen``, beside its own name where it is no draft.

    Args:
        sweep: what ``understudy sweep`` gave, each lever with its ``weight`` (``expected``).
        record: the comparison.
        shapes: a comparison at one request of levers whose drafts have different shapes.
        measured: what ``measure`` found of the pair.
    """
    spent, judged = {row["lever"]: row for row in sweep}, lever_rows(sweep, record, shapes, measured)
    known = {(row["lever"], row["kind"], row["temperature"]): row["predicted_speedup"] for row in judged}
    config = record["speculative_config"]
    taken, served = chosen_name(config), []
    for row in record["rows"]:
        name = row["method"]
        trained = spent_on(name, record) if name in BUILT else spent.get(SWEPT.get(name, ""), {})
        found = {key: trained.get(key) for key in ("lever", *SPENT)}
        if (row["concurrency"], row.get("rate")) == (1, None) and row["predicted_speedup"] is None:
            found["predicted_speedup"] = known.get((SWEPT.get(name), row["kind"], row["temperature"]))
        served.append({**row, "method": NAMES.get(name, name), **found})
        if name == taken and taken != "draft":
            served.append({**row, "method": "chosen", **found})
    kept = (
        "settings", "inputs", "speculative_config", "versions", "hardware", "date", "git_revision", "choice", "enforce_eager",
        "training_prompts", "trained_on",
    )  # fmt: skip
    folders = {name: lever for lever, name in served_levers(sweep, shapes).items()}
    of_shapes = [{**row, "lever": folders.get(row["method"])} for row in shapes["rows"]]
    found = {"rows": alike([*judged, *served]), "shapes": of_shapes, **{key: record.get(key) for key in kept}}
    return found | {"parts": {"comparison": _made(record), "shapes": _made(shapes)}}


def alike(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the same keys in the same order; None where one has no such figure."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _made(record: dict[str, Any]) -> dict[str, Any]:
    """When and at which revision a part was measured: an interrupted `make results-draft` goes on another day."""
    return {key: record.get(key) for key in ("date", "git_revision")}


def weights(sweep: list[dict[str, Any]], pair_draft: Path) -> list[dict[str, Any]]:
    """The sweep's rows, each with its draft's weights over those of the pair's draft as ``weight``."""
    own = sizes(load_config(pair_draft)).work
    return [{**row, "weight": sizes(load_config(Path(row["draft"]))).work / own} for row in sweep]


BUILD_STAGES = {"prune": "pruned", "distill": "data", "recover": "draft", "measure": "measured", "choose": "pair"}
"""The stages of a build and their folders."""


def build_seconds(build: Path) -> dict[str, float | None]:
    """How long each stage of a build took."""
    return {stage: (read(build / folder) or {}).get("wall_s") for stage, folder in BUILD_STAGES.items()}


def trained_on(sweep: list[dict[str, Any]]) -> dict[str, Any]:
    """Machine and day of a lever's training, which need not be those of the comparison: a sweep is resumed where it stopped."""
    made = read(Path(sweep[0]["draft"])) or {}
    return {key: made.get(key) for key in ("hardware", "date", "git_revision")}


def longer(record: dict[str, Any]) -> dict[str, Any]:
    """A comparison whose answers are long enough to loop, with what was chosen under that name."""
    rows = [{**row, "method": NAMES.get(row["method"], row["method"])} for row in record["rows"]]
    return {"rows": rows, **{key: record[key] for key in ("settings", "date", "git_revision")}}


def main(arguments: list[str]) -> None:
    """Reads the sweep's file, the build, what was measured of the pair, the sweep, and three comparisons; writes draft.json."""
    file, build, folder, *parts = map(Path, arguments)
    sweep, record, shapes, long = (json.loads(path.read_text(encoding="utf-8")) for path in parts)
    asked = read_yaml(file, Sweep).model_dump(mode="json", exclude={"levers"})
    measured = read_measurements(folder)
    found = joined(weights(sweep, build / "draft"), record, shapes, measured)
    found["parts"]["long"] = _made(long)
    found |= {"long": longer(long), "sweep": asked | trained_on(sweep), "build_seconds": build_seconds(build)}
    found |= {"costs": [cost.model_dump() for cost in measured.splits], "limits": limits(measured)}
    write_text(FILE, json.dumps(found, indent=1) + "\n")
    print(f"{FILE.parent.name}/{FILE.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
