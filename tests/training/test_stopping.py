"""Signals are taken while a run trains and at no other time."""

from __future__ import annotations

import signal
import threading

import pytest

from imagen.training import stopping as module
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


@pytest.mark.parametrize(("limit", "seconds", "asked"), [
    (None, 1e9, False), (1.5, 89, False), (1.5, 90, False), (1.5, 91, True), (1e-9, 1, True),
])  # fmt: skip
def test_a_time_limit_is_in_minutes_since_the_run_was_made(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, seconds: float, asked: bool
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    stopping = Stopping(limit)
    assert not stopping.asked
    now[0] += seconds
    assert stopping.asked is asked
    stopping.signal = signal.SIGINT
    assert stopping.asked


def test_in_another_thread_signals_are_not_touched() -> None:
    before, seen = handlers(), []

    def train() -> None:
        with Stopping(None).listening():
            seen.append(handlers())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]
