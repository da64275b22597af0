"""What every evaluation writes: the file, the sheet of pictures, and where the numbers came from."""

from __future__ import annotations

import json
import os
import re
import subprocess
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.evaluation import report
from imagen.evaluation.report import Tile, provenance, save_sheet, table, write_result
from imagen.evaluation.stats import Share
from imagen.stages.spec import StageDefaults

SIDE, WIDE, HIGH = 24, 24 + 14, 24 + 14 + 52  # of a picture; of its tile: frame, gap, and four lines of text below


def sheet(path: Path, tiles: list[Tile], **options: Any) -> np.ndarray:
    save_sheet(path / "deep" / "sheet.png", tiles, side=SIDE, **options)
    return np.asarray(Image.open(path / "deep" / "sheet.png")).astype(int)


def flat(level: int, side: int = SIDE) -> Image.Image:
    return Image.new("L", (side, side), level)


@pytest.mark.parametrize(
    ("count", "columns", "shape"), [(1, 3, (1, 1)), (3, 3, (1, 3)), (4, 3, (2, 3)), (7, 2, (4, 2))]
)
def test_tiles_stand_in_reading_order(tmp_path: Path, count: int, columns: int, shape: tuple[int, int]) -> None:
    made = sheet(tmp_path, [Tile(flat(20 * number), "") for number in range(count)], columns=columns)
    assert made.shape == (shape[0] * HIGH, shape[1] * WIDE, 3)
    for number in range(shape[0] * shape[1]):
        top, left = number // shape[1] * HIGH + 3, number % shape[1] * WIDE + 3
        cell = made[top : top + SIDE + 8, left : left + SIDE + 8]
        assert (cell[4:-4, 4:-4] == (20 * number if number < count else 255)).all()
        if number < count:
            frame = np.concatenate([cell[:4].reshape(-1, 3), cell[-4:].reshape(-1, 3), cell[:, -1]])
            assert (frame == 150).all(), "grey: nobody has judged it"
    assert (made[:3] == 255).all()
    assert (made[:, :3] == 255).all()


def test_ten_stand_in_a_row_unless_told_otherwise(tmp_path: Path) -> None:
    assert sheet(tmp_path, [Tile(flat(0), "")] * 11).shape == (2 * HIGH, 10 * WIDE, 3)


def test_text_stands_below_its_picture_in_at_most_four_lines(tmp_path: Path) -> None:
    plain, told = (sheet(tmp_path, [Tile(flat(0), text)] * 2) for text in ("", "abcd " * 40))
    below = told[3 + SIDE + 8 :]
    assert (below < 100).any()
    assert np.array_equal(plain[: 3 + SIDE + 8], told[: 3 + SIDE + 8])
    rows = np.nonzero((below < 128).any(axis=(1, 2)))[0]
    assert 30 < rows.max() < 52
    short = sheet(tmp_path, [Tile(flat(0), "abcd")] * 2)[3 + SIDE + 8 :]
    assert np.nonzero((short < 128).any(axis=(1, 2)))[0].max() < 13, "one line"


def test_pictures_are_enlarged_by_their_pixels_and_reduced_smoothly(tmp_path: Path) -> None:
    small = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    shown = sheet(tmp_path, [Tile(small, "")])[7 : 7 + SIDE, 7 : 7 + SIDE]
    assert np.array_equal(shown[..., 0], np.asarray(small).repeat(SIDE // 2, 0).repeat(SIDE // 2, 1))
    stripes = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    stripes[::2] = 255
    reduced = sheet(tmp_path, [Tile(Image.fromarray(stripes), "")])[7 : 7 + SIDE, 7 : 7 + SIDE]
    assert np.abs(reduced[2:-2, 2:-2] - 127.5).max() < 12, "grey, not stripes"


def test_a_result_says_how_it_was_made_and_what_every_stage_does(tmp_path: Path, capsys: Any) -> None:
    stages = {"base": StageDefaults(size=64, guidance_scale=2.5), "sr256": StageDefaults(size=256, lowres_size=64)}
    pipe: Any = SimpleNamespace(stage_defaults=stages)
    args = Namespace(command="sweep", out=tmp_path / "deep", num=3, weak=Path("w"))
    write_result(args, ["sweep", "--num", "3"], pipe, cells=[{"share": Share(1, 2)}], größe=Path("p"))
    path = tmp_path / "deep" / "sweep.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["kind"] == "sweep"
    assert content["command"] == "python -m imagen.evaluation sweep --num 3"
    assert content["settings"]["options"] == {"command": "sweep", "out": str(tmp_path / "deep"), "num": 3, "weak": "w"}
    assert content["settings"]["stages"] == json.loads(
        json.dumps({slot: one.to_dict() for slot, one in stages.items()})
    )
    assert content["cells"] == [{"share": Share(1, 2).to_json()}]
    assert content["größe"] == "p"
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert capsys.readouterr() == ("", f"wrote {path} and the pictures beside it\n"), "on stderr, beside the tables"


def test_where_a_result_comes_from_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = provenance([])
    assert said["format_version"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", said["date"])
    assert set(said["versions"]) == {"python", "torch", "diffusers", "transformers", "numpy", "scipy", "pillow"}
    assert said["versions"]["numpy"] == np.__version__
    assert said["hardware"]["cpu"]
    assert said["hardware"]["cores"] == os.cpu_count()
    assert said["hardware"]["threads"] == torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    assert provenance([])["hardware"]["gpu"] == ["card 0", "card 1"]


def git(*words: str, folder: Path) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(folder), *names, *words], capture_output=True, text=True, check=True).stdout


def test_the_commit_is_named_and_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "imagen" / "evaluation"
    package.mkdir(parents=True)
    monkeypatch.setattr(report, "__file__", str(package / "report.py"))
    assert report._commit() is None, "no checkout"
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"], ["tag", "-am", "t", "v1"]):
        git(*words, folder=tmp_path)
    commit = git("rev-parse", "HEAD", folder=tmp_path).strip()
    (tmp_path / "untracked").write_text("2")
    assert report._commit() == commit
    (tmp_path / "a").write_text("2")
    assert report._commit() == f"{commit}+changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert report._commit() is None, "no git"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("a", "bb", ""), ("cccc", 1, "x"), ("d", "eee", "yy")]
    assert table(rows).splitlines() == ["a     bb", "----  ---  --", "cccc  1    x", "d     eee  yy"]
