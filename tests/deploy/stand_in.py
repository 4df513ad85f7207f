"""What stands in for things that cannot be had on a machine without a registry: base images, and a pair that is quick to serve.

Wheels and the larger base image are kept under build/deploy, so that a second run has them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.docker_engine import Docker
from tests.integration.pico_pair import first_layer, pico_target, save, serving

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "deploy"
PYTHON_IMAGE, PROMETHEUS_IMAGE = "python:3.11.14-slim-bookworm", "prom/prometheus:v3.5.0"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
PYTHON_PACKAGES = "ca-certificates,python3,python3-dev,python3-venv"
NOBODY = 65534
IMPORT_S = 300.0
EXPECTED = {"acceptance_rate": 0.3, "mean_acceptance_length": 1.9, "speedup": 1.0}


@dataclass(frozen=True)
class Supplies:
    """What the images are built from."""

    wheels: Path
    python: Path


def write_pair(folder: Path) -> None:
    """A pico pair as compose wants it: ``folder``/model, and ``folder``/pair with the draft and serving.json in it."""
    target = pico_target()
    draft = save(first_layer(target), folder / "pair" / "draft") | {"path": "../draft"}
    entry = save(target, folder / "model") | {"path": "../../model"}
    record = serving(entry, draft, draft_sample_method="probabilistic") | {"expected": EXPECTED}
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    (folder / "pair" / "pair").mkdir()
    (folder / "pair" / "pair" / "serving.json").write_text(json.dumps(record))


def supplies() -> Supplies:
    """Both at once where they are not kept: one waits for the network while the other unpacks."""
    with ThreadPoolExecutor() as pool:
        wheels = pool.submit(kept, "wheels", (ROOT / "requirements" / "cpu.txt").read_bytes(), fill_wheelhouse)
        python = pool.submit(kept, "python", PYTHON_PACKAGES.encode() + AUTHORITIES.read_bytes(), python_system)
    return Supplies(wheels.result(), python.result() / "system.tar")


def kept(name: str, made_of: bytes, make: Callable[[Path], None]) -> Path:
    """A folder that is made where it is not there yet; half a one is never taken for a whole one."""
    folder = KEPT / f"{name}-{hashlib.sha256(made_of).hexdigest()[:12]}"
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(folder)
    return folder


def fill_wheelhouse(folder: Path) -> None:
    """All wheels, by whatever index this machine's pip knows: the builds then need none, and no image gets CUDA packages."""
    get_wheels = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    torch = subprocess.run([*get_wheels, "torch==2.13.0+cpu"], capture_output=True)
    if torch.returncode:
        subprocess.run([*get_wheels, "torch==2.13.0"], check=True)
    subprocess.run([*get_wheels, "--requirement", "requirements/cpu.txt"], cwd=ROOT, check=True)


def python_system(folder: Path) -> None:
    """Debian with its Python, and with this machine's certificate authorities, as one archive."""
    root = folder / "root"
    command = ["debootstrap", "--variant=minbase", f"--include={PYTHON_PACKAGES}", "bookworm", str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (root / AUTHORITIES.relative_to("/")).write_bytes(AUTHORITIES.read_bytes())
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    subprocess.run(["tar", "-C", str(root), "-cf", str(folder / "system.tar"), "."], check=True)
    shutil.rmtree(root)


def prometheus_system(root: Path) -> None:
    """Like the real image, busybox and Prometheus; with the libraries that Debian's Prometheus wants."""
    prometheus, busybox = (Path(str(shutil.which(name))).resolve() for name in ("prometheus", "busybox"))
    listed = subprocess.run(["ldd", str(prometheus)], check=True, capture_output=True, text=True).stdout
    for file in [prometheus, *map(Path, re.findall(r"(/\S+) \(0x", listed))]:
        (root / file.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, root / file.relative_to("/"))
    (root / "bin").mkdir()
    shutil.copy2(busybox, root / "bin" / "busybox")
    (root / "bin" / "wget").symlink_to("busybox")
    (root / "prometheus").mkdir()  # what its volume takes its owner from
    os.chown(root / "prometheus", NOBODY, NOBODY)


def import_bases(docker: Docker, python: Path, folder: Path) -> None:
    """Both base images under the names of the real ones, unless the engine has such."""
    have = docker.run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    if PYTHON_IMAGE not in have:
        docker.run("docker", "import", str(python), PYTHON_IMAGE, timeout_s=IMPORT_S)
    if PROMETHEUS_IMAGE not in have:
        root, archive = folder / "prometheus", folder / "prometheus.tar"
        prometheus_system(root)
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        changes = ("--change", 'ENTRYPOINT ["/usr/bin/prometheus"]', "--change", f"USER {NOBODY}:{NOBODY}")
        docker.run("docker", "import", *changes, str(archive), PROMETHEUS_IMAGE, timeout_s=IMPORT_S)


def copy_sources(folder: Path, wheels: Path) -> None:
    """What git knows of the repository and what is new in it, with the wheels where the images look for them."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(wheels, folder / "docker" / "wheelhouse", dirs_exist_ok=True)
