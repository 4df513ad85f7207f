"""What can be set about scoring and pruning. Importing this loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from stages.settings import Settings

ScoreName = Literal["angular", "block_influence", "greedy_kl"]
BaselineName = Literal["first", "first_and_last", "evenly_spaced", "explicit"]
Method = Literal["angular", "block_influence", "greedy_kl", "first", "first_and_last", "evenly_spaced", "explicit"]
WidthMethod = Literal["cfsp", "magnitude", "wanda_sp", "flap", "nuteprune"]
Criterion = Literal["activation", "paper", "relative"]
Export = Literal["uniform", "ragged"]
Allocation = Literal["coarse", "uniform", "standardised"]
Count = Annotated[int, Field(ge=1)]

SCORED: tuple[str, ...] = get_args(ScoreName)
"""Methods that need calibration text; the others look at the number of layers only."""


class CalibrationSettings(Settings):
    """How much calibration text is read, and how the target runs over it."""

    calibration_tokens: Count = 4096
    """Tokens of calibration text for the angular distance and Block Influence."""
    greedy_tokens: Count = 1024
    """Tokens for the greedy removal, which runs about L^2/2 forward passes over them."""
    sequence_length: Annotated[int, Field(ge=2)] = 256
    """Longest sample in tokens; longer ones are cut."""
    batch_size: Count = 8
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type the target runs in while it is scored; ``auto`` is the type it is stored in."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one, else the CPU; or any name torch knows."""
    seed: int = 0
    """Decides which calibration samples are taken when there are more than needed."""


class ScoreSettings(CalibrationSettings):
    """Settings of the stage that scores layers."""

    scores: Annotated[tuple[ScoreName, ...], Field(min_length=1)] = SCORED  # type: ignore[assignment]
    keep: Count = 1
    """The greedy removal stops when this many layers remain; fewer takes longer and serves every larger keep too."""


class PruneSettings(CalibrationSettings):
    """Settings of the stage that prunes. How many layers stay: one of ``keep``, ``remove`` and ``layers``."""

    method: Method = "first_and_last"
    keep: int | None = None
    """How many layers stay; 2 when nothing else is said."""
    remove: int | None = None
    """Instead of ``keep``: how many layers go."""
    layers: tuple[int, ...] | None = None
    """Instead of ``keep``: exactly these layers stay (method ``explicit``)."""
    mlp_width: Count | None = None
    """How many channels of every MLP stay, those that add most on the calibration text; None for all."""
    calibration: tuple[Path, ...] = ()
    """Texts (.jsonl records or plain text) for the methods that score, and for ``mlp_width``."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Naming layers is choosing the method ``explicit``; saying nothing is keeping 2."""
        if not isinstance(values, dict):
            return values
        if values.get("layers") is not None:
            return {"method": "explicit", **values}
        return {**values, "keep": 2} if values.get("keep") is None and values.get("remove") is None else values

    @model_validator(mode="after")
    def _one_way_to_say_how_many(self) -> Self:
        """Refuses settings that say twice, or differently, what stays."""
        if (self.method == "explicit") != (self.layers is not None):
            raise ValueError("method 'explicit' and a list of layers belong together: give both or neither")
        said = [name for name in ("keep", "remove", "layers") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"give one of keep, remove and layers, not {' and '.join(said)}")
        return self

    def kept_count(self, num_layers: int) -> int:
        """How many of ``num_layers`` layers stay, as asked for (not checked against the range)."""
        if self.layers is not None:
            return len(self.layers)
        return num_layers - self.remove if self.remove is not None else self.keep or 0
