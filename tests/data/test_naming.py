"""Every file of a shard ends in a sample, in a fault that names it, or in a stated rule: none is lost by its name."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.data.decode import Unusable
from imagen.data.folder import FolderRecords
from imagen.data.naming import is_hidden, split_item
from imagen.data.records import USUAL, Places, Record
from imagen.data.tar import ShardRecords, ShardStream

Files = Sequence[tuple[str, bytes]]


def png(level: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), level).save(stream, "PNG")
    return stream.getvalue()


def shard(folder: Path, files: Files) -> Path:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(folder: Path, files: Files, places: Places = USUAL) -> dict[str, Record | str]:
    """Records, or what is wrong, by key: the same at random and as a stream."""
    path = shard(folder, files)
    records, found = ShardRecords([str(path)], places), {}
    for number in range(len(records)):
        try:
            found[records.key(number)] = records.record(number)
        except Unusable as error:
            found[records.key(number)] = str(error)
    streamed = dict(ShardStream([str(path)], places).read(0))
    assert {key: item if isinstance(item, Record) else str(item) for key, item in streamed.items()} == found
    return {key.removeprefix("a.tar/"): item for key, item in found.items()}


def captions(found: Mapping[str, Record | str]) -> dict[str, tuple[str, ...]]:
    return {key: item.captions for key, item in found.items() if isinstance(item, Record)}


SCANS = [
    (f"in/scan_22.{n:02d}.{end}", png(n) if end == "png" else b"%d" % n) for n in range(1, 7) for end in ("png", "txt")
]


def test_dots_in_names(tmp_path: Path) -> None:
    assert captions(read(tmp_path, SCANS)) == {f"in/scan_22.{n:02d}": (str(n),) for n in range(1, 7)}
    old = read(tmp_path, SCANS, Places(rules=1))  # as runs before read it
    assert list(old) == ["in/scan_22"]


def test_further_files_of_an_item(tmp_path: Path) -> None:
    mask = ("a.mask.png", png(9))
    found = read(tmp_path, [("a.png", png()), ("a.txt", b"a"), mask])
    assert captions(found) == {"a": ("a",)}
    assert len(found) == 1  # nobody asked for the mask
    named = read(tmp_path, [("a.png", png()), ("a.txt", b"a"), mask], Places(fields={"mask": "mask.png"}))
    assert isinstance(named["a"], Record)
    assert named["a"].fields == {"mask": png(9)}
    own = read(tmp_path, [("a.png", png()), ("a.txt", b"a"), mask, ("a.mask.txt", b"a mask")])
    assert captions(own) == {"a": ("a",), "a.mask": ("a mask",)}
    both = [("b.1.png", png(1)), ("b.1.cond.png", png(2)), ("b.2.png", png(3)), ("b.2.cond.png", png(4))]
    found = read(tmp_path, both, Places(fields={"cond": "cond.png"}))
    assert {key: item.fields["cond"] for key, item in found.items() if isinstance(item, Record)} == {
        "b.1": png(2),
        "b.2": png(4),
    }


@pytest.mark.parametrize(
    ("files", "key", "told"),
    [
        ([("a.png", png()), ("a.jpg", png())], "a", "has 2 pictures, jpg, png: keep one, or name the others' fields"),
        ([("a.heic", b"x"), ("a.txt", b"a")], "a", "has no picture, only heic, txt"),
        ([("b.txt", b"alone"), ("a.png", png())], "b", "has no picture, only txt"),
        ([("a.png", png()), ("a.txt", b"1"), ("a.txt", b"2")], "a", "'a.txt' is there twice"),
        ([("s.1.txt", b"alone"), ("s.2.png", png())], "s.1", "has no picture, only txt"),
        ([("noending", b"x"), ("a.png", png())], "noending", "has no picture, only "),
    ],
)
def test_what_is_no_item_is_told(tmp_path: Path, files: Files, key: str, told: str) -> None:
    assert read(tmp_path, files)[key] == told


def test_a_fault_spoils_its_own_item_alone(tmp_path: Path) -> None:
    found = read(tmp_path, [*SCANS, ("in/scan_22.03.txt", b"again")])
    assert found["in/scan_22.03"] == "'in/scan_22.03.txt' is there twice"
    assert len(captions(found)) == 5


def test_what_systems_leave_behind_is_no_picture(tmp_path: Path) -> None:
    left = ["._a.png", ".DS_Store", "__MACOSX/a.png", "x/.thumbs/a.png"]
    assert list(read(tmp_path, [("./a.png", png()), *((name, png()) for name in left)])) == ["./a"]
    assert all(map(is_hidden, left))
    assert not any(map(is_hidden, ("a.png", "./a.png", "../a.png", "b/../a.png", "x__MACOSX/a.png")))


def test_the_longest_of_the_endings_that_are_named_is_meant(tmp_path: Path) -> None:
    texts = {"a": ("txt", "tags.txt", "more.tags.txt"), "b.x": ("tags.txt", "txt", "more.tags.txt")}
    files = [(f"{stem}.{ending}", f"{stem} {ending}".encode()) for stem in texts for ending in ("png", *texts[stem])]
    files = [(name, png() if name.endswith("png") else data) for name, data in files]
    places = {"tags": "tags.txt", "more": "more.tags.txt"}
    for names in (("tags", "more"), ("more", "tags")):
        found = read(tmp_path, files, Places(fields={name: places[name] for name in names}, ending="txt"))
        assert captions(found) == {stem: (f"{stem} txt",) for stem in texts}
        for stem in texts:
            record = found[stem]
            assert isinstance(record, Record)
            assert record.fields == {name: f"{stem} {places[name]}".encode() for name in names}


def test_captions_of_another_ending(tmp_path: Path) -> None:
    files = [("a.png", png()), ("a.txt", b"no"), ("a.tags.txt", b"yes"), ("b.png", png())]
    files += [("b.json", b'{"caption": "no"}')]
    assert captions(read(tmp_path, files, Places(ending=".Tags.txt"))) == {"a": ("yes",), "b": ()}
    for name, data in files:
        (tmp_path / name).write_bytes(data)
    folder = FolderRecords(tmp_path, ending="tags.txt")
    assert [folder.captions(number) for number in range(2)] == [("yes",), ()]
    assert FolderRecords(tmp_path).captions(0) == ("no",)


def test_three_hundred_oddities_add_up(tmp_path: Path) -> None:
    """Every picture that is not hidden is a sample, in an item that is told, or beside another as the rule says."""
    rng = np.random.default_rng(0)
    stems, ends = (
        ("a", "b.1", "b.2", "c.d.e", ".f", "g/h.0"),
        ("png", "jpg", "txt", "json", "cond.png", "npy", "heic", "PNG"),
    )
    for _ in range(300):
        chosen = rng.permutation([f"{stem}.{end}" for stem in stems for end in ends])[: rng.integers(1, 12)]
        files = {str(name): png() if name[-3:].lower() != "txt" else b"x" for name in sorted(chosen)}
        groups: dict[str, dict[str, str]] = {}
        for name in files:
            folder, slash, base = name.rpartition("/")
            if not is_hidden(name):
                groups.setdefault(folder + slash + base.partition(".")[0], {})[base.partition(".")[2].lower()] = name
        for rests in groups.values():
            items = split_item(rests, ["cond.png"])
            kept = {name for found in items.values() for name in found.values()}
            own = any(ending in ("png", "jpg", "npy") for ending in items.get("", ()))
            lost = set(rests.values()) - kept
            assert not lost or own
            assert not [name for name in lost if name.lower().endswith(".txt") and f"{name[:-4]}.png" in rests.values()]
        found = read(tmp_path, list(files.items()), Places(fields={"cond": "cond.png"})) if groups else {}
        assert len(found) >= len(groups)


def test_what_was_wrong_before_the_shard_was_cut_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link, text = tarfile.TarInfo("a.png"), tarfile.TarInfo("a.txt")
        link.type, link.linkname, text.size = tarfile.SYMTYPE, "b.png", 50_000
        archive.addfile(link)
        archive.addfile(text, io.BytesIO(bytes(50_000)))
    path.write_bytes(path.read_bytes()[:5000])
    (key, item), (damaged, _) = ShardStream([str(path)]).read(0)
    assert (key, str(item)) == ("a.tar/a", "is a link or a device in the shard, not a file")
    assert damaged == "a.tar/(damaged)"
