"""Adapters of a converted stage of DeepFloyd IF's shape, and what the pipelines make of them."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import IFPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from imagen.cascade.adapter_files import read_adapter
from imagen.cascade.training.compose import compose
from imagen.cascade.training.task import StageTask
from imagen.cascade.variance import drop_variance
from imagen.cli.png import read_settings
from imagen.cli.sample import main as sample_main
from imagen.errors import ConfigError
from imagen.stages.folder import ADAPTER as WEIGHTS
from imagen.training.trainer import Trainer
from tests.convert.finetuning import BASE, LORA, SECOND, pipeline
from tests.factories import sample, seeded


def test_an_adapter_lowers_the_held_out_loss_and_is_all_that_is_saved(trained: Any, converted: Path) -> None:
    run, before, after = trained
    print(before, after)
    assert after < 0.8 * before
    assert sorted(path.name for path in (run / "model").iterdir()) == [WEIGHTS, "stage.json"]
    saved = load_file(sorted((run / "state").iterdir())[-1] / "unet.safetensors")
    assert saved.keys() == {f"{n[:-7]}.default.weight" for n in read_adapter(run).tensors}
    assert read_adapter(run).config["lora_alpha"] == 8


def test_an_adapter_acts_only_while_it_is_loaded(trained: Any, converted: Path) -> None:
    pipe = pipeline(converted)
    given = {"size": 16, "num_inference_steps": 4}
    before = {name: value.clone() for name, value in pipe.base_unet.state_dict().items()}
    plain = sample(pipe, "a red circle", **given).images
    pipe.load_lora_weights(trained[0])
    adapted = sample(pipe, "a red circle", **given).images
    assert (adapted - plain).abs().max() > 0.01
    with pytest.raises(ValueError, match="base holds an adapter: call merge_lora_weights or unload_lora_weights"):
        pipe.save_pretrained("never")
    pipe.unload_lora_weights()
    after = pipe.base_unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert torch.equal(sample(pipe, "a red circle", **given).images, plain)
    with pytest.raises(ValueError, match="stage 'base' holds no adapter"):
        pipe.unload_lora_weights("base")


def test_the_command_line_loads_it_and_says_so(trained: Any, converted: Path, tmp_path: Path) -> None:
    words = ["a red circle", "--model", str(converted), "--size", "16", "--steps", "2", "--out"]
    assert sample_main([*words, str(tmp_path / "plain")]) == 0
    assert sample_main([*words, str(tmp_path / "adapted"), "--lora", str(trained[0])]) == 0
    plain, adapted = (next((tmp_path / name).glob("*.png")) for name in ("plain", "adapted"))
    assert not np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(adapted)))
    again = shlex.split(read_settings(adapted)["command"])[2:]
    assert sample_main([*again, "--out", str(tmp_path / "again")]) == 0
    repeated = next((tmp_path / "again").glob("*.png"))
    assert np.array_equal(np.asarray(Image.open(repeated)), np.asarray(Image.open(adapted)))


def test_merging_equals_the_adapter(trained: Any, converted: Path, tmp_path: Path) -> None:
    pipe = pipeline(converted)
    given = {"size": 16, "num_inference_steps": 4}
    pipe.load_lora_weights(trained[0] / "model" / WEIGHTS, stage="base")
    adapted = sample(pipe, "a red circle", **given).images
    pipe.merge_lora_weights()
    torch.testing.assert_close(sample(pipe, "a red circle", **given).images, adapted, atol=1e-4, rtol=0)
    pipe.save_pretrained(tmp_path / "merged")
    again = sample(pipeline(tmp_path / "merged"), "a red circle", **given).images
    torch.testing.assert_close(again, adapted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_diffusers_pipeline_loads_the_same_adapter(trained: Any, converted: Path, checkpoint: Path) -> None:
    """Its network then says what ours says, and so, by tests/convert/test_pipelines.py, do the pictures."""
    ours = pipeline(converted)
    theirs = IFPipeline.from_pretrained(
        checkpoint / "I", safety_checker=None, watermarker=None, requires_safety_checker=False
    )
    z, text = torch.randn(2, 3, 16, 16, generator=seeded(1)), torch.randn(2, 77, 16, generator=seeded(2))
    plain = theirs.unet(z, 500, text).sample
    ours.load_lora_weights(trained[0])
    theirs.load_lora_weights(trained[0] / "model")
    said = theirs.unet(z, 500, text).sample
    assert (said - plain).abs().max() > 0.01
    torch.testing.assert_close(ours.base_unet(z, 500.0, text=text), said, atol=1e-5, rtol=1e-4)


def test_an_adapter_trained_without_the_variance_says_so_where_it_is_loaded(
    trained: Any, converted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setattr("imagen.cascade.adapting.logger.warning", told.append)
    pipe = pipeline(converted)
    pipe.load_lora_weights(trained[0])
    assert [line.partition(":")[0] for line in told] == ["base"]
    assert 'drop_variance(pipe, "base")' in told[0]
    pipe.unload_lora_weights()
    drop_variance(pipe)
    pipe.load_lora_weights(trained[0])
    assert len(told) == 1
    generator = torch.Generator().manual_seed(3)
    expected = sample(pipe, "a red circle", size=16, num_inference_steps=2, generator=generator).images
    words = ["a red circle", "--model", str(converted), "--size", "16", "--steps", "2", "--seed", "3"]
    assert sample_main([*words, "--lora", str(trained[0]), "--out", str(tmp_path)]) == 0
    written = np.asarray(Image.open(next(tmp_path.glob("*.png")))) / 255.0
    assert np.abs(written - expected[0].permute(1, 2, 0).numpy()).max() < 1 / 255


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_resuming_an_adapter_is_exact(config: Any, base_dtype: str) -> None:
    parts = (BASE, LORA, {"train.steps": 4, "train.checkpoint_every": 2, "lora.base_dtype": base_dtype})
    whole = config(*parts, run="whole")
    first = Trainer(StageTask(whole))
    dtypes = {kept: {p.dtype for p in first.module.parameters() if p.requires_grad != kept} for kept in (True, False)}
    assert dtypes == {True: {getattr(torch, base_dtype)}, False: {torch.float32}}, "of the base, and of the adapter"
    assert first.fit()
    broken = replace(whole, run_dir=str(Path(whole.run_dir).with_name("parts")))
    shutil.copytree(whole.run_dir, broken.run_dir)
    shutil.rmtree(Path(broken.run_dir) / "state" / "step-00000004")
    second = Trainer(StageTask(broken))
    assert second.step == 2
    assert second.fit()
    for name in (f"model/{WEIGHTS}", "state/step-00000004/ema.safetensors", "state/step-00000004/unet.safetensors"):
        assert (Path(whole.run_dir) / name).read_bytes() == (Path(broken.run_dir) / name).read_bytes(), name


def test_an_adapter_of_stage_2_with_its_variance(config: Any, converted: Path) -> None:
    settings = config(SECOND, LORA, {"train.steps": 4, "stage.loss.vlb_weight": 0.01}, slot="sr256")
    trainer = Trainer(StageTask(settings))
    assert trainer.module.config.out_channels == 6
    assert trainer.fit()
    pipe = pipeline(converted)
    plain = sample(pipe, "a red circle", num_inference_steps=2)
    pipe.load_lora_weights(settings.run_dir, stage="sr256")
    adapted = sample(pipe, "a red circle", num_inference_steps=2)
    assert torch.equal(plain.stages[16], adapted.stages[16])
    assert not torch.equal(plain.images, adapted.images)


def test_what_does_not_fit_a_network_is_refused(trained: Any, converted: Path, tmp_path: Path) -> None:
    pipe = pipeline(converted)
    with pytest.raises(ValueError, match="which this network lacks|has shape"):
        pipe.load_lora_weights(trained[0], stage="sr256")
    tensors = load_file(trained[0] / "model" / WEIGHTS)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.zeros(4, 3)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"has shape \(4, 3\), this network needs \(4, "):
        pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="stage is 'II'; expected one of base, sr256, sr1024"):
        pipe.load_lora_weights(trained[0], stage="II")
    with pytest.raises(ValueError, match="holds no adapter; give a"):
        pipe.load_lora_weights(tmp_path / "nothing")
    assert not any("lora" in key for key in pipe.base_unet.state_dict())


def test_an_adapter_s_run_keeps_to_its_network(config: Any, converted: Path, tmp_path: Path) -> None:
    steps = {"train.steps": 1}
    assert Trainer(StageTask(config(BASE, LORA, steps))).fit()
    shutil.copytree(converted, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"train\.init_from"):
        Trainer(StageTask(config(BASE, LORA, steps, {"train.init_from": tmp_path / "other" / "base_unet"})))
    with pytest.raises(ConfigError, match="base is an adapter of .*load_lora_weights"):
        compose({"base64": Path(config(BASE).run_dir)})
