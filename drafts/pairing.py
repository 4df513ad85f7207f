"""Decides from measurements and writes the pair: ``serving.json``, which ``understudy serve`` starts from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from drafts.choice import Choice, ChooseSettings
from drafts.choosing import choose
from drafts.measurements import Measurements
from drafts.measuring import FILE as MEASUREMENTS
from drafts.pictures import draw_choice
from server.pair import ServingFile
from stages.errors import InputError
from stages.folders import publish, read_json, write_text
from stages.hashing import checkpoint_hash, file_hash, tokenizer_hash
from stages.progress import log
from stages.provenance import Run, read, up_to_date
from stages.settings import validate

SCHEMA_VERSION = 1
CHOICE = "choice.json"
"""What was considered and where the time goes, for reports; the engine does not need it."""


def read_measurements(folder: Path) -> Measurements:
    """Reads ``folder/measurements.json``; InputError when it is missing or not what ``measure`` writes."""
    path = folder / MEASUREMENTS
    return validate(Measurements, read_json(path, "run 'understudy measure' first"), str(path))


def refuse_other_measurements(measured: Path, inputs: dict[str, str]) -> None:
    """Raises InputError when the measurements are of another target or draft."""
    known = (read(measured) or {}).get("inputs", {})
    for what in ("target", "draft"):
        if known.get(what) != inputs[what]:
            raise InputError(f"{measured}: measured with another {what}; run 'understudy measure' with this one")


def _relative(folder: Path, place: Path) -> str:
    return os.path.relpath(folder.resolve(), place.resolve())


def _reference(folder: Path, place: Path) -> dict[str, str]:
    """How serving.json names a checkpoint: path relative to the pair's folder, and hashes."""
    return {
        "path": _relative(folder, place),
        "sha256": checkpoint_hash(folder),
        "tokenizer_sha256": tokenizer_hash(folder),
    }


def speculative_config(choice: Choice) -> dict[str, Any] | None:
    """What the engine is told; None without speculation."""
    tokens = choice.num_speculative_tokens
    if tokens is None:
        return None
    if choice.way == "suffix":
        return {"method": "suffix", "num_speculative_tokens": tokens}
    config: dict[str, Any] = {
        "method": "draft_model", "num_speculative_tokens": tokens, "draft_sample_method": "probabilistic"
    }  # fmt: skip
    if choice.way == "parallel":
        config["parallel_drafting"] = True
    if len(choice.schedule) > 1:
        config["num_speculative_tokens_per_batch_size"] = [list(entry) for entry in choice.schedule]
    return config


def serving_record(
    target: Path, draft: Path, choice: Choice, place: Path, name: str, max_model_len: int, measured: Measurements
) -> dict[str, Any]:
    """The content of ``serving.json``; where suffix decoding is taken it names no draft, so that serving needs none."""
    config = speculative_config(choice)
    drafted = config is not None and config["method"] == "draft_model"
    return {
        "schema_version": SCHEMA_VERSION,
        "served_model_name": name,
        "target": _reference(target, place),
        "draft": _reference(draft, place) if drafted else None,
        "speculative_config": config,
        "max_model_len": max_model_len,
        "enforce_eager": measured.enforce_eager,
        "engine_args": list(measured.engine_args),
        "expected": choice.expected.model_dump() if choice.expected else None,
        "reason": choice.reason,
    }


def choose_pair(
    target: Path, draft: Path, measured: Path, out: Path, settings: ChooseSettings, name: str, max_model_len: int
) -> None:
    """Decides from the measurements and writes the pair: ``out/serving.json`` with a picture of the choice."""
    measurements = read_measurements(measured)
    inputs = {
        "target": checkpoint_hash(target),
        "draft": checkpoint_hash(draft),
        "measured": file_hash(measured / MEASUREMENTS),
    }
    refuse_other_measurements(measured, inputs)
    places = {"target": _relative(target, out), "draft": _relative(draft, out)}
    shown = {**settings.model_dump(mode="json"), "name": name, "max_model_len": max_model_len, "places": places}
    run = Run("choose", shown, inputs)
    if up_to_date(run, out):
        return
    choice = choose(measurements, settings)
    with publish(out, stage=run.stage) as folder:
        record = serving_record(target, draft, choice, out, name, max_model_len, measurements)
        validate(ServingFile, record, "serving.json")  # nothing is written that `serve` would refuse
        write_text(folder / "serving.json", json.dumps(record, indent=2) + "\n")
        write_text(folder / CHOICE, json.dumps(choice.model_dump(mode="json"), indent=2) + "\n")
        draw_choice(choice, measurements, folder / "choice.png")
        run.write(folder)
    log(choice.reason)
