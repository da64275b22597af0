"""What a folder says of its stages: the exported stage of a run, and the stage whose network lies beside its record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from imagen.stages.folder import (
    INDEX,
    RECORD,
    SavedStage,
    network_folder,
    read_run,
    read_saved,
    stage_beside,
    write_run,
)
from imagen.stages.spec import FORMAT_VERSION, SETTINGS, StageDefaults
from imagen.text.reading import TextDefaults


def saved(folder: Path) -> SavedStage:
    """An adapter's record, in which nothing is a default."""
    return SavedStage(
        slot="sr256",
        defaults=StageDefaults(size=16, lowres_size=8, guidance_scale=2.0),
        unet=folder / "unet",
        scheduler=folder / "scheduler",
        text=TextDefaults(padding="visible", null="empty", lowercase=True),
        max_length=7,
        encoder="t5",
        adapter_of="runs/first/model",
        drop_variance=True,
        conditions={"label": {"names": ["a leaf", "a stone"]}},
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has exported a stage."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    write_run(model, saved(model), step=3, images=12)
    return tmp_path / "run"


def change(run: Path, **entries: object) -> None:
    record = json.loads((run / "model" / RECORD).read_text())
    changed = {name: value for name, value in {**record, **entries}.items() if value is not None}
    (run / "model" / RECORD).write_text(json.dumps(changed))


def test_what_a_run_wrote_is_read_from_its_folder_and_from_its_model_folder(run: Path) -> None:
    assert read_run(run) == read_run(run / "model") == saved(run / "model")
    assert read_saved(run) == {"sr256": saved(run / "model")}
    record = json.loads((run / "model" / RECORD).read_text())
    assert (record["step"], record["images"], record["format_version"]) == (3, 12, FORMAT_VERSION)


def test_a_whole_network_is_no_adapter(run: Path) -> None:
    plain = dataclasses.replace(saved(run / "model"), adapter_of=None, drop_variance=False, conditions={})
    write_run(run / "model", plain)
    assert read_run(run) == plain
    assert not {"adapter_of", "drop_variance", "conditions"} & json.loads((run / "model" / RECORD).read_text()).keys()


def test_a_run_of_an_older_format_has_what_settings_were_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "aug_level", dataclasses.replace(SETTINGS["aug_level"], since=2, before=0.7))
    for version, expected in ((None, 0.7), (1, 0.7), (2, StageDefaults(size=8).aug_level)):
        change(run, format_version=version, stage={"size": 16, "lowres_size": 8})
        assert read_run(run).defaults.aug_level == expected


def test_an_earlier_name_of_a_slot_is_read(run: Path) -> None:
    change(run, name="base64", stage={"size": 8})
    assert read_run(run).slot == "base"
    assert list(read_saved(run)) == ["base"]


def test_what_is_no_exported_stage_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere': give the run_dir"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"holds no exported stage \(model/{RECORD}\)"):
        read_run(tmp_path / "empty")
    for entries, message in (
        ({"format_version": FORMAT_VERSION + 1}, f"{RECORD} has format_version {FORMAT_VERSION + 1}, newer than"),
        ({"name": "sr64"}, "stage name is 'sr64'"),
        ({"stage": {"size": 0}}, "stage: size"),
        ({"text": {"max_length": 7}}, r"is no record of a stage \(KeyError\('encoder'\)\): export it again"),
        ({"text": 3}, "is no record of a stage"),
    ):
        write_run(run / "model", saved(run / "model"))
        change(run, **entries)
        with pytest.raises(ValueError, match=message):
            read_run(run)


def test_a_network_is_found_in_a_run_in_its_model_folder_and_as_itself(run: Path, tmp_path: Path) -> None:
    network = run / "model" / "unet"
    network.mkdir()
    for folder in (run, run / "model", network):
        assert network_folder(folder) == network_folder(str(folder)) == network
    assert network_folder(tmp_path / "anything") == tmp_path / "anything"
    (run / "unet").mkdir()
    assert network_folder(run) == network, "what a run exported comes before what else lies in it"


def test_the_stage_beside_a_network_is_its_own(run: Path, tmp_path: Path) -> None:
    assert stage_beside(run / "model" / "unet") == saved(run / "model")
    for name in ("unet", "base_unet"):
        assert stage_beside(tmp_path / "alone" / name) is None
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    stages = {"base": {"size": 8}, "sr256": {"size": 16, "lowres_size": 8}}
    index = {"_class_name": "ImagenPipeline", "format_version": FORMAT_VERSION, "stages": stages, "max_length": 9}
    (pipeline / INDEX).write_text(json.dumps({**index, "text": {"padding": "visible"}}))
    for slot, size in (("base", 8), ("sr256", 16)):
        stage = stage_beside(pipeline / f"{slot}_unet")  # whether its parts are there or not
        assert stage is not None
        assert (stage.slot, stage.defaults.size, stage.max_length) == (slot, size, 9)
        assert (stage.unet, stage.scheduler) == (pipeline / f"{slot}_unet", pipeline / f"{slot}_scheduler")
        assert stage.text == TextDefaults(padding="visible")
        assert stage.encoder is None
    (pipeline / "text_encoder").mkdir()
    stage = stage_beside(pipeline / "base_unet")
    assert stage is not None
    assert stage.encoder == str(pipeline)
    assert stage_beside(pipeline / "vae") is None
