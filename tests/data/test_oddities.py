"""Inputs that no author has in mind: each is a sample, a named fault, or one line, and never lost in silence."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.data.census import Census, Role
from imagen.data.config import DataConfig
from imagen.data.decode import NothingUsable, Unusable, decode, parse_json
from imagen.data.make import make_source
from imagen.data.pictures import item_rng
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.shard_paths import find_shards
from imagen.data.streams import Lane, ShardLengths
from imagen.data.table import TableRecords
from imagen.data.tar import ShardRecords, ShardStream

DEEP = b"[" * 100_000


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def pack(path: Path, files: Mapping[str, bytes], end: bool = True) -> Path:
    """A shard; without its `end` it stops behind the last file."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        length = archive.offset
    if not end:
        os.truncate(path, length)
    return path


def read_both(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What is wrong with each item of a shard, "" for nothing: read at random, and as a stream."""
    records, random, stream = ShardRecords([str(path)]), {}, {}
    for number in range(len(records)):
        try:
            records.record(number)
            random[records.key(number)] = ""
        except Unusable as error:
            random[records.key(number)] = str(error)
    for key, item in ShardStream([str(path)]).read(0):
        stream[key] = str(item) if isinstance(item, Unusable) else ""
    return random, stream


def bind(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(("make", "kind"), [
    (lambda path: path.symlink_to("/dev/zero"), "device"), (os.mkfifo, "pipe"), (Path.mkdir, "directory"),
    (bind, "socket"),
])  # fmt: skip
def test_what_is_no_file_is_not_read(
    tmp_path: Path, make: Callable[[Path], Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths of sockets must be short
    make(Path("a.png"))
    with pytest.raises(Unusable, match=f"^cannot be read: Is a {kind}$"):
        decode(Path("a.png"), "a.png")


def test_json_that_is_nested_too_deep_is_a_fault_of_its_item_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(DEEP)
    files = {"a.png": png(), "a.json": DEEP, "b.png": png(), "b.txt": b"two"}
    for faults in read_both(pack(tmp_path / "a.tar", files)):
        assert faults == {"a.tar/a": ".json is no JSON: it is nested too deep", "a.tar/b": ""}
    table = tmp_path / "t.jsonl"
    table.write_bytes(DEEP + b'\n{"image": "a.png", "text": "two"}\n')
    records = TableRecords(table)
    assert records.captions(1) == ("two",)
    with pytest.raises(Unusable, match="^line 1 is no JSON: it is nested too deep$"):
        records.record(0)


def test_an_item_that_a_stream_fails_at_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no fault of an item's own comes once more when the shard is read again, and then ends the reading."""
    path = pack(tmp_path / "a.tar", {"a.png": png(), "b.png": png(), "c.png": png()})
    monkeypatch.setattr("imagen.data.tar.time.sleep", lambda seconds: None)
    tried: list[str] = []

    def fail(stem: str, *_: Any) -> Record:
        tried.append(stem)
        if stem == "b":
            raise RuntimeError("a bug")
        return Record(stem, b"")

    monkeypatch.setattr("imagen.data.tar.item_record", fail)
    given = []
    with pytest.raises(OSError, match="cannot be read, 4 times: a bug"):
        given.extend(key for key, _ in ShardStream([str(path)]).read(0))
    assert tried == ["a", "b", "b", "b", "b"]


@pytest.mark.parametrize("end", [True, False])
def test_a_shard_that_ends_without_its_mark_is_told(tmp_path: Path, end: bool) -> None:
    path = pack(tmp_path / "a.tar", {"a.png": png(), "a.txt": b"one"}, end)
    told = [] if end else [("a.tar", "ends without an archive's end mark: files may be missing")]
    stream = Census()
    assert len(list(ShardStream([str(path)]).read(0, stream))) == 1
    for census in (stream, ShardRecords([str(path)]).census()):
        assert [(note.key, note.reason) for note in census.left] == told
        assert census.counts == {Role.PICTURE: 1, Role.CAPTION: 1}


def test_what_lies_beside_the_shards_of_a_folder_is_counted(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        pack(tmp_path / name, {"a.png": png()})
    for name in ("c.tar.gz", "D.TAR", ".hidden", "in/e.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    stream, streamed = ShardStream([str(tmp_path)]), Census()
    for shard in range(2):
        list(stream.read(shard, streamed))
    for census in (streamed, ShardRecords([str(tmp_path)]).census()):
        assert census.counts == {Role.PICTURE: 2, Role.OTHER: 3, Role.HIDDEN: 1}
        assert sorted(note.key for note in census.left) == ["D.TAR", "c.tar.gz", "in/e.tar"]
    assert ShardRecords([str(tmp_path / "a.tar")]).census().counts == {Role.PICTURE: 1}


def test_a_name_with_brackets_is_a_file_s_before_it_is_a_pattern_and_a_url_is_a_stream_s(tmp_path: Path) -> None:
    for name in ("br[1].tar", "br1.tar"):
        pack(tmp_path / name, {"a.png": png()})
    assert find_shards([str(tmp_path / "br[1].tar")]) == [tmp_path / "br[1].tar"]
    assert find_shards([str(tmp_path / "br[12].tar")]) == [tmp_path / "br1.tar"]
    with pytest.raises(ValueError, match="'https://x/a.tar' are behind a URL, .*: set data.streaming true"):
        find_shards(["https://x/a.tar"])


def test_a_stream_without_a_record_is_told_as_nothing_usable(tmp_path: Path) -> None:
    stream = ShardStream([str(pack(tmp_path / "a.tar", {}))])
    with pytest.raises(NothingUsable, match=r"^no records in the shards of lane 0 of 1"):
        next(Lane(stream, 0, 1, 0, 1, ShardLengths(None)).draws())


@pytest.mark.parametrize(("name", "text", "told"), [
    ("t.csv", "image,text,text\na.png,first,\n", "has 3 columns, of which 'text' is there twice: rename one"),
    ("t.tsv", "image\ttext\timage\n", "has 3 columns, of which 'image' is there twice: rename one"),
    ("t.csv", "\nimage,text\na.png,first\n", "has an empty first line; expected the names of the columns there"),
    ("t.csv", ",,\na.png,first\n", "has an empty first line"),
])  # fmt: skip
def test_a_table_whose_first_line_names_no_columns_or_one_twice_is_refused(
    tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text if text.count("\n") > 1 else text + "a\tb\tc\n")
    with pytest.raises(ValueError, match=f"{name}' {told}"):
        TableRecords(tmp_path / name)


def test_a_run_that_began_before_keeps_the_last_of_two_columns(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,text,text\na.png,first,last\n")
    (tmp_path / "a.png").write_bytes(png())
    source = make_source(DataConfig("table", str(tmp_path / "t.csv"), rules=1), Want(4))
    assert source[0].caption == "last"


def test_nul_in_a_caption_is_told_and_the_picture_used() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    for caption in ("a star", "a\0 \0s\0t\0"):
        sample, notes = Prepare(Want(2))("k", Record("", picture, ("one", caption)), item_rng(0, 0))
        assert sample.caption in ("one", caption)
        told = ["has a caption with NUL characters: if it is UTF-16, save it as UTF-8"] if "\0" in caption else []
        assert [(note.action, note.reason) for note in notes] == [("noted", one) for one in told]


def test_parquet_says_why_it_cannot_be_read(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table([["a.png"], ["one"], ["two"]], names=["image", "text", "text"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t.parquet' (has 3 columns|cannot be read as parquet: .*text)"):
        TableRecords(tmp_path / "t.parquet")


def test_json_reads_what_json_reads() -> None:
    value = {"a": [1, "b", None]}
    assert parse_json(json.dumps(value).encode()) == value
