"""Export: a width plan carried out and written as a checkpoint, plain or ragged."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from pruning import checkpoint, plan, shapes, width
from pruning.plan import WidthPlan
from stages.folders import publish, read_json
from stages.provenance import Run


def write_width(
    target: Path, made: WidthPlan, run: Run, out: Path, model: PreTrainedModel | None = None
) -> PreTrainedModel:
    """Publishes the narrowed checkpoint with plan.json and run.json.

    Args:
        target: the checkpoint whose config.json, tokenizer and terms are kept.
        made: what stays.
        run: the stage's identity.
        out: the folder to write.
        model: the target's model as it shall be cut (with masks folded into its weights, for example); None reads it.

    Returns:
        the narrowed model.

    Raises:
        InputError: the plan does not fit the target; StorageError: ``out`` cannot be written.
    """
    config = shapes.narrow_config(read_json(target / "config.json", "copy the checkpoint again"), made)
    narrowed = width.carry_out(model if model is not None else checkpoint.load_model(target), made)
    with publish(out, stage=run.stage) as folder:
        checkpoint.write_checkpoint(narrowed, target, folder, config)
        made.save(folder / plan.FILE)
        run.write(folder, plan_sha256=made.sha256)
    return narrowed
