"""What a folder holds is read, is a fault that is named, or falls under a rule that the documentation states."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from imagen.data.config import DataConfig
from imagen.data.decode import Unusable, decode
from imagen.data.folder import FolderRecords
from imagen.data.make import make_records
from imagen.data.naming import FOREIGN, READ


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".ppm", ".avif", ".jfif"):
            Image.new("RGB", (4, 4), (60, 200, 80)).save(path, "JPEG" if path.suffix == ".jfif" else None)
        else:
            path.write_text("words")
    return folder


def keys(records: FolderRecords) -> list[str]:
    return [records.key(number) for number in range(len(records))]


def faults(records: FolderRecords) -> dict[str, str]:
    found = {}
    for number in range(len(records)):
        try:
            record = records.record(number)
            decode(record.image, record.name)
        except Unusable as error:
            found[records.key(number)] = str(error)
    return found


def test_links_to_folders_are_followed_but_not_back(tmp_path: Path) -> None:
    other = write(tmp_path / "other", "x.png", "deep/y.png")
    root = write(tmp_path / "in", "a.png", "sub/b.png")
    (root / "more").symlink_to(other)
    (root / "sub" / "up").symlink_to(root)
    (other / "self").symlink_to(other)
    (root / "c.png").symlink_to(other / "x.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "round.png").symlink_to(root / "round.png")
    found = FolderRecords(root)
    assert keys(found) == ["a.png", "c.png", "gone.png", "more/deep/y.png", "more/x.png", "round.png", "sub/b.png"]
    assert faults(found) == {
        "gone.png": "cannot be read: No such file or directory",
        "round.png": "cannot be read: Too many levels of symbolic links",
    }
    assert keys(FolderRecords(root, rules=1)) == ["a.png", "c.png", "sub/b.png"]  # as runs before found them


def test_what_pillow_reads_is_read_and_what_else_looks_like_a_picture_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, "a.png", "b.PNG.ppm", "c.jfif", "d.avif", "e.heic", "f.SVG", "a.heic", "notes.md", "png")
    os.mkfifo(root / "pipe.png")
    found = FolderRecords(root)
    assert keys(found) == ["a.png", "b.PNG.ppm", "c.jfif", "d.avif", "e.heic", "f.SVG", "pipe.png"]
    assert faults(found) == {
        "e.heic": "is no picture of a known format, and .heic is none that is read: convert it to PNG",
        "f.SVG": "is no picture of a known format, and .SVG is none that is read: convert it to PNG",
        "pipe.png": "cannot be read: Is a pipe",
    }
    assert keys(FolderRecords(root, rules=1)) == ["a.png"]


def test_the_endings_are_pillow_s_own() -> None:
    Image.init()
    asked = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # known by name alone, or read by another program
    readable = {
        ending.removeprefix(".")
        for ending, kind in Image.registered_extensions().items()
        if (kind in Image.OPEN or kind == "MPO") and kind not in asked
    }
    assert readable | {"npy"} == READ
    assert not READ & FOREIGN


def test_a_folder_of_conditioning_pictures_inside_is_no_part_of_the_data(tmp_path: Path) -> None:
    root = write(tmp_path, "a.png", "b.png", "cond/a.png", "cond/b.png", "cond/b.ppm")
    places: Mapping[str, Path] = {"conditioning": root / "cond"}
    found = FolderRecords(root, fields=places)
    assert keys(found) == ["a.png", "b.png"]
    assert found.record(0).fields == {"conditioning": root / "cond" / "a.png"}
    with pytest.raises(Unusable, match=r"^has 2 files of its name in the conditioning folder, b.png, b.ppm: keep one$"):
        found.record(1)
    old = FolderRecords(root, fields=places, rules=1)
    assert keys(old) == ["a.png", "b.png", "cond/a.png", "cond/b.png"]
    assert old.record(1).fields == {"conditioning": root / "cond" / "b.png"}
    (root / "cond" / "b.gif").write_text("an older one")
    assert FolderRecords(root, fields=places, rules=1).record(1).fields == {"conditioning": root / "cond" / "b.png"}
    (root / "cond" / "b.gif").unlink()
    (root / "cond" / "b.png").unlink()
    (root / "cond" / "b.txt").write_text("a caption of its own")
    assert FolderRecords(root, fields=places).record(1).fields == {"conditioning": root / "cond" / "b.ppm"}
    (root / "cond" / "b.ppm").rename(root / "cond" / "b.json")
    with pytest.raises(Unusable, match="b.json, b.txt: keep one"):
        FolderRecords(root, fields=places).record(1)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.png", "shut/b.png")
    whole = Path.iterdir

    def shut(path: Path):  # type: ignore[no-untyped-def]
        if path.name == "shut":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(Path, "iterdir", shut)
    with pytest.raises(
        ValueError, match=r"^folder '.*shut' cannot be read \(Permission denied\): allow it, or move it$"
    ):
        FolderRecords(tmp_path)
    assert keys(FolderRecords(tmp_path, rules=1)) == ["a.png"]


def test_the_rules_of_a_run_reach_its_folder_and_pairs_may_lie_deep_inside(tmp_path: Path) -> None:
    root = write(tmp_path, "a.png", "b.ppm", "x/y/cond/a.png", "x/y/c.png")
    data = DataConfig("folder", str(root))
    for rules, expected in (
        (1, ["a.png", "x/y/c.png", "x/y/cond/a.png"]),
        (2, ["a.png", "b.ppm", "x/y/c.png", "x/y/cond/a.png"]),
    ):
        records = make_records(replace(data, rules=rules))  # type: ignore[arg-type]
        assert [records.key(number) for number in range(len(records))] == expected
    assert keys(FolderRecords(root, fields={"conditioning": root / "x" / "y" / "cond"})) == [
        "a.png",
        "b.ppm",
        "x/y/c.png",
    ]
