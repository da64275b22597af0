"""Streams: every record once an epoch, the same batches on any ranks, and a start anywhere without reading it all."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data import tar as shards
from imagen.data.decode import Unusable
from imagen.data.hub import HubStream
from imagen.data.pictures import StreamBatches, StreamDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.shard_paths import expand_braces
from imagen.data.streams import Lane, ShardLengths
from imagen.data.tar import ShardStream


class Numbers:
    """Shards of numbered records of the given lengths, and which shards were opened."""

    def __init__(self, *lengths: int, bad: tuple[int, ...] = ()) -> None:
        self.lengths, self.bad, self.opened = lengths, bad, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return len(self.lengths)

    def name(self, shard: int) -> str:
        return f"s{shard}"

    def read(self, shard: int, census: Any = None) -> Iterator[tuple[str, Any]]:
        self.opened.append(shard)
        first = sum(self.lengths[:shard])
        for number in range(first, first + self.lengths[shard]):
            picture = np.full((2, 2, 3), number % 256, np.uint8)
            yield str(number), Unusable("bad") if number in self.bad else Record("", picture, (str(number),))


def lane(stream: Any, number: int = 0, lanes: int = 1, seed: int = 0, block: int = 4, path: Path | None = None) -> Lane:
    return Lane(stream, number, lanes, seed, block, ShardLengths(path))


def keys(of: Lane, start: int, count: int) -> list[str]:
    return [draw.held[draw.place][0] for draw in itertools.islice(of.draws(start), count)]


@pytest.mark.parametrize("lengths", [(7, 5, 9, 3), (24,), (23, 1)])
def test_an_epoch_holds_every_record_once_over_all_lanes(lengths: tuple[int, ...]) -> None:
    for seed in range(3):
        seen: Counter[str] = Counter()
        for number in range(3):
            one = lane(Numbers(*lengths), number, 3, seed)
            stream = one._records(0)
            mine = sum(one._share(lengths[shard]) for shard in one.order(0))
            seen.update(key for key, _ in itertools.islice(stream, mine))
        assert seen == Counter({str(number): 1 for number in range(24)})


def test_blocks_are_permuted_and_epochs_and_seeds_differ() -> None:
    stream = Numbers(6, 6, 6)
    plain = keys(lane(stream, block=1), 0, 18)
    mixed = keys(lane(stream, block=6), 0, 36)
    for start in range(0, 18, 6):
        assert sorted(mixed[start : start + 6]) == sorted(plain[start : start + 6])
        assert mixed[start : start + 6] != plain[start : start + 6]
    assert sorted(mixed[18:]) == sorted(mixed[:18])
    assert mixed[18:] != mixed[:18]
    assert keys(lane(stream, block=6, seed=1), 0, 18) != mixed[:18]


@pytest.mark.parametrize("lanes", [1, 2, 9])
def test_shards_come_in_another_order_in_every_epoch(lanes: int) -> None:
    for number in range(lanes):
        of = lane(Numbers(*[2] * 8), number, lanes)
        assert len({tuple(of.order(epoch)) for epoch in range(4)}) == 4
        assert of.order(3) == lane(Numbers(*[2] * 8), number, lanes).order(3)
        assert of.order(0) != lane(Numbers(*[2] * 8), number, lanes, seed=1).order(0)


@pytest.mark.parametrize("lanes", [1, 3, 5])
def test_a_lane_starts_anywhere(lanes: int, tmp_path: Path) -> None:
    for number in range(lanes):
        whole = keys(lane(Numbers(7, 5, 9, 3), number, lanes, block=5), 0, 160)
        for start in (1, 4, 5, 13, 37, 66, 131):  # the last two behind whole epochs of which nothing is held
            assert keys(lane(Numbers(7, 5, 9, 3), number, lanes, block=5), start, 20) == whole[start : start + 20]
            known = lane(Numbers(7, 5, 9, 3), number, lanes, block=5, path=tmp_path / "shards.jsonl")
            assert keys(known, start, 20) == whole[start : start + 20]


def test_counted_shards_before_the_start_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "shards.jsonl"
    first = lane(Numbers(160, 160, 160, 160), path=path)
    keys(first, 0, 641)
    with path.open("a") as file:
        file.write('{"shard": "s0", "rec')  # a killed process
    again = lane(stream := Numbers(160, 160, 160, 160), path=path)
    keys(again, 400, 1)
    assert stream.opened == first.order(0)[2:3]
    again.lengths.add("s9", 3)
    assert ShardLengths(path).get("s9") == 3
    assert ShardLengths(path).get("s0") == 160


def batches(stream: Any, rank: int = 0, world: int = 1, start: int = 0, **options: Any) -> list[dict[str, Any]]:
    source = StreamDataset(stream, Prepare(Want(2)), seed=3, lanes=4, block=3)
    made = StreamBatches(source, 8, start, 6, options.pop("accumulation", 1), rank, world, **options)
    return list(made)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("lengths", [(9, 4, 6, 5, 8), (17, 5)])
def test_batches_are_those_of_any_number_of_processes_threads_and_starts(lengths: Any, accumulation: int) -> None:
    whole = batches(Numbers(*lengths, bad=(3, 11)), accumulation=accumulation)
    assert len(whole) == 6 * accumulation
    assert all(len(batch["key"]) == 8 // accumulation for batch in whole)
    for world in (2, 4):
        parts = [
            batches(Numbers(*lengths, bad=(3, 11)), rank, world, accumulation=accumulation, threads=3)
            for rank in range(world)
        ]
        for batch, *shares in zip(whole, *parts, strict=True):
            assert [key for share in shares for key in share["key"]] == batch["key"]
            assert torch.equal(torch.cat([share["image"] for share in shares]), batch["image"])
    later = batches(Numbers(*lengths, bad=(3, 11)), start=2, accumulation=accumulation)
    assert [batch["key"] for batch in later] == [batch["key"] for batch in whole[2 * accumulation :]]


def test_a_bad_record_is_told_and_replaced_by_one_held_with_it() -> None:
    source = StreamDataset(Numbers(12, bad=(5,)), Prepare(Want(2)), block=4)
    draw = next(draw for draw in source.lane(0, ShardLengths(None)).draws() if draw.held[draw.place][0] == "5")
    sample = source.sample(0, draw)
    assert sample.key in {key for key, _ in draw.held} - {"5"}
    assert [tuple(note) for note in sample.notes] == [("5", "skipped", "bad")]
    ruined = StreamDataset(Numbers(4, bad=(0, 1, 2, 3)), Prepare(Want(2)), block=4)
    with pytest.raises(ValueError, match="100 pictures in a row cannot be used; the last is .: bad"):
        ruined.sample(0, next(ruined.lane(0, ShardLengths(None)).draws()))


@pytest.mark.parametrize("block", [1, 3])
def test_a_bad_record_ends_no_stream_that_is_barely_shuffled(block: int) -> None:
    source = StreamDataset(Numbers(40, 30, bad=(0, 7)), Prepare(Want(2)), block=block)
    for start in (0, 5, 66):
        drawn = list(itertools.islice(source.lane(0, ShardLengths(None)).draws(start), 70))
        assert [draw.number for draw in drawn] == list(range(start, start + 70))
        samples = [source.sample(0, draw) for draw in drawn]
        told = {note.key for sample in samples for note in sample.notes}
        assert told == {"0", "7"}
        asked = [draw.held[draw.place][0] for draw in drawn]
        assert all(sample.key == key for sample, key in zip(samples, asked, strict=True) if key not in told)
        order = keys(source.lane(0, ShardLengths(None)), 0, start + 70)
        assert asked == order[start:]


def test_the_head_of_a_stream_is_read_once_in_order_whatever_its_lanes() -> None:
    source = StreamDataset(Numbers(3, 4, bad=(1, 2)), Prepare(Want(2)), seed=5, lanes=4, block=2)
    samples = source.head(3)
    assert [sample.key for sample in samples] == ["0", "3", "4"]
    assert [[note.key for note in sample.notes] for sample in samples] == [[], ["1", "2"], []]
    assert len(source.head(12)) == 5


@pytest.mark.parametrize(
    ("lanes", "batch", "world", "message"),
    [
        (3, 6, 2, "3 lanes cannot be shared out over 2 processes; choose a multiple of 2 lanes"),
        (4, 6, 1, "batch of 6 cannot be cut into 1 accumulation steps × 4 lanes; choose a multiple of 4"),
    ],
)
def test_parts_that_do_not_fit_are_refused(lanes: int, batch: int, world: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamBatches(StreamDataset(Numbers(4), Prepare(Want(2)), lanes=lanes), batch, world=world)


def test_a_stream_without_records_is_refused() -> None:
    with pytest.raises(ValueError, match="no shards"):
        lane(Numbers())
    with pytest.raises(ValueError, match=r"no records in the shards of lane 0 of 1 \(s"):
        next(lane(Numbers(0, 0)).draws())


# --- tar shards ------------------------------------------------------------------------------------------------------


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def shard(numbers: Any, mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for number in numbers:
            for ending, data in (("png", picture(number)), ("txt", f"picture {number}".encode())):
                info = tarfile.TarInfo(f"{number:03d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_shards_are_read_from_files_and_urls_packed_or_not(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for number in range(8, 11):
        memory.pipe(f"/set/x-{number:02d}.tar.gz", shard(range(3 * number, 3 * number + 3), "w:gz"))
        (tmp_path / f"x-{number:02d}.tar").write_bytes(shard(range(3 * number, 3 * number + 3)))
    remote = ShardStream(["memory://set/x-{08..10}.tar.gz"])
    local = ShardStream([str(tmp_path / "*.tar")])
    assert len(remote) == len(local) == 3
    for index in range(3):
        for (_, one), (key, other) in zip(remote.read(index), local.read(index), strict=True):
            assert isinstance(one, Record)
            assert isinstance(other, Record)
            assert (one.name, one.image, one.captions) == (other.name, other.image, other.captions)
            assert key == f"x-{8 + index:02d}.tar/{one.name[:-4]}"
    told = StreamDataset(ShardStream(local.urls[1:2]), Prepare(Want(4))).captions()
    assert list(told) == [(f"picture {number}",) for number in (27, 28, 29)]
    batch = next(iter(StreamBatches(StreamDataset(remote, Prepare(Want(4)), lanes=2, block=2), 4)))
    shown = ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert [f"picture {number}" for number in shown] == batch["caption"]


def test_a_cut_shard_keeps_what_is_before_the_cut(tmp_path: Path) -> None:
    member = 512 + 512  # header and data
    (tmp_path / "a.tar").write_bytes(shard(range(4))[: 3 * member - 472])
    items = list(ShardStream([str(tmp_path)]).read(0))
    good = [item for _, item in items if isinstance(item, Record)]
    assert len(good) == 1
    assert [item.captions[0] for item in good] == [f"picture {n}" for n in range(len(good))]
    assert items[-1][0] == "a.tar/(damaged)"
    assert "cannot be read on from here" in str(items[-1][1])


def break_connections(monkeypatch: pytest.MonkeyPatch, failures: list[int]) -> list[int]:
    """Let each reading of a shard break off before the item of the next of these numbers, while there are any."""
    read_items = shards._read_items

    def flaky(url: str, places: Any, census: Any) -> Iterator[Any]:
        for number, item in enumerate(read_items(url, places, census)):
            if failures and number == failures[0]:
                failures.pop(0)
                raise ConnectionResetError("gone")
            yield item

    monkeypatch.setattr(shards, "_read_items", flaky)
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: None)
    return failures


def test_a_broken_connection_is_opened_again_and_a_missing_shard_is_not(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a.tar").write_bytes(shard(range(5)))
    failures = break_connections(monkeypatch, [2, 4, 0])
    stream = ShardStream([str(tmp_path)])
    expected = [f"a.tar/{n:03d}" for n in range(5)]
    assert [key for key, _ in stream.read(0)] == expected
    failures[:] = [0] * 4
    with pytest.raises(OSError, match=r"a.tar' cannot be read, 4 times: gone"):
        list(stream.read(0))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(FileNotFoundError):
        list(stream.read(0))


def test_braces_stand_for_numbers() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{0..1}/{5..6}") == ["0/5", "0/6", "1/5", "1/6"]
    with pytest.raises(ValueError, match="counts down"):
        expand_braces("{3..1}")


# --- Hugging Face datasets -------------------------------------------------------------------------------------------


def test_a_dataset_streams_what_it_holds(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red_fox", "cat"])})
    for part in range(3):
        rows = {"image": [{"bytes": picture(2 * part + n), "path": None} for n in range(2)], "label": [part % 2, -1]}
        datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / f"train-{part}.parquet"))
    stream = HubStream(str(tmp_path))
    assert len(stream) == 3
    assert str(tmp_path) in stream.name(1), "lengths kept under this name are not another dataset's"
    for part in range(3):
        (first, one), (second, other) = stream.read(part)
        assert isinstance(one, Record)
        assert isinstance(other, Record)
        assert (first, second) == (f"file {part} row 0", f"file {part} row 1")
        assert one.captions == (("red fox",), ("cat",))[part % 2]
        assert other.captions == ()
        assert one.image == picture(2 * part)
    source = StreamDataset(stream, Prepare(Want(4, captions="optional")), block=1)
    assert list(source.captions()) == [("red fox",), (), ("cat",), (), ("red fox",), ()]
    assert len({sample.key for sample in source.head(6)}) == 6
