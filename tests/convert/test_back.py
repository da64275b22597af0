"""What goes back into IF's pipelines and what cannot, and parts that lie in one of two checkpoints."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen.convert.__main__ import main
from imagen.convert.deepfloyd_if import DIFFUSERS_STEM, convert
from imagen.convert.export import export
from imagen.stages.folder import read_model
from tests.convert import released


@pytest.fixture
def copy(converted: Path, tmp_path: Path) -> Path:
    """A copy of the converted folder whose JSON files a test may change; the weights are links."""

    def link(source: str, target: str) -> None:
        shutil.copyfile(source, target) if source.endswith(".json") else Path(target).hardlink_to(source)

    return Path(shutil.copytree(converted, tmp_path / "model", copy_function=link))


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def change_stage(folder: Path, slot: str, **entries: Any) -> None:
    stages = json.loads((folder / "model_index.json").read_text())["stages"]
    change(folder / "model_index.json", stages={**stages, slot: {**stages[slot], **entries}})


@pytest.mark.parametrize(
    ("slot", "entries", "expected"),
    [
        (
            "base",
            {"threshold_p": 0.9, "threshold_cap": 2.0},
            {"dynamic_thresholding_ratio": 0.9, "sample_max_value": 2},
        ),
        ("sr256", {"threshold": "static"}, {"thresholding": False, "clip_sample": True}),
        ("sr256", {"threshold": "none"}, {"thresholding": False, "clip_sample": False}),
        (
            "base",
            {"threshold": "static", "threshold_cap": None, "aug_space": "lowres"},
            {"clip_sample": True, "sample_max_value": 1.0},
        ),
    ],
)
def test_a_scheduler_going_back_thresholds_as_the_stage_says(
    copy: Path, slot: str, entries: dict[str, Any], expected: dict[str, Any]
) -> None:
    change_stage(copy, slot, **entries)
    change(copy / f"{slot}_scheduler" / "scheduler_config.json", clip_sample="kept")
    export(copy, copy / "back")
    name = {"base": "IF-I", "sr256": "IF-II"}[slot]
    stored = json.loads((copy / "back" / name / "scheduler" / "scheduler_config.json").read_text())
    expected = {"clip_sample": "kept", "variance_type": "learned_range", "prediction_type": "epsilon", **expected}
    assert {key: stored[key] for key in expected} == expected


def test_our_own_ddpm_goes_back_and_each_folder_has_its_schedulers_and_parts(copy: Path) -> None:
    change(copy / "base_scheduler" / "scheduler_config.json", _class_name="ImagenDDPMScheduler", gamma=0)
    assert export(copy, copy / "back") == ["IF-I", "IF-II"]
    shared = {"tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker", "unet", "scheduler"}
    first, second = copy / "back" / "IF-I", copy / "back" / "IF-II"
    assert {path.name for path in first.iterdir() if path.is_dir()} == shared
    assert {path.name for path in second.iterdir() if path.is_dir()} == {*shared, "image_noising_scheduler"}
    noising = json.loads((second / "image_noising_scheduler" / "scheduler_config.json").read_text())
    assert (noising["beta_schedule"], noising["num_train_timesteps"]) == ("squaredcos_cap_v2", 1000)
    scheduler = json.loads((first / "scheduler" / "scheduler_config.json").read_text())
    assert "gamma" not in scheduler
    assert scheduler["_class_name"] == "DDPMScheduler"


def test_one_stage_without_text_or_checker_goes_back_alone(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    gone = ("base_unet", "tokenizer", "text_encoder", "safety_checker")
    change(copy / "model_index.json", **{name: [None, None] for name in gone})
    assert export(copy, copy / "back") == ["IF-II"]
    assert [path.name for path in (copy / "back").iterdir()] == ["IF-II"]
    stored = json.loads((copy / "back" / "IF-II" / "model_index.json").read_text())
    assert stored["_class_name"] == "IFSuperResolutionPipeline"
    assert stored["requires_safety_checker"] is False
    assert {name: stored[name] for name in gone[1:]} == {name: [None, None] for name in gone[1:]}
    assert stored["watermarker"] == index["watermarker"]
    change(copy / "model_index.json", sr256_unet=[None, None])
    with pytest.raises(ValueError, match="model holds no base or sr256 stage; IF's pipelines have no others"):
        export(copy, copy / "again")


NOT_BACK: list[tuple[str, str, dict[str, Any], str]] = [
    ("base", "scheduler", {"gamma": 0.3}, "expected a DDPMScheduler, as IF's pipelines have, and no gamma"),
    ("sr256", "scheduler", {"_class_name": "DDIMScheduler"}, "expected a DDPMScheduler, as IF's pipelines have"),
    ("sr256", "scheduler", {"prediction_type": "sample"}, "prediction_type is 'sample'; IF's pipelines need 'epsilon'"),
    ("sr256", "stage", {"aug_space": "lowres"}, "stage sr256 has aug_space 'lowres' and aug_schedule"),
    ("sr256", "stage", {"aug_schedule": {}}, r"stage sr256 has aug_space 'upsampled' and aug_schedule \{\}; expected"),
    (
        "base",
        "stage",
        {"threshold_cap": None},
        "stage base has threshold_cap null; diffusers' schedulers need a number",
    ),
    ("base", "unet", {"_class_name": "DiT"}, "DiT is no network that IF's pipelines hold; BaseUNet is"),
    ("base", "unet", {"lowres_channels": 3}, "lowres_channels is 3, which does not fit the slot base"),
    ("sr256", "unet", {"lowres_channels": 0}, "lowres_channels is 0, which does not fit the slot sr256"),
]


@pytest.mark.parametrize(("slot", "part", "entries", "message"), NOT_BACK)
def test_what_diffusers_pipelines_lack_does_not_go_back(
    copy: Path, slot: str, part: str, entries: dict[str, Any], message: str
) -> None:
    if part == "stage":
        change_stage(copy, slot, **entries)
    else:
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        change(copy / f"{slot}_{part}" / file, **entries)
        if part == "unet" and "_class_name" in entries:  # the index would be found to say otherwise
            change(copy / "model_index.json", **{f"{slot}_unet": ["unets.dit", entries["_class_name"]]})
    with pytest.raises(ValueError, match=message):
        export(copy, copy / "back")
    assert not (copy / "back").exists()


# --- into our folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of both checkpoints whose parts a test may move or take away."""
    copied = shutil.copytree(checkpoint, tmp_path / "source", copy_function=lambda a, b: Path(b).hardlink_to(a))
    return Path(copied)


@pytest.mark.parametrize("lost", ["text_encoder", "tokenizer"])
def test_texts_and_checkers_come_from_the_stage_that_has_them(source: Path, lost: str) -> None:
    shutil.rmtree(source / "I" / lost)
    for name in ("safety_checker", "watermarker"):
        (source / "I" / name).rename(source / "II" / name)
    pipe, licences = convert([str(source / "II"), str(source / "I")], source / "model")
    there = {path.name for path in (source / "model").iterdir() if path.is_dir()}
    networks = {f"{slot}_{part}" for slot in ("base", "sr256") for part in ("unet", "scheduler")}
    parts = {"tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"}
    assert there == networks | parts
    assert {name for name, part in pipe.components.items() if part is not None} == there
    assert licences == ["LICENSE"]
    assert (source / "model" / "LICENSE").read_text() == (source / "I" / "LICENSE").read_text()
    (source / "II" / "LICENSE").unlink()  # a link to the file that all tests share
    (source / "II" / "LICENSE").write_text("other terms")
    (source / "I" / "NOTICE").write_text("whose it is")
    _, licences = convert([str(source / "II"), str(source / "I")], source / "both")
    assert licences == ["LICENSE", "LICENSE-2", "NOTICE"], "of both, and under one name each where they differ"
    assert (source / "both" / "LICENSE-2").read_text() == "other terms"
    index = json.loads((source / "model" / "model_index.json").read_text())
    assert all(index[name][1] for name in there), "also where the other checkpoint lists it as missing"
    assert read_model(source / "model")["sr256"].defaults.lowres_size == 16


def test_a_text_encoder_that_one_of_the_stages_cannot_read_is_refused(source: Path) -> None:
    wide = released.stage_2({**released.TINY_II, "encoder_hid_dim": 24}, text_encoder=None, tokenizer=None)
    released.save(wide, source / "wide")
    with pytest.raises(ValueError, match="d_model is 16, but the network in .*wide reads text of width 24"):
        convert([str(source / "I"), str(source / "wide")], source / "model")


@pytest.mark.parametrize(("name", "stem"), [("safety_checker", "model"), ("watermarker", DIFFUSERS_STEM)])
def test_tensors_of_small_parts_are_looked_at_too(source: Path, name: str, stem: str) -> None:
    """Older files hold one more, which only counts."""
    path = source / "I" / name / f"{stem}.safetensors"
    tensors = load_file(path)
    lost, *kept = sorted(tensors)
    for held, message in (
        ({key: tensors[key] for key in kept}, f"tensor '{lost}' is missing .*; the {name} needs it with shape"),
        ({**tensors, "more": torch.zeros(2)}, f"tensor 'more' of shape .* has no place in the {name}"),
        ({**tensors, "vision.position_ids": torch.arange(3)}, None),
    ):
        path.unlink()
        save_file(held, path)
        if message is None:
            convert([str(source / "I")], source / "model")
            assert filecmp.cmp(path, source / "model" / name / path.name, shallow=False)
            return
        with pytest.raises(ValueError, match=message):
            convert([str(source / "I")], source / "model")


def test_a_tokenizer_that_cannot_be_read_is_told(source: Path) -> None:
    path = source / "I" / "tokenizer" / "tokenizer.json"
    path.unlink()
    path.write_text("{")
    with pytest.raises(ValueError, match="tokenizer cannot be read as a tokenizer: "):
        convert([str(source / "I")], source / "model")


def test_the_second_stage_alone_starts_from_a_quarter_of_its_side(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("text_encoder", "LICENSE"):
        path = source / "II" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["deepfloyd-if", str(source / "II"), str(source / "model")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"{source / 'model'}: sr256_unet, sr256_scheduler",
        f"{source / 'model'} has no text encoder, as {source / 'II'} had none: it takes prompt_embeds only",
        "the weights' licence stands where you got them; no licence file lay beside them",
    ]
    assert read_model(source / "model")["sr256"].defaults.lowres_size == 8
    assert main(["export-deepfloyd-if", str(source / "model"), str(source / "back")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(source / "back" / "IF-II")


@pytest.mark.parametrize("count", [0, 3])
def test_one_or_two_checkpoints_are_converted(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deepfloyd-if", *["x"] * count, "new"]) == 2
    assert (
        f"{count} checkpoints given; expected SRC [SRC2] DST, one or two and the new folder" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("command", "target", "told"),
    [
        ("deepfloyd-if", "", "DST is empty (''); give a new folder"),
        ("export-deepfloyd-if", "", "DST is empty (''); give a new folder"),
        (
            "deepfloyd-if",
            "a-file/new",
            "DST '{target}' cannot be made: '{folder}/a-file' is a file; give another folder",
        ),
        (
            "export-deepfloyd-if",
            "a-file/x/new",
            "DST '{target}' cannot be made: '{folder}/a-file' is a file; give anot",
        ),
        ("export-deepfloyd-if", "locked/x", "DST '{target}' cannot be made: '{folder}/locked' cannot be written to"),
        ("export-deepfloyd-if", ".", "{folder} is already there; give a new folder, or remove it first"),
    ],
)
def test_a_target_that_cannot_be_made_is_told_before_the_source_is_read(
    command: str,
    target: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path))  # root may write anywhere
    name = str(tmp_path / target) if target else ""
    assert main([command, "no-source", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"imagen.convert: error: {told.format(target=name, folder=tmp_path)}"), error
    assert error.count("\n") == 1


def test_the_source_of_an_export_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-deepfloyd-if", "", "new"]) == 2
    assert capsys.readouterr().err == "imagen.convert: error: SRC is empty (''); give a folder of ImagenPipeline\n"
