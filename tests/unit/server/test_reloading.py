from __future__ import annotations

from server.reloading import changes, reload
from server.settings import GatewaySettings
from server.sharing import CanarySettings
from stages.errors import InputError

BEFORE = GatewaySettings(served_model_name="m")
AFTER = BEFORE.model_copy(update={"canary": CanarySettings(draft="new"), "port": 9})


def test_what_can_change_while_requests_run_is_taken_over_and_the_rest_named() -> None:
    lines: list[str] = []
    found = reload(BEFORE, lambda: AFTER, lines.append)
    assert found == BEFORE.model_copy(update={"canary": AFTER.canary})
    assert lines == ["settings: port changed, which needs a restart", "settings: reloaded (canary changed)"]


def test_settings_with_a_mistake_leave_the_old_ones_in_force() -> None:
    def mistaken() -> GatewaySettings:
        raise InputError("gateway.yaml: unknown key 'canry': did you mean 'canary'?")

    lines: list[str] = []
    assert reload(BEFORE, mistaken, lines.append) is None
    assert lines == [
        "settings: not reloaded, the old ones stay: gateway.yaml: unknown key 'canry': did you mean 'canary'?"
    ]


def test_the_same_settings_change_nothing() -> None:
    assert changes(BEFORE, BEFORE.model_copy()) == ([], [])
    assert reload(BEFORE, lambda: BEFORE, [].append) is None
