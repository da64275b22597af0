"""Every file of a source once, by what the source takes it for: nothing that is there may be in no count."""

from __future__ import annotations

from collections import Counter
from enum import Enum

from .sources import Note


class Role(Enum):
    """What a file is to a source: in the plural, and what its owner is told of one that training never sees."""

    PICTURE = "pictures", None
    CAPTION = "captions", None
    FIELD = "files of fields", None
    ROW = "rows", None
    ALONE = "captions without a picture", "is a caption without a picture"
    FURTHER = "further pictures", "is a further picture of its item, without a caption of its own: not read"
    CONVERTED = "pictures in formats that are not read", "is in a format that is not read, beside one that is"
    TWICE = "files that are there twice", "is there twice"
    UNNAMED = "pictures that no row names", "is named by no row"
    BROKEN = "broken links", "is a link to a file that is not there"
    HIDDEN = "hidden files", None
    OTHER = "files that nothing reads", "is read by nothing"


class Census:
    """Files counted by their roles.

    Attributes:
        counts: how many of each role.
        left: a note on each that training never sees, hidden ones excepted.
    """

    def __init__(self) -> None:
        self.counts: Counter[Role] = Counter()
        self.left: list[Note] = []

    def add(self, role: Role, key: str, number: int = 1) -> None:
        """Count a file, or several of one role that nothing need be told of."""
        self.counts[role] += number
        told = role.value[1]
        if told is not None and number:
            self.left.append(Note(key, "noted", told))

    def update(self, other: Census) -> None:
        """Count what another one has counted."""
        self.counts.update(other.counts)
        self.left += other.left

    def __str__(self) -> str:
        """``14 files: pictures 6, captions 6, hidden files 2``, in the order of the roles."""
        parts = [f"{role.value[0]} {self.counts[role]}" for role in Role if self.counts[role]]
        return f"{self.counts.total()} {'rows and files' if self.counts[Role.ROW] else 'files'}: {', '.join(parts)}"
