"""Compares plain decoding, n-gram look-up and the draft, through the gateway, interleaved in one run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from drafts.asking import Asking, ask_methods, serves_alone
from drafts.blocks import Block, Cell, Condition, blocks_of, conditions_of
from drafts.cells import differing, rows_of
from drafts.encoding import fitting
from drafts.exact import rounding_dtype
from drafts.measurements import ALL
from drafts.methods import (
    NGRAM,
    SUFFIX,
    EngineOptions,
    Method,
    draft_method,
    own_name,
    proposes_in_parallel,
    trained_in_one_pass,
    wants_suffix,
)
from drafts.pairing import CHOICE
from drafts.pictures import draw_comparison
from drafts.prompts import Prompt, prompts_hash, read_prompts, sample
from drafts.report import html
from drafts.saved_cells import SavedCells
from drafts.table import as_csv, in_order
from drafts.ties import judge_differences
from drafts.trained_on import refuse_seen
from pruning.checkpoint import load_tokenizer
from server.engine_command import EngineSettings
from server.pair import Pair, read_pair
from stages import provenance
from stages.errors import InputError
from stages.folders import read_json, write_text
from stages.hashing import checkpoint_hash
from stages.progress import log
from stages.settings import Settings

MIN_STEPS = 6
"""Speculative steps that an answer must have to be an example of anything."""

RESERVED = ("plain", "ngram", "suffix", "draft", "draft_sequential")
IN_ONE_PASS = "draft_parallel"
"""Name of a draft that proposes all its tokens in one pass: the pair's own, or one that is given under this name."""
GREEDILY = "draft_greedy"
"""Name under which a given draft proposes its likeliest tokens at any temperature, instead of drawing them."""

EXAMPLES = 2
PROMPT_END = 300
"""Characters of a prompt that an example shows."""


class CompareSettings(Settings):
    """How methods are compared.

    Attributes:
        prompts_per_kind: a seeded sample of the prompts; all of them when not given.
        rates: arrivals per second of open loops beside the closed ones; the largest concurrency bounds what is under way.
        repeats: how often all prompts are asked; twice as often where that would be a single turn.
        block_size: prompts after which the next method takes its turn.
        waves: where several are asked at a time, at least so many times as many prompts are taken, as far as there are, and asked
            in one turn: at its end fewer and fewer are under way.
        drafts: other drafts of the same target by name (e.g. ``sibling``), served with the pair's number of draft tokens; one named
            ``draft_parallel`` proposes them in one pass, one named ``draft_greedy`` its likeliest ones at any temperature.
        num_speculative_tokens: draft tokens of ``drafts`` where the pair has no draft of its own.
        enforce_eager: whether engines run without compiling; the pair's own setting when not given.
        one_at_a_time: as for ``measure``.
    """

    prompts_per_kind: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=96, ge=2)
    concurrencies: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 4), min_length=1)
    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.0, 1.0), min_length=1)
    repeats: int = Field(default=3, ge=1)
    block_size: int = Field(default=20, ge=1)
    waves: int = Field(default=3, ge=1)
    seed: int = 0
    drafts: dict[str, Path] = Field(default_factory=dict)
    num_speculative_tokens: int = Field(default=4, ge=1)
    enforce_eager: bool | None = None
    one_at_a_time: bool | None = None


def methods_of(pair: Pair, others: dict[str, Path], tokens: int = 4) -> list[Method]:
    """Plain, n-gram, suffix decoding where it is installed, other drafts, and the pair's own in all ways that it can be served.

    Args:
        tokens: draft tokens of the others where the pair has no draft.

    Raises:
        InputError: another draft has the name of a method, or cannot be drafted with; or the pair decodes by suffixes, and that is
            not installed.
    """
    methods = [Method("plain"), Method("ngram", NGRAM)]
    config = pair.speculative_config
    by_suffixes = own_name(config) == "suffix"
    if wants_suffix(by_suffixes or None):
        methods.append(Method("suffix", config if by_suffixes else SUFFIX))
    else:
        log("suffix decoding is left out: the package arctic-inference is not installed")
    for name, folder in others.items():
        if name in RESERVED:
            raise InputError(f"drafts: {name!r} is the name of a method; choose another name for {folder}")
        if not (folder / "config.json").is_file():
            raise InputError(f"drafts: {folder} holds no draft; give the folder that 'understudy recover' wrote")
        has_draft = config is not None and config["method"] == "draft_model"
        usual = config if has_draft and config else dict(draft_method(folder, tokens).speculative_config or {})
        own = {**usual, "model": str(folder.resolve())}
        own.pop("parallel_drafting", None)
        if name == IN_ONE_PASS:
            if not proposes_in_parallel(folder):
                raise InputError(
                    f"drafts: {folder} was not trained to propose tokens in one pass; give it another name than "
                    f"{name!r}, or train it with parallel_tokens"
                )
            own = in_one_pass(own, trained_in_one_pass(folder))
        if name == GREEDILY:
            own["draft_sample_method"] = "greedy"
        methods.append(Method(name, own))
    if config and not by_suffixes:
        methods.append(Method("draft", config))
    if config and config["method"] == "draft_model" and proposes_in_parallel(Path(config["model"])):
        other = the_other_way(config)
        if other.name in others:
            raise InputError(
                f"drafts: {other.name!r} is the pair's own draft; choose another name for {others[other.name]}"
            )
        methods.append(other)
    return methods


def the_other_way(config: dict[str, Any]) -> Method:
    """A pair's draft in the way that was not chosen: tokens in one pass, or one by one."""
    if config.get("parallel_drafting"):
        return Method("draft_sequential", {key: value for key, value in config.items() if key != "parallel_drafting"})
    return Method(IN_ONE_PASS, in_one_pass(config, trained_in_one_pass(Path(config["model"]))))


def in_one_pass(config: dict[str, Any], trained: int | None) -> dict[str, Any]:
    """A drafting config with all tokens in one pass: one number of them, as vLLM wants it, wherever any are drafted.

    Args:
        trained: how many the draft was trained to propose; more are not asked for.
    """
    most = min(config["num_speculative_tokens"], trained or config["num_speculative_tokens"])
    kept = {**config, "parallel_drafting": True, "num_speculative_tokens": most}
    schedule = config.get("num_speculative_tokens_per_batch_size")
    if schedule is not None:
        kept["num_speculative_tokens_per_batch_size"] = [[low, high, most if n else 0] for low, high, n in schedule]
    return kept


def trained(folder: Path) -> dict[str, Any]:
    """What a draft's training took, as ``recover`` wrote it down: seconds and tokens, None where that is not known."""
    position = (provenance.read(folder) or {}).get("position") or {}
    return {"train_seconds": position.get("seconds"), "train_tokens": position.get("tokens")}


DEFAULTS = {"top_k": (0, -1, None), "top_p": (1.0, None), "min_p": (0.0, None), "repetition_penalty": (1.0, None)}
"""Sampling parameters that a target can bring defaults for, with the values that change nothing."""


def sampling_defaults(target: Path, engine_args: Sequence[str]) -> dict[str, float]:
    """What the engine takes from the target's generation_config.json for requests that do not say otherwise, as these do not."""
    file = target / "generation_config.json"
    if not file.is_file() or any(argument.startswith("--generation-config") for argument in engine_args):
        return {}
    found = read_json(file, "repair it, or serve with --generation-config vllm")
    return {name: found[name] for name, neutral in DEFAULTS.items() if found.get(name) not in neutral}


def blocks_for(prompts: list[Prompt], settings: CompareSettings) -> list[Block]:
    """What all methods are asked: a sample of the prompts, a larger one where many are asked at a time."""

    def taken(condition: Condition) -> list[Prompt]:
        closed = condition.rate is None and condition.concurrency > 1
        enough = settings.waves * condition.concurrency if closed else 0
        return sample(prompts, settings.prompts_per_kind and max(settings.prompts_per_kind, enough), settings.seed)

    conditions = conditions_of(prompts, settings.concurrencies, settings.temperatures, settings.rates)
    repeats, size, seed, waves = settings.repeats, settings.block_size, settings.seed, settings.waves
    return [block for one in conditions for block in blocks_of(taken(one), [one], repeats, size, seed, waves)]


def compare(
    pair_path: Path, prompts_file: Path, out: Path, settings: CompareSettings, training_prompts: Path | None = None
) -> list[dict[str, Any]]:
    """Runs the comparison and writes ``out`` (JSON), and beside it the rows as CSV, a report (HTML) and a picture (PNG).

    Args:
        training_prompts: prompts that drafts were trained on; an overlap with ``prompts_file`` is refused, as is one with what a
            draft itself says it was trained on.
    """
    pair = read_pair(pair_path)
    target = pair.target
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a JSON file as --out")
    everything = read_prompts(prompts_file)
    drafts = {**({"draft": pair.draft} if pair.draft else {}), **settings.drafts}
    seen = refuse_seen(everything, training_prompts, drafts)
    tokenizer = load_tokenizer(target)
    defaults = sampling_defaults(target, pair.serving.engine_args)
    if defaults:
        log(f"the target's generation_config.json holds for these requests: {defaults}")
    fit = fitting(everything, tokenizer, pair.serving.max_model_len, settings.max_tokens)
    blocks = blocks_for(fit, settings)
    prompts = list({prompt.id: prompt for block in blocks for prompt in block.prompts}.values())
    methods = methods_of(pair, settings.drafts, settings.num_speculative_tokens)
    inputs = {"target": checkpoint_hash(target), "prompts": prompts_hash(prompts)}
    if pair.serving.draft:
        inputs["draft"] = pair.serving.draft.sha256
    inputs |= {name: checkpoint_hash(folder) for name, folder in settings.drafts.items()}
    run = provenance.Run("compare", settings.model_dump(mode="json"), inputs, settings.seed)
    logs = out.parent / "engine-logs"
    eager = pair.serving.enforce_eager if settings.enforce_eager is None else settings.enforce_eager
    how = EngineOptions(pair.serving.max_model_len, max(settings.concurrencies), eager, pair.serving.engine_args)
    asked = Asking(tuple(blocks), settings.max_tokens, settings.one_at_a_time)
    served = [*map(str, methods), str(how)]  # a pair may be chosen anew between two runs
    saved = SavedCells(
        out.with_name(f".{out.stem}.cells.jsonl"), [run.identity, served, provenance.versions(), provenance.hardware()]
    )
    cells = ask_methods(target, methods, asked, logs, how, saved)
    rows = rows_of(cells, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    add_predictions(rows, pair)
    by_id = {prompt.id: prompt for prompt in prompts}
    dtype = EngineSettings(model=target, log_file=logs / "unused", extra_args=how.extra_args).computed_dtype
    record = {
        "rows": rows, "settings": run.identity["settings"], "inputs": run.identity["inputs"],
        "speculative_config": pair.serving.speculative_config, "enforce_eager": eager, "versions": provenance.versions(),
        "hardware": provenance.hardware(), "date": datetime.date.today().isoformat(), "git_revision": provenance.git_revision(),
        "choice": read_choice(pair.file.parent), "trained": {name: trained(folder) for name, folder in drafts.items()},
        **seen, "in_turns": not serves_alone(settings.one_at_a_time),
        "sampling_defaults": defaults, "dtype": rounding_dtype(dtype),
        "examples": failures(cells, by_id, own_name(pair.speculative_config)),
    }  # fmt: skip
    _write(record, out)  # before the target is loaded to judge differences
    record["differing_outputs"] = judge_differences(target, differing(cells), by_id, tokenizer, record["dtype"])
    _write(record, out)
    saved.clear()
    return rows


def _write(record: dict[str, Any], out: Path) -> None:
    write_text(out, json.dumps(record, indent=1) + "\n")
    write_text(out.with_suffix(".csv"), as_csv(record["rows"]))
    write_text(out.with_suffix(".html"), html(record))
    draw_comparison(in_order(record["rows"]), out.with_suffix(".png"))


def add_predictions(rows: Sequence[dict[str, Any]], pair: Pair) -> None:
    """Puts ``predicted_speedup`` into every row: what ``choose`` expected of the pair's method there, else None."""
    expected = pair.serving.expected
    known = {(p.kind, p.temperature, p.concurrency): p.speedup for p in (expected.predictions if expected else ())}
    for row in rows:
        own = row["method"] == own_name(pair.serving.speculative_config) and row.get("rate") is None
        places = [(kind, row["temperature"], row["concurrency"]) for kind in (row["kind"], ALL)]
        row["predicted_speedup"] = next((known[place] for place in places if place in known), None) if own else None


def read_choice(folder: Path) -> dict[str, Any] | None:
    """What ``choose`` wrote down beside the pair; None for a pair that was made otherwise."""
    try:
        return dict(json.loads((folder / CHOICE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def failures(cells: Sequence[Cell], prompts: dict[str, Prompt], method: str = "draft") -> list[dict[str, Any]]:
    """For each kind and temperature the answers in which least of ``method``'s tokens were accepted, with their prompts' ends."""
    found = []
    drafted = [cell for cell in cells if cell.method == method]
    for kind, temperature in dict.fromkeys((c.condition.kind, c.condition.temperature) for c in drafted):
        same = [c for c in drafted if (c.condition.kind, c.condition.temperature) == (kind, temperature)]
        judged = {
            answer.prompt_id: (1 + record.num_accepted_tokens / record.num_drafts, record.num_drafts, answer)
            for cell in same
            for answer in cell.answers
            if (record := answer.speculation) and record.num_drafts >= MIN_STEPS
        }
        for length, steps, answer in sorted(judged.values(), key=lambda item: item[0])[:EXAMPLES]:
            found.append({
                "kind": kind, "temperature": temperature, "mean_acceptance_length": length, "num_drafts": steps,
                "prompt": prompts[answer.prompt_id].text[-PROMPT_END:], "text": answer.text,
            })  # fmt: skip
    return found
