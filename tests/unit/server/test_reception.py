"""What a request is told of its tenant's limits, with a clock of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.acceptance import Usage
from server.access import Access
from server.errors import Refusal
from server.exchange import CLIENT_GONE, STREAM_FAILED, Exchange
from server.inbound import Route, check
from server.reception import Reception, Visit, duration, request_id
from server.settings import GatewaySettings
from server.tenants import hash_key

CHAT = Route("/v1/chat/completions", "chat", generates=True)


class House:
    """A reception with one tenant, whose key is ``k``."""

    def __init__(self, path: Path, **limits: object):
        self.now, self.path = 1000.0, path
        self.write(**limits)
        settings = GatewaySettings(tenants_file=path, served_model_name="m")
        self.access = Access(settings, lambda line: None)
        self.reception = Reception(settings, self.access, lambda: self.now)

    def write(self, **limits: object) -> None:
        self.path.write_text(json.dumps({"tenants": [{"name": "t", "keys": [hash_key("k")], **limits}]}))

    def visit(self, key: str = "k", **more: str) -> Visit:
        headers = {"authorization": f"Bearer {key}", **more}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        return self.reception.receive(CHAT, {"type": "http", "headers": pairs})

    def asked(self, **body: Any) -> Visit:
        """A visit that has declared a request."""
        visit = self.visit()
        visit.enter()
        visit.declare(check(CHAT, json.dumps(body).encode(), 8))
        return visit

    def left(self) -> int:
        budget = self.reception.budget_of(self.access.tenants[0])
        assert budget is not None
        assert budget.tokens is not None
        return budget.tokens.remaining(self.now)


def ended(status: str, usage: Usage | None = None, chunks: int = 0, asked: bool = False) -> Exchange:
    return Exchange(status=status, usage=usage, num_chunks=chunks, served_by=("m", "d") if asked else None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


@pytest.mark.parametrize(
    ("exchange", "kept"),
    [(ended("200", Usage(5, 7)), 12), (ended("200"), 50), (ended("503"), 0), (ended("400"), 0), (ended(STREAM_FAILED), 0),
     (ended(CLIENT_GONE), 0), (ended(CLIENT_GONE, asked=True), 50), (ended("504", asked=True), 0),
     (ended("200", Usage(50, 30)), 80)],
    ids=["settled from usage", "not counted by the engine", "failed", "refused", "broke off unasked", "left while it was queued",
         "left while it was answered", "took too long", "more than declared"],
)  # fmt: skip
def test_tokens_are_set_aside_and_settled(path: Path, exchange: Exchange, kept: int) -> None:
    house = House(path, tokens_per_minute=100)
    visit = house.asked(max_tokens=50)
    assert house.left() == 50
    visit.end(exchange)
    visit.end(exchange)
    assert house.left() == 100 - kept


@pytest.mark.parametrize(
    ("exchange", "kept"),
    [(ended(CLIENT_GONE, chunks=9, asked=True), 29), (ended(STREAM_FAILED, chunks=3, asked=True), 23),
     (ended(CLIENT_GONE, asked=True), 20), (ended(CLIENT_GONE), 0), (ended("502", asked=True), 0)],
    ids=["left", "cut", "left before the first token", "left while it was queued", "failed before the first token"],
)  # fmt: skip
def test_a_stream_that_ends_early_counts_its_prompt_and_what_had_come(
    path: Path, exchange: Exchange, kept: int
) -> None:
    house = House(path, tokens_per_minute=100)
    visit = house.asked(max_tokens=50, stream=True, prompt=[1] * 20)
    assert house.left() == 30
    visit.end(exchange)
    assert house.left() == 100 - kept


def test_headers_tell_as_openais_do(path: Path) -> None:
    house = House(path, tokens_per_minute=100, requests_per_minute=3)
    visit = house.asked(max_tokens=50)
    assert visit.headers()["x-ratelimit-limit-requests"] == "3"
    assert visit.headers()["x-ratelimit-remaining-requests"] == "2"
    assert visit.headers()["x-ratelimit-limit-tokens"] == "100"
    assert visit.headers()["x-ratelimit-remaining-tokens"] == "50"
    assert visit.headers()["x-ratelimit-reset-tokens"] == "1m0.1s"


def test_what_does_not_fit_now_is_told_when_it_will(path: Path) -> None:
    house = House(path, tokens_per_minute=100)
    house.asked(max_tokens=80)
    house.now += 20
    with pytest.raises(Refusal, match="try again in 41 s") as caught:
        house.asked(max_tokens=30)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "rate_limit_exceeded", 41)
    house.now += 41
    house.asked(max_tokens=30)


def test_what_never_fits_is_not_worth_a_retry(path: Path) -> None:
    with pytest.raises(Refusal, match="never fits") as caught:
        House(path, tokens_per_minute=100).asked(max_tokens=101)
    assert (caught.value.status, caught.value.retry_after_s) == (429, None)
    assert caught.value.headers["x-should-retry"] == "false"


def test_models_that_are_not_its_own(path: Path) -> None:
    house = House(path, models=["other"])
    house.asked(model="other")
    for body in ({"model": "m"}, {}):  # without a name it is the one that is served
        with pytest.raises(Refusal, match="it may use: other") as caught:
            house.asked(**body)
        assert (caught.value.status, caught.value.param) == (403, "model")
        assert caught.value.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("served", "refused"), [(["reference"], None), (["other"], 403), (["reference", "other"], None)]
)
def test_without_a_name_the_only_model_of_a_list_is_meant(path: Path, served: list[str], refused: int | None) -> None:
    """Of several none is meant: routing says so with a 400."""
    house = House(path, models=["reference"])
    engines = [{"name": name, "url": f"http://{name}:1", "model": name} for name in served]
    house.reception = Reception(GatewaySettings.model_validate({"engines": engines}), house.access, lambda: house.now)
    try:
        house.asked()
    except Refusal as refusal:
        assert refusal.status == refused  # noqa: PT017
    else:
        assert refused is None


def test_a_place_is_given_back_when_a_later_step_refuses(path: Path) -> None:
    house = House(path, concurrent_requests=1, models=["other"])
    for _ in range(3):
        visit = house.visit()
        visit.enter()
        with pytest.raises(Refusal):
            visit.declare(check(CHAT, b"{}", 8))
        visit.end(ended("403"))
    house.visit().enter()
    with pytest.raises(Refusal, match="at the same time") as caught:
        house.visit().enter()
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1)


def test_a_bad_key_takes_nothing(path: Path) -> None:
    house = House(path, concurrent_requests=1)
    visit = house.visit("wrong")
    assert visit.tenant.name == "unknown"
    with pytest.raises(Refusal, match="not known here"):
        visit.enter()
    visit.end(ended("401"))
    assert house.reception.status()[0]["running"] == 0


def test_what_was_used_outlives_a_reload(path: Path) -> None:
    house = House(path, tokens_per_minute=100)
    visit = house.asked(max_tokens=80)
    house.write(tokens_per_minute=200)
    assert house.access.reload()
    assert house.left() == 120
    visit.end(ended("200", Usage(1, 2)))
    assert house.left() == 197


def test_the_status_shows_budgets_and_no_keys(path: Path) -> None:
    house = House(path, tokens_per_minute=100)
    house.asked(max_tokens=80)
    shown = json.dumps(house.reception.status())
    assert json.loads(shown)[0]["tokens_remaining"] == 20
    assert "sha256" not in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (8.64, "8.64s"), (59.999, "60s"), (60, "1m0s"), (372.5, "6m12.5s")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize("given", ["a" * 129, "a b", "a\nb", "", '"', "é"])
def test_ids_that_are_not_sane_are_replaced(given: str) -> None:
    assert request_id({"headers": [(b"x-request-id", given.encode())]}).startswith("req-")


def test_a_sane_id_is_taken_over_and_others_are_made(path: Path) -> None:
    house = House(path)
    assert house.visit(**{"x-request-id": "My-id:1.2_3"}).headers()["x-request-id"] == "My-id:1.2_3"
    assert house.visit().request_id != house.visit().request_id
