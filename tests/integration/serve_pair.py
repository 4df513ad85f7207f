"""What the command does for `serve`, without the command: run as ``serve_pair.py PAIR LOG PORT``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from server.pair import read_pair
from server.run import serve
from server.settings import GatewaySettings
from stages.errors import UnderstudyError


def main() -> int:
    pair, log_file, port = sys.argv[1:4]
    unchecked = importlib.util.find_spec("server.sampling_check") is None
    try:
        settings = GatewaySettings(port=int(port), drain_s=120, max_body_bytes=100_000)
        serve(settings, read_pair(Path(pair)), Path(log_file), allow_faulty_sampling=unchecked)
    except UnderstudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
