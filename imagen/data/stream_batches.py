"""Batches of a stream: which lane feeds which position, and what becomes of bad records."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from .decode import NothingUsable, Unusable
from .pictures import MAX_TRIES
from .prepare import Prepare
from .sources import Note, Sample, collate
from .streams import Draw, Lane, ShardLengths, Stream
from .transforms import item_rng


class StreamDataset:
    """A stream with what becomes of its pictures.

    A bad record is replaced by another one that is held with it, drawn from (seed, its place in the order); the
    sample's notes say so. So bad records take nothing from the order, and a resume need not decode what it reads past.

    Args:
        stream: the shards.
        prepare: what becomes of a record.
        seed: of order, crops, flips and captions.
        lanes: parts that the stream is read in; the same number gives the same batches on any number of processes.
        block: records of a lane that are shuffled together.
    """

    length = None

    def __init__(self, stream: Stream, prepare: Prepare, seed: int = 0, lanes: int = 1, block: int = 1000) -> None:
        self.stream, self.prepare, self.seed, self.lanes, self.block = stream, prepare, seed, lanes, block

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
        for shard in range(len(self.stream)):
            for captions in self.stream.captions(shard):
                yield tuple(self.prepare.phrase(caption) for caption in captions)

    def examine(self) -> Iterator[tuple[Sample | None, list[Note]]]:
        """Every record, read once: its sample and repairs, or None and why it is skipped."""
        for shard in range(len(self.stream)):
            for number, (key, item) in enumerate(self.stream.read(shard)):
                yield self._try(key, item, number)

    def sample(self, lane: int, draw: Draw) -> Sample:
        """The sample of a draw, or of the record that replaces it.

        Raises:
            NothingUsable: 100 records in a row cannot be used.
        """
        index = draw.number * self.lanes + lane
        key, item, others, notes = draw.key, draw.item, None, []
        for _ in range(MAX_TRIES):
            sample, found = self._try(key, item, index)
            notes += found
            if sample is not None:
                return replace(sample, notes=tuple(notes))
            others = others or item_rng(self.seed, index, stream=1)
            key, item = draw.held[int(others.integers(len(draw.held)))]
        last = notes[-1]
        raise NothingUsable(f"{MAX_TRIES} pictures in a row cannot be used; the last is {last.key}: {last.reason}")

    def _try(self, key: str, item: Any, index: int) -> tuple[Sample | None, list[Note]]:
        try:
            if isinstance(item, Unusable):
                raise item
            return self.prepare(key, item, item_rng(self.seed, index))
        except Unusable as error:
            return None, [Note(key, "skipped", str(error))]


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
            waiting: list[Future[Sample]] = []
            for _ in steps:  # one micro-batch is read and handed to the pool while the one before it is used
                coming = [
                    pool.submit(self.source.sample, lane, next(draws))
                    for lane, draws in lanes
                    for _ in range(self.each)
                ]
                if waiting:
                    yield collate([sample.result() for sample in waiting])
                waiting = coming
            if waiting:
                yield collate([sample.result() for sample in waiting])
