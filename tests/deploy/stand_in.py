"""What stands in for things that cannot be had on a machine without a registry: base images, and a pair that is quick to serve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.integration.pico_pair import first_layer, pico_target, save, serving

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NOBODY = 65534
EXPECTED = {"acceptance_rate": 0.3, "mean_acceptance_length": 1.9, "speedup": 1.0}


def write_pair(folder: Path) -> None:
    """A pico pair as compose wants it: ``folder``/model, and ``folder``/pair with the draft and serving.json in it."""
    target = pico_target()
    draft = save(first_layer(target), folder / "pair" / "draft") | {"path": "../draft"}
    entry = save(target, folder / "model") | {"path": "../../model"}
    record = serving(entry, draft, draft_sample_method="probabilistic") | {"expected": EXPECTED}
    (folder / "pair" / "pair").mkdir()
    (folder / "pair" / "pair" / "serving.json").write_text(json.dumps(record))


def import_base(docker: list[str], folder: Path, tag: str, packages: str, *changes: str) -> None:
    """A base image of Debian's packages, with this machine's certificate authorities, under the name of the real one."""
    command = ["debootstrap", "--variant=minbase", f"--include=ca-certificates,{packages}", "bookworm", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (folder / "etc/ssl/certs/ca-certificates.crt").write_bytes(AUTHORITIES.read_bytes())
    (folder / "prometheus").mkdir(exist_ok=True)  # as in the real image: what its volume takes its owner from
    os.chown(folder / "prometheus", NOBODY, NOBODY)
    told = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run([*docker, "import", *told, "-", tag], check=True, stdin=tar.stdout, stdout=subprocess.DEVNULL)
    assert tar.returncode == 0


if __name__ == "__main__":
    write_pair(Path(sys.argv[1]))
