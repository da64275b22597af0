"""Stored pictures as sources of samples, at random or as a stream; the bad ones are passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from .census import Census
from .decode import NothingUsable, Unusable
from .prepare import Prepare
from .records import Item, Records, tried
from .sources import Note, Sample, collate
from .streams import Draw, Lane, ShardLengths, Stream
from .transforms import item_rng

MAX_TRIES = 100  # replacements for one sample; more bad ones in a row are no accident
Examined = tuple[Sample | None, list[Note]]  # a sample and its repairs, or None and why it is skipped


class _Stored:
    """What becomes of stored pictures: prepared, or replaced by others, as (seed, index) decides."""

    def __init__(self, prepare: Prepare, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected at least 0")
        self.prepare, self.seed = prepare, seed

    def examined(self, key: str, item: Item, index: int) -> Examined:
        """An item, cropped as at `index`, with notes on it; or None and why it is skipped."""
        try:
            if isinstance(item, Unusable):
                raise item
            return self.prepare(key, item, item_rng(self.seed, index))
        except Unusable as error:
            return None, [Note(key, "skipped", str(error))]

    def _usable(self, examine: Callable[[int], Examined], place: int, places: int, index: int) -> Sample:
        """The item at a place, or the first usable one of others drawn from as many; notes say which were not."""
        others, notes = None, []
        for _ in range(MAX_TRIES):
            sample, found = examine(place)
            notes += found
            if sample is not None:
                return replace(sample, notes=tuple(notes))
            others = others or item_rng(self.seed, index, stream=1)
            place = int(others.integers(places))
        last = notes[-1]
        raise NothingUsable(f"{MAX_TRIES} pictures in a row cannot be used; the last is {last.key}: {last.reason}")


class PictureDataset(_Stored, Dataset[Sample]):
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
        super().__init__(prepare, seed)
        self.records, self.length = records, len(records)

    def __len__(self) -> int:
        return self.length

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Every item's captions as training would see them, no picture decoded; bad items are passed over."""
        for number in range(self.length):
            try:
                found = self.records.captions(number)
            except Unusable:
                continue
            yield tuple(map(self.prepare.phrase, found))

    def __getitem__(self, index: int) -> Sample:
        """The sample of an index (>= 0)."""
        if index < 0:
            raise IndexError(f"index is {index}; expected at least 0")
        return self._usable(partial(self.examine, index=index), index % self.length, self.length, index)

    def examine(self, number: int, index: int | None = None) -> Examined:
        """Item `number`, cropped as at `index`, with notes on its repairs; or None and why it is skipped."""
        key, item = self.item(number)
        return self.examined(key, item, number if index is None else index)

    def item(self, number: int) -> tuple[str, Item]:
        """Key and record of item `number`, or why there is none."""
        return self.records.key(number), tried(partial(self.records.record, number))


class StreamDataset(_Stored):
    """A stream with what becomes of its pictures.

    A bad record is replaced by another one that is held with it, drawn from (seed, its place in the order); the
    sample's notes say so. So bad records take nothing from the order, and a resume need not decode what it reads past.

    Args:
        stream: the shards.
        prepare: what becomes of a record.
        seed: of order, crops, flips and captions; at least 0.
        lanes: parts that the stream is read in; the same number gives the same batches on any number of processes.
        block: records of a lane that are shuffled together.

    Raises:
        ValueError: a negative seed.
    """

    length = None

    def __init__(self, stream: Stream, prepare: Prepare, seed: int = 0, lanes: int = 1, block: int = 1000) -> None:
        super().__init__(prepare, seed)
        self.stream, self.lanes, self.block = stream, lanes, block

    def lane(self, number: int, lengths: ShardLengths) -> Lane:
        """Lane ``number`` of the stream."""
        return Lane(self.stream, number, self.lanes, self.seed, self.block, lengths)

    def head(self, count: int) -> list[Sample]:
        """The first ``count`` samples as they are stored, fewer where there are no more.

        Bad records are passed over; the notes of the sample behind them say so.
        """
        found: list[Sample] = []
        notes: list[Note] = []
        for sample, said in self.examine():
            notes += said
            if sample is not None:
                found.append(replace(sample, notes=tuple(notes)))
                notes = []
            if len(found) == count:
                break
        return found

    def captions(self) -> Iterator[tuple[str, ...]]:
        """Every record's captions as training would see them, read once; bad records are passed over."""
        for _, item, _ in self.items():
            if not isinstance(item, Unusable):
                yield tuple(map(self.prepare.phrase, item.captions))

    def examine(self) -> Iterator[Examined]:
        """Every record, read once: its sample and repairs, or None and why it is skipped."""
        for key, item, number in self.items():
            yield self.examined(key, item, number)

    def items(self, census: Census | None = None) -> Iterator[tuple[str, Item, int]]:
        """Key and record of every item, read once, and its number in its shard; what every file is, in the census."""
        for shard in range(len(self.stream)):
            for number, (key, item) in enumerate(self.stream.read(shard, census)):
                yield key, item, number

    def sample(self, lane: int, draw: Draw) -> Sample:
        """The sample of a draw, or of the record that replaces it.

        Raises:
            NothingUsable: 100 records in a row cannot be used.
        """
        index = draw.number * self.lanes + lane
        return self._usable(lambda n: self.examined(*draw.held[n], index), draw.place, len(draw.held), index)


class StreamBatches(IterableDataset[dict[str, Any]]):
    """One process's micro-batches of a stream, collated, from ``start_step`` on, in the order that training uses them.

    A micro-batch of the global batch is cut into as many parts as there are lanes; each process has its share of the
    lanes. To start at a later step, every lane reads on from the start of the shard that holds its next block, or from
    its first shard where the shards before it were never counted; nothing that is read past is decoded.

    Args:
        source: the stream.
        batch_size, accumulation, rank, world: of the global batch, as :func:`imagen.data.order.micro_positions`.
        start_step, num_steps: the steps to give, ``num_steps`` excluded (None: without end).
        lengths: file in which the lengths of shards are kept, see :class:`ShardLengths`; None: nowhere.
        threads: pictures decoded at the same time.

    Raises:
        ValueError: lanes that cannot be shared out over the processes, or a batch that cannot be cut into their parts.
    """

    def __init__(
        self,
        source: StreamDataset,
        batch_size: int,
        start_step: int = 0,
        num_steps: int | None = None,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        lengths: Path | None = None,
        threads: int = 1,
    ) -> None:
        lanes = source.lanes
        if lanes % world:
            raise ValueError(
                f"{lanes} lanes cannot be shared out over {world} processes; choose a multiple of {world} lanes"
            )
        if batch_size % (accumulation * lanes):
            raise ValueError(
                f"the global batch of {batch_size} cannot be cut into {accumulation} accumulation steps × {lanes} "
                f"lanes; choose a multiple of {accumulation * lanes}"
            )
        self.source, self.accumulation, self.lengths, self.threads = source, accumulation, lengths, threads
        self.start_step, self.num_steps = start_step, num_steps
        self.each = batch_size // (accumulation * lanes)
        share = lanes // world
        self.mine = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        lengths = ShardLengths(self.lengths)
        first = self.start_step * self.accumulation * self.each
        lanes = [(lane, self.source.lane(lane, lengths).draws(first)) for lane in self.mine]
        steps = count() if self.num_steps is None else range((self.num_steps - self.start_step) * self.accumulation)
        with ThreadPoolExecutor(self.threads) as pool:
            batches = (
                [pool.submit(self.source.sample, lane, next(draws)) for lane, draws in lanes for _ in range(self.each)]
                for _ in steps
            )
            for batch, _ in pairwise(chain(batches, [[]])):  # one is read and handed to the pool while another is used
                yield collate([sample.result() for sample in batch])
