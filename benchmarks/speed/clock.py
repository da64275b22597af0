"""Time and memory on one device: warm-up, medians, two contestants in turns, and boxes of time."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]


class OutOfTime(BaseException):
    """A section's time is over. No Exception, so that nothing which catches those goes on."""


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """End what runs within after so many seconds, also between a section's own looks at the clock.

    An alarm that was set before is set again with what is left of it. Main thread alone.

    Raises:
        OutOfTime: they are over.
    """

    def ring(*_: Any) -> None:
        raise OutOfTime(f"{seconds:.0f} s are over")

    begin, handler = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    before, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if before:
            signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - begin), 1e-3))


@dataclass(frozen=True)
class Timing:
    """What a call took.

    Attributes:
        seconds: the median. low, high: the quartiles about it.
        repeats: how often it was called after the warm-up.
    """

    seconds: float
    low: float
    high: float
    repeats: int


def summary(times: Sequence[float]) -> Timing:
    """Median and quartiles of at least one time."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    return Timing(statistics.median(times), low, high, len(times))


@dataclass(frozen=True)
class Duel:
    """Two contestants that took turns.

    Attributes:
        ratio: median over the pairs of the peer's time over ours: above 1 ours is the faster one.
    """

    ours: Timing
    peer: Timing
    ratio: float


class Clock:
    """Times and memory of one device, whose work may go on after a call has returned."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, call: Call) -> float:
        """Seconds of one call, its work on the device included."""
        self.wait()
        begin = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begin

    def measure(self, call: Call, repeats: int, warmup: int = 1) -> Timing:
        """The call by itself; ``warmup`` calls before it are not counted."""
        for _ in range(warmup):
            self.once(call)
        return summary([self.once(call) for _ in range(repeats)])

    def duel(self, ours: Call, peer: Call, pairs: int, warmup: int = 1) -> Duel:
        """Ours, the peer, ours, the peer, ...: a machine's moods fall on both, and each pair gives one ratio."""
        for _ in range(warmup):
            self.once(ours)
            self.once(peer)
        times = [(self.once(ours), self.once(peer)) for _ in range(pairs)]
        mine, theirs = zip(*times, strict=True)
        return Duel(summary(mine), summary(theirs), statistics.median(b / a for a, b in times))

    def held(self) -> int:
        """Bytes that tensors hold now on a card; 0 elsewhere, where torch does not count."""
        return int(torch.cuda.memory_allocated(self.device)) if self.cuda else 0

    def peak(self, call: Call, others: int = 0) -> int | None:
        """Most bytes held on a card during a call, less ``others``; None, uncalled, where torch does not count."""
        if not self.cuda:
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return int(torch.cuda.max_memory_allocated(self.device)) - others
