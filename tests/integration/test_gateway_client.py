"""The real client against the real engine, through the gateway."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.integration.conftest import NUM_SPECULATIVE_TOKENS, Served, metric

pytestmark = pytest.mark.engine

COUNTERS = {
    "understudy_drafts_total": "vllm:spec_decode_num_drafts_total",
    "understudy_draft_tokens_total": "vllm:spec_decode_num_draft_tokens_total",
    "understudy_accepted_tokens_total": "vllm:spec_decode_num_accepted_tokens_total",
    "understudy_output_tokens_total": "vllm:generation_tokens_total",
    "understudy_prompt_tokens_total": "vllm:prompt_tokens_total",
}
MESSAGES = [{"role": "user", "content": "What does str.join do?"}]


def test_not_ready_while_the_engine_starts(served: Served) -> None:
    assert {path: status for path, (status, _) in served.early.items()} == {
        "/health": 200,
        "/ready": 503,
        "/v1/models": 503,
    }
    assert json.loads(served.early["/v1/models"][1])["error"]["code"] == "starting"


def test_models(served: Served) -> None:
    (model,) = served.client.models.list()
    assert model.id == "reference"
    assert model.model_extra["root"] == "reference", "the engine's folders are nobody's business"


def test_chat_in_one_piece_and_as_a_stream_say_the_same(served: Served) -> None:
    asked = {"model": "reference", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    answer = served.client.chat.completions.create(**asked)
    chunks = list(served.client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_completions_in_one_piece_and_as_a_stream_say_the_same(served: Served) -> None:
    asked = {"model": "reference", "prompt": "def main():\n", "max_tokens": 24, "temperature": 0}
    answer = served.client.completions.create(**asked)
    chunks = list(served.client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == answer.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == answer.usage
    record = chunks[-1].model_extra["metrics"]["speculative_decoding"]
    assert record["num_spec_tokens"] == NUM_SPECULATIVE_TOKENS


def ask(served: Served, seed: int) -> None:
    """One request of a mixed load; every third stream is read by a client that wants the usage chunk."""
    rng = random.Random(seed)
    common = {"model": "reference", "max_tokens": rng.choice([1, 2, 5, 16, 24]), "seed": seed}
    common |= {"temperature": rng.choice([0, 1])}
    if rng.random() < 0.6:
        common |= {"stream": True}
        if rng.random() < 0.3:
            common |= {"stream_options": {"include_usage": True}}
    if rng.random() < 0.5:
        answer = served.client.chat.completions.create(messages=MESSAGES, **common)
    else:
        answer = served.client.completions.create(prompt=f"import os\n# {seed}\n", **common)
    if "stream" in common:
        assert list(answer)


def test_sums_equal_the_engines_counters_on_a_closed_run(served: Served) -> None:
    served.settle()
    urls = dict.fromkeys(COUNTERS, served.url) | dict.fromkeys(COUNTERS.values(), served.engine_url)
    before = {name: metric(url, name) for name, url in urls.items()}
    missing = metric(served.url, "understudy_acceptance_records_missing_total")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: ask(served, seed), range(56)))
    served.settle()
    grown = {name: metric(url, name) - before[name] for name, url in urls.items()}
    assert {name: grown[name] for name in COUNTERS} == {name: grown[other] for name, other in COUNTERS.items()}
    assert grown["understudy_draft_tokens_total"] > 56
    assert metric(served.url, "understudy_acceptance_records_missing_total") == missing


def test_seeded_requests_whose_prompts_are_read_in_pieces_leave_the_engine_alive(served: Served) -> None:
    """vLLM rewinds the generators of such requests; as installed, that ends an engine on a CPU (see sampling_repair)."""

    def sample(seed: int) -> int:
        asked = {"prompt": f"# {seed}\n" + "import os\n" * 130, "max_tokens": 8, "temperature": 1, "seed": seed}
        return served.client.completions.create(model="reference", **asked).usage.completion_tokens

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(sample, range(24)))
    assert served.client.completions.create(model="reference", prompt="x", max_tokens=1).usage


def test_several_answers_in_one_request_have_no_record_and_count_as_missing(served: Served) -> None:
    before = metric(served.url, "understudy_acceptance_records_missing_total", reason="absent")
    answer = served.client.completions.create(model="reference", prompt="x", n=2, max_tokens=4)
    assert len(answer.choices) == 2
    list(served.client.completions.create(model="reference", prompt=["x", "y"], max_tokens=4, stream=True))
    served.settle()
    assert metric(served.url, "understudy_acceptance_records_missing_total", reason="absent") == before + 2


def test_the_client_gets_its_own_kinds_of_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        served.client.completions.create(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError):
        served.client.completions.create(model="reference", prompt="x " * 2000)
    with pytest.raises(openai.NotFoundError):
        served.client.embeddings.create(model="reference", input="x")
