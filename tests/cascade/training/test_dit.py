"""A transformer as a base stage: trained, resumed, exported, sampled, as any registered network."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from imagen import ImagenPipeline
from imagen.cascade.training.task import StageTask
from imagen.stages.folder import read_run
from imagen.stages.load import load_network, load_scheduler
from imagen.training.trainer import Trainer
from tests.factories import WIDTH, tiny_text_encoder, tiny_tokenizer
from unets import DiT


@pytest.fixture
def dit(config: Any, tmp_path: Path) -> Any:
    """dit(**changes) -> a run of a small transformer that reads captions, with dropout and Muon."""
    folder = tmp_path / "t5"
    tiny_text_encoder().save_pretrained(folder / "text_encoder")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    network = {"kind": "DiT", "patch_size": 2, "width": 16, "depth": 2, "head_dim": 8, "mlp_ratio": 2}

    def make(**changes: Any) -> Any:
        unet = {**network, "text_dim": WIDTH, "text_whitening": True, "dropout": 0.1}
        shared = {"train.steps": 8, "train.batch_size": 8, "train.checkpoint_every": 4, "train.log_every": 1}
        return config(**{"unet": unet, "text.encoder": str(folder), "optim.muon_lr": 1e-2, **shared, **changes})

    return make


def test_resuming_is_exact(dit: Any, read_metrics: Any, tmp_path: Path) -> None:
    runs = [dit(run_dir=str(tmp_path / name), **{"train.accumulation": 2}) for name in ("whole", "parts")]
    whole, parts = runs
    assert Trainer(StageTask(whole)).fit()
    first = Trainer(StageTask(replace(parts, train=replace(parts.train, time_limit=1e-9))))
    assert not first.fit()
    second = Trainer(StageTask(parts))
    assert second.step == 1
    assert second.fit()
    files = [sorted(Path(run.run_dir, "state").iterdir())[-1] for run in runs]
    for name in ("unet.safetensors", "ema.safetensors"):
        one, other = (load_file(file / name) for file in files)
        assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    assert read_metrics(whole.run_dir) == read_metrics(parts.run_dir)


def test_accumulation_and_checkpointing_do_not_change_the_run(dit: Any, read_metrics: Any, tmp_path: Path) -> None:
    curves = []
    for parts, levels in ((1, False), (4, False), (2, [0])):
        changes = {"train.accumulation": parts, "train.gradient_checkpointing": levels, "train.dtype": "float64"}
        settings = dit(run_dir=str(tmp_path / f"run{parts}"), **changes)
        Trainer(StageTask(settings)).fit()
        curves.append([line["loss"] for line in read_metrics(settings.run_dir)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)  # Muon's iterations are in bfloat16, as the processor rounds
    assert curves[0] == pytest.approx(curves[2], abs=1e-6)


def test_it_learns_and_samples_as_a_base_stage(
    dit: Any, read_metrics: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = dit(**{"train.steps": 150, "train.log_every": 25, "train.checkpoint_every": 150, "optim.lr": 1e-2})
    Trainer(StageTask(settings)).fit()
    losses = [line["loss"] for line in read_metrics(settings.run_dir)]
    assert losses[-1] < 0.7 * losses[0]
    stage = read_run(Path(settings.run_dir))
    network = load_network(stage.unet)
    assert isinstance(network, DiT)
    pipe = ImagenPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        base_unet=network,
        base_scheduler=load_scheduler(stage.scheduler),
        stages={"base": stage.defaults},
        max_length=32,
    )
    pipe.set_progress_bar_config(disable=True)

    def picture(pipe: ImagenPipeline) -> torch.Tensor:
        out: Any = pipe(
            ["a red circle", "two blue star"],
            num_inference_steps=3,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        )
        images: torch.Tensor = out.images
        return images

    expected = picture(pipe)
    assert expected.shape == (2, 3, 8, 8)
    assert expected.std() > 0.01
    pipe.save_pretrained(tmp_path / "saved")
    logging.getLogger("diffusers").propagate = True
    loaded = ImagenPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(picture(loaded), expected)
    assert ImagenPipeline.from_pipe(loaded).base_unet is loaded.base_unet
    assert "Expected types" not in caplog.text
    assert "not switched over" not in caplog.text
