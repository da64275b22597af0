"""skipped.jsonl: which pictures a run could not use or had to repair, each once; and when that is too many."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from imagen.data.sources import Note

LEAST_READ = 1000  # so that one bad picture among the first ones of a stream ends nothing


class SkipFile:
    """Append-only JSON lines (key, action, reason), one per picture and reason, written by all processes of a run.

    Only what is met after this start counts, for the data may have been mended or changed since the last one. What an
    earlier start wrote already is counted by the process that meets it again, but not by the others.

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
        self._end_line()
        self.refresh()
        self._skipped.clear()

    def _end_line(self) -> None:
        """Close a line that a killed process left half written."""
        if self.path.exists() and (data := self.path.read_bytes()) and not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)

    def add(self, notes: Iterable[Note]) -> None:
        """Write the notes that are new."""
        lines = []
        for note in notes:
            new = note not in self._known
            self._remember(note)
            if new:
                lines.append(json.dumps(note._asdict(), ensure_ascii=False) + "\n")
        if lines:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as stream:  # one write: lines of several processes stay whole
                stream.write("".join(lines).encode("utf-8", "backslashreplace"))

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
        return (
            f"{len(self._skipped)} of {self._of} pictures cannot be used, more than data.max_skipped_share "
            f"{self.share:g} allows; the first is {key}: {reason}. {self.path} lists them: mend or remove them, or "
            "allow a larger share"
        )
