"""The decision, written down: which parts of which target stay, and why. The same plan gives the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pruning.settings import Export, Method, WidthMethod
from stages.errors import InputError
from stages.folders import read_json, write_text
from stages.hashing import value_hash
from stages.settings import Settings, validate

FILE = "plan.json"


Rows = tuple[tuple[int, ...], ...]
"""For each layer the indices of what stays in it, ascending."""


class Plan(Settings):
    """What every plan says: which target it was made for."""

    schema_version: Literal[1] = 1
    target_sha256: str
    """``stages.hashing.checkpoint_hash`` of the target's folder."""
    architecture: str
    num_layers: int
    """Layers of the target."""

    @property
    def sha256(self) -> str:
        """Hash of the plan's content, whatever its file's formatting."""
        return value_hash(self.model_dump(mode="json"))

    def check_target(self, target_sha256: str, source: str = "target") -> None:
        """Refuses a target other than the one the plan was made for.

        Raises:
            InputError: with both hashes, shortened.
        """
        if target_sha256 != self.target_sha256:
            raise InputError(
                f"{source}: this plan was made for the target {self.target_sha256[:12]}, not for {target_sha256[:12]}; "
                "make a new plan for this target, or give the target that the plan names"
            )

    def save(self, path: Path) -> None:
        """Writes the plan as JSON."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


class DepthPlan(Plan):
    """Which layers of one target stay."""

    kind: Literal["depth"] = "depth"
    kept_layers: tuple[int, ...]
    """Indices into the target's layers, ascending."""
    kept_channels: Rows | None = None
    """For each kept layer the channels of its MLP that stay, ascending; None for all."""
    method: Method
    scores: dict[str, Any] = Field(default_factory=dict)
    """What the decision was made from, in a few numbers; empty for methods that do not score."""

    @model_validator(mode="after")
    def _layers_exist(self) -> Self:
        """Refuses kept layers that are not ascending indices of the target's layers."""
        kept = self.kept_layers
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= self.num_layers:
            raise ValueError(
                f"kept_layers must be ascending indices from 0 to {self.num_layers - 1}, given {list(kept)}"
            )
        return self

    @model_validator(mode="after")
    def _channels_exist(self) -> Self:
        """Refuses channels that are not ascending, or not as many in every kept layer."""
        rows = self.kept_channels
        if rows is not None and (
            len(rows) != len(self.kept_layers)
            or len({len(row) for row in rows}) != 1
            or any(not row or list(row) != sorted(set(row)) or row[0] < 0 for row in rows)
        ):
            raise ValueError("kept_channels must be ascending indices from 0 up, equally many for every kept layer")
        return self

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Indices of the layers that go."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.kept_layers)

    @property
    def described(self) -> str:
        """What stays, in words."""
        return f"layers {list(self.kept_layers)} of {self.num_layers}"

    def check_same_parts(self, other: Plan, source: str, other_source: str, advice: str) -> None:
        """Refuses another plan that keeps other layers, or other channels of them.

        Raises:
            InputError: with what differs, and ``advice``.
        """
        if not isinstance(other, DepthPlan):
            raise InputError(f"{source}: was cut by a plan of layers, {other_source} by a width plan; {advice}")
        ours, theirs = list(self.kept_layers), list(other.kept_layers)
        if ours != theirs:
            raise InputError(f"{source}: keeps layers {ours}, {other_source} keeps {theirs}; {advice}")
        if self.kept_channels != other.kept_channels:
            raise InputError(f"{source}: keeps other channels of the MLPs than {other_source}; {advice}")


class WidthPlan(Plan):
    """Which channels of every layer's FFN stay, and which groups of its heads; every layer stays."""

    kind: Literal["width"] = "width"
    method: WidthMethod
    criterion: str
    """What the channels within a layer were ranked by."""
    export: Export
    """``uniform``: as much of every layer, which makes a plain model; ``ragged``: each layer has its own shape."""
    sparsity: float = Field(gt=0, lt=1)
    """Share that was to be removed: of the FFNs, or of what the method counts."""
    realised_sparsity: float
    """Share that these rows remove."""
    num_channels: int
    """Channels of every FFN of the target."""
    num_groups: int | None = None
    """Key-value heads of every layer of the target; each goes with the query heads that read it."""
    kept_channels: Rows
    kept_groups: Rows | None = None
    """None for all."""
    importance: tuple[float, ...] | None = None
    """n_l of CFSP for each layer, in (0, 1): more important layers keep more. None for masks."""
    down_bias: tuple[tuple[float, ...], ...] | None = None
    """FLAP's compensation: for each layer what is added to the bias of down_proj."""
    scores: dict[str, Any] = Field(default_factory=dict)
    """What the decision was made from, in a few numbers."""

    @model_validator(mode="after")
    def _parts_exist(self) -> Self:
        """Refuses rows that are not ascending indices of the target's parts, or leave a layer nothing."""
        for name, rows, count in (
            ("kept_channels", self.kept_channels, self.num_channels), ("kept_groups", self.kept_groups, self.num_groups),
        ):  # fmt: skip
            if rows is None:
                continue
            if count is None or len(rows) != self.num_layers:
                raise ValueError(
                    f"{name} must have one row for each of the {self.num_layers} layers, and say of how many"
                )
            for layer, row in enumerate(rows):
                if not row or list(row) != sorted(set(row)) or row[0] < 0 or row[-1] >= count:
                    raise ValueError(
                        f"{name} of layer {layer} must be ascending indices from 0 to {count - 1}, at least one"
                    )
            if self.export == "uniform" and len(set(map(len, rows))) != 1:
                raise ValueError(f"{name} must be equally many in every layer for the export 'uniform'")
        return self

    @model_validator(mode="after")
    def _one_value_per_layer(self) -> Self:
        """Refuses an importance or a compensation for another number of layers."""
        for name in ("importance", "down_bias"):
            value = getattr(self, name)
            if value is not None and len(value) != self.num_layers:
                raise ValueError(
                    f"{name} must have one entry for each of the {self.num_layers} layers, given {len(value)}"
                )
        return self

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """All of the target's layers."""
        return tuple(range(self.num_layers))

    @property
    def widths(self) -> list[int]:
        """Channels that stay, by layer."""
        return [len(row) for row in self.kept_channels]

    @property
    def described(self) -> str:
        """What stays, in words."""
        low, high = min(self.widths), max(self.widths)
        widths = f"{low}" if low == high else f"{low} to {high}"
        heads = (
            "" if self.kept_groups is None else f", {sum(map(len, self.kept_groups))} of {self._all_groups} head groups"
        )
        return f"{widths} of {self.num_channels} FFN channels in each of {self.num_layers} layers{heads}"

    @property
    def _all_groups(self) -> int:
        return self.num_layers * (self.num_groups or 0)

    def check_same_parts(self, other: Plan, source: str, other_source: str, advice: str) -> None:
        """Refuses another plan that keeps other channels or groups.

        Raises:
            InputError: with what differs, and ``advice``.
        """
        if not isinstance(other, WidthPlan):
            raise InputError(f"{source}: was narrowed by a width plan, {other_source} by a plan of layers; {advice}")
        if self.kept_channels != other.kept_channels or self.export != other.export:
            raise InputError(f"{source}: keeps other channels of the FFNs than {other_source}; {advice}")
        if self.kept_groups != other.kept_groups:
            raise InputError(f"{source}: keeps other heads than {other_source}; {advice}")
        if self.down_bias != other.down_bias or self.scores.get("kept_hidden") != other.scores.get("kept_hidden"):
            raise InputError(
                f"{source}: keeps other hidden dimensions, or makes up for other channels by biases, than {other_source}; {advice}"
            )


AnyPlan = DepthPlan | WidthPlan


def load_plan(path: Path) -> AnyPlan:
    """Reads a plan from its file, or from the folder that holds plan.json.

    Raises:
        InputError: no such file, no JSON, or not a plan of this schema.
    """
    file = path / FILE if path.is_dir() else path
    values = read_json(file, "give a plan.json, or the folder of a pruned checkpoint")
    if isinstance(values, dict) and values.get("kind") == "width":
        return validate(WidthPlan, values, str(file))
    return validate(DepthPlan, values, str(file))
