"""Forms of the stack that are started: the builder makes the pair, two engines serve it, and a second draft is on trial.

The tests go on from each other. The canary's steps are those of "Upgrading a draft" in docs/deploy.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.engine import choose_port
from tests.deploy.conftest import take_down
from tests.deploy.stack import START_S, TO_THE_LIMIT, Stack
from tests.integration.conftest import get, wait_for
from tests.integration.pico_pair import VOCAB

RECIPE = """
name: pico
target: ../model
prompts: {train: ../prompts/train.jsonl, validation: ../prompts/validation.jsonl, heldout: ../prompts/heldout.jsonl}
out: build/pico
max_model_len: 256
prune: {keep: 1, calibration_tokens: 256}
distill: {max_prompts: 16, max_tokens: 16, concurrency: 8}
recover: {tokens: 4000, batch_tokens: 512}
measure: {num_speculative_tokens: [2, 3], prompts_per_kind: 2, max_tokens: 16, repeats: 1, suffix: false,
  temperatures: [0.0], concurrencies: [1]}
"""
BUILD_S = 900.0
ENGINES = ("engine", "engine-b")
COUNTED = """
import re, urllib.request
text = urllib.request.urlopen('http://127.0.0.1:8001/metrics').read().decode()
print(sum(float(n) for n in re.findall(r'^vllm:request_success_total.* (\\S+)$', text, re.M)))
"""


def write_prompts(folder: Path) -> None:
    """Prompts of a pico target, no two of them alike."""
    folder.mkdir()
    for part, name in enumerate(("train", "validation", "heldout")):
        texts = [
            " ".join(f"w{1 + (29 * part + 7 * i + 13 * j) % (VOCAB - 1)}" for j in range(6 + part)) for i in range(24)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def forms(built: Stack) -> Iterator[Stack]:
    """A stack of its own with two engines, whose volume holds no pair yet, up and ready."""
    prompts = built.folder.parent / "prompts"
    write_prompts(prompts)
    (built.folder / "recipes" / "pico.yaml").write_text(RECIPE)
    port = choose_port(None)
    forms = replace(built, gateway=f"http://127.0.0.1:{port}", settings={})
    forms.configure(
        MODEL=built.settings["MODEL"], RECIPE="recipes/pico.yaml", PROMPTS=prompts, GATEWAY_PORT=port, PIP_NO_INDEX=1,
        COMPOSE_PROJECT_NAME="understudy-forms", COMPOSE_FILE="compose.yaml:docker/compose.scale.yaml",
    )  # fmt: skip
    try:
        forms.compose("up", "--detach", "gateway", timeout_s=BUILD_S)
        is_ready(forms)
        yield forms
    except BaseException:
        print(forms.compose("logs", "--tail", "60"))
        raise
    finally:
        take_down(forms)
        built.configure()


def is_ready(stack: Stack) -> None:
    """Waits until requests are taken."""
    wait_for("ready", lambda: get(f"{stack.gateway}/ready")[0] == 200, START_S)


def answered_by(stack: Stack) -> dict[str, float]:
    """Requests that each engine has answered, by its own count."""
    return {name: float(stack.compose("exec", "-T", name, "python", "-c", COUNTED)) for name in ENGINES}


def drafts_of(stack: Stack, number: int = 12) -> set[str]:
    """Which drafts the gateway says have answered."""
    asking: Any = stack.client().completions.with_raw_response
    answers = [
        asking.create(model="pico", prompt=f"w{i + 1} w2", max_tokens=4, temperature=0, extra_body=TO_THE_LIMIT)
        for i in range(number)
    ]
    return {answer.headers["x-understudy-draft"] for answer in answers}


def test_the_builder_makes_a_pair_where_the_volume_holds_none(forms: Stack) -> None:
    assert forms.inspect("builder", "{{.State.ExitCode}}") == "0"
    log = re.sub(r"\x1b\[[0-9;]*m", "", forms.compose("logs", "--no-color", "builder"))
    assert "/pair/pair" in log
    assert "is there; to build anew" not in log
    made = json.loads(forms.compose("exec", "-T", "engine", "cat", "/pair/pair/serving.json"))
    assert made["served_model_name"] == "pico"
    assert made["reason"]
    assert [model.id for model in forms.client().models.list()] == ["pico"]
    forms.compose("up", "--detach", "--no-deps", "builder")
    wait_for("the builder's end", lambda: forms.inspect("builder", "{{.State.Status}}") == "exited", START_S)
    assert "is there; to build anew" in forms.compose("logs", "builder")


def test_two_engines_share_the_requests(forms: Stack) -> None:
    before = answered_by(forms)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(forms.ask, range(32)))
    answered = {name: count - before[name] for name, count in answered_by(forms).items()}
    assert min(answered.values()) > 0
    assert sum(answered.values()) >= 32


def test_one_engine_serves_on_while_the_other_is_gone(forms: Stack) -> None:
    forms.docker.run("docker", "kill", forms.container("engine-b"))
    assert all(forms.ask(seed) for seed in range(12))
    assert get(f"{forms.gateway}/ready")[0] == 200


def test_a_canary_is_promoted_and_rolled_back_without_a_restart(forms: Stack, built: Stack) -> None:
    forms.configure(PAIR_B=built.settings["PAIR"], GATEWAY_CONFIG="canary.yaml")
    forms.compose("up", "--detach", "--no-deps", "engine-b")
    wait_for("engine-b", lambda: forms.inspect("engine-b", "{{.State.Health.Status}}") == "healthy", START_S)
    forms.compose("up", "--detach", "--no-deps", "gateway")
    is_ready(forms)
    gateway = forms.container("gateway")
    settings = forms.folder / "docker" / "gateway" / "canary.yaml"

    def share(value: int) -> None:
        settings.write_text(re.sub(r"share: [0-9.]+", f"share: {value}", settings.read_text()))
        forms.compose("exec", "-T", "gateway", "sh", "-c", "kill -HUP 1")

    share(1)
    wait_for("the canary's answers", lambda: drafts_of(forms, 4) == {"canary"}, 30)
    assert drafts_of(forms) == {"canary"}
    share(0)
    wait_for("the other draft's answers", lambda: "canary" not in drafts_of(forms, 4), 30)
    assert "canary" not in drafts_of(forms)
    assert forms.container("gateway") == gateway
    assert forms.inspect("gateway", "{{.RestartCount}}") == "0"
    told = forms.compose("exec", "-T", "gateway", "understudy", "canary", "http://127.0.0.1:9000")
    assert "canary" in told
