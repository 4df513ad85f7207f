"""SIGHUP: the settings are read again, and what can change while requests run is taken over."""

from __future__ import annotations

from collections.abc import Callable

from server.settings import GatewaySettings
from stages.errors import InputError

RELOADABLE = ("canary", "drift")
"""Settings that need no restart."""


def changes(before: GatewaySettings, after: GatewaySettings) -> tuple[list[str], list[str]]:
    """Names of the settings that differ: those that can be taken over now, and those that need a restart."""
    differ = [name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)]
    return [name for name in differ if name in RELOADABLE], [name for name in differ if name not in RELOADABLE]


def reload(
    running: GatewaySettings, reread: Callable[[], GatewaySettings], tell: Callable[[str], object]
) -> GatewaySettings | None:
    """The settings to go on with; None where nothing changes.

    Args:
        running: those in force.
        reread: reads them again.
        tell: takes a line for the log. Settings with a mistake are told of, and the old ones stay.
    """
    try:
        found = reread()
    except InputError as error:
        tell(f"settings: not reloaded, the old ones stay: {error}")
        return None
    taken, left = changes(running, found)
    if left:
        tell(f"settings: {', '.join(left)} changed, which needs a restart")
    tell(f"settings: reloaded ({', '.join(taken) or 'nothing'} changed)")
    return running.model_copy(update={name: getattr(found, name) for name in taken}) if taken else None
