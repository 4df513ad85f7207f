"""Folders that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import StorageError


def partial_of(folder: Path) -> Path:
    """The temporary name a folder is written under."""
    return folder.parent / f".{folder.name}.partial"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns "no space" and "no permission" into one clear line; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{path}: the disk is full; free some space and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
        raise
    except Exception as error:  # safetensors and torch wrap the system's error in their own types
        if "No space left" in str(error) or "os error 28" in str(error):
            raise StorageError(f"{path}: the disk is full; free some space and run the same command again") from error
        raise


@contextmanager
def publish(folder: Path, keep_partial: bool = False) -> Iterator[Path]:
    """Gives a temporary folder to fill; on success it takes the place of ``folder``, which until then is untouched.

    Args:
        folder: where the result shall stand.
        keep_partial: keep what an interrupted run left, so that the stage can resume from it.
    """
    partial = partial_of(folder)
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
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def write_text(path: Path, text: str) -> None:
    """Writes a file by rename, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
