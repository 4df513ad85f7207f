from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.sharing import CanarySettings, check_canary, shares
from stages.errors import InputError
from stages.settings import validate

POOLS = {"m/old": "old", "m/new": "new", "m/none": None}
CANARY = CanarySettings(draft="new", share=0.1)


def test_ordinary_traffic_is_left_to_routing() -> None:
    assert shares(POOLS, set(), 0.05, None) == {}


def test_a_canary_takes_its_share_by_pool_or_by_draft() -> None:
    assert shares(POOLS, set(), 0.05, CANARY) == {"m/new": 0.1}
    assert shares(POOLS, set(), 0.05, CanarySettings(pool="m/new", share=0.2)) == {"m/new": 0.2}
    assert shares(POOLS, set(), 0.05, CanarySettings(pool="m/other")) == {}


@pytest.mark.parametrize(
    ("canary", "pools", "message"),
    [({"draft": "nwe"}, POOLS, "no engine has the draft 'nwe'; there are old, new; name one, or leave 'canary' out"),
     ({"pool": "m/nwe"}, POOLS, "no engine has the pool 'm/nwe'; there are m/old, m/new, m/none"),
     ({"draft": "none"}, {"m/none": None}, "no engine has the draft 'none'; there are none")],
)  # fmt: skip
def test_a_canary_that_nobody_is_is_refused(canary: dict[str, str], pools: dict[str, str | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_canary(CanarySettings.model_validate(canary), pools)


def test_a_canary_that_there_is_or_none_at_all_is_not_refused() -> None:
    for canary in (None, CANARY, CanarySettings(pool="m/none")):
        check_canary(canary, POOLS)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_canary_can_be_rolled_back_and_promoted(share: float) -> None:
    assert shares(POOLS, set(), 0.05, CanarySettings(draft="new", share=share)) == {"m/new": share}


def test_traffic_leaves_a_stale_draft_but_for_the_probing_share() -> None:
    assert shares({"m/old": "old", "m/none": None}, {"old"}, 0.05, None) == {"m/old": 0.05}
    assert shares({"m/old": "old", "m/new": "new"}, {"old"}, 0.05, None) == {"m/old": 0.05}
    assert shares({"m/a": "a", "m/b": "b", "m/none": None}, {"a", "b"}, 0.05, None) == {"m/a": 0.025, "m/b": 0.025}


def test_where_nobody_can_take_over_a_stale_draft_stays() -> None:
    assert shares({"m/old": "old"}, {"old"}, 0.05, None) == {}
    assert shares({"m/old": "old", "m/new": "new"}, {"old"}, 0.05, CANARY) == {"m/new": 0.1}


def test_a_stale_canary_takes_no_more_than_is_needed_to_judge_it() -> None:
    assert shares(POOLS, {"new"}, 0.05, CANARY) == {"m/new": 0.05}


def test_beside_a_canary_a_stale_draft_is_still_moved_away_from() -> None:
    assert shares(POOLS, {"old"}, 0.05, CANARY) == pytest.approx({"m/new": 0.1, "m/old": 0.045})


DRAFTS = st.sampled_from([None, "a", "b", "c"])


@given(
    st.dictionaries(st.sampled_from("pqrst"), DRAFTS, max_size=5), st.sets(st.sampled_from("abc")), st.floats(0.01, 0.99),
    st.none() | st.builds(CanarySettings, draft=st.sampled_from("abc"), share=st.floats(0, 1)),
)  # fmt: skip
def test_shares_never_sum_to_more_than_all_and_somebody_is_left_for_the_rest(
    pools: dict[str, str | None], stale: set[str], probing: float, canary: CanarySettings | None
) -> None:
    found = shares(pools, stale, probing, canary)
    assert found.keys() <= pools.keys()
    assert sum(found.values()) <= 1 + 1e-9
    assert not pools or found.keys() < pools.keys()
    assert all(pools[name] is not None for name in found)


@pytest.mark.parametrize("given_", [{}, {"pool": "p", "draft": "d"}, {"draft": "d", "share": 1.5}])
def test_what_is_no_canary_is_refused(given_: dict[str, object]) -> None:
    with pytest.raises(InputError):
        validate(CanarySettings, given_, "serve")
