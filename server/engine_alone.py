"""A pair's engine without the gateway: this process becomes it, with the command line that `serve` would give it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from server.engine_command import EngineSettings, command, environment
from server.pair import FILE, Pair, engine_settings, read_pair, read_served
from stages.errors import EngineError, InputError
from stages.settings import validate

Exec = Callable[[str, list[str], dict[str, str]], object]


def become(
    path: Path,
    target: Path | None,
    host: str,
    port: int,
    values: Mapping[str, Any],
    more: Sequence[str],
    execute: Exec = os.execve,
) -> None:
    """Replaces this process by the pair's engine; returns only if ``execute`` does.

    Args:
        path: of the pair, or of a checkpoint alone.
        target: where the target lies, if not where serving.json says.
        host: address the engine listens on.
        port: its port.
        values: further fields of EngineSettings.
        more: further arguments of the engine's command line, after those of the pair.
        execute: replaces the process.

    Raises:
        InputError: the pair does not fit together, or a field is none.
        EngineError: there is no such interpreter.
    """
    settings = settings_of(_read(path, target), values, more)
    line = command(settings, port, host)
    try:
        execute(line[0], line, environment(settings, os.environ))
    except OSError as error:
        raise EngineError(
            f"{line[0]}: cannot be run ({error.strerror}); give the interpreter with vLLM as 'python'"
        ) from error


def _read(path: Path, target: Path | None) -> Pair:
    if target is None:
        return read_served(path)
    if path.is_dir() and not (path / FILE).exists():
        raise InputError(f"{path}: is no pair, so it needs no --target; leave it out")
    return read_pair(path, target)


def settings_of(pair: Pair, values: Mapping[str, Any], more: Sequence[str]) -> EngineSettings:
    """The settings of a pair's engine whose output is this process's own."""
    fields = {**engine_settings(pair, Path(os.devnull)).model_dump(), **values}
    settings = validate(EngineSettings, fields, "--set")
    return settings.model_copy(update={"extra_args": (*settings.extra_args, *more)})
