"""Rules, alerts and dashboards: they name only what there is, and every alert has its paragraph in the runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.engine_list import EngineEntry
from server.fleet import Fleet
from server.fleet_metrics import FleetMetrics
from server.metrics import Metrics
from server.settings import GatewaySettings

ROOT = Path(__file__).resolve().parents[3]
PROMETHEUS = ROOT / "docker" / "prometheus"
GRAFANA = ROOT / "docker" / "grafana"
BOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
OF_THE_ENGINE = {
    "vllm:generation_tokens_total", "vllm:kv_cache_usage_perc", "vllm:num_requests_running", "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total", "vllm:spec_decode_num_accepted_tokens_per_pos_total", "vllm:spec_decode_num_accepted_tokens_total",
    "vllm:spec_decode_num_drafts_total",
}  # fmt: skip
"""Metrics of vLLM that are used here; the deployment test finds all of them in a running engine."""


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for path in BOARDS for panel in json.loads(path.read_text())["panels"]]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels() for target in panel["targets"]]


def exposed() -> set[str]:
    """Names of all samples that a gateway can show, labels aside."""
    entry = EngineEntry(name="e", url="http://e:1", model="m", draft="d", expected_mean_acceptance_length=2)
    settings = GatewaySettings(engines=(entry.model_copy(update={"expected_acceptance_rate": 0.5}),))
    metrics = Metrics(settings)
    metrics.show_queue(lambda: 0)
    FleetMetrics(Fleet(settings), metrics.registry)
    names = set()
    for family in metrics.registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        names |= {family.name + end for end in ends}
    return names


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:understudy|engine|vllm)[a-z_]*:[a-z0-9_:]+|\bunderstudy_[a-z0-9_]+", expression))


def test_rules_and_panels_name_only_metrics_that_there_are() -> None:
    known = exposed() | {rule["record"] for rule in rules() if "record" in rule} | OF_THE_ENGINE
    for expression in expressions():
        assert named(expression) or "up{job=" in expression, expression
        assert named(expression) <= known, named(expression) - known


def test_an_invented_metric_would_be_found() -> None:
    assert named('sum(rate(understudy_drafts[5m])) / on (engine) vllm:nothing{engine="e"}') == {
        "understudy_drafts", "vllm:nothing"
    }  # fmt: skip
    assert "understudy_drafts" not in exposed()


def test_every_alert_has_a_paragraph_and_every_paragraph_an_alert() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert {rule["alert"] for rule in alerts} == set(re.findall(r"^## (\w+)$", runbook, re.M))
    for rule in alerts:
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_every_alert_is_tried_in_the_rules_test() -> None:
    tried = {
        alert["alertname"]
        for test in yaml.safe_load((PROMETHEUS / "tests" / "rules_test.yml").read_text())["tests"]
        for alert in test.get("alert_rule_test", ())
        if alert["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_every_recorded_figure_has_a_value_in_the_rules_test() -> None:
    tests = yaml.safe_load((PROMETHEUS / "tests" / "rules_test.yml").read_text())["tests"]
    checked = {
        name
        for test in tests
        for one in test.get("promql_expr_test", ())
        if one["exp_samples"]
        for name in named(one["expr"])
    }
    assert {rule["record"] for rule in rules() if "record" in rule} <= checked


def check_rules() -> None:
    """Promtool's own checks and tests; tests/deploy installs it and calls this too."""
    for command in (
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["check", "rules", *(f"rules/{path.name}" for path in sorted((PROMETHEUS / "rules").iterdir()))],
        ["test", "rules", "tests/rules_test.yml"],
    ):
        done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no promtool here (Debian: apt-get install prometheus); tests/deploy/test_rules.py installs it and must run in CI",
)
def test_the_rules_do_what_they_say() -> None:
    check_rules()


def test_dashboards_are_provisioned_from_where_compose_mounts_them() -> None:
    mounts = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/understudy.yml").read_text())["providers"][0]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./docker/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    used = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert used == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_panels_are_titled_apart_and_do_not_overlap(board: Path) -> None:
    parts = json.loads(board.read_text())["panels"]
    assert len({panel["id"] for panel in parts}) == len({panel["title"] for panel in parts}) == len(parts)
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in parts
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
