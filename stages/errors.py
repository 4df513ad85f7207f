"""Errors that a person can act on. The command prints their one line and ends with their exit code."""

from __future__ import annotations


class UnderstudyError(Exception):
    """Base of every error that is reported as one line instead of a traceback."""

    exit_code = 1


class InputError(UnderstudyError):
    """Something the user gave is wrong: the message names the value, the allowed range and what to do."""

    exit_code = 2


class EngineError(UnderstudyError):
    """The inference engine did not start, died, or answered with an error of its own."""

    exit_code = 3


class StorageError(UnderstudyError):
    """A folder cannot be written: no space, no permission."""

    exit_code = 4


class CheckFailed(UnderstudyError):
    """A check ran and its answer is no (for example: the engine does not follow the target's distribution)."""

    exit_code = 5
