from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Refusal
from server.facts import Facts
from server.pools import Candidate, EngineState, Pool, Reason, make_pools, route

ENGINES = [("a1", "m", "d"), ("a2", "m", "d"), ("p1", "m", None), ("c1", "m", "new"), ("o1", "other", "d")]
POOLS = make_pools(ENGINES)
WELL = {name: EngineState() for name, _, _ in ENGINES}


def names(found: list[Candidate]) -> list[str]:
    return [one.engine for one in found]


def ask(facts: Facts, chance: float = 0.5, **changed: EngineState) -> list[Candidate]:
    return route(facts, POOLS, {**WELL, **changed}, chance)


def refused(facts: Facts, pools: tuple[Pool, ...] = POOLS, **changed: EngineState) -> Refusal:
    with pytest.raises(Refusal) as caught:
        route(facts, pools, {**WELL, **changed}, 0.5)
    return caught.value


def test_a_pool_is_the_engines_of_one_model_with_one_draft() -> None:
    assert [(pool.name, pool.engines) for pool in POOLS] == [
        ("m/d", ("a1", "a2")), ("m/none", ("p1",)), ("m/new", ("c1",)), ("other/d", ("o1",)),
    ]  # fmt: skip


def test_fewest_requests_then_longest_known_beginning_then_name() -> None:
    found = ask(
        Facts("m"), a1=EngineState(in_flight=1), a2=EngineState(overlap=lambda: 1), c1=EngineState(overlap=lambda: 3)
    )
    assert names(found) == ["c1", "a2", "a1", "p1"]
    assert names(ask(Facts("m"))) == ["a1", "a2", "c1", "p1"]


def test_what_a_draft_refuses_goes_to_engines_without_one_only() -> None:
    for because in ("min_p", "logit_bias", "header"):
        (found,) = ask(Facts("m", because))
        assert (found.engine, found.reason) == ("p1", Reason(because))
    gone = refused(Facts("m", "min_p"), p1=EngineState(usable=False))
    assert (gone.status, gone.code) == (503, "engine_unreachable")


@pytest.mark.parametrize("because", ["min_p", "logit_bias", "header"])
def test_without_such_an_engine_it_says_why_and_what_to_do(because: str) -> None:
    refusal = refused(Facts("other", because))
    assert (refusal.status, refusal.code) == (400, "no_plain_engine")
    assert "'other' runs with a draft" in refusal.message
    assert "leave" in refusal.message
    assert "engine without a draft" in refusal.message
    assert refusal.param == (None if because == "header" else because)


def test_unknown_models_and_none_of_several() -> None:
    assert (refused(Facts("x")).status, refused(Facts("x")).code) == (404, "model_not_found")
    assert "m, other" in refused(Facts("x")).message
    assert (refused(Facts()).status, refused(Facts()).param) == (400, "model")
    assert names(route(Facts(), POOLS[:1], WELL, 0)) == ["a1", "a2"]


def test_a_full_house_is_told_from_a_dead_one() -> None:
    full = EngineState(in_flight=2, max_in_flight=2)
    assert refused(Facts("other"), o1=full).code == "engine_busy"
    assert refused(Facts("other"), o1=EngineState(usable=False)).code == "engine_unreachable"
    assert refused(Facts("other"), o1=full).retry_after_s == 1


def test_the_plain_pool_stands_in_for_drafts_and_says_so() -> None:
    dead = EngineState(usable=False)
    (found,) = ask(Facts("m"), a1=dead, a2=dead, c1=dead)
    assert (found.engine, found.reason) == ("p1", Reason.FALLBACK)


@pytest.mark.parametrize(
    ("shares", "chance", "engine", "reason"),
    [({"m/new": 0.1}, 0.09, "c1", Reason.SHARE), ({"m/new": 0.1}, 0.1, "a1", Reason.DEFAULT),
     ({"m/new": 0.1, "m/d": 0.02}, 0.01, "a1", Reason.SHARE), ({"m/new": 0.1, "m/d": 0.02}, 0.11, "c1", Reason.SHARE),
     ({"m/new": 0.1, "m/d": 0.02}, 0.121, "p1", Reason.MOVED), ({"m/none": 0.5}, 0.1, "p1", Reason.SHARE),
     ({"m/new": 0.0, "m/d": 0.0}, 0.0, "p1", Reason.MOVED)],
)  # fmt: skip
def test_shares(shares: dict[str, float], chance: float, engine: str, reason: Reason) -> None:
    first = route(Facts("m"), POOLS, WELL, chance, shares)[0]
    assert (first.engine, first.reason) == (engine, reason)


def test_a_share_is_no_wall_where_nobody_else_is_left() -> None:
    assert names(route(Facts("other"), POOLS, WELL, 0.9, {"other/d": 0.02})) == ["o1"]
    dead = {name: EngineState(usable=False) for name in ("a1", "a2", "p1")}
    assert names(route(Facts("m"), POOLS, {**WELL, **dead}, 0.9, {"m/new": 0.1})) == ["c1"]


STATE = st.builds(
    EngineState, usable=st.booleans(), in_flight=st.integers(0, 3), max_in_flight=st.none() | st.integers(1, 3)
)
FACTS = st.builds(
    Facts, model=st.sampled_from(["m", "other"]), plain_because=st.sampled_from([None, "min_p", "header"])
)
SHARES = st.dictionaries(st.sampled_from([pool.name for pool in POOLS]), st.floats(0, 0.5), max_size=2)


@settings(max_examples=200, deadline=None)
@given(
    facts=FACTS,
    states=st.fixed_dictionaries(dict.fromkeys(WELL, STATE)),
    chance=st.floats(0, 1, exclude_max=True),
    shares=SHARES,
)
def test_whatever_the_state(
    facts: Facts, states: dict[str, EngineState], chance: float, shares: dict[str, float]
) -> None:
    """Every engine that may have the request is on the list once, and no other; refused only when there is none."""
    may = {
        name
        for name, model, draft in ENGINES
        if model == facts.model and (draft is None or facts.plain_because is None)
        and states[name].usable and not states[name].full
    }  # fmt: skip
    if not may:
        with pytest.raises(Refusal) as caught:
            route(facts, POOLS, states, chance, shares)
        no_plain = facts.model == "other" and facts.plain_because
        assert caught.value.status == (400 if no_plain else 503)
        return
    found = names(route(facts, POOLS, states, chance, shares))
    assert len(found) == len(set(found))
    assert set(found) == may


def test_the_shares_are_kept_on_the_long_run() -> None:
    counts: dict[str, Any] = {}
    for step in range(1000):
        first = route(Facts("m"), POOLS, WELL, (step + 0.5) / 1000, {"m/new": 0.1, "m/d": 0.02})[0]
        counts[first.pool.name] = counts.get(first.pool.name, 0) + 1
    assert counts == {"m/d": 20, "m/new": 100, "m/none": 880}
