from __future__ import annotations

from typing import Any

from server.acceptance import AcceptanceRecord, Usage
from server.drift import DriftSettings
from server.exchange import Exchange
from server.metrics import Metrics
from server.pools import make_pools
from server.settings import GatewaySettings
from server.sharing import CanarySettings
from server.watch import Watch

DRAFTS = ("d", "new", None)
POOLS = make_pools([(f"engine-{draft}", "m", draft) for draft in DRAFTS])
SETTINGS = GatewaySettings(
    engine_url="http://127.0.0.1:1", served_model_name="m", draft_name="d", expected_mean_acceptance_length=2.0,
    expected_speedup=1.5, drift=DriftSettings(min_drafts=100),
)  # fmt: skip


class Watched:
    def __init__(self, **changes: Any):
        self.settings = SETTINGS.model_copy(update=changes)
        self.metrics, self.lines, self.now = Metrics(self.settings), [], 0.0
        self.watch = Watch(self.settings, self.metrics, POOLS, lambda: self.now, self.lines.append)

    def see(self, pool: str, length: float, requests: int = 1) -> None:
        for _ in range(requests):
            exchange = Exchange(lambda: 0.0, status="200", served_by=("m", pool.removeprefix("m/")), usage=Usage(1, 10))
            exchange.acceptance = AcceptanceRecord(10, 40, round(10 * (length - 1)))
            self.now += 1
            self.watch.see("chat", exchange)

    def gauge(self, name: str) -> str:
        (line,) = [line for line in self.metrics.exposition().decode().splitlines() if line.startswith(name + "{")]
        return line.split()[-1]


def test_a_draft_that_goes_stale_is_told_of_once_and_moved_away_from() -> None:
    watched = Watched()
    watched.see("m/d", 2.0, requests=10)
    assert (watched.gauge("understudy_draft_stale"), watched.watch.shares()) == ("0.0", {})
    assert watched.gauge("understudy_sliding_mean_acceptance_length") == "2.0"
    watched.see("m/d", 1.2, requests=40)
    assert (watched.gauge("understudy_draft_stale"), watched.watch.shares()) == ("1.0", {"m/d": 0.05})
    assert len(watched.lines) == len(watched.watch.alerts) == 1
    assert "draft 'd' is stale" in watched.lines[0]
    watched.see("m/d", 2.0, requests=150)
    assert (watched.gauge("understudy_draft_stale"), watched.watch.shares()) == ("0.0", {})
    assert [alert["state"] for alert in watched.watch.alerts] == ["fresh", "stale"]


def test_drafts_without_an_expected_figure_are_not_judged() -> None:
    watched = Watched()
    watched.see("m/new", 1.0, requests=50)
    assert (watched.watch.shares(), watched.lines) == ({}, [])


def test_the_canary_is_compared_and_can_be_replaced_while_serving() -> None:
    watched = Watched(canary=CanarySettings(draft="new", share=0.1))
    watched.see("m/d", 2.0, requests=30)
    watched.see("m/new", 2.5, requests=30)
    report = watched.watch.canary_report()
    assert (report["main"], report["pools"], report["canary"]["share"]) == (["m/d"], ["m/new"], 0.1)
    assert report["rows"][0]["mean_acceptance_length"]["canary"]["value"] == 2.5
    watched.watch.reload(SETTINGS.model_copy(update={"canary": CanarySettings(draft="new", share=1.0)}))
    assert watched.watch.shares() == {"m/new": 1.0}
    assert watched.watch.canary_report()["rows"] == report["rows"], "promoting does not forget why"
    watched.watch.reload(SETTINGS.model_copy(update={"canary": CanarySettings(draft="d", share=0.5)}))
    assert watched.watch.canary_report()["rows"] == []
    watched.watch.reload(SETTINGS)
    assert watched.watch.canary_report()["canary"] is None


def test_a_smaller_sample_holds_for_drafts_that_were_seen_before() -> None:
    watched = Watched()
    watched.see("m/d", 1.0, requests=5)
    watched.watch.reload(SETTINGS.model_copy(update={"drift": DriftSettings(min_drafts=300)}))
    watched.see("m/d", 1.0, requests=24)
    assert watched.watch.shares() == {}
    watched.see("m/d", 1.0)
    assert watched.watch.shares() == {"m/d": 0.05}


def test_of_a_list_each_draft_has_the_figures_of_its_own_pair() -> None:
    engines = [
        {"name": name, "url": f"http://{name}", "model": "m", "draft": draft, "expected_mean_acceptance_length": length,
         "expected_speedup": speedup}
        for name, draft, length, speedup in (("a", "d", 2, 1.5), ("b", "new", 3, 1.8))
    ]  # fmt: skip
    settings = GatewaySettings.model_validate({"engines": engines})
    figures = Watch(settings, Metrics(settings), POOLS, lambda: 0.0).figures()
    shown = {pool["draft"]: pool for pool in figures["pools"]}
    assert [shown[draft]["speedup"]["expected"] for draft in ("d", "new")] == [1.5, 1.8]
    assert [shown[draft]["expected_mean_acceptance_length"] for draft in ("d", "new")] == [2, 3]


def test_engines_turns_stand_among_the_alerts_the_latest_first() -> None:
    watched = Watched()
    watched.see("m/d", 1.0, requests=10)
    watched.watch.alert_of_engine("a", "away", "engine a is away")
    assert [alert["text"][:14] for alert in watched.watch.alerts] == ["engine a is aw", "drift: draft '"]


def test_new_thresholds_are_taken_over() -> None:
    watched = Watched()
    watched.watch.reload(SETTINGS.model_copy(update={"drift": DriftSettings(min_drafts=10, probing_share=0.2)}))
    watched.see("m/d", 1.0)
    assert watched.watch.shares() == {"m/d": 0.2}


def test_the_live_figures_hold_every_pool() -> None:
    watched = Watched()
    watched.see("m/d", 1.8, requests=5)
    figures = watched.watch.figures()
    pools = {pool["name"]: pool for pool in figures["pools"]}
    assert list(pools) == ["m/d", "m/new", "m/none"]
    assert pools["m/d"]["speedup"] == {"expected": 1.5, "from_acceptance": 1.5 * 1.8 / 2.0, "measured": None}
    assert (pools["m/new"]["state"], pools["m/new"]["mean_acceptance_length"]) == (None, None)
    assert "speedup" not in pools["m/none"]
