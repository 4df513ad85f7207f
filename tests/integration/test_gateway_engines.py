"""``serve --config`` with a list of engines, in front of the pair's engine that the other tests use: one more gateway."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.integration.conftest import PROJECT, Served, end, get, metric, said, wait_for

pytestmark = pytest.mark.engine

CONFIG = """
port: 0
engines:
  - {{name: pair, url: "{url}", pair: "{pair}", target: reference}}
  - {{name: gone, url: "http://127.0.0.1:1", model: reference, draft: none}}
"""


@pytest.fixture(scope="module")
def fleet(served: Served, pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway before the served pair's engine and a plain one that is not there."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "serve.yaml").write_text(CONFIG.format(url=served.engine_url, pair=pair_folder))
    command = [sys.executable, "-m", "understudy", "serve", "--config", str(folder / "serve.yaml")]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output)
    try:
        wait_for("ready", lambda: said(folder / "output", r"gateway: (ready)") or process.poll() is not None, 120)
        text = (folder / "output").read_text()
        print(text)
        assert re.search(r"engine pair: taken in after \d", text)
        yield re.findall(r"gateway: (http\S+) ", text)[0]
    finally:
        end(process)


def test_a_list_of_engines_serves_with_what_is_there(served: Served, fleet: str) -> None:
    served.settle()
    client = openai.OpenAI(base_url=f"{fleet}/v1", api_key="x", max_retries=0)
    names = ("drafts", "draft_tokens", "accepted_tokens")
    before = [metric(served.engine_url, f"vllm:spec_decode_num_{name}_total") for name in names]
    for seed in range(6):
        raw = client.completions.with_raw_response.create(
            model="reference", prompt="import os\n", max_tokens=16, seed=seed, stream=False
        )
        assert raw.headers["x-understudy-pool"] == "reference/one-layer"
    wait_for("the engine at rest", lambda: metric(served.engine_url, "vllm:num_requests_running") == 0)
    after = [metric(served.engine_url, f"vllm:spec_decode_num_{name}_total") for name in names]
    grown = [late - early for late, early in zip(after, before, strict=True)]
    assert grown == [metric(fleet, f"understudy_{name}_total", draft="one-layer") for name in names]
    assert grown[0] > 0
    assert get(f"{fleet}/ready")[0] == 200
    assert [model.id for model in client.models.list()] == ["reference"]


def test_what_only_the_plain_engine_could_do_waits_for_it(served: Served, fleet: str) -> None:
    client = openai.OpenAI(base_url=f"{fleet}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.InternalServerError, match="cannot be reached"):
        client.completions.create(model="reference", prompt="x", logit_bias={"5": 1})
    with pytest.raises(openai.BadRequestError, match=r"logit_bias.*engine without a draft"):
        served.client.completions.create(model="reference", prompt="x", logit_bias={"5": 1})
