"""Folders that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.errors import InputError, StorageError


def partial_of(folder: Path) -> Path:
    """The temporary name a folder is written under."""
    return folder.parent / f".{folder.name}.partial"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns "no space" and "no permission" into one clear line; other errors pass.

    Args:
        path: what is written. Where the system names a file elsewhere (a checkpoint that cannot be read), that one is told.
    """
    try:
        yield
    except OSError as error:
        elsewhere = error.filename if not _is_own(error.filename, path) else None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = elsewhere or path
            raise StorageError(f"{full}: the disk is full; free some space and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            if elsewhere:
                raise StorageError(f"{elsewhere}: cannot be read or written ({error.strerror})") from error
            raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        raise
    except Exception as error:  # safetensors and torch wrap the system's error in their own types
        if "No space left" in str(error) or "os error 28" in str(error):
            raise StorageError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise


def _is_own(name: object, path: Path) -> bool:
    """Whether an error names no file, or one that has to do with writing ``path``: it, what stands for it, a folder above."""
    if not isinstance(name, str):
        return True
    file, whole = Path(name).absolute(), path.absolute()
    own = (whole, *(whole.with_name(f".{whole.name}.{state}") for state in ("partial", "old")))
    return whole.is_relative_to(file) or any(file.is_relative_to(one) for one in own)


MARK = "run.json"
"""The file that every stage leaves in its folder; a folder without it is not ours to replace."""


def check_place(folder: Path, stage: str | None = None) -> None:
    """Refuses to write where something stands that is not an earlier result of the same stage.

    Raises:
        InputError: ``folder`` is a file, holds what no stage wrote, or was written by another stage. Also see ``check_parent``.
    """
    check_parent(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give another folder as --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(
            f"{folder}: holds files that no stage wrote; give another or an empty folder as --out"
        ) from None
    if stage is not None and found != stage:
        raise InputError(f"{folder}: was written by '{found}'; give another folder as --out of '{stage}'")


def check_parent(path: Path) -> None:
    """Refuses, before any work is done for it, what could not be written in the end.

    Raises:
        InputError: one of the folders that it shall stand in is a file. StorageError: the innermost that is there may not be
            written to.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"{path}: {above} is a file and not a folder; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{path}: cannot be written (no permission for {above}); choose another --out")


@contextmanager
def publish(folder: Path, keep_partial: bool = False, stage: str | None = None) -> Iterator[Path]:
    """Gives a temporary folder to fill; on success it takes the place of ``folder``, which until then is untouched.

    Args:
        folder: where the result shall stand; an earlier result of the stage may stand there, nothing else.
        keep_partial: keep what an interrupted run left, so that the stage can resume from it.
        stage: the stage that writes.

    Raises:
        InputError: see ``check_place``.
        StorageError: the disk is full, or the folder cannot be written.
    """
    folder = folder.resolve()
    check_place(folder, stage)
    partial, old = partial_of(folder), folder.parent / f".{folder.name}.old"
    with storage_errors(folder):
        if partial.exists() and not keep_partial:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file by rename, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)


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
