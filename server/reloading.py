"""SIGHUP: the settings are read again, and what can change while requests run is taken over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.settings import GatewaySettings
from stages.errors import InputError

RELOADABLE = ("canary", "drift")
"""Settings that need no restart."""


@dataclass(frozen=True)
class Reloaded:
    """What came of reading the settings again."""

    settings: GatewaySettings
    """Those to go on with."""
    changed: tuple[str, ...] = ()
    """Names of the settings that were taken over."""
    need_restart: tuple[str, ...] = ()
    """Names of those that differ and were not."""
    refused: str | None = None
    """What is wrong with what was read; nothing was taken over then."""

    def as_dict(self) -> dict[str, Any]:
        """For the answer to whoever asked for it; names only."""
        return {"changed": list(self.changed), "need_restart": list(self.need_restart)}


def changes(before: GatewaySettings, after: GatewaySettings) -> tuple[list[str], list[str]]:
    """Names of the settings that differ: those that can be taken over now, and those that need a restart."""
    differ = [name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)]
    return [name for name in differ if name in RELOADABLE], [name for name in differ if name not in RELOADABLE]


def reload(running: GatewaySettings, reread: Callable[[], GatewaySettings], tell: Callable[[str], object]) -> Reloaded:
    """The settings to go on with.

    Args:
        running: those in force.
        reread: reads them again.
        tell: takes a line for the log. Settings with a mistake (a canary that no running engine has is one) are told of, and
            the old ones stay.
    """
    try:
        found = reread()
        taken, left = changes(running, found)
        settings = running.model_copy(update={name: getattr(found, name) for name in taken}).checked()
    except InputError as error:
        tell(f"settings: not reloaded, the old ones stay: {error}")
        return Reloaded(running, refused=str(error))
    if left:
        tell(f"settings: {', '.join(left)} changed, which needs a restart")
    tell(f"settings: reloaded ({', '.join(taken) or 'nothing'} changed)")
    return Reloaded(settings, tuple(taken), tuple(left))
