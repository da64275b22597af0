"""Records of stored pictures as a source of samples, one per index; the bad ones are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch.utils.data import Dataset

from .decode import NothingUsable, Unusable
from .prepare import Prepare
from .records import Records
from .sources import Note, Sample
from .transforms import item_rng

MAX_TRIES = 100  # replacements for one sample; more bad ones in a row are no accident


class PictureDataset(Dataset[Sample]):
    """Stored pictures with their captions.

    What is random is a function of (seed, index): index ``i + n * length`` is item ``i`` cropped, flipped and captioned
    anew. An item that cannot be used is replaced by another one, drawn from (seed, index) as well; the sample's notes
    say so.

    Args:
        records: where the pictures lie.
        prepare: what becomes of them.
        seed: of random squares, crops, flips and captions; at least 0.

    Raises:
        ValueError: a negative seed. Reading raises NothingUsable where 100 items in a row cannot be used.
    """

    def __init__(self, records: Records, prepare: Prepare, seed: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected at least 0")
        self.records, self.prepare, self.seed = records, prepare, seed

    @property
    def length(self) -> int:
        """Number of items, the bad ones included."""
        return len(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Every item's captions as training would see them, no picture decoded; bad items are passed over."""
        for number in range(len(self.records)):
            try:
                found = self.records.captions(number)
            except Unusable:
                continue
            yield tuple(self.prepare.phrase(caption) for caption in found)

    def __getitem__(self, index: int) -> Sample:
        """The sample of an index (>= 0)."""
        if index < 0:
            raise IndexError(f"index is {index}; expected at least 0")
        number, others, notes = index % len(self.records), None, []
        for _ in range(MAX_TRIES):
            sample, found = self.examine(number, index)
            notes += found
            if sample is not None:
                return replace(sample, notes=tuple(notes))
            others = others or item_rng(self.seed, index, stream=1)
            number = int(others.integers(len(self.records)))
        last = notes[-1]
        raise NothingUsable(f"{MAX_TRIES} pictures in a row cannot be used; the last is {last.key}: {last.reason}")

    def examine(self, number: int, index: int | None = None) -> tuple[Sample | None, list[Note]]:
        """Item `number`, cropped as at `index`, with notes on its repairs; or None and why it is skipped."""
        rng = item_rng(self.seed, number if index is None else index)
        key = self.records.key(number)
        try:
            return self.prepare(key, self.records.record(number), rng)
        except Unusable as error:
            return None, [Note(key, "skipped", str(error))]
