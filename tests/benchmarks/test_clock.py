"""Medians, turns and boxes of time, on a clock that the tests wind."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable

import pytest
import torch

from benchmarks.speed import clock as module
from benchmarks.speed.clock import Clock, OutOfTime, summary, time_box


class Wound(Clock):
    """A clock on which a call takes what it returns."""

    def once(self, call: module.Call) -> float:
        return float(str(call()))


def takes(seconds: Iterable[float]) -> module.Call:
    each = iter(seconds)
    return lambda: next(each)


def test_a_time_is_the_median_and_the_quartiles_of_the_repeats() -> None:
    told = summary([5.0, 1.0, 2.0, 100.0, 3.0])
    assert (told.seconds, told.low, told.high, told.repeats) == (3.0, 2.0, 5.0, 5)
    assert summary([7.0]) == module.Timing(7.0, 7.0, 7.0, 1)


def test_warming_up_is_not_counted() -> None:
    told = Wound(torch.device("cpu")).measure(takes([900, 800, 1, 2, 3]), repeats=3, warmup=2)
    assert (told.seconds, told.repeats) == (2, 3)


def test_a_duel_takes_turns_and_its_ratio_is_the_median_over_pairs_of_how_much_slower_the_peer_is() -> None:
    order: list[str] = []

    def contestant(name: str, seconds: Iterable[float]) -> module.Call:
        call = takes(seconds)
        return lambda: (order.append(name), call())[1]

    fought = Wound(torch.device("cpu")).duel(
        contestant("ours", [50, 1, 10, 100]), contestant("peer", [60, 4, 20, 200]), pairs=3
    )
    assert order == ["ours", "peer"] * 4
    assert fought.ratio == 2, "of 4, 2 and 2; a machine that slowed down tenfold between the pairs changes nothing"
    assert (fought.ours.seconds, fought.peer.seconds) == (10, 20)


def test_a_call_is_timed_with_what_it_left_the_device_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = Clock(torch.device("cpu")), []
    monkeypatch.setattr(clock, "wait", lambda: told.append("wait"))
    assert clock.once(lambda: told.append("call")) >= 0
    assert told == ["wait", "call", "wait"]


def test_memory_is_not_measured_where_torch_does_not_count() -> None:
    clock = Clock(torch.device("cpu"))
    assert clock.peak(lambda: pytest.fail("there is nothing to measure")) is None
    assert clock.held() == 0


def test_a_box_of_time_ends_what_runs_in_it_even_where_exceptions_are_caught() -> None:
    begin = time.monotonic()

    def stubborn() -> None:
        while time.monotonic() - begin < 20:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    with pytest.raises(OutOfTime, match="0 s are over"), time_box(0.1):
        stubborn()
    assert time.monotonic() - begin < 10


def test_a_box_that_was_not_filled_leaves_no_alarm_and_gives_an_earlier_one_back() -> None:
    rung: list[int] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    earlier, _ = signal.setitimer(signal.ITIMER_REAL, 50)
    try:
        with time_box(0.05):
            pass
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        assert 40 < left <= 50
        time.sleep(0.1)
        assert rung == []
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, earlier)
