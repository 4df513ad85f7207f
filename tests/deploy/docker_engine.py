"""A Docker engine for one test: the one that DOCKER_HOST names, or one of its own under a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "dockerd": "docker.io", "docker-compose": "docker-compose", "debootstrap": "debootstrap", "promtool": "prometheus",
    "busybox": "busybox-static", "iptables": "iptables",
}  # fmt: skip
START_S = 60.0


class NoDocker(Exception):
    """Why there is no Docker engine here."""


@dataclass(frozen=True)
class Docker:
    """How a Docker engine is talked to."""

    environment: dict[str, str]
    log: Path | None = None

    @property
    def socket(self) -> str:
        """Where the engine listens."""
        return self.environment["DOCKER_HOST"].removeprefix("unix://")

    def run(self, *command: str, timeout_s: float = 60, **options: object) -> str:
        """What a command that must succeed prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s, **options
        )  # type: ignore[call-overload]
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return str(done.stdout)

    def log_of(self, container: str, since_s: float) -> list[str]:
        """What a container wrote since then (of the clock), each line behind its time."""
        done = subprocess.run(
            ["docker", "logs", "--timestamps", "--since", f"{since_s:.3f}", container],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        )  # fmt: skip
        return sorted(done.stdout.splitlines())


def install(packages: Mapping[str, str] = PACKAGES) -> None:
    """Installs what is missing, Docker, compose and promtool if nothing else is asked for, where that can be done.

    Args:
        packages: Debian's package of each program.
    """
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoDocker(f"{', '.join(missing)} missing, and only root on Debian could install them here")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise NoDocker(f"apt-get {command[0]} failed: {done.stderr.strip()[-300:]}")


def _environment(host: str) -> dict[str, str]:
    """Debian's own client goes first: others on the path may lack BuildKit."""
    return {
        **os.environ, "DOCKER_HOST": host, "PATH": f"/usr/bin:{os.environ['PATH']}",
        "COMPOSE_DOCKER_CLI_BUILD": "1", "DOCKER_BUILDKIT": "1",
    }  # fmt: skip


def answers(docker: Docker) -> bool:
    """Whether the engine is there."""
    done = subprocess.run(["docker", "info"], env=docker.environment, capture_output=True)
    return done.returncode == 0


@contextmanager
def docker_engine(folder: Path) -> Iterator[Docker]:
    """A Docker engine, ended afterwards if it was started here.

    Raises:
        NoDocker: there is none and none can be started.
    """
    install()
    if os.environ.get("DOCKER_HOST"):
        docker = Docker(_environment(os.environ["DOCKER_HOST"]))
        if not answers(docker):
            raise NoDocker(f"nobody answers at DOCKER_HOST={os.environ['DOCKER_HOST']}")
        yield docker
        return
    if os.geteuid() != 0:
        raise NoDocker("only root can start dockerd")
    socket, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
    docker = Docker(_environment(socket), log)
    command = [
        "dockerd", "--host", socket, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
        "--pidfile", str(folder / "dockerd.pid"),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not answers(docker):
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoDocker(f"dockerd did not start: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.5)
        yield docker
    finally:
        _end(process)
        shutil.rmtree(folder / "data", ignore_errors=True)  # all images: gigabytes


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    if process.poll() is None:
        process.kill()
        process.wait()
