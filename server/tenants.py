"""Tenants: the file that names them, their keys as hashes, and what each may use.

A key is 256 random bits, so a plain SHA-256 of it cannot be turned back by guessing; nothing slower is needed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from stages.errors import InputError
from stages.folders import storage_errors
from stages.settings import Settings, describe

KEY_PREFIX = "sk-"
HASH_PREFIX = "sha256:"
DEFAULT = "default"
"""The tenant of every request where no tenants are configured."""
UNKNOWN = "unknown"
"""Stands for requests without a good key in the metrics and the access log."""


def make_key() -> str:
    """A new key; who has it is let in, so it is shown once and kept nowhere."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What stands in the file instead of a key: ``sha256:`` and 64 hexadecimal digits."""
    return HASH_PREFIX + hashlib.sha256(key.encode()).hexdigest()


def _check_hash(value: str) -> str:
    if not re.fullmatch(HASH_PREFIX + "[0-9a-f]{64}", value):
        message = "must be 'sha256:' and 64 hexadecimal digits, never the key itself; 'understudy key' makes both"
        raise PydanticCustomError("key_hash", message)
    return value


KeyHash = Annotated[str, AfterValidator(_check_hash)]


class Tenant(Settings):
    """One tenant. A limit that is left out is none."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", description="label `tenant` of the metrics")
    keys: tuple[KeyHash, ...] = Field(min_length=1, description="hashes of its keys; two while one replaces the other")
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1, description="prompt and output together")
    concurrent_requests: int | None = Field(default=None, ge=1, description="queued ones included")
    default_max_tokens: int | None = Field(
        default=None, ge=1, description="written into chat and responses requests that name no limit of their output"
    )
    models: tuple[str, ...] | None = Field(default=None, min_length=1, description="names it may ask for")

    def may_use(self, model: str) -> bool:
        """Whether a model is among those it may ask for."""
        return self.models is None or model in self.models


OPEN = Tenant.model_construct(name=DEFAULT, keys=())
"""Everybody, where no tenants are configured: without a key and without limits."""
NOBODY = Tenant.model_construct(name=UNKNOWN, keys=())
"""Who came without a good key."""


class Tenants(Settings):
    """What a tenants file holds."""

    tenants: tuple[Tenant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_unique(self) -> Tenants:
        names = Counter(tenant.name for tenant in self.tenants)
        repeated = next((name for name, times in names.items() if times > 1), None)
        if repeated is not None:
            raise PydanticCustomError("repeated", "two tenants are named '{name}'", {"name": repeated})
        if names[UNKNOWN]:
            raise PydanticCustomError("reserved", "no tenant can be named 'unknown': it stands for those without a key")
        owners: dict[str, str] = {}
        for tenant in self.tenants:
            for key in tenant.keys:
                if key in owners:
                    pair = {"one": owners[key], "other": tenant.name}
                    raise PydanticCustomError("repeated", "a key of '{other}' is a key of '{one}' already", pair)
                owners[key] = tenant.name
        return self


def _told(error: ValidationError) -> str:
    """One line without what was given, which may be a key in the wrong place; numbers are shown."""
    shown = describe(error, Tenants)
    first = error.errors()[0]
    if shown.startswith("unknown key") or isinstance(first["input"], int | float):
        return shown
    return shown.removesuffix(f", given {first['input']!r}")


def parse_tenants(text: str, source: str) -> Tenants:
    """Reads the text of a tenants file (YAML, of which JSON is a part).

    Raises:
        InputError: names ``source`` and what is wrong, never anything that could be a key.
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}: not valid YAML{where}") from None
    if not isinstance(values, dict):
        raise InputError(f"{source}: must be a mapping with the key 'tenants', found {type(values).__name__}")
    try:
        return Tenants.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{source}: {_told(error)}") from None


def read_tenants(path: Path) -> Tenants:
    """Reads a tenants file.

    Raises:
        InputError: as `parse_tenants`, and for a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{path}: the tenants file cannot be read ({reason})") from None
    return parse_tenants(text, str(path))


def add_tenant(name: str, key: str, to: Path | None = None) -> str:
    """A new tenant's entry of the tenants file; appended to one, in place, where there is one to add it to.

    In place, because a file that is mounted into a container by itself is not seen there when another takes its name.

    Raises:
        InputError: the name cannot be a tenant's, the file has it already, or cannot be read or written.
    """
    entry = f"  - name: {name}\n    keys: [{hash_key(key)}]\n"
    before = ""
    if to is not None and to.exists():
        try:
            before = to.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{to}: the tenants file cannot be read ({error})") from None
    head = "" if before.strip() else "tenants:\n"
    added = ("" if before.endswith("\n") or not before else "\n") + head + entry
    parse_tenants(before + added, f"key {name}" if to is None else f"{to} with {name} added")
    if to is not None:
        with storage_errors(to), to.open("a", encoding="utf-8") as file:
            file.write(added)
    return entry.rstrip("\n")
