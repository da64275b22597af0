"""Shares with their intervals, as the evaluation reports them."""

from __future__ import annotations

import math
from collections.abc import Iterable
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
