"""A run that an earlier version began goes on by its own rules, and new runs by today's."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from imagen.cascade.training.task import StageTask, as_begun, migrate
from imagen.cli import check_data
from imagen.errors import ConfigError
from imagen.training.trainer import Trainer

GOES_ON = "goes on as it began, with data.resize bicubic"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    """Pictures to be reduced from 13 to 8 px, and others of their kind held out."""
    for split in ("pictures", "held_out"):
        (tmp_path / split).mkdir()
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (13, 13, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{number}.png")
    held_out = {"kind": "folder", "path": str(tmp_path / "held_out")}
    measured = {"validation.data": held_out, "validation.every": 3, "validation.samples": 4}
    return {"data.kind": "folder", "data.path": str(tmp_path / "pictures"), **measured}


def stored(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def age(run: Path) -> None:
    """Make the run's config.yaml what a version without data.resize and data.rules wrote."""
    tree = stored(run)
    for section in (tree["data"], tree["validation"]["data"]):
        del section["resize"], section["rules"]
    (run / "config.yaml").write_text(yaml.safe_dump(tree))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_an_old_run_goes_on_with_its_rule_bit_for_bit_and_says_so_once(config, options, tmp_path, read_metrics):
    whole, old, new = (tmp_path / name for name in ("whole", "old", "new"))
    before = {"data.resize": "bicubic", "data.rules": 1}
    Trainer(StageTask(config(run_dir=str(whole), **options, **before))).fit()
    Trainer(StageTask(config(run_dir=str(old), **options, **before, **{"train.steps": 3}))).fit()
    age(old)
    with pytest.warns(UserWarning, match=GOES_ON):
        Trainer(StageTask(config(run_dir=str(old), **options))).fit()
    assert same(weights(old), weights(whole))
    held_out = [[line["val_loss"] for line in read_metrics(run) if "val_loss" in line] for run in (old, whole)]
    assert held_out[0] == held_out[1]
    assert stored(old)["data"]["resize"] == stored(old)["validation"]["data"]["resize"] == "bicubic"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        again = Trainer(StageTask(config(run_dir=str(old), **options)))
    assert again.config.data.resize == "bicubic"
    assert not [str(one.message) for one in said if "resize" in str(one.message)]
    assert stored(old)["data"]["rules"] == stored(old)["validation"]["data"]["rules"] == 1
    with pytest.raises(ConfigError, match="data.resize bicubic -> area"):
        Trainer(StageTask(config(run_dir=str(old), **options, **{"data.resize": "area"})))

    Trainer(StageTask(config(run_dir=str(new), **options))).fit()
    assert not same(weights(new), weights(whole))
    assert stored(new)["data"]["resize"] == stored(new)["validation"]["data"]["resize"] == "area"
    assert stored(new)["data"]["rules"] == stored(new)["validation"]["data"]["rules"] == 2
    assert Trainer(StageTask(config(run_dir=str(new), **options))).config.data.resize == "area"


def test_only_a_run_with_resume_points_is_gone_on_with(config, options, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"kind": "folder"}}))
    assert as_begun(config(run_dir=str(run), **options)).data.resize == "area"
    (run / "state" / "step-00000002").mkdir(parents=True)
    assert as_begun(config(run_dir=str(run), **options)).data.resize == "bicubic"


def test_drawn_pictures_have_no_rule(config):
    settings = as_begun(config())
    assert settings == config()
    assert migrate({"data": {"kind": "shapes"}}) == ({"data": {"kind": "shapes"}}, [])
    assert migrate({}) == ({}, [])
    with pytest.raises(ConfigError, match=r"data\.resize 'area' is of kind folder"):
        config(**{"data.resize": "area"})


def test_what_is_stored_is_not_changed_by_migrating():
    saved = {"data": {"kind": "folder", "path": "x"}, "train": {"steps": 3}}
    tree, notes = migrate(saved)
    assert tree == {"data": {"kind": "folder", "path": "x", "resize": "bicubic", "rules": 1}, "train": {"steps": 3}}
    assert len(notes) == 2
    assert "resize" not in saved["data"]
    assert migrate(tree) == (tree, [])


def test_a_run_that_called_its_slot_base64_goes_on(config, tmp_path):
    whole, old = (config(run_dir=str(tmp_path / name), **{"stage.name": "base"}) for name in ("whole", "old"))
    Trainer(StageTask(whole)).fit()
    half = replace(old, train=replace(old.train, steps=2))
    Trainer(StageTask(half)).fit()
    tree = stored(Path(old.run_dir))
    assert tree["stage"]["name"] == "base"
    tree["stage"]["name"] = "base64"
    (Path(old.run_dir) / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.warns(UserWarning, match="changed configuration: train.steps 2 -> 6$"):
        trainer = Trainer(StageTask(config(run_dir=old.run_dir, **{"stage.name": "base64"})))
    assert trainer.step == 2
    assert trainer.fit()
    assert same(weights(Path(old.run_dir)), weights(Path(whole.run_dir)))
    assert stored(Path(old.run_dir))["stage"]["name"] == "base"


def test_the_slot_s_earlier_name_is_read_and_what_is_stored_is_not_changed():
    saved = {"stage": {"name": "base64", "size": 8}, "data": {"kind": "shapes"}}
    assert migrate(saved) == ({"stage": {"name": "base", "size": 8}, "data": {"kind": "shapes"}}, [])
    assert saved["stage"]["name"] == "base64"


def test_check_data_reads_as_the_run_does(write_config, options, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []
    original = check_data.examine
    monkeypatch.setattr(
        check_data, "examine", lambda source, *rest: seen.append(source.prepare.resize) or original(source, *rest)
    )
    assert check_data.main(["--config", str(write_config(**options))]) == 0
    (run / "state" / "step-00000002").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"kind": "folder"}}))
    assert check_data.main(["--config", str(write_config(**options))]) == 0
    assert seen == ["area", "bicubic"]
