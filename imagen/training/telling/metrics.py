"""What a run tells its user: the means of metrics.jsonl, and a progress line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO


@dataclass
class Window:
    """Running sums since the last line: the loss and the pictures of each group, the gradient norm. Resume points keep
    the fields.
    """

    losses: list[float]
    counts: list[float]
    grad_norm: float = 0.0
    steps: int = 0

    @classmethod
    def of(cls, groups: Sequence[str]) -> Window:
        """An empty one for groups of these names; without any there is one without a name."""
        zeros = [0.0] * max(1, len(groups))
        return cls(zeros, zeros)

    def add(self, losses: list[float], counts: list[float], grad_norm: float) -> None:
        """Add one step's sums per group."""
        self.losses = [a + b for a, b in zip(self.losses, losses, strict=True)]
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.grad_norm += grad_norm
        self.steps += 1

    def means(self, groups: Sequence[str]) -> dict[str, float | None]:
        """loss, loss_NAME of every group and grad_norm; None where nothing was seen."""
        total = sum(self.counts)
        found: dict[str, float | None] = {"loss": sum(self.losses) / total if total else None}
        for name, loss, count in zip(groups, self.losses, self.counts, strict=False):
            found[f"loss_{name}"] = loss / count if count else None
        found["grad_norm"] = self.grad_norm / self.steps if self.steps else None
        return found


class Progress:
    """A line with step, loss, pictures per second and time left: rewritten on a terminal, printed elsewhere."""

    def __init__(self, steps: int, start: int, stream: TextIO | None = None, every: float = 30.0) -> None:
        self.steps, self.start = steps, start
        self.stream = stream or sys.stderr
        self.every = every
        self._began = time.monotonic()
        self._shown = float("-inf")

    def show(self, step: int, loss: float | None, rate: float, skipped: int, pictures: int = 0) -> None:
        """Show the state after `step` steps; off a terminal at most one line per `every` seconds."""
        now, terminal = time.monotonic(), self.stream.isatty()
        if not terminal and now - self._shown < self.every and step < self.steps:
            return
        self._shown = now
        left = (now - self._began) / max(1, step - self.start) * (self.steps - step)
        words = [f"step {step}/{self.steps}", f"loss {loss:.5f}" if loss is not None else "loss -"]
        words += [f"{rate:.1f} img/s", f"ETA {duration(left)}"]
        words += [f"{skipped} skipped"] if skipped else []
        words += [f"{pictures} unusable pictures"] if pictures else []
        self.stream.write(("\r\x1b[2K" if terminal else "") + "  ".join(words) + ("" if terminal else "\n"))
        self.stream.flush()

    def note(self, text: str) -> None:
        """Print a line of its own."""
        self.stream.write(("\r\x1b[2K" if self.stream.isatty() else "") + text + "\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
