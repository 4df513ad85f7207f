"""Prometheus's rules by promtool, which a fresh machine lacks: installed here with what the other tests need."""

from __future__ import annotations

import pytest

from tests.unit.docker.test_observability import check_rules


@pytest.mark.usefixtures("promtool")
def test_the_rules_do_what_they_say() -> None:
    check_rules()
