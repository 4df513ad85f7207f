"""The decision, written down: which layers of which target stay, and why. The same plan gives the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pruning.settings import Method
from stages.errors import InputError
from stages.folders import write_text
from stages.hashing import value_hash
from stages.settings import Settings, validate

FILE = "plan.json"


class DepthPlan(Settings):
    """Which layers of one target stay."""

    schema_version: Literal[1] = 1
    kind: Literal["depth"] = "depth"
    target_sha256: str
    """``stages.hashing.checkpoint_hash`` of the target's folder."""
    architecture: str
    num_layers: int
    """Layers of the target."""
    kept_layers: tuple[int, ...]
    """Indices into the target's layers, ascending."""
    kept_channels: tuple[tuple[int, ...], ...] | None = None
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
    def sha256(self) -> str:
        """Hash of the plan's content, whatever its file's formatting."""
        return value_hash(self.model_dump(mode="json"))

    @property
    def removed_layers(self) -> tuple[int, ...]:
        """Indices of the layers that go."""
        return tuple(layer for layer in range(self.num_layers) if layer not in self.kept_layers)

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

    def check_same_parts(self, other: DepthPlan, source: str, other_source: str, advice: str) -> None:
        """Refuses another plan that keeps other layers, or other channels of them.

        Raises:
            InputError: with what differs, and ``advice``.
        """
        ours, theirs = list(self.kept_layers), list(other.kept_layers)
        if ours != theirs:
            raise InputError(f"{source}: keeps layers {ours}, {other_source} keeps {theirs}; {advice}")
        if self.kept_channels != other.kept_channels:
            raise InputError(f"{source}: keeps other channels of the MLPs than {other_source}; {advice}")

    def save(self, path: Path) -> None:
        """Writes the plan as JSON."""
        write_text(path, self.model_dump_json(indent=2) + "\n")


def load_plan(path: Path) -> DepthPlan:
    """Reads a plan from its file, or from the folder that holds plan.json.

    Raises:
        InputError: no such file, no JSON, or not a plan of this schema.
    """
    file = path / FILE if path.is_dir() else path
    return validate(DepthPlan, read_json(file, "give a plan.json, or the folder of a pruned checkpoint"), str(file))


def read_json(path: Path, advice: str) -> Any:
    """A JSON file's content; InputError with ``advice`` when it is not there, or with the line where it breaks."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; {advice}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}; {advice}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {advice}") from error
