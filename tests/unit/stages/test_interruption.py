"""Ctrl-C and SIGTERM are held back until a step is over."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from stages.interruption import SIGNALS, interrupt_on_both, interrupted_between_steps


@pytest.fixture(autouse=True)
def _interrupts_count() -> Iterator[None]:
    """Python's own handler, also where these tests run in the background of a shell, which has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_one_is_told_between_steps_and_the_second_interrupts_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupted_between_steps() as interrupted:
        assert not interrupted()
        signal.raise_signal(number)
        assert interrupted()
        signal.raise_signal(number)
        pytest.fail("went on")
    assert signal.getsignal(number) is before


def test_one_that_is_asked_to_end_is_interrupted() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        interrupt_on_both()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_that_comes_after_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_between_steps():
        signal.raise_signal(signal.SIGINT)


def test_it_can_be_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_between_steps(enabled=False) as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
