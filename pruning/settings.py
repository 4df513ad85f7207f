"""What can be set about scoring and pruning. Importing this loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from pruning.nuteprune.settings import NutePruneSettings
from stages.errors import InputError
from stages.settings import Settings, validate

ScoreName = Literal["angular", "block_influence", "greedy_kl"]
Method = Literal["angular", "block_influence", "greedy_kl", "first", "first_and_last", "evenly_spaced", "explicit"]
WidthMethod = Literal["cfsp", "magnitude", "wanda_sp", "flap", "nuteprune"]
Criterion = Literal["activation", "paper", "relative"]
Export = Literal["uniform", "ragged"]
Allocation = Literal["coarse", "uniform", "standardised"]
Count = Annotated[int, Field(ge=1)]

SCORED: tuple[str, ...] = get_args(ScoreName)
"""Methods that need calibration text; the others look at the number of layers only."""


class TextSettings(Settings):
    """How much calibration text is read, and how the target runs over it."""

    calibration_tokens: Count = 4096
    """Tokens of calibration text."""
    sequence_length: Annotated[int, Field(ge=2)] = 256
    """Longest sample in tokens; longer ones are cut."""
    batch_size: Count = 8
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type the target runs in while it is scored; ``auto`` is the stored type, or float32 where that is quicker on a CPU."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one, else the CPU; or any name torch knows."""
    seed: int = 0
    """Decides which calibration samples are taken when there are more than needed."""


class CalibrationSettings(TextSettings):
    """The same for scores of layers."""

    greedy_tokens: Count = 1024
    """Tokens for the greedy removal, which runs about L^2/2 forward passes over them."""


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


class WidthSettings(TextSettings):
    """Settings of the stage that narrows FFNs; every layer stays."""

    method: Literal["cfsp", "magnitude", "wanda_sp", "flap"] = "cfsp"
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the FFNs' channels that goes."""
    criterion: Criterion | None = None
    """What cfsp ranks the channels of a layer by; None: activation. The other methods have one each."""
    allocation: Allocation | None = None
    """How the layers share the sparsity: ``coarse`` (cfsp's), ``standardised`` (flap's) or ``uniform`` (the others'); None:
    the method's own."""
    alpha: Annotated[float, Field(ge=0)] = 13.1
    """Steepness of the coarse allocation; 0 is uniform."""
    round_to: Count = 8
    """Widths are multiples of this: 128 for large models on GPUs, 1 to 32 for small ones."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """How far the sparsity that the rounding leaves may be from the one asked for."""
    export: Export | None = None
    """``ragged``: each layer its own width, for our model class; ``uniform``: the mean width in every layer, a plain model that
    loads everywhere and keeps much less; None: ragged where the allocation gives layers widths of their own."""
    bias_compensation: bool = True
    """Whether flap adds the mean of what it removes to the bias of down_proj; needs a family with biases in its FFNs."""
    calibration_tokens: Count = 32768
    """Tokens of calibration text; the paper of cfsp takes 131,072."""
    calibration: tuple[Path, ...] = ()
    """Texts (.jsonl records or plain text)."""

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        """Refuses a criterion for a method that has one of its own, and shares for layers that are to be equal."""
        if self.export == "uniform" and self.allocation not in (None, "uniform"):
            raise ValueError(
                f"allocation {self.allocation!r} gives layers widths of their own; it needs export 'ragged'"
            )
        if self.criterion is not None and self.method != "cfsp":
            raise ValueError(f"criterion {self.criterion!r} is one of cfsp's; method {self.method!r} has its own")
        return self

    @property
    def ranked_by(self) -> str:
        """Name of what ranks the channels of a layer."""
        return (self.criterion or "activation") if self.method == "cfsp" else self.method

    @property
    def allocated_by(self) -> str:
        """Name of the allocation."""
        return self.allocation or {"cfsp": "coarse", "flap": "standardised"}.get(self.method, "uniform")

    @property
    def exported_as(self) -> Export:
        """The shape of the model."""
        is_even = self.allocated_by == "uniform" or (self.allocated_by == "coarse" and self.alpha == 0)
        return self.export or ("uniform" if is_even else "ragged")


DEPTH = "depth"
"""What the command calls the methods that remove layers, where it leaves the choice among them to their settings."""

PRUNE_SETTINGS: dict[str, type[Settings]] = {
    **dict.fromkeys((DEPTH, *get_args(Method)), PruneSettings),
    **dict.fromkeys(get_args(WidthSettings.model_fields["method"].annotation), WidthSettings),
    "nuteprune": NutePruneSettings,
}
"""The settings of each method of ``prune``."""


def read_prune_settings(values: dict[str, Any], source: str, scored: bool = False) -> Settings:
    """Settings of whichever method ``values`` name; layers are removed where they name none.

    ``depth`` with calibration text, or with scores at hand (``scored``), is the published system's way (``angular``).

    Raises:
        InputError: an unknown method, with the known ones; or what the method's settings refuse.
    """
    method = values.get("method", DEPTH)
    if not isinstance(method, str) or method not in PRUNE_SETTINGS:
        raise InputError(f"{source}: method {method!r} is unknown; one of {', '.join(PRUNE_SETTINGS)}")
    given = {key: value for key, value in values.items() if (key, value) != ("method", DEPTH)}
    published = scored or (values.get("method") == DEPTH and values.get("calibration"))
    if method == DEPTH and published and not values.get("layers"):
        given["method"] = "angular"
    return validate(PRUNE_SETTINGS[method], given, source)
