"""Local tasks: a YAML file in the harness's own form, and a JSONL of items that it names."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.hashing import value_hash
from stages.settings import read_mapping


@dataclass(frozen=True)
class LocalTask:
    """One task with the items that are asked.

    Attributes:
        config: the harness's, without the place of the data.
        items: in the order they are asked.
    """

    name: str
    config: dict[str, Any]
    items: tuple[dict[str, Any], ...]

    @property
    def is_chat(self) -> bool:
        """Whether its questions go through the model's chat template."""
        return bool((self.config.get("metadata") or {}).get("chat"))

    @property
    def sha256(self) -> str:
        """Hash of config and items."""
        return value_hash([self.config, self.items])


def is_local(name: str, folder: Path) -> bool:
    """Whether a task of this name lies in the folder; any other is the harness's."""
    return (folder / f"{name}.yaml").is_file()


def read_items(path: Path) -> list[dict[str, Any]]:
    """The items of a task; InputError names the file and line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); 'python -m reference.make_tasks' makes it"
        ) from error
    items = []
    for number, line in enumerate(lines, 1):
        try:
            items.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); make the tasks again") from error
    return items


def read_task(name: str, folder: Path, limit: int | None, seed: int) -> LocalTask:
    """A task and a seeded sample of its items.

    Raises:
        InputError: a YAML without name or data, data that cannot be read, or fewer than two items.
    """
    file = folder / f"{name}.yaml"
    config = read_mapping(file)
    data = (config.pop("dataset_kwargs", None) or {}).get("data_files", {}).get("test")
    if "task" not in config or not data:
        raise InputError(f"{file}: needs 'task' (its name) and 'dataset_kwargs: {{data_files: {{test: FILE.jsonl}}}}'")
    config.pop("dataset_path", None)
    items = read_items(folder / Path(str(data)).name)
    if len(items) < 2:
        raise InputError(f"{folder / Path(str(data)).name}: {len(items)} items; a task needs 2 at least")
    if limit is not None and limit < len(items):
        chosen = sorted(random.Random(f"{seed}-{name}").sample(range(len(items)), limit))
        items = [items[place] for place in chosen]
    return LocalTask(name, config, tuple(items))
