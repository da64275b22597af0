"""Signals are taken while a run trains and at no other time."""

from __future__ import annotations

import signal

import pytest

from imagen.training.stopping import Stopping


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_behind_a_run_that_nobody_ended_signals_act_as_before() -> None:
    before, stopping = handlers(), Stopping(None)
    with stopping.listening():
        assert not {*handlers()} & {*before}
    assert handlers() == before
    assert not stopping.asked
    with pytest.raises(RuntimeError, match="broken"), stopping.listening():
        raise RuntimeError("broken")
    assert handlers() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_acts_as_before(number: signal.Signals) -> None:
    before, stopping = signal.getsignal(number), Stopping(None)
    with stopping.listening():
        signal.raise_signal(number)
        assert stopping.asked
        assert signal.getsignal(number) is before
