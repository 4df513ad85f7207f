"""What the command does for `serve`, without the command: run as ``serve_pair.py PAIR LOG PORT``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from server.engine import LocalEngine
from server.engine_command import EngineSettings
from server.pair import read_pair
from server.run import note_progress, serve
from server.settings import GatewaySettings
from stages.errors import UnderstudyError

MAX_NUM_SEQS = 8
"""What the engine works on at once; so few that tests can make requests wait in its queue."""


def few_at_once(settings: EngineSettings) -> LocalEngine:
    """The pair's engine with a short batch."""
    return LocalEngine(settings.model_copy(update={"max_num_seqs": MAX_NUM_SEQS}), note_progress)


def main() -> int:
    pair, log_file, port = sys.argv[1:4]
    unchecked = importlib.util.find_spec("server.sampling_check") is None
    try:
        settings = GatewaySettings(port=int(port), drain_s=120, max_body_bytes=100_000)
        checked = read_pair(Path(pair))
        serve(settings, checked, Path(log_file), allow_faulty_sampling=unchecked, make_engine=few_at_once)
    except UnderstudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
