"""Folders are found again from wherever a command is called, and never become a name on the Hub."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from imagen.stages.folder import RECORD, find_folder, read_run, write_run
from imagen.stages.places import DEMO, recall, remember
from tests.stages.test_folder import saved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an encoder and a run's model folder, from which a run was started."""
    (tmp_path / "work/models/t5").mkdir(parents=True)
    (tmp_path / "work/runs/a/model").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_from_another_folder_and_when_things_move(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, name = Path("runs/a/model"), "models/t5"
    kept = remember(name, root)
    assert recall(name, root, kept) == name  # where nothing has changed, as it was given
    root = root.resolve()
    monkeypatch.chdir(work.parent / "other")
    assert recall(name, root, kept) == str(work / "models/t5")
    moved = work.rename(work.parent / "moved")  # both together
    assert recall(name, moved / "runs/a/model", kept) == str(moved / "models/t5")
    moved.rename(work)
    away = (work / "runs").rename(work.parent / "other" / "runs")  # the run alone
    assert recall(name, away / "a/model", kept) == str(work / "models/t5")
    (work.parent / "other/models/t5").mkdir(parents=True)  # another folder of that name
    assert recall(name, away / "a/model", kept) == str(work / "models/t5")


def test_a_folder_that_is_gone_is_no_hub_id(work: Path) -> None:
    kept = remember("models/t5", work / "runs/a/model")
    (work / "models/t5").rmdir()
    assert recall("models/t5", work / "runs/a/model", kept) == str(work / "models/t5")


def test_a_hub_id_stays_one_and_an_older_record_is_looked_for_above(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = work / "runs/a/model"
    assert remember("google/t5-v1_1-small", root) is None
    assert remember(None, root) is None
    assert recall("google/t5-v1_1-small", root, None) == "google/t5-v1_1-small"
    monkeypatch.chdir(work.parent / "other")
    assert recall("models/t5", root, None) == str(work / "models/t5")


def test_a_run_s_record_keeps_the_way_to_its_encoder(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = work / "runs/a/model"
    stage = dataclasses.replace(saved(root), encoder="models/t5")
    write_run(root, stage)
    monkeypatch.chdir(work.parent)
    assert read_run(root).encoder == str(work / "models/t5")
    record = json.loads((root / RECORD).read_text())
    assert record["encoder_folder"] == {"relative": "../../../models/t5", "absolute": str(work / "models/t5")}
    write_run(root, dataclasses.replace(stage, encoder=None))
    assert read_run(root).encoder is None
    assert "encoder_folder" not in json.loads((root / RECORD).read_text())


def test_the_demo_is_found_from_any_folder_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "docs")
    assert find_folder(DEMO) == ROOT / DEMO
    monkeypatch.chdir(tmp_path)
    assert find_folder(DEMO) == ROOT / DEMO  # beside the code
    monkeypatch.setattr("imagen.stages.places.__file__", str(tmp_path / "site-packages/imagen/stages/places.py"))
    with pytest.raises(ValueError, match="it comes with a checkout of the repository, not with the installed package"):
        find_folder(DEMO)
