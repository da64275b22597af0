"""The counts of check_data add up to what is there, whatever is there, for every source."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.cli.check_data import Findings, examine, main, report
from imagen.data import Want, make_source
from imagen.data.census import Census, Role
from imagen.data.config import DataConfig
from imagen.data.fields import Paired
from imagen.data.naming import is_hidden
from imagen.training.telling import SkipFile

STEMS = ("a", "b.1", "b.2", "sub/c", ".hid", "__MACOSX/a", "d.e.f", "sub.d/a", "a.")
NAMES = "png PNG jpg txt TXT json cls heic svg md cond.png cond.txt npy ppm tar.gz"
ENDINGS = (*NAMES.split(), "")  # the last ends a name in a dot
ROUNDS = 60  # of each of five sources: 300


def png(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    side = int(rng.choice([4, 8, 40]))
    Image.fromarray(rng.integers(0, 256, (8, side, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def oddities(rng: np.random.Generator) -> dict[str, bytes]:
    """Some files, one of them a good picture with its caption; a file's folder is no other's name."""
    names = {f"{stem}.{ending}" for stem in STEMS for ending in ENDINGS}
    chosen = rng.permutation(sorted(names))[: rng.integers(0, 14)]
    contents = [b"", b"words", b"\xff\xfe", b'{"caption": "a star"}', b'{"caption": 3}']
    files = {
        str(name): png(rng) if rng.random() < 0.6 else contents[rng.integers(len(contents))] for name in chosen.tolist()
    }
    return files | {"good.png": png(np.random.default_rng(int(rng.integers(2**30)))), "good.txt": b"a star"}


def looked(data: DataConfig, path: Path) -> Findings:
    fields = {"conditioning": Paired(8)} if data.conditioning else {}
    source = make_source(data, Want(8, captions="optional", fields=fields))
    assert source.length is None or source.length == len(source)  # type: ignore[arg-type]
    return examine(source, 0, SkipFile(path, source.length, 1.0))  # type: ignore[arg-type]


def adds_up(found: Findings, streamed: bool = False) -> Census:
    """Every item is usable or told once, under a name of its own; but a stream may come back to a name."""
    skipped = [note.key for note in found.notes if note.action == "skipped"]
    assert len(skipped) == found.skipped <= found.items
    assert streamed or len(skipped) == len(set(skipped))
    assert 0 <= found.repaired <= found.items - found.skipped
    return found.census


def cases(kind: str) -> Iterator[tuple[int, np.random.Generator]]:
    for number in range(ROUNDS):
        yield number, np.random.default_rng([number, sum(map(ord, kind))])


@pytest.mark.parametrize("conditioning", [None, "cond"])
def test_a_folder(tmp_path: Path, conditioning: str | None) -> None:
    for number, rng in cases(f"folder{conditioning}"):
        root = tmp_path / str(number)
        files = oddities(rng)
        files |= {f"cond/{name}": b"words" for name in ("a.png", "a.ppm", "good.png", "x.md") if conditioning}
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        there = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
        paired = str(root / "cond") if conditioning else None
        found = looked(DataConfig("folder", str(root), conditioning=paired, max_skipped_share=1.0), tmp_path / "x")
        counts = adds_up(found).counts
        assert counts.total() == len(there), found.census
        assert counts[Role.PICTURE] == found.items
        assert counts[Role.HIDDEN] == sum(map(is_hidden, there))
        told = {note.key for note in found.notes if note.reason.startswith("is a caption without")}
        own = {os.path.splitext(name)[0] for name in there if name.endswith((".png", ".PNG", ".jpg", ".npy", ".ppm"))}
        foreign = {os.path.splitext(name)[0] for name in there if name.endswith((".heic", ".svg"))}
        alone = {name for name in there if name.endswith(".txt") and name[:-4] not in own | foreign}
        assert told == {name for name in alone if not is_hidden(name) and not name.startswith("cond/")}
        assert (
            len(found.census.left)
            == counts.total() - sum(counts[role] for role in list(Role)[:4]) - counts[Role.HIDDEN]
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_shards(tmp_path: Path, streaming: bool) -> None:
    for number, rng in cases(f"shards{streaming}"):
        root = tmp_path / str(number)
        total = hidden = 0
        for place in ("x", "y"):  # of one name
            (root / place).mkdir(parents=True)
            with tarfile.open(root / place / "0.tar", "w") as archive:
                files = [*oddities(rng).items()]
                files += [files[int(rng.integers(len(files)))]] * int(rng.integers(2))  # one is there twice
                for name, data in files:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    if rng.random() < 0.1:
                        member.type, member.size, data = tarfile.SYMTYPE, 0, b""
                    archive.addfile(member, io.BytesIO(data))
                    total, hidden = total + 1, hidden + is_hidden(name)
                archive.addfile(tarfile.TarInfo("empty"), io.BytesIO()) if rng.random() < 0.5 else None
                total += "empty" in archive.getnames()
        path = f"{root / 'x'},{root / 'y'}"
        data = DataConfig("shards", path, streaming=streaming, max_skipped_share=1.0)
        census = adds_up(looked(data, tmp_path / "x"), streaming).counts
        assert census.total() == total
        assert census[Role.HIDDEN] == hidden


def test_a_table(tmp_path: Path) -> None:
    for number, rng in cases("table"):
        root = tmp_path / str(number)
        root.mkdir()
        pictures = [f"{n}.png" for n in range(6)]
        for name in pictures:
            (root / name).write_bytes(png(rng) if rng.random() < 0.7 else b"")
        (root / "notes.txt").write_text("no picture")
        cells: list[Any] = [*pictures[:4], "0.png", "gone.png", f"../{number}/1.png", None, 3, ""]
        rows = [
            {"file_name": cells[rng.integers(len(cells))], "text": [None, "a", ["a", ""], 3][rng.integers(4)]}
            for _ in range(8)
        ]
        lines = [json.dumps(row) for row in rows] + ["{", "[1]", "", json.dumps({"file_name": "0.png", "text": "a"})]
        (root / "metadata.jsonl").write_text("\n".join(lines))
        found = looked(DataConfig("table", str(root), max_skipped_share=1.0), tmp_path / "x")
        counts = adds_up(found).counts
        assert counts[Role.ROW] == found.items == 11
        named = {Path(str(row["file_name"])).name for row in rows} | {"0.png"}
        assert counts[Role.UNNAMED] == len(set(pictures) - named)
        assert counts.total() == counts[Role.ROW] + counts[Role.UNNAMED]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset(tmp_path: Path, streaming: bool) -> None:
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    columns = {
        "image": [{"bytes": data, "path": None} for data in (png(rng), b"", b"no picture", png(rng))],
        "text": ["a", "b", "c", ""],
    }
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False)).save_to_disk(tmp_path / "d")
    found = looked(DataConfig("hub", str(tmp_path / "d"), streaming=streaming, max_skipped_share=1.0), tmp_path / "x")
    assert (adds_up(found).counts, found.items, found.skipped) == ({Role.ROW: 4}, 4, 2)


def test_what_the_command_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for name, size in {"a": (8, 8), "b": (8, 8), "c": (16, 16), "long/d": (50, 16), "e": (16, 16)}.items():
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name) + size[0]).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(
            "" if name == "c" else "a red circle\n" + "a red circle " * (40 if name == "e" else 1)
        )
    for name in ("lost.txt", "notes.md", ".DS_Store", "e.heic"):
        (root / name).write_text("words")
    words = ["--config", "configs/shapes/base64.yaml", "--stage.size", "16", "--train.num_workers", "0"]
    words += ["--data.kind", "folder", "--data.path", str(root), "--run_dir", str(tmp_path / "run")]
    words += ["--text.encoder", "pretrained/shapes", "--data.max_skipped_share", "0.3", "--grid.prompts", "[]"]
    assert main(words) == 1
    reported = capsys.readouterr().out.splitlines()
    assert reported[:2] == [
        "14 files: pictures 5, captions 5, captions without a picture 1, "
        "pictures in formats that are not read 1, hidden files 1, files that nothing reads 1",
        "5 pictures: 3 usable, 0 of them repaired; 2 not usable",
    ]
    assert reported[2] == (
        "       2 skipped: is 8 x 8 pixels, smaller than 16: data.min_size 8 lets it in, enlarged (a.png, b.png)"
    )
    assert sorted(reported[3:10]) == [
        "       1 noted: has a caption of 121 tokens; text.max_length 64 cuts it (e.png)",
        "       1 noted: has an empty caption (c.png)",
        "       1 noted: is 50 x 16 pixels, of which more than half are cut off (long/d.png)",
        "       1 noted: is a caption without a picture (lost.txt)",
        "       1 noted: is an exact copy of 'c.png' (e.png)",
        "       1 noted: is in a format that is not read, beside one that is (e.heic)",
        "       1 noted: is read by nothing (notes.md)",
    ]
    written = [json.loads(line) for line in (tmp_path / "run" / "checked.jsonl").read_text().splitlines()]
    assert len(written) == 9
    assert {line["key"] for line in written if line["action"] == "noted"} > {"lost.txt", "notes.md", "e.heic"}
    assert main([*words, "--data.min_size", "8"]) == 0
    reported = capsys.readouterr().out.splitlines()
    assert reported[1] == "5 pictures: 5 usable, 0 of them repaired; 0 not usable"
    assert "       2 noted: is 8 x 8 pixels, enlarged to 16 (a.png, b.png)" in reported
    assert "       2 noted: is an exact copy of 'a.png' or alike (b.png, e.png)" in reported
    assert main([*words, "--data.min_size", "8", "--data.template", f"{'a red circle ' * 30} {{}}"]) == 0
    assert "has a caption of 94 tokens" in capsys.readouterr().out  # as training sees it
    assert main([*words, "--data.min_size", "0"]) == 2
    assert "data.min_size 0 must be positive or null" in capsys.readouterr().err
    assert main([*words, "--text.encoder", str(tmp_path)]) == 1
    assert "how long captions are is not looked at: no tokenizer at" in capsys.readouterr().err
    assert report(Findings()) == "0 pictures: 0 usable, 0 of them repaired; 0 not usable"
