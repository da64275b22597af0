"""Records that can only be read shard by shard from the start: their order, the same after a resume and on any ranks.

A stream is dealt to a fixed number of lanes, each of which feeds its own positions of every global batch. A lane reads
the shards it is dealt one after the other, in another order each epoch, and shuffles blocks of its records. All of that
is a function of the seed, so record number k of a lane is found again by reading on from where its block starts; shards
before that whose number of records is known are not even opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from .census import Census
from .decode import NothingUsable
from .records import Item


class Stream(Protocol):
    """Shards of records, always in the same order."""

    def __len__(self) -> int:
        """Number of shards."""

    def name(self, shard: int) -> str:
        """The shard's name in logs, unique."""

    def read(self, shard: int, census: Census | None = None) -> Iterator[tuple[str, Item]]:
        """(key, record) of a whole shard; a bad one is an :class:`Unusable`. OSError: the connection broke for good.

        What every file in it is goes into the census, once it has been read to its end.
        """


LEAST_HELD = 64  # records read ahead, so that with small blocks, too, there is another one for a bad record


class Draw(NamedTuple):
    """One record of a lane, and its place among those held in memory with it, from which a bad record is replaced."""

    number: int
    place: int
    held: list[tuple[str, Item]]


class ShardLengths:
    """How many records each shard turned out to hold, kept in a file that all readers of a run append to.

    Args:
        path: JSON lines {"shard", "records"}; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, int] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # a killed process wrote half a line; that shard is read once more
                self._known[row["shard"]] = row["records"]

    def get(self, shard: str) -> int | None:
        """Number of records, where the shard has been read to its end."""
        return self._known.get(shard)

    def add(self, shard: str, records: int) -> None:
        """Remember a shard that was read to its end."""
        if self._known.get(shard) == records:
            return
        self._known[shard] = records
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            half = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            line = "\n" * half + json.dumps({"shard": shard, "records": records}, ensure_ascii=False) + "\n"
            with self.path.open("ab", buffering=0) as file:  # one write: lines of several processes stay whole
                file.write(line.encode("utf-8", "backslashreplace"))


class Lane:
    """Records of one of ``lanes`` equal parts of a stream, endless.

    In each epoch the shards are permuted and dealt out like cards. With fewer shards than lanes, every lane reads all
    of them and keeps each ``lanes``-th record instead, which costs as many times the reading.

    Args:
        stream: the shards.
        lane, lanes: which part of how many.
        seed: of the orders; at least 0.
        block: records that are shuffled together, held in memory encoded as they are stored (64 or more); 1 keeps their
            order.
        lengths: shards already counted.

    Raises:
        ValueError: no shards.
    """

    def __init__(self, stream: Stream, lane: int, lanes: int, seed: int, block: int, lengths: ShardLengths) -> None:
        if not len(stream):
            raise ValueError("the stream has no shards; expected at least one")
        self.stream, self.lane, self.lanes = stream, lane, lanes
        self.seed, self.block, self.lengths = seed, block, lengths

    @property
    def shared(self) -> bool:
        """Whether shards are too few to be dealt, so that lanes share out the records of each."""
        return len(self.stream) < self.lanes

    def order(self, epoch: int) -> list[int]:
        """The shards that this lane reads in an epoch, in order."""
        shards = _rng(self.seed, 0, epoch).permutation(len(self.stream)).tolist()
        return shards if self.shared else shards[self.lane :: self.lanes]

    def draws(self, start: int = 0) -> Iterator[Draw]:
        """Records number ``start``, ``start + 1``, ..., without end.

        Raises:
            NothingUsable: an epoch without any record.
        """
        blocks = math.ceil(LEAST_HELD / self.block)
        first = start // (blocks * self.block) * blocks
        records = self._records(first * self.block)
        for begin in count(first, blocks):
            held = [next(records) for _ in range(blocks * self.block)]
            for number in range(begin, begin + blocks):
                places = _rng(self.seed, 1 + self.lane, number).permutation(self.block).tolist()
                for place in range(max(start - number * self.block, 0), self.block):
                    yield Draw(number * self.block + place, (number - begin) * self.block + places[place], held)

    def _records(self, skip: int) -> Iterator[tuple[str, Item]]:
        """The lane's records in the order they are read, all epochs in a row, without the first ``skip``."""
        for epoch in count():
            found = 0
            for shard in self.order(epoch):
                name = self.stream.name(shard)
                length = self.lengths.get(name)
                if length is not None and (share := self._share(length)) <= skip:
                    skip -= share
                    found += share
                    continue
                length = 0
                for length, record in enumerate(self.stream.read(shard), start=1):
                    if self.shared and (length - 1) % self.lanes != self.lane:
                        continue
                    found += 1
                    if skip:
                        skip -= 1
                    else:
                        yield record
                self.lengths.add(name, length)
            if not found:
                names = ", ".join(self.stream.name(shard) for shard in self.order(epoch)[:3])
                raise NothingUsable(f"no records in the shards of lane {self.lane} of {self.lanes} ({names})")

    def _share(self, length: int) -> int:
        """How many of a shard's records fall to this lane."""
        return len(range(self.lane, length, self.lanes)) if self.shared else length


def _rng(seed: int, purpose: int, number: int) -> np.random.Generator:
    counter = np.array([0, number, purpose, 1], np.uint64)  # the last word keeps clear of other users of Philox(seed)
    return np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64), counter=counter))
