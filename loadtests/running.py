"""A load test from beginning to end: the load generator started, its results collected, judged and written down."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests import ceiling
from loadtests.client import Client, base_of
from loadtests.figures import Result, acceptance_over_time, busiest, held, rows_of, stops_paying
from loadtests.prompts import read_prompts
from loadtests.report import html
from loadtests.schedule import turns_of
from loadtests.settings import LoadSettings
from loadtests.thresholds import Threshold, check_planned
from loadtests.worker import decode
from stages import provenance
from stages.errors import EngineError, InputError
from stages.folders import write_text
from stages.progress import log, progress

LOCUST = "locust"


def check_ready(
    settings: LoadSettings, thresholds: Sequence[Threshold] = (), targets: Sequence[str] = ("plain", "draft")
) -> None:
    """Refuses what cannot work before anything is started.

    Args:
        targets: names of the servers that will be asked, plain first.

    Raises:
        InputError: locust is not installed, nothing is to be asked, there are no prompts for it, or a threshold is about
            something that will not be run.
    """
    check_planned(turns_of(settings, read_prompts(settings.prompts)), targets, thresholds)
    if importlib.util.find_spec(LOCUST) is None:
        raise InputError("locust is not installed; run 'make setup-loadtest', or install requirements/loadtest.txt")


@contextmanager
def _worker(job: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join(filter(None, [str(ceiling.PROJECT), os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen(
        [sys.executable, "-m", "loadtests.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(job) + "\n")  # keys go this way too: nobody sees them in a list of processes
        child.stdin.close()
        yield child
    finally:
        child.terminate()
        child.wait()
        child.stdout.close()


def carry_out(
    settings: LoadSettings,
    targets: Mapping[str, str],
    keys: Mapping[str, str] | None = None,
    keep: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Runs all turns against all servers, in a process of its own.

    Args:
        targets: addresses by name, ``plain`` first.
        keys: API keys by tenant.
        keep: is given each turn's result as soon as it is there.

    Raises:
        EngineError: a server cannot be reached, or the load generator died.
        InputError: nothing is to be asked, or there are no prompts for it.
    """
    check_ready(settings)
    settings, keys = settings.resolved(), dict(keys or {})
    turns = turns_of(settings, read_prompts(settings.prompts))
    urls = {name: base_of(url) for name, url in targets.items()}
    models = {name: settings.model or _model_of(url, settings, keys) for name, url in urls.items()}
    job = {"settings": settings.model_dump(mode="json"), "keys": keys, "targets": urls, "models": models}
    results = []
    with progress("load test", len(turns) * len(urls), "turns") as advance, _worker(job) as child:
        assert child.stdout is not None
        for line in child.stdout:
            results.append(decode(line))
            keep(results[-1])
            advance(1, f"{results[-1].target}, {results[-1].condition}")
        if code := child.wait():
            raise EngineError(f"the load generator ended with exit code {code}; see its output above")
    return results


def _model_of(url: str, settings: LoadSettings, keys: Mapping[str, str]) -> str:
    return Client(url, "", {}, settings.timeout_s).first_model(next(iter(keys.values()), None))


def _ceiling_of(results: Sequence[Result], found: ceiling.Ceiling | None) -> dict[str, Any]:
    """The ceiling, the busiest second, and whether the run may be published."""
    seen = busiest(results)
    share = found.share(seen["requests_per_s"], seen["chunks_per_s"]) if found else None
    return {
        "measured": asdict(found) if found else None, "busiest_second": seen, "share": share,
        "publishable": share is not None and share <= ceiling.PUBLISHABLE,
    }  # fmt: skip


def record_of(results: Sequence[Result], settings: LoadSettings, found: ceiling.Ceiling | None) -> dict[str, Any]:
    """All that is written down; the report is made from nothing else."""
    rows = rows_of(results, settings.objective)
    targets = list(dict.fromkeys(sorted((r.target for r in results), key=lambda name: name != "plain")))
    drafts = [name for name in targets if name != "plain"]
    return {
        "rows": rows, "targets": targets, "settings": settings.model_dump(mode="json"),
        "generator": _ceiling_of(results, found),
        "stops_paying": {n: {loop: stops_paying(rows, loop, n) for loop in ("closed", "open")} for n in drafts},
        "held": {n: held(rows, n, settings.objective) for n in targets if any(row["step"] for row in rows)},
        "acceptance_over_time": {name: acceptance_over_time(results, name) for name in targets},
        "hardware": provenance.hardware(), "versions": {**provenance.versions(), LOCUST: importlib.metadata.version(LOCUST)},
        "git_revision": provenance.git_revision(), "date": datetime.date.today().isoformat(), "requests": _requests(results),
    }  # fmt: skip


def _requests(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Every request in short: no prompt, no answer, no chunk times."""
    return [
        {
            "target": r.target, "condition": r.condition, "turn": r.number, "began_s": r.began_s, "place": o.place,
            "kind": o.kind, "name": o.name, "tenant": o.tenant, "due_s": round(o.due_s, 4), "sent_s": round(o.sent_s, 4),
            "ttft_s": o.ttft_s and round(o.ttft_s, 5), "e2e_s": round(o.e2e_s, 5), "prompt_tokens": o.prompt_tokens,
            "completion_tokens": o.completion_tokens, "chunks": len(o.chunk_s), "error": o.error,
            "speculation": asdict(o.speculation) if o.speculation else None,
        }
        for r in results for o in r.outcomes
    ]  # fmt: skip


def loadtest(
    targets: Mapping[str, str], settings: LoadSettings, out: Path, keys: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Measures the generator's ceiling, runs the load test, and writes ``out`` (JSON) and a report (HTML) beside it.

    What is interrupted, or loses its server, is written as far as it came, under a name of its own and with ``complete: false``.

    Args:
        more: what else is to stand in the record, e.g. which pair was served.
    """
    if out.is_dir() or out.suffix != ".json":
        raise InputError(f"{out}: give the name of a JSON file as --out, e.g. build/loadtest.json")
    check_ready(settings)
    found = None
    if ceiling.at_hand():
        log("measuring what the load generator itself can do")
        found = ceiling.measure_ceiling(carry_out)
    results: list[Result] = []
    record: dict[str, Any] = {}
    complete = False
    try:
        carry_out(settings, targets, keys, results.append)
        complete = True
    finally:
        if results:
            record = {**more, **record_of(results, settings, found), "complete": complete}
            file = out if complete else out.with_stem(f"{out.stem}-interrupted")
            write_text(file, json.dumps(record, indent=1) + "\n")
            write_text(file.with_suffix(".html"), html(record))
            if not complete:
                log(f"{file}: holds the {len(results)} turns that had ended")
    return record
