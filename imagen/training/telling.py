"""What a run tells its user: means for metrics.jsonl, a progress line, and the pictures that could not be used."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from imagen.data.sources import Note

LEAST_READ = 1000  # so that one bad picture among the first ones of a stream ends nothing


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


class SkipFile:
    """Append-only JSON lines (key, action, reason), one per picture and reason, written by all processes of a run.

    Only what is met after this start counts, for the data may have been mended or changed since the last one. What an
    earlier start wrote already is counted by the process that meets it again, but not by the others. Of two processes
    that meet one picture in the same moment both write.

    Args:
        path: the file; lines of an earlier part of the run are kept and not written again.
        length: items in the source; None where nobody knows: then the share is one of ``read`` items, at least 1,000.
        share: of the items that may be skipped.

    Attributes:
        read: items that training has asked for so far, told by the trainer.
    """

    def __init__(self, path: Path, length: int | None, share: float) -> None:
        self.path, self.length, self.share, self.read = path, length, share, 0
        self._known: set[Note] = set()
        self._skipped: dict[str, str] = {}
        self._read_to = 0
        self.refresh()
        self._skipped.clear()
        if path.exists() and path.stat().st_size > self._read_to:  # a line that a killed process left half written
            os.truncate(path, self._read_to)

    def add(self, notes: Iterable[Note]) -> None:
        """Write the notes that are new."""
        lines, notes = "", list(notes)
        if not self._known.issuperset(notes):
            self.refresh()  # another process may have written them meanwhile
        for note in notes:
            if note not in self._known:
                lines += json.dumps(note._asdict(), ensure_ascii=False) + "\n"
            self._remember(note)
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as stream:  # one write: lines of several processes stay whole
                end, left = os.fstat(stream.fileno()).st_size, lines.encode("utf-8", "backslashreplace")
                try:
                    while left := left[stream.write(left) :]:  # a disk takes what it has room for, and then refuses
                        pass
                except OSError:
                    os.truncate(self.path, end)
                    raise

    def refresh(self) -> int:
        """Read what other processes wrote; returns the number of items skipped since this start."""
        if self.path.exists():
            with self.path.open("rb") as stream:
                stream.seek(self._read_to)
                for line in stream:
                    if not line.endswith(b"\n"):
                        break
                    self._read_to += len(line)
                    self._remember(Note(**json.loads(line)))
        return len(self._skipped)

    def _remember(self, note: Note) -> None:
        self._known.add(note)
        if note.action == "skipped":
            self._skipped.setdefault(note.key, note.reason)

    @property
    def exceeded(self) -> bool:
        """More items than allowed are known to be unusable."""
        return len(self._skipped) > self.share * self._of

    @property
    def _of(self) -> int:
        return max(self.read, LEAST_READ) if self.length is None else self.length

    def verdict(self) -> str:
        """One line: how many, how many may be, the first of them, and what to do."""
        key, reason = next(iter(self._skipped.items()), ("", ""))
        larger = ", or allow a larger share" if len(self._skipped) < self._of else ""  # of nothing nothing is learnt
        return (
            f"{len(self._skipped)} of {self._of} pictures cannot be used, more than data.max_skipped_share "
            f"{self.share:g} allows; the first is {key}: {reason}. {self.path} lists them: mend or remove them{larger}"
        )
