"""What every file is, written down by hand: of a folder, its pairs, a table, and shards read either way."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from imagen.data.census import Census, Role
from imagen.data.folder import FolderRecords
from imagen.data.records import Places, Record
from imagen.data.table import TableRecords
from imagen.data.tar import ShardRecords, ShardStream
from tests.data.test_naming import png, shard
from tests.data.test_streams import break_connections

PICTURE, CAPTION, FIELD, OTHER, HIDDEN = Role.PICTURE, Role.CAPTION, Role.FIELD, Role.OTHER, Role.HIDDEN


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"words")
    return root


def told(census: Census) -> dict[str, str]:
    assert {note.action for note in census.left} <= {"noted"}
    return {note.key: note.reason for note in census.left}


FILES = (
    "a.png", "a.txt", "a.t5.npy", "a.heic", "b.v1.jpg", "b.v1.txt", "b.txt", "c.txt", "c.t5.npy", "notes.md", "d.svg",
    "d.txt", "sub/a.png", ".x/a.png", "__MACOSX/a.txt", "._a.png",
)  # fmt: skip


def test_a_folder(tmp_path: Path) -> None:
    root = fill(tmp_path, *FILES)
    census = FolderRecords(root, fields={"t5": "t5.npy", "kind": "class"}).census()
    assert census.counts == {PICTURE: 4, CAPTION: 3, FIELD: 1, Role.ALONE: 2, Role.CONVERTED: 1, OTHER: 2, HIDDEN: 3}
    assert told(census) == {
        "a.heic": "is in a format that is not read, beside one that is",
        "b.txt": "is a caption without a picture",
        "c.txt": "is a caption without a picture",
        "c.t5.npy": "is read by nothing",
        "notes.md": "is read by nothing",
    }
    assert str(census) == (
        "16 files: pictures 4, captions 3, files of fields 1, captions without a picture 2, pictures in formats that "
        "are not read 1, hidden files 3, files that nothing reads 2"
    )
    classes = FolderRecords(root, "class", fields={"t5": "t5.npy"}).census()
    assert (classes.counts[CAPTION], classes.counts[Role.ALONE], classes.counts[OTHER]) == (0, 0, 7)
    tags = FolderRecords(root, fields={"t5": "t5.npy"}, ending="md").census()
    assert (tags.counts[CAPTION], told(tags)["notes.md"]) == (0, "is a caption without a picture")


def test_a_link_to_a_file_that_is_not_there_is_named_as_one(tmp_path: Path) -> None:
    root, pairs = fill(tmp_path / "in", "a.png", "a.txt"), fill(tmp_path / "depth", "a.npy")
    for link in (root / "notes", pairs / "b"):
        link.symlink_to("nowhere")
    census = FolderRecords(root, fields={"depth": pairs}).census()
    assert census.counts == {PICTURE: 1, CAPTION: 1, FIELD: 1, Role.BROKEN: 2}
    assert told(census) == dict.fromkeys(["notes", str(pairs / "b")], "is a link to a file that is not there")


def test_pairs_in_other_folders(tmp_path: Path) -> None:
    root = fill(tmp_path / "in", "a.png", "sub/b.png", "cond/a.png", "cond/a.txt", "cond/sub/b.ppm", "cond/c.png")
    fill(root, "cond/.x", "cond/sub/a.png")
    other = fill(tmp_path / "depth", "a.npy", "b.npy", "sub/b.npy", "sub/b.tif")
    census = FolderRecords(root, fields={"conditioning": root / "cond", "depth": other}).census()
    assert census.counts == {PICTURE: 2, FIELD: 2 + 3, OTHER: 3 + 1, HIDDEN: 1}
    assert set(told(census)) == {
        str(path) for path in (root / "cond/a.txt", root / "cond/c.png", root / "cond/sub/a.png", other / "b.npy")
    }


def test_a_table_whose_pictures_lie_in_several_folders(tmp_path: Path) -> None:
    fill(tmp_path, "x/a.png", "x/b.png", "x/mask.png", "y/a.png", "y/c.heic", "y/._d.png", "y/e.md", "z/f.png", "g.png")
    (tmp_path / "y" / "folder.png").mkdir()
    lines = ["file_name,hole,text", "x/a.png,x/mask.png,1", "y/../y/a.png,,2", ",,3", "gone/h.png,,4", "x/a.png,,5"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    records = TableRecords(tmp_path / "t.csv", Places(fields={"hole": "hole"}))
    census = records.census()
    assert census.counts == {Role.ROW: 5, Role.UNNAMED: 2}
    assert told(census) == dict.fromkeys([f"{tmp_path}/x/b.png", f"{tmp_path}/y/c.heic"], "is named by no row")
    assert str(census) == "7 rows and files: rows 5, pictures that no row names 2"
    assert len({records.key(number) for number in range(5)}) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_shards(tmp_path: Path, streaming: bool) -> None:
    files = [
        ("a.png", png()), ("a.txt", b"1"), ("a.json", b"{}"), ("a.mask.png", png()), ("a.more.png", png()),
        ("a.notes.md", b"n"), ("b.txt", b"2"), ("b.cls", b"3"), ("c.heic", b"4"), ("c.txt", b"5"), ("d.png", png()),
        ("d.json", b'{"caption": "6"}'), ("d.png", png()), (".DS_Store", b""), ("e", b""),
    ]  # fmt: skip
    path, places = str(shard(tmp_path, files)), Places(fields={"mask": "mask.png"})
    census = Census()
    if streaming:
        assert len(list(ShardStream([path], places).read(0, census))) == 5
    else:
        census = ShardRecords([path], places).census()
    assert census.counts == {
        PICTURE: 2, CAPTION: 2, FIELD: 1, Role.FURTHER: 1, Role.ALONE: 2, Role.TWICE: 1, HIDDEN: 1, OTHER: 5,
    }  # fmt: skip
    assert census.counts.total() == len(files)
    found = told(census)
    assert found.pop("a.more.png") == "is a further picture of its item, without a caption of its own: not read"
    assert found.pop("d.png") == "is there twice"
    assert {found.pop("b.txt"), found.pop("c.txt")} == {"is a caption without a picture"}
    assert found == dict.fromkeys(["a.json", "a.notes.md", "b.cls", "c.heic", "e"], "is read by nothing")


def test_shards_of_one_name_and_an_old_run_s_extra_pictures(tmp_path: Path) -> None:
    for place in ("x", "y"):
        (tmp_path / place).mkdir()
        shard(tmp_path / place, [("a.png", png()), ("a.jpg", png()), (".b.png", png())])
    paths = [str(tmp_path / place / "a.tar") for place in ("x", "y")]
    for rules, counts in ((1, {PICTURE: 4, Role.FURTHER: 2}), (2, {PICTURE: 4, HIDDEN: 2})):
        records = ShardRecords(paths, Places(rules=rules))
        assert records.census().counts == counts
        assert len({records.key(number) for number in range(len(records))}) == len(records)
        stream = ShardStream(paths, Places(rules=rules))
        assert [key for number in range(2) for key, _ in stream.read(number)] == [
            records.key(number) for number in range(len(records))
        ]


def test_captions_in_files_of_the_ending_json(tmp_path: Path) -> None:
    path = str(shard(tmp_path, [("a.png", png()), ("a.json", b"a star"), ("a.txt", b"no")]))
    (_, item), *_ = ShardStream([path], Places(ending="json")).read(0)
    assert isinstance(item, Record)
    assert item.captions == ShardRecords([path], Places(ending=".JSON")).captions(0) == ("a star",)


def test_a_connection_that_breaks_counts_no_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path, [(f"{n}.png", png()) for n in range(4)])
    break_connections(monkeypatch, [1, 3])
    census = Census()
    assert len(list(ShardStream([str(path)]).read(0, census))) == 4
    assert census.counts == {PICTURE: 4}


def test_a_shard_that_is_cut_counts_what_was_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, size in (("a.png", 700), ("a.txt", 700)):
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2100])
    census = Census()
    assert len(list(ShardStream([str(tmp_path / "a.tar")]).read(0, census))) == 2
    assert census.counts == ShardRecords([str(tmp_path / "a.tar")]).census().counts == {PICTURE: 1, CAPTION: 1}
