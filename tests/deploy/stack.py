"""The running stack, how to talk to it, and how long it took to get there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import openai

from tests.deploy.docker_engine import Docker

PROJECT = "understudy-test"
START_S, REQUEST_S = 400.0, 120.0
STARTED = "Application startup complete"
TAKEN_IN = re.compile(r"gateway: ready|taken in after")

TO_THE_LIMIT = {"ignore_eos": True}
"""A target with random weights may end at once, which would look like an answer that was lost."""


@dataclass
class Stack:
    """Containers of one compose project."""

    docker: Docker
    folder: Path
    gateway: str
    prometheus: str
    settings: dict[str, object] = field(default_factory=dict)
    key: str = "any"

    def configure(self, **settings: object) -> None:
        """Writes .env, as a user does."""
        self.settings |= settings
        lines = [f"{name}={value}\n" for name, value in self.settings.items()]
        (self.folder / ".env").write_text("".join(lines))

    def compose(self, *command: str, timeout_s: float = START_S) -> str:
        """docker-compose in the copy of the repository."""
        return self.docker.run("docker-compose", *command, timeout_s=timeout_s, cwd=self.folder)

    def container(self, service: str) -> str:
        """A service's container."""
        return self.compose("ps", "-q", service).strip()

    def inspect(self, service: str, what: str) -> str:
        """A field of a service's container."""
        return self.docker.run("docker", "inspect", "--format", what, self.container(service)).strip()

    def client(self, **options: object) -> openai.OpenAI:
        """The real client, without its own retries."""
        settings = {"api_key": self.key, "max_retries": 0, "timeout": REQUEST_S} | options
        return openai.OpenAI(base_url=f"{self.gateway}/v1", **settings)  # type: ignore[arg-type]

    def ask(self, seed: int, max_tokens: int = 32, name: str = "") -> str:
        """A sampled completion of ``max_tokens``; its name stands in the gateway's log."""
        answer = self.client().completions.create(
            model="pico", prompt=f"w{seed % 128} w7 w11", max_tokens=max_tokens, temperature=1, seed=seed,
            extra_headers=named(name), extra_body=TO_THE_LIMIT,
        )  # fmt: skip
        return answer.choices[0].text

    def stream(self, seed: int, max_tokens: int = 24, name: str = "", temperature: float = 1) -> str:
        """The same in pieces; empty if the stream ends without saying that the answer has."""
        chunks = self.client().completions.create(
            model="pico", prompt=f"w{seed % 128} w5", max_tokens=max_tokens, temperature=temperature, seed=seed, stream=True,
            extra_headers=named(name), extra_body=TO_THE_LIMIT,
        )  # fmt: skip
        choices = [choice for chunk in chunks for choice in chunk.choices]
        ended = any(choice.finish_reason for choice in choices)
        return "".join(choice.text for choice in choices) if ended else ""

    def query(self, expression: str) -> list[dict[str, object]]:
        """What Prometheus answers."""
        address = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=10) as response:
            return list(json.load(response)["data"]["result"])

    def started_s(self, service: str) -> float:
        """When a service's container began, in seconds of the clock."""
        return moment(self.inspect(service, "{{.State.StartedAt}}"))

    def said_s(self, service: str, what: str | re.Pattern[str], since_s: float) -> float:
        """When a service first wrote this to its log."""
        for line in self.docker.log_of(self.container(service), since_s):
            time, _, text = line.partition(" ")
            if re.search(what, text) and moment(time) >= since_s:
                return moment(time)
        raise AssertionError(f"{service} never said {what}")


def named(name: str) -> dict[str, str]:
    """The header that names a request."""
    return {"X-Request-Id": name} if name else {}


def moment(text: str) -> float:
    """Docker's way to write a time, as seconds."""
    return datetime.fromisoformat(text).timestamp()


def parts(marks: dict[str, float]) -> dict[str, float]:
    """Seconds between each moment and the one before, by the name of the later; the first is the beginning."""
    times = list(marks.values())
    return {name: round(end - begin, 1) for name, begin, end in zip(list(marks)[1:], times, times[1:], strict=False)}


def made_key(folder: Path) -> str:
    """Writes the secrets as docker/secrets/README.md says, and returns the key."""
    command = [sys.executable, "-m", "understudy", "key", "shop"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (folder / "tenants.yaml").write_text(f"tenants:\n{done.stdout}")
    (folder / "grafana_password").write_text("for-a-test")
    for file in folder.iterdir():
        file.chmod(0o444)
    return done.stderr.split()[0]
