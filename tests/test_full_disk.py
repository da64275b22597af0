"""Where the disk is full (here: files may not grow beyond a size) nothing partial is left and what was there stays."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from imagen.cascade.training.compose import save
from imagen.cascade.training.grids import save_grid
from imagen.cli.check_data import main as check_data
from imagen.cli.sample import main as sample
from imagen.convert.folder import new_folder
from imagen.data.shapes.sheet import main
from imagen.data.sources import Note
from imagen.disk import filling, write_text
from imagen.errors import ConfigError
from imagen.text.cache.store import write_shard
from imagen.training.state.checkpoint import State, StateFolder
from imagen.training.telling import SkipFile
from tests.factories import tiny_pipeline

LIMIT = 2000  # bytes


@contextmanager
def full_disk() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def resume_point(folder: Path, size: int) -> None:
    StateFolder(folder).save(State(size, {"unet": {"w": torch.ones(size)}}, {}, {}))


def optimizer_state(folder: Path, size: int) -> None:
    StateFolder(folder).save(State(size, {"unet": {"w": torch.ones(1)}}, {"m": torch.randn(size)}, {}))


def shard(folder: Path, size: int) -> None:
    write_shard(folder / "captions-00000.safetensors", [torch.ones(size, 1)], [bytes(16)], 0)


def text(folder: Path, size: int) -> None:
    write_text(folder / "config.yaml", "x" * size)


def grid(folder: Path, size: int) -> None:
    noise = torch.randn(1, 3, size // 10, size // 10).clamp(-1, 1)
    save_grid(folder / "step-00000001.png", ["a star"], {"samples": noise})


def tokenizer(folder: Path, size: int) -> None:
    """By its library, which raises a bare Exception."""
    with filling(folder / "partial"):
        (folder / "partial").mkdir()
        Tokenizer(WordLevel({f"word{n}": n for n in range(size)}, "word0")).save(str(folder / "partial" / "t.json"))
        (folder / "partial").rename(folder / f"of-{size}")


@pytest.mark.parametrize("write", [resume_point, optimizer_state, shard, text, grid, tokenizer])
def test_what_is_half_written_is_removed_and_what_was_there_stays(
    tmp_path: Path, write: Callable[[Path, int], None]
) -> None:
    write(tmp_path, 10)
    before = contents(tmp_path)
    assert before
    with full_disk(), pytest.raises(OSError, match=r"too large|cannot be written"):
        write(tmp_path, 4000)
    assert contents(tmp_path) == before
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())]
    write(tmp_path, 4000)


def test_a_pipeline_that_does_not_fit_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    pipe, out = tiny_pipeline(), tmp_path / "model"
    save(pipe, out)
    (out / "README.md").write_text("kept")
    before = contents(tmp_path)
    with full_disk(), pytest.raises(ConfigError, match=r"^--out '.*model' cannot be written: .*too large") as told:
        save(pipe, out)
    assert "\n" not in str(told.value)
    assert contents(tmp_path) == before


def test_other_failures_are_not_taken_for_the_disk_s(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(RuntimeError, match="a bug"), filling(tmp_path / "x"):
        raise RuntimeError("a bug")
    assert not (tmp_path / "x").exists()


def test_a_converted_folder_that_does_not_fit_is_one_error_and_not_there(tmp_path: Path) -> None:
    with (
        full_disk(),
        pytest.raises(OSError, match="cannot be written|too large"),
        new_folder(tmp_path / "new") as folder,
    ):
        save_file({"w": torch.ones(4000)}, folder / "w.safetensors")
    assert contents(tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_that_does_not_fit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sheet.png").write_bytes(b"the old one")
    with full_disk():
        assert main(["--out", str(tmp_path / "sheet.png"), "--count", "2"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("imagen.data.shapes.sheet: error: ")
    assert said.count("\n") == 1
    assert contents(tmp_path) == {"sheet.png": b"the old one"}


def test_a_record_of_pictures_that_does_not_fit_is_told_and_ends_with_a_whole_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        (tmp_path / "pictures" / f"{number:02d}.png").write_bytes(b"no picture")
        (tmp_path / "pictures" / f"{number:02d}.txt").write_text("a star")
    words = ["--run_dir", str(tmp_path / "run"), "--data.kind", "folder", "--data.path", str(tmp_path / "pictures")]
    words += ["--unet.kind=BaseUNet", "--train.num_workers", "0", "--text.encoder", "null"]
    with full_disk():
        assert check_data(words) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("check_data: error: [Errno 27] File too large")
    written = (tmp_path / "run" / "checked.jsonl").read_bytes()
    assert 0 < len(written) < LIMIT
    assert [json.loads(line)["action"] for line in written.decode().splitlines()] == ["skipped"] * written.count(b"\n")
    assert check_data(words) == 1  # more than training allows
    assert "40 pictures: 0 usable" in capsys.readouterr().out
    assert (tmp_path / "run" / "checked.jsonl").read_text().count("\n") == 40


def test_notes_that_fit_in_part_are_not_taken_for_written(tmp_path: Path) -> None:
    skips = SkipFile(tmp_path / "skipped.jsonl", 100, 1.0)
    skips.add([Note("first", "skipped", "empty")])
    before = contents(tmp_path)
    with full_disk(), pytest.raises(OSError, match="too large"):
        skips.add([Note("second", "skipped", "x" * LIMIT)])
    assert contents(tmp_path) == before


def test_pictures_of_a_call_that_do_not_fit_are_told_and_finished_ones_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_pipeline().save_pretrained(model)
    words = ["a red circle", "--model", str(model), "--out", str(out), "--steps", "1", "--device", "cpu"]
    assert sample([*words, "--size", "16"]) == 0
    before = contents(out)
    capsys.readouterr()
    with full_disk():
        assert sample([*words, "--num-images", "2"]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "sample.py" in line]
    assert said.startswith("sample.py: error: ")
    assert said.endswith(f"File too large; what was finished is in {out}")
    assert contents(out) == before
