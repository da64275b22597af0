"""What is random in a stream is drawn anew for every record of every lane."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagen.data.decode import Unusable
from imagen.data.pictures import StreamBatches, StreamDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.sources import Note, Sample
from imagen.data.streams import ShardLengths

LANES, EACH = 3, 40


class Same:
    """Shards of records that are all alike, so that only what is drawn for them differs; some cannot be used."""

    def __init__(self, shards: int, records: int, every_bad: int = 0) -> None:
        self.shards, self.records, self.every_bad = shards, records, every_bad
        self.picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self.shards

    def name(self, shard: int) -> str:
        return f"s{shard}"

    def read(self, shard: int, census: Any = None) -> Iterator[tuple[str, Any]]:
        for number in range(self.records):
            bad = self.every_bad and number % self.every_bad == 0
            yield f"{shard}-{number}", Unusable("bad") if bad else Record("", self.picture, ("a star",))


class Told:
    """In place of Prepare: the first number that a record's randomness gives."""

    def __init__(self) -> None:
        self.drawn: list[int] = []

    def __call__(self, key: str, record: Any, rng: np.random.Generator) -> tuple[Sample, list[Note]]:
        self.drawn.append(int(rng.integers(2**62)))
        return Sample(key, torch.zeros(1, 1, 1)), []


def test_every_record_of_every_lane_has_draws_of_its_own() -> None:
    told = Told()
    source = StreamDataset(Same(4, 50), told, seed=3, lanes=LANES, block=5)  # type: ignore[arg-type]
    for number in range(LANES):
        lane = source.lane(number, ShardLengths(None))
        for draw in itertools.islice(lane.draws(), EACH):
            source.sample(number, draw)
    assert len({*told.drawn}) == LANES * EACH


def test_bad_records_of_all_lanes_are_replaced_by_different_ones() -> None:
    """Every second record of a block is bad: the places drawn for them are not the same in two lanes."""
    source = StreamDataset(Same(3, 64, every_bad=2), Prepare(Want(8)), seed=1, lanes=LANES, block=64)
    places: list[tuple[int, ...]] = []
    for number in range(LANES):
        lane = source.lane(number, ShardLengths(None))
        samples = [(draw, source.sample(number, draw)) for draw in itertools.islice(lane.draws(), 64)]
        replaced = [sample.key.split("-")[1] for draw, sample in samples if draw.held[draw.place][0] != sample.key]
        assert len(replaced) == 32
        places.append(tuple(map(int, replaced)))
    assert len({*places}) == LANES
    assert all(len({*one}) > 12 for one in places), "not the same one for all"


def test_every_block_of_every_lane_is_shuffled_in_its_own_way() -> None:
    source = StreamDataset(Same(LANES, 96), Prepare(Want(8)), seed=1, lanes=LANES, block=12)
    orders: list[tuple[int, ...]] = []
    for number in range(LANES):
        drawn = itertools.islice(source.lane(number, ShardLengths(None)).draws(), 96)
        keys = [draw.held[draw.place][0] for draw in drawn]
        for start in range(0, 96, 12):
            orders.append(tuple(int(key.split("-")[1]) - start for key in keys[start : start + 12]))
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({*orders}) == LANES * 8


def test_windows_of_one_batch_are_drawn_apart_and_after_a_resume_as_before() -> None:
    source = StreamDataset(Same(4, 40), Prepare(Want(64), crop=4), seed=2, lanes=4, block=3)
    whole = list(StreamBatches(source, 16, 0, 3, accumulation=2))
    windows = torch.cat([batch["image"] for batch in whole]).flatten(1)
    assert len(windows.unique(dim=0)) > 40, "48 windows, of 61 x 61 that there are"
    later = list(StreamBatches(source, 16, 2, 3, accumulation=2))
    for one, other in zip(whole[4:], later, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["image"], other["image"])


def test_lengths_are_kept_once_each_for_whoever_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "run" / "shards.jsonl"
    first, unkept = ShardLengths(path), ShardLengths(None)
    for name, length in (("s0", 3), ("größer", 4), ("s0", 3), ("s1", 0)):
        first.add(name, length)
        unkept.add(name, length)
    assert [unkept.get(name) for name in ("s0", "größer", "s1", "s2")] == [3, 4, 0, None]
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"shard": "s0", "records": 3}', '{"shard": "größer", "records": 4}', '{"shard": "s1", "records": 0}'
    ]  # fmt: skip
    later = ShardLengths(path)
    assert [later.get(name) for name in ("s0", "größer", "s1", "s2")] == [3, 4, 0, None]
    later.add("s0", 5)  # a shard that has grown
    assert ShardLengths(path).get("s0") == 5
    path.write_bytes(path.read_bytes()[:-9])  # a killed process
    half = ShardLengths(path)
    assert (half.get("s0"), half.get("s1")) == (3, 0)
    half.add("s2", 6)
    assert [ShardLengths(path).get(name) for name in ("s0", "s1", "s2")] == [3, 0, 6]
    assert list(tmp_path.iterdir()) == [path.parent]


@pytest.mark.parametrize("block", [1, 3, 64, 65])
def test_at_least_sixty_four_records_are_held_to_stand_in_for_a_bad_one(block: int) -> None:
    source = StreamDataset(Same(2, 200), Prepare(Want(8)), lanes=1, block=block)
    for start in (0, 70):
        drawn = list(itertools.islice(source.lane(0, ShardLengths(None)).draws(start), 80))
        assert [draw.number for draw in drawn] == list(range(start, start + 80))
        assert {len(draw.held) for draw in drawn} == {64 if block in (1, 64) else 66 if block == 3 else 65}
        assert len({id(draw.held) for draw in drawn}) <= 3, "one list for all that are held together"


def test_every_shard_of_a_stream_is_examined_from_its_first_record() -> None:
    source = StreamDataset(Same(2, 3, every_bad=2), Prepare(Want(64), crop=8), seed=1)
    states = list(source.examine())
    assert [None if sample is None else sample.key for sample, _ in states] == [None, "0-1", None, None, "1-1", None]
    assert [note.key for _, notes in states for note in notes] == ["0-0", "0-2", "1-0", "1-2"]
    assert list(source.captions()) == [("a star",)] * 2
    first = StreamDataset(Same(1, 12), Prepare(Want(64), crop=8), seed=1).head(12)
    assert len(torch.stack([sample.image for sample in first]).flatten(1).unique(dim=0)) == 12, "windows of their own"


@pytest.mark.parametrize(
    ("lanes", "batch", "accumulation", "world", "message"),
    [
        (2, 4, 1, 4, "2 lanes cannot be shared out over 4 processes; choose a multiple of 4 lanes"),
        (2, 6, 2, 2, "batch of 6 cannot be cut into 2 accumulation steps × 2 lanes; choose a multiple of 4"),
        (1, 3, 2, 1, "batch of 3 cannot be cut into 2 accumulation steps × 1 lanes; choose a multiple of 2"),
    ],
)
def test_a_batch_is_cut_into_parts_of_every_lane(
    lanes: int, batch: int, accumulation: int, world: int, message: str
) -> None:
    source = StreamDataset(Same(2, 9), Prepare(Want(8)), lanes=lanes, block=1)
    with pytest.raises(ValueError, match=message):
        StreamBatches(source, batch, accumulation=accumulation, world=world)
    made = StreamBatches(source, 8, num_steps=1, accumulation=2, rank=lanes - 1, world=lanes)
    assert [len(part["key"]) for part in made] == [4 // lanes] * 2
