"""What is renamed into place is on the disk before: a machine that stops leaves old files or new ones, never halves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.disk import MetricsFile, read_json, write_text
from imagen.training.trainer import Trainer
from tests.cascade.training.conftest import TINY, merge

Stamp = tuple[int, int, int]


def stamp(status: os.stat_result) -> Stamp:
    """Which file, and which state of it."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class Disk:
    """What has been asked onto the disk, and every rename: (from, to, what it moved that was not synced)."""

    def __init__(self) -> None:
        self.synced: list[Stamp] = []
        self.renames: list[tuple[Path, Path, list[str]]] = []

    def unsynced(self, path: Path) -> list[str]:
        inside = [path, *path.rglob("*")] if path.is_dir() else [path]
        return [str(one.relative_to(path.parent)) for one in inside if stamp(one.stat()) not in self.synced]


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk, fsync = Disk(), os.fsync

    def note_sync(descriptor: int) -> None:
        fsync(descriptor)
        disk.synced.append(stamp(os.fstat(descriptor)))

    def noting(move: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **options: Any) -> None:
            disk.renames.append((Path(source), Path(target), disk.unsynced(Path(source))))
            move(source, target, **options)

        return rename

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note_sync)
        patch.setattr(os, "rename", noting(os.rename))
        patch.setattr(os, "replace", noting(os.replace))
        yield disk


def test_a_text_is_synced_before_it_takes_the_old_one_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with watched(monkeypatch) as disk:
        write_text(path, "new: ä")
    assert path.read_text(encoding="utf-8") == "new: ä"
    assert [(target, unsynced) for _, target, unsynced in disk.renames] == [(path, [])]
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_what_is_synced_is_closed_again(tmp_path: Path) -> None:
    """A run of a month writes more files than a process may hold open."""
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        write_text(tmp_path / "a", "a")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[1]", "holds a list, not an obj"),
    ],
)
def test_what_is_no_object_is_told_with_its_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        read_json(path)
    path.write_bytes('{"a": "ä"}'.encode())
    assert read_json(path) == {"a": "ä"}


def test_a_log_goes_on_behind_the_step_of_a_resume_point(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    first = MetricsFile(path, 0)
    for step in (1, 2, 3):
        first.write({"step": step})
        assert path.read_text().splitlines()[-1] == f'{{"step": {step}}}', "at once"
    first.close()
    for resumed, kept in ((5, [1, 2, 3]), (2, [1, 2]), (0, [])):
        path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
        again = MetricsFile(path, resumed)
        again.write({"step": 9})
        again.close()
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [*kept, 9]
    for broken in ('{"step": 2', '{"step": 2}', "{}\n", "no\n", "3\n"):
        path.write_text(f'{{"step": 1}}\n{broken}')
        MetricsFile(path, 5).close()
        assert path.read_text() == '{"step": 1}\n'


def tiny_run(tmp_path: Path, **changes: Any) -> RunConfig:
    path = tmp_path / "config.yaml"
    tree = merge(TINY, {"run_dir": str(tmp_path / "run"), "train.steps": 2, "train.log_every": 1, **changes})
    path.write_text(yaml.safe_dump(tree))
    return parse(["--config", str(path)])


def check_order(disk: Disk, run: Path) -> None:
    """Everything is synced, parts come before what names them, and the log before the resume point that follows it."""
    assert {str(target): unsynced for _, target, unsynced in disk.renames if unsynced} == {}
    targets = [str(target.relative_to(run)) for _, target, _ in disk.renames]
    state, record = targets.index("state/step-00000002"), targets.index("model/stage.json")
    weights = [place for place, name in enumerate(targets) if name.endswith(".safetensors")]
    assert state < weights[0] < record


def test_a_resume_point_and_an_exported_stage_are_synced_before_they_take_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(StageTask(tiny_run(tmp_path)))
    with watched(monkeypatch) as disk:
        assert trainer.fit()
    run = tmp_path / "run"
    check_order(disk, run)
    there = [path for folder in ("state", "model") for path in (run / folder).rglob("*") if path.is_file()]
    assert {path.name for path in there} >= {
        *("unet.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "stage.json"),
        *("config.json", "diffusion_pytorch_model.safetensors", "scheduler_config.json"),
    }
    for path in [*there, run / "config.yaml", run / "metrics.jsonl"]:
        assert stamp(path.stat())[:2] in {one[:2] for one in disk.synced}, f"{path} was never synced"
    assert (run / "state").stat().st_ino in {one[0] for one in disk.synced}, "the rename itself may be lost"


def test_the_log_is_on_the_disk_before_a_resume_point_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that a resume point is behind are never written again."""
    trainer = Trainer(StageTask(tiny_run(tmp_path)))
    log, at_rename = tmp_path / "run" / "metrics.jsonl", []
    save = trainer.states.save

    def spy(state: Any) -> Path:
        at_rename.append(stamp(log.stat()) in disk.synced)
        return save(state)

    trainer.states.save = spy  # type: ignore[method-assign]
    with watched(monkeypatch) as disk:
        assert trainer.fit()
    assert at_rename == [True]


def test_an_exported_adapter_is_synced_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    start = tiny_run(tmp_path)
    Trainer(StageTask(start)).fit()
    changes = {
        "train.init_from": f"{start.run_dir}/model",
        "lora.rank": 2,
        "lora.targets": ["to_q"],
        "run_dir": str(tmp_path / "adapter"),
    }
    trainer = Trainer(StageTask(tiny_run(tmp_path, **changes)))
    with watched(monkeypatch) as disk:
        assert trainer.fit()
    assert (tmp_path / "adapter" / "model" / "stage.json").is_file()
    check_order(disk, tmp_path / "adapter")
