"""Whose request it is: keys, the file they come from, and reading it again without dropping anybody.

A file that cannot be used is refused with one line, and what was read before stays in force.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from pathlib import Path

from server.errors import Refusal
from server.settings import GatewaySettings
from server.tenants import OPEN, Tenant, Tenants, hash_key, parse_tenants, read_tenants
from stages.errors import InputError
from stages.progress import log

WATCH_S = 1.0
NO_RETRY = {"x-should-retry": "false"}
"""Tells clients (OpenAI's own among them) that the same request will be refused again."""
CHALLENGE = {"www-authenticate": "Bearer", **NO_RETRY}
SOURCE = "UNDERSTUDY_TENANTS"
"""The environment variable that the command takes the text of a tenants file from."""

Signature = tuple[int, int, int] | None


def _bad_key(message: str, code: str) -> Refusal:
    return Refusal(401, message, code, headers=CHALLENGE)


def presented_key(authorization: str | None) -> str:
    """The key in an ``Authorization`` header.

    Raises:
        Refusal: 401 when there is none.
    """
    scheme, _, key = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        message = "no API key was given: send 'Authorization: Bearer KEY'"
        raise _bad_key(message, "missing_api_key")
    return key.strip()


class Access:
    """The tenants and their keys.

    Args:
        settings: name the file, or hold its text; with neither everybody is the one default tenant, without a key.
        say: where lines about reloading go.

    Raises:
        InputError: the file is bad.
    """

    def __init__(self, settings: GatewaySettings, say: Callable[[str], None] = log):
        self.path: Path | None = settings.tenants_file
        self.tenants: tuple[Tenant, ...] = (OPEN,)
        self.loaded_at: float | None = None
        """When the tenants in force were read, in seconds since the epoch."""
        self.refused: str | None = None
        """What is wrong with the file as it is now."""
        self.changed: list[Callable[[], None]] = []
        """Called after the tenants have changed."""
        self._say = say
        self._keys: list[tuple[bytes, Tenant]] = []
        self._signature: Signature = None
        if self.path is not None:
            self._signature = _signature(self.path)
            self._use(read_tenants(self.path))
        elif settings.tenants is not None:
            self._use(parse_tenants(settings.tenants.get_secret_value(), SOURCE))

    @property
    def is_open(self) -> bool:
        """Whether everybody may come without a key."""
        return not self._keys

    def tenant_of(self, authorization: str | None) -> Tenant:
        """Whose key an ``Authorization`` header holds. All keys are compared, each in constant time.

        Raises:
            Refusal: 401 when it is nobody's.
        """
        if self.is_open:
            return OPEN
        given = hash_key(presented_key(authorization)).encode()
        found = None
        for key, tenant in self._keys:
            if hmac.compare_digest(key, given):
                found = tenant
        if found is None:
            # OpenAI's own first words: LiteLLM takes a 401 without them for a bad request
            message = "Incorrect API key provided: it is not known here; check it, or ask whoever runs this gateway"
            raise _bad_key(message, "invalid_api_key")
        return found

    def reload(self) -> bool:
        """Reads the file again; False, with one line said, when it is bad and the old one stays."""
        if self.path is None:
            self._say("tenants: nothing to read again, because there is no tenants file")
            return False
        self._signature = _signature(self.path)
        try:
            self._use(read_tenants(self.path))
        except InputError as error:
            self.refused = str(error)
            self._say(f"tenants: {error}; the {len(self.tenants)} tenants read before stay in force")
            return False
        self._say(f"tenants: {len(self.tenants)} read from {self.path}")
        return True

    def reload_if_changed(self) -> None:
        """Reads the file again when it is another one, or has been written to."""
        if self.path is not None and _signature(self.path) != self._signature:
            self.reload()

    async def watch(self) -> None:
        """Looks after the file until cancelled."""
        while self.path is not None:
            await asyncio.sleep(WATCH_S)
            self.reload_if_changed()

    def _use(self, tenants: Tenants) -> None:
        self.tenants = tenants.tenants
        self._keys = [(key.encode(), tenant) for tenant in tenants.tenants for key in tenant.keys]
        self.loaded_at, self.refused = time.time(), None
        for tell in self.changed:
            tell()


def _signature(path: Path) -> Signature:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
