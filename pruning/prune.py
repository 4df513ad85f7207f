"""The stages: ``score`` writes a folder of scores, ``prune`` and ``prune_by_plan`` write a pruned checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruning import calibration, checkpoint, plan, scores, selection, width
from pruning.export import write_width
from pruning.families import family_of
from pruning.measured import FILE as SCORES_FILE
from pruning.measured import Scores, load_scores
from pruning.plan import AnyPlan, DepthPlan, WidthPlan, load_plan
from pruning.settings import SCORED, CalibrationSettings, PruneSettings, ScoreSettings
from stages.errors import InputError
from stages.folders import check_place, publish, write_text
from stages.hashing import checkpoint_hash, file_hash
from stages.progress import progress
from stages.provenance import Run


def inputs_of(target: Path, files: Sequence[Path], **named: Path | None) -> dict[str, str]:
    """Hashes of what a stage reads: the target's content, and each file's."""
    checkpoint.load_config(target)  # its refusals are clearer than the hash's
    found = {"target": checkpoint_hash(target)}
    for name, path in [*((str(file), file) for file in files), *named.items()]:
        if path is None:
            continue
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        found[name] = file_hash(path)
    return found


def _file_in(path: Path | None, name: str) -> Path | None:
    """The named file of a folder; any other path is the file itself."""
    return path / name if path is not None and path.is_dir() else path


def score_run(target: Path, files: Sequence[Path], settings: ScoreSettings) -> Run:
    """The identity of a ``score``, to ask whether a finished folder is current."""
    return Run("score", settings.model_dump(mode="json"), inputs_of(target, files), settings.seed)


def prune_run(target: Path, settings: PruneSettings, scores_path: Path | None = None) -> Run:
    """The identity of a ``prune``, to ask whether a finished folder is current."""
    inputs = inputs_of(target, settings.calibration, scores=_file_in(scores_path, SCORES_FILE))
    return Run("prune", settings.model_dump(mode="json"), inputs, settings.seed)


def _scored_model(target: Path, settings: CalibrationSettings) -> Any:
    """The target as it is run over calibration text."""
    model = checkpoint.load_model(target, settings.dtype, settings.device)
    return checkpoint.quickly_computed(model) if settings.dtype == "auto" else model


def _layer_scores(model: Any, text: calibration.Calibration, wanted: Sequence[str]) -> dict[str, Any]:
    """The wanted ones of the two scores that need one pass over the text."""
    if not {"angular", "block_influence"} & set(wanted):
        return {}
    with progress("scoring layers", text.num_tokens, "tokens") as advance:
        distances, influences = scores.layer_scores(model, text.batches, advance)
    found = {"angular": distances, "block_influence": influences}
    return {name: value for name, value in found.items() if name in wanted}


def _greedy(model: Any, text: calibration.Calibration, keep: int) -> dict[str, Any]:
    """The greedy removal's trace."""
    total = scores.num_candidates(model.config.num_hidden_layers, keep)
    with progress("greedy removal", total, "candidates") as advance:
        removed, kl = scores.greedy_removal(model, text.batches, keep, advance)
    return {"greedy_kl": {"removed": removed, "kl": kl, "num_tokens": text.num_tokens}}


def measure_scores(
    target: Path, files: Sequence[Path], settings: CalibrationSettings, wanted: Sequence[str], keep: int
) -> Scores:
    """Runs the target over calibration text.

    Args:
        target: a checkpoint.
        files: calibration texts.
        settings: how much text, and in which type and on which device the target runs.
        wanted: names of scores.
        keep: where the greedy removal stops.
    """
    samples = calibration.load_samples(files, settings.sequence_length)
    tokenizer = checkpoint.load_tokenizer(target)
    text = calibration.take(samples, tokenizer, settings.calibration_tokens, settings)
    short = calibration.take(samples, tokenizer, min(settings.greedy_tokens, settings.calibration_tokens), settings)
    model = _scored_model(target, settings)
    found = _layer_scores(model, text, wanted)
    if "greedy_kl" in wanted:
        found |= _greedy(model, short, keep)
    return Scores(
        target_sha256=checkpoint_hash(target),
        num_layers=model.config.num_hidden_layers,
        num_samples=text.num_samples,
        num_tokens=text.num_tokens,
        calibration_sha256=text.sha256,
        **found,
    )


def score(target: Path, files: Sequence[Path], out: Path, settings: ScoreSettings) -> Scores:
    """Stage: scores the target's layers on calibration text; writes ``out`` with scores.json and run.json.

    Raises:
        InputError: target, text or settings that do not do; StorageError: ``out`` cannot be written.
    """
    run = score_run(target, files, settings)
    check_place(out, run.stage)
    selection.check_keep(checkpoint.load_config(target).num_hidden_layers, settings.keep)
    measured = measure_scores(target, files, settings, settings.scores, settings.keep)
    with publish(out, stage=run.stage) as folder:
        write_text(folder / SCORES_FILE, measured.to_json())
        run.write(folder)
    return measured


def decide(num_layers: int, settings: PruneSettings) -> tuple[int, ...] | None:
    """The layers that stay by a method that looks at their number only; None for one that needs scores.

    Raises:
        InputError: more layers removed than there are, or layers that do not exist.
    """
    if settings.layers is not None:
        return selection.explicit(num_layers, settings.layers)
    keep = selection.check_keep(num_layers, settings.kept_count(num_layers))
    return None if settings.method in SCORED else selection.BASELINES[settings.method](num_layers, keep)


def _scores_for(target: Path, sha256: str, settings: PruneSettings, path: Path | None, keep: int) -> Scores:
    """Scores of this target, read from an earlier stage or measured now."""
    if path is None:
        return measure_scores(target, settings.calibration, settings, [settings.method], keep)
    found = load_scores(path)
    if found.target_sha256 != sha256:
        raise InputError(
            f"{path}: these scores are of the target {found.target_sha256[:12]}, not of {sha256[:12]}; score this one"
        )
    return found


def _channels(target: Path, settings: PruneSettings, kept_layers: Sequence[int]) -> plan.Rows | None:
    """The channels that stay in the MLPs of the kept layers, by the target's activations; None where all stay."""
    if settings.mlp_width is None:
        return None
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    text = calibration.take(samples, checkpoint.load_tokenizer(target), settings.calibration_tokens, settings)
    model = _scored_model(target, settings)
    with progress("scoring channels", text.num_tokens, "tokens") as advance:
        return width.strongest(width.channel_scores(model, text.batches, kept_layers, advance), settings.mlp_width)


def _write(target: Path, made: DepthPlan, measured: Scores | None, run: Run, out: Path) -> DepthPlan:
    """Carries a plan out and publishes the checkpoint with plan.json, run.json and, where it scored, scores.json."""
    model = checkpoint.load_layers(target, made.kept_layers)
    config = checkpoint.cut_config_of(target, made.kept_layers)
    if made.kept_channels is not None:
        model = width.narrow(model, made.kept_channels)
        config["intermediate_size"] = len(made.kept_channels[0])
    with publish(out, stage=run.stage) as folder:
        checkpoint.write_checkpoint(model, target, folder, config)
        made.save(folder / plan.FILE)
        if measured is not None:
            write_text(folder / SCORES_FILE, measured.to_json())
        run.write(folder, plan_sha256=made.sha256)
    return made


def prune(target: Path, out: Path, settings: PruneSettings, scores_path: Path | None = None) -> DepthPlan:
    """Stage: decides which layers stay and writes the pruned checkpoint.

    Args:
        target: a Hugging Face checkpoint of a known family.
        out: the folder to write; replaced whole, or left as it was.
        settings: method and number of layers.
        scores_path: what ``score`` wrote; without it, methods that score read ``settings.calibration``.

    Returns:
        the plan, also written as plan.json.

    Raises:
        InputError: target, scores, text or settings that do not do; StorageError: ``out`` cannot be written.
    """
    config = checkpoint.load_config(target)
    kept = decide(config.num_hidden_layers, settings)
    if kept is not None and scores_path is not None:
        raise InputError(
            f"{scores_path}: method {settings.method!r} reads no scores; give one of {', '.join(SCORED)}, or leave them out"
        )
    if settings.mlp_width is not None:
        width.check_width(config, settings.mlp_width)
    run = prune_run(target, settings, scores_path)
    check_place(out, run.stage)
    sha256, measured, summary = run.identity["inputs"]["target"], None, {}
    if kept is None:
        keep = settings.kept_count(config.num_hidden_layers)
        measured = _scores_for(target, sha256, settings, scores_path, keep)
        kept = measured.kept(settings.method, keep)
        summary = measured.summary(settings.method, kept)
    made = DepthPlan(
        target_sha256=sha256,
        architecture=family_of(config).architecture,
        num_layers=config.num_hidden_layers,
        kept_layers=kept,
        kept_channels=_channels(target, settings, kept),
        method=settings.method,
        scores=summary,
    )
    return _write(target, made, measured, run, out)


def prune_by_plan(target: Path, plan_path: Path, out: Path) -> AnyPlan:
    """Stage: carries out an existing plan (its file, or a folder that holds one); same plan, same weights.

    Raises:
        InputError: a plan for another target, or one that cannot be read; StorageError: ``out`` cannot be written.
    """
    made = load_plan(plan_path)
    inputs = inputs_of(target, (), plan=_file_in(plan_path, plan.FILE))
    made.check_target(inputs["target"], str(plan_path))
    run = Run("prune", {"plan": made.model_dump(mode="json")}, inputs)
    if made.method == "nuteprune":
        raise InputError(
            f"{plan_path}: nuteprune trains the weights with the masks, the plan alone does not give them again"
        )
    if isinstance(made, WidthPlan):
        write_width(target, made, run, out)
        return made
    config = checkpoint.load_config(target)
    if made.num_layers != config.num_hidden_layers:
        raise InputError(
            f"{plan_path}: the plan is for {made.num_layers} layers, the target has {config.num_hidden_layers}"
        )
    if (most := max((row[-1] for row in made.kept_channels or ()), default=0)) >= config.intermediate_size:
        raise InputError(
            f"{plan_path}: keeps channel {most} of an MLP, the target's are 0 to {config.intermediate_size - 1}"
        )
    return _write(target, made, None, run, out)
