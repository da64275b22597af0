"""Items of tar shards, at random and as a stream: what their files mean, in whatever order they lie."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import imagen.data.tar as shards
from imagen.data.decode import Unusable
from imagen.data.records import Places, Record
from imagen.data.shard_paths import expand_braces, find_shards
from imagen.data.tar import ShardRecords, ShardStream


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(data))
    return path


def read(root: Path, places: Places | None = None) -> dict[str, Record | str]:
    """Records, or why there is none, by key: the same from an index and from a stream."""
    places = places or Places()
    records = ShardRecords([str(root)], places)
    found: dict[str, Record | str] = {}
    for number in range(len(records)):
        try:
            found[records.key(number)] = records.record(number)
        except Unusable as error:
            found[records.key(number)] = str(error)
    stream = ShardStream([str(root)], places)
    items = (item for shard in range(len(stream)) for item in stream.read(shard))
    assert {key: str(item) if isinstance(item, Unusable) else item for key, item in items} == found
    return found


def test_files_up_to_the_first_dot_of_their_name_are_an_item_and_the_rest_their_ending(tmp_path: Path) -> None:
    files = {
        "x.y/": b"",
        "x.y/a.b.PNG": b"1",
        "x.y/a.T5.npy": b"2",
        "x.y/b.jpg": b"3",
        "b.jpg": b"4",
        "b.txt": b"words",
    }
    tar(tmp_path / "0.tar", files)
    found = read(tmp_path, Places(fields={"embedding": "t5.npy"}, rules=1))
    assert found.pop("0.tar/x.y/b") == found.pop("0.tar/b") == "has no embedding .t5.npy"
    assert found == {"0.tar/x.y/a": Record("x.y/a.b.png", b"1", (), {"embedding": b"2"})}


def test_of_several_pictures_the_first_by_name_is_taken_and_none_that_is_a_field(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.webp": b"w", "a.png": b"p", "a.jpg": b"j", "a.cls": b"owl", "a.json": b"{"})
    for fields, image in (({}, b"j"), ({"other": "jpg"}, b"p"), ({"other": ".JPG", "third": "png"}, b"w")):
        (record,) = read(tmp_path, Places(fields=fields, rules=1)).values()
        assert isinstance(record, Record)
        assert (record.image, record.captions) == (image, ("owl",))
    assert read(tmp_path, Places(fields={"a": "jpg", "b": "png", "c": "webp"})) == {
        "0.tar/a": "has no picture, only cls, jpg, json, png, webp"
    }


def test_captions_are_of_txt_then_cls_then_json_but_where_a_field_is(tmp_path: Path) -> None:
    told = json.dumps({"label": "l", "captions": ["c", "d"], "text": "t", "caption": " a  b", "own": "o"}).encode()
    tar(tmp_path / "0.tar", {"a.png": b"p", "a.cls": b"one\ntwo\n", "a.txt": b"words", "a.json": told})
    for fields, caption, captions in (
        ({}, None, ("words",)),
        ({}, "own", ("words",)),
        ({"label": "txt"}, None, ("one", "two")),
        ({"label": ".cls"}, None, ("words",)),
        ({"label": "cls", "more": "txt"}, None, ("a b",)),
        ({"label": "cls", "more": "txt"}, "own", ("o",)),
        ({"label": "cls", "more": "txt"}, "other", ()),
        ({"label": "cls", "more": "txt", "last": "json:caption"}, None, ("t",)),
        ({"label": "cls", "more": "txt", "last": "json:caption", "next": "json:text"}, None, ("c", "d")),
        ({"label": "cls", "more": "txt", "last": "json:caption"}, "caption", ("a b",)),
    ):
        places = Places(caption=caption, fields=fields)
        (record,) = read(tmp_path, places).values()
        assert isinstance(record, Record)
        assert record.captions == captions == ShardRecords([str(tmp_path)], places).captions(0)
        assert record.fields.get("last", " a  b") == " a  b"


@pytest.mark.parametrize(
    ("files", "fields", "told"),
    [
        ({"a.png": b"", "a.json": b"{"}, {}, ".json is no JSON: "),
        ({"a.png": b"", "a.json": b'{"text": "caf\xe9"}'}, {}, ".json is no JSON: "),
        ({"a.png": b"", "a.json": b"[1]"}, {}, ".json is no JSON object"),
        ({"a.png": b"", "a.json": b'{"text": 7}'}, {}, "caption is 7; expected text"),
        ({"a.png": b"", "a.txt": b"caf\xe9"}, {}, "caption .txt is not UTF-8"),
        ({"a.png": b"", "a.cls": b"caf\xe9"}, {}, "caption .cls is not UTF-8"),
        ({"a.png": b""}, {"label": "json:x"}, "has no label .json"),
        ({"a.png": b"", "a.cls": b"", "a.json": b"[]"}, {"label": "json:x"}, ".json is no JSON object"),
        ({"b.txt": b"", "b.gz": b""}, {}, "has no picture, only gz, txt"),
    ],
)
def test_what_is_wrong_with_an_item_is_told(
    tmp_path: Path, files: dict[str, bytes], fields: dict[str, str], told: str
) -> None:
    tar(tmp_path / "0.tar", files)
    (reason,) = read(tmp_path, Places(fields=fields)).values()
    assert str(reason).startswith(told)


def test_a_key_that_a_json_lacks_is_a_field_without_a_value(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"a.png": b"", "a.json": b'{"y": 0}'})
    (record,) = read(tmp_path, Places(fields={"one": "json:x", "two": "json:y"})).values()
    assert isinstance(record, Record)
    assert record.fields == {"one": None, "two": 0}


def test_items_of_all_shards_are_read_by_number_each_at_its_place(tmp_path: Path) -> None:
    for shard in range(3):
        tar(tmp_path / f"{shard}.tar", {f"{n}.png": bytes([shard, n]) * (n + 1) * 400 for n in range(3)})
    records = ShardRecords([str(tmp_path)])
    for number in (8, 0, 4, 4, 1, 3):
        shard, n = divmod(number, 3)
        assert records.key(number) == f"{shard}.tar/{n}"
        assert records.record(number).image == bytes([shard, n]) * (n + 1) * 400


def test_a_worker_opens_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(2):
        tar(tmp_path / f"{shard}.tar", {"a.png": bytes([shard])})
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(Path(path).name) or real(path, *rest))
    records = ShardRecords([str(tmp_path)])
    for number in (0, 1, 0, 1):
        assert records.record(number).image == bytes([number])
    assert opened == ["0.tar", "1.tar"], "each once"
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert records.record(0).image == records.record(0).image == b"\0"
    assert opened == ["0.tar", "1.tar", "0.tar"]


def test_a_file_that_a_shard_no_more_holds_whole_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", {"a.png": b"x" * 700})
    records = ShardRecords([str(tmp_path)])
    for kept in (700, 699, 0):
        path.write_bytes(path.read_bytes()[: 512 + kept])
        if kept == 700:
            assert records.record(0).image == b"x" * 700
            continue
        with pytest.raises(Unusable, match=rf"\.png ends after {kept} of 700 bytes: the shard is cut off"):
            records.record(0)


def test_damage_within_an_item_is_that_item_s_and_ends_the_shard(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", {"a.png": b"a", "b.png": b"b", "b.txt": b"words", "c.png": b"c"}).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:2048] + b"\xff" * 512 + whole[2560:])  # the header of b.txt
    found = list(ShardStream([str(tmp_path)]).read(0))
    assert [key for key, _ in found] == ["0.tar/a", "0.tar/b", "0.tar/(damaged)"]
    assert str(found[1][1]) == "the shard is damaged within it or right behind it"
    assert str(found[2][1]).startswith("the shard cannot be read on from here: ")
    records = ShardRecords([str(tmp_path)])
    assert [records.key(number) for number in range(len(records))] == ["0.tar/a", "0.tar/b", "0.tar/(damaged)"]
    with pytest.raises(Unusable, match="the shard cannot be read on from here"):
        records.record(2)


@pytest.mark.parametrize("packed", [gzip.compress, lambda data: data[:100] + data[:100]])
def test_a_packed_shard_that_is_damaged_says_so(tmp_path: Path, packed: Any) -> None:
    whole = tar(tmp_path / "0.tar", {f"{n}.png": os.urandom(4000) for n in range(9)}).read_bytes()
    data = gzip.compress(whole)
    (tmp_path / "1.tar.gz").write_bytes(data[: len(data) // 2] if packed is gzip.compress else packed(data))
    found = [item for _, item in ShardStream([str(tmp_path / "1.tar.gz")]).read(0)]
    assert str(found[-1]).startswith("the shard cannot be read on from here: ")


def test_pauses_between_the_tries_grow_and_there_is_none_behind_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar(tmp_path / "0.tar", {"a.png": b"a"})
    tries, pauses = [], []

    def broken(url: str, places: Places, census: Any) -> Iterator[Any]:
        tries.append(url)
        raise ConnectionResetError("gone")
        yield

    monkeypatch.setattr(shards, "_read_items", broken)
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(OSError, match="cannot be read, 4 times: gone"):
        list(ShardStream([str(tmp_path)]).read(0))
    assert tries == [f"{tmp_path}/0.tar"] * 4
    assert pauses == [1, 2, 4]


@pytest.mark.parametrize("error", [FileNotFoundError("f"), PermissionError("p"), ValueError("v"), ImportError("i")])
def test_what_trying_again_cannot_mend_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tar(tmp_path / "0.tar", {"a.png": b"a"})
    tries = []

    def broken(url: str, places: Places, census: Any) -> Iterator[Any]:
        tries.append(url)
        raise error
        yield

    monkeypatch.setattr(shards, "_read_items", broken)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("no pause"))
    with pytest.raises(OSError, match=f"^{error}$" if isinstance(error, OSError) else f"cannot be opened: {error}"):
        list(ShardStream([str(tmp_path)]).read(0))
    assert len(tries) == 1


def test_shards_are_found_once_each_and_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "c.tar", "d.tar.gz", "e.tgz"):
        (tmp_path / name).write_bytes(b"")
    several = [str(tmp_path / "c.*"), str(tmp_path), str(tmp_path / "a.tar")]
    assert [path.name for path in find_shards(several)] == ["a.tar", "b.tar", "c.tar"]
    every = [path.name for path in find_shards([str(tmp_path / "*")], compressed=True)]
    assert every == ["a.tar", "b.tar", "c.tar", "d.tar.gz", "e.tgz"]
    for ending in ("gz", "tgz", "bz2", "xz", "zst"):
        (tmp_path / f"x.{ending}").write_bytes(b"")
        with pytest.raises(ValueError, match=rf"x\.{ending}' is compressed, so it cannot be read at random"):
            find_shards([str(tmp_path / f"x.{ending}")])
    with pytest.raises(ValueError, match="no shards at 'nowhere'"):
        find_shards([str(tmp_path), "nowhere"])
    with pytest.raises(ValueError, match="no shards at"):
        ShardStream([str(tmp_path), str(tmp_path / "nowhere")])


def test_numbers_in_braces_keep_their_zeros_and_urls_without_any_are_one() -> None:
    assert expand_braces("s3://a/{8..10}.tar") == ["s3://a/8.tar", "s3://a/9.tar", "s3://a/10.tar"]
    assert expand_braces("{098..101}")[::3] == ["098", "101"]
    assert expand_braces("{7..7}x{1..2}") == ["7x1", "7x2"]
    assert expand_braces("https://a/{b}.tar") == ["https://a/{b}.tar"]
    assert ShardStream(["s3://a/{1..2}", "s3://b"]).urls == ["s3://a/1", "s3://a/2", "s3://b"]
