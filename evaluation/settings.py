"""What can be set about an evaluation. Importing this loads neither torch nor the harness."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.settings import Settings

PERPLEXITY = "perplexity"
LOCAL_TASKS = (PERPLEXITY, "next_line", "docstring", "signature", "chat")
TASK_FOLDER = Path(__file__).parents[1] / "reference" / "tasks"


class EvaluateSettings(Settings):
    """How a model is evaluated.

    Attributes:
        tasks: files of ``task_folder`` by name, or public tasks of the harness where a hub can be reached.
        task_folder: YAML files in the harness's own form, each with a JSONL of its items.
        limit: items of each local task, a seeded sample; a public task's first ones. All with null.
        num_fewshot: examples shown before each item of a public task; the task's own number when not given.
        max_length: longest context and answer together, in tokens; longer ones lose their beginning.
        dtype: ``auto`` is the type that the weights are stored in on GPUs, and float32 on CPUs, where bfloat16 takes longer.
        bootstrap: resamples that the 95 % intervals are made from.
    """

    tasks: tuple[str, ...] = Field(default=LOCAL_TASKS, min_length=1)
    task_folder: Path = Field(default=TASK_FOLDER, exclude=True)
    limit: int | None = Field(default=150, ge=2)
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=16, ge=1)
    max_length: int = Field(default=512, ge=16)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    bootstrap: int = Field(default=2000, ge=100)
    seed: int = 0
