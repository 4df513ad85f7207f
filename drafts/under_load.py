"""A pair served twice, without its draft and with it, for a load test of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drafts.methods import EngineOptions, Method, serving
from server.pair import read_pair
from stages.progress import log


@contextmanager
def plain_and_draft(pair_path: Path, logs: Path, max_num_seqs: int) -> Iterator[dict[str, str]]:
    """Starts both engines, each behind a gateway; yields their addresses by name, ``plain`` first.

    Args:
        max_num_seqs: requests that an engine works on at a time; further ones wait in it.
    """
    pair = read_pair(pair_path)
    methods = [Method("plain")]
    if pair.speculative_config:
        methods.append(Method("draft", pair.speculative_config))
        if methods[-1].learns:
            log(f"{pair_path}: suffix decoding remembers answers, so prompts that come again are easier for it")
    else:
        log(f"{pair_path}: no draft was chosen for it; only plain decoding is tested")
    serves = pair.serving
    options = EngineOptions(serves.max_model_len, max_num_seqs, serves.enforce_eager, serves.engine_args)
    with serving(pair.target, methods, logs, options) as served:
        yield served.urls
