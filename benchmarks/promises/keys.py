"""Tenants files for gateways under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.tenants import hash_key
from stages.folders import write_text


def key_of(name: str) -> str:
    """A key that only its own test knows."""
    return f"sk-promises-{name}"


def write_tenants(path: Path, tenants: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes tenants and their limits, each with the key that `key_of` gives; JSON is a part of YAML."""
    rows = [{"name": name, "keys": [hash_key(key_of(name))], **limits} for name, limits in tenants.items()]
    write_text(path, json.dumps({"tenants": rows}))
