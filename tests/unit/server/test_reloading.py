from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from server.drift import DriftSettings
from server.engine_list import EngineEntry
from server.reloading import Reloaded, changes, reload
from server.run import serve
from server.settings import GatewaySettings
from server.sharing import CanarySettings
from stages.errors import InputError
from tests.unit.server import test_sampling_check as samplers
from tests.unit.server.test_run import wait_for_line

BEFORE = GatewaySettings(served_model_name="m", draft_name="new")
AFTER = BEFORE.model_copy(update={"canary": CanarySettings(draft="new"), "port": 9})


def test_what_can_change_while_requests_run_is_taken_over_and_the_rest_named() -> None:
    lines: list[str] = []
    found = reload(BEFORE, lambda: AFTER, lines.append)
    assert found == Reloaded(BEFORE.model_copy(update={"canary": AFTER.canary}), ("canary",), ("port",))
    assert lines == ["settings: port changed, which needs a restart", "settings: reloaded (canary changed)"]


def test_settings_with_a_mistake_leave_the_old_ones_in_force() -> None:
    def mistaken() -> GatewaySettings:
        raise InputError("gateway.yaml: unknown key 'canry': did you mean 'canary'?")

    lines: list[str] = []
    found = reload(BEFORE, mistaken, lines.append)
    assert (found.settings, found.changed, "did you mean" in str(found.refused)) == (BEFORE, (), True)
    assert lines == [
        "settings: not reloaded, the old ones stay: gateway.yaml: unknown key 'canry': did you mean 'canary'?"
    ]


def test_the_same_settings_change_nothing() -> None:
    assert changes(BEFORE, BEFORE.model_copy()) == ([], [])
    assert reload(BEFORE, lambda: BEFORE, [].append) == Reloaded(BEFORE)


def test_a_canary_that_no_running_engine_has_leaves_the_old_settings_in_force() -> None:
    """Even if the file names engines that have it: those need a restart."""
    lines: list[str] = []
    engine = EngineEntry(name="a", url="http://a:1", model="m", draft="later")
    later = {"canary": CanarySettings(draft="later"), "drift": DriftSettings(min_drafts=9), "engines": (engine,)}
    found = reload(BEFORE, lambda: BEFORE.model_copy(update=later), lines.append)
    assert (found.settings, found.changed) == (BEFORE, ())
    (line,) = lines
    assert "not reloaded, the old ones stay: canary: no engine has the draft 'later'; there are new" in line


def test_a_canary_that_no_engine_has_is_refused_before_anything_starts() -> None:
    settings = GatewaySettings(engine_url="http://127.0.0.1:1", draft_name="d", canary=CanarySettings(draft="nwe"))
    with pytest.raises(InputError, match="no engine has the draft 'nwe'; there are d"):
        serve(settings)


def test_a_hangup_reads_the_file_again_and_ends_nothing(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("port: 0\ndraft_name: new\ncanary: {draft: new, share: 0.1}\n")
    with samplers.serve(samplers.Sampler()) as url:
        command = [sys.executable, "-m", "understudy", "serve", "--engine-url", url, "--config", str(file)]
        process = subprocess.Popen([*command, "--allow-faulty-sampling"], stderr=subprocess.PIPE, text=True)
        try:
            address = wait_for_line(process, "gateway: http").split()[1]
            wait_for_line(process, "gateway: ready")
            for text, said in (
                ("canary: {draft: new, share: 1.0}", "reloaded (canary changed)"),
                ("canry: 1", "not reloaded"),
                ("canary: {draft: nwe, share: 0.5}", "not reloaded"),
            ):
                file.write_text(f"port: 0\ndraft_name: new\n{text}\n")
                process.send_signal(signal.SIGHUP)
                assert said in wait_for_line(process, "settings:")
                with urllib.request.urlopen(f"{address}/admin/canary") as answer:
                    assert json.loads(answer.read())["canary"]["share"] == 1.0
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
