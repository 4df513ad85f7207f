"""Ctrl-C is held back until a step is over."""

from __future__ import annotations

import signal

import pytest

from stages.interruption import interrupted_between_steps


def test_the_first_one_is_told_between_steps_and_the_second_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupted_between_steps() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_comes_after_the_last_step_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_between_steps():
        signal.raise_signal(signal.SIGINT)


def test_it_can_be_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_between_steps(enabled=False) as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
