"""What an engine must pass before it gets requests. Nobody waits for a check once whoever asked for it is cancelled."""

from __future__ import annotations

import asyncio
from functools import partial

from server import asking
from server.engine_list import EngineEntry
from server.sampling_check import check_engine
from server.settings import GatewaySettings
from stages.errors import EngineError
from stages.progress import log

AGAIN = {"num_sequences": 4}
"""Options of the check for an engine that has passed before."""


def _key(entry: EngineEntry, settings: GatewaySettings) -> str | None:
    key = entry.api_key or settings.engine_api_key
    return None if key is None else key.get_secret_value()


async def check_name(entry: EngineEntry, settings: GatewaySettings) -> None:
    """Refuses an engine that does not serve what the settings say.

    Raises:
        EngineError: it does not, or does not tell.
    """
    work = partial(asking.served_models, entry.url, _key(entry, settings), settings.ready_timeout_s)
    names = await asyncio.wrap_future(asking.start(work))
    if entry.served_model not in names:
        raise EngineError(f"it serves {', '.join(names) or 'nothing'}, not {entry.served_model}; correct its 'model'")


async def check_sampling(entry: EngineEntry, settings: GatewaySettings, is_back: bool = False) -> None:
    """Refuses an engine that does not sample as its target does.

    Args:
        entry: which engine.
        settings: the gateway's.
        is_back: it has passed before; a third of the samples will do then, because its model waits for it.

    Raises:
        CheckFailed: it does not.
        EngineError: it cannot be asked.
    """
    who = f"engine {entry.name}" if settings.engines else "engine"
    log(f"{who}: checking that sampling follows the target")
    work = partial(
        check_engine, entry.url, entry.served_model, api_key=_key(entry, settings), **(AGAIN if is_back else {})
    )
    check = await asyncio.wrap_future(asking.start(work))
    log(f"{who}: {check.line()}")
