"""Shares with their intervals, as the evaluation reports them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Share:
    """How many of how many, with its 95 % interval."""

    successes: int
    trials: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Share:
        """Count outcomes."""
        listed = list(outcomes)
        return cls(sum(listed), len(listed))

    @property
    def value(self) -> float:
        """The share; NaN without trials."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval, 95 %; (0, 1) without trials."""
        from scipy.stats import binomtest

        if not self.trials:
            return 0.0, 1.0
        found = binomtest(self.successes, self.trials).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        if not self.trials:
            return "-"
        low, high = self.interval
        return f"{100 * self.value:5.1f} % [{100 * low:4.1f}, {100 * high:5.1f}]  {self.successes}/{self.trials}"

    def to_json(self) -> dict[str, Any]:
        """Plain numbers for a JSON file (share None without trials)."""
        share = self.value if self.trials else None
        return {"share": share, "interval": list(self.interval), "successes": self.successes, "trials": self.trials}


def paired_difference(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, int, int]:
    """(low, high, mended, spoiled): the 95 % interval of the difference of two shares of the same things, and how many
    are right in one alone. Newcombe's square-and-add interval (1998, method 10), which holds where few changed: its
    correlation of the two is drawn towards 0 by half a thing.
    """
    mended = sum(b and not a for a, b in zip(before, after, strict=True))
    spoiled = sum(a and not b for a, b in zip(before, after, strict=True))
    first, second = Share.of(before), Share.of(after)
    (low_1, high_1), (low_2, high_2) = first.interval, second.interval
    p, q = first.value, second.value
    both = sum(a and b for a, b in zip(before, after, strict=True))
    neither = len(before) - both - mended - spoiled
    scale = math.sqrt((both + spoiled) * (mended + neither) * (both + mended) * (spoiled + neither))
    product = both * neither - mended * spoiled
    phi = (max(product - len(before) / 2, 0.0) if product > 0 else product) / scale if scale else 0.0
    a, b, c, d = q - low_2, high_1 - p, high_2 - q, p - low_1
    low = q - p - math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))
    high = q - p + math.sqrt(max(c * c - 2 * phi * c * d + d * d, 0.0))
    return low, high, mended, spoiled
