"""The canary's comparison as a table: what `understudy canary` asks of a running gateway and prints."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from rich.console import Console
from rich.table import Table

from server import asking
from stages.errors import EngineError, InputError

PATH = "/admin/canary"
TIMEOUT_S = 10.0
FIGURES = {"mean_acceptance_length": ("acceptance length", 1.0), "tpot_s": ("ms per output token", 1000.0)}


def ask(url: str, api_key: str | None = None) -> dict[str, Any]:
    """The report of a running gateway.

    Raises:
        InputError: no address, or a gateway without a canary.
        EngineError: nobody answers there, or not as a gateway does.
    """
    address = url.rstrip("/") + PATH
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with asking.open_directly(urllib.request.Request(address, headers=headers), TIMEOUT_S) as answer:
            report = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise EngineError(
            f"{address}: answered {error.code}; is this the gateway's address, and is a key needed?"
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise EngineError(f"{address}: no answer ({error}); give the address of a running gateway") from error
    if not isinstance(report, dict) or report.get("canary") is None:
        raise InputError(f"{url}: no canary there; set 'canary: {{draft: NAME, share: 0.1}}' in its settings")
    return report


def _cell(part: dict[str, Any] | None, scale: float) -> str:
    if part is None:
        return "–"
    value = f"{part['value'] * scale:.2f}"
    if part["low"] is None:
        return f"{value} (n={part['requests']})"
    return f"{value} [{part['low'] * scale:.2f}, {part['high'] * scale:.2f}] (n={part['requests']})"


def cells(row: dict[str, Any], figure: str) -> list[str]:
    """One line of the table."""
    name, scale = FIGURES[figure]
    found = row[figure]
    parts = (_cell(found[side], scale) for side in ("main", "canary", "difference"))
    return [row["kind"], name, *parts, found["verdict"]]


def render(report: dict[str, Any], console: Console) -> None:
    """Prints the comparison."""
    title = f"{', '.join(report['pools']) or 'no pool of that name'} (share {report['canary']['share']:g})"
    table = Table(title=f"canary {title} beside {', '.join(report['main']) or 'no other pool'}; 95 % intervals")
    for head in ("output", "figure", "main", "canary", "difference", "canary is"):
        table.add_column(head)
    for row in report["rows"]:
        for figure in FIGURES:
            table.add_row(*cells(row, figure))
    console.print(table)
