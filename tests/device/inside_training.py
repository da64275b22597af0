"""A run on a device that is not the CPU; run by test_device.py, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.task import StageTask
from imagen.training.trainer import Trainer
from tests.cascade.training.conftest import TINY, merge
from tests.device import pretend
from tests.factories import WIDTH, tiny_text_encoder, tiny_tokenizer

FAR = pretend.register()
SR: dict[str, Any] = {
    "stage": {"name": "sr256", "size": 16, "lowres_size": 4, "prediction_type": "v_prediction"},
    "data.crop": 8,
    "unet": {
        "kind": "EfficientUNet", "channels": [8], "num_res_blocks": [1], "strides": [2], "attention_levels": [],
        "heads": 2, "norm_groups": 4, "text_dim": None,
    },
    "train.accumulation": 2,
}  # fmt: skip
CONDITIONS: dict[str, Any] = {
    "conditions": {"label": {"classes": 8}, "mask": {}},
    "data.fields": {"label": "shape"},
    "unet.classes": {"label": 8},
    "unet.extra_channels": {"mask": 4},
    "unet.dropout": 0.1,
}
LEARNED = {
    "stage.schedule": {"kind": "cosine_discrete"},
    "stage.loss": {"kind": "uniform", "per": "log_snr"},
    "unet.out_channels": 6,
}


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("t5")
    tiny_text_encoder().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return {"text.encoder": str(path), "unet.text_dim": WIDTH, "text.max_length": 32}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """trainer(**changes) -> that of the tiny run, on the device."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", f"{pretend.NAME}:0")

    def make(**changes: Any) -> Trainer:
        rare = {"train.steps": 3, "train.checkpoint_every": 100, "train.log_every": 100}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(merge({"run_dir": str(tmp_path / "run"), **TINY}, {**rare, **changes})))
        made = Trainer(StageTask(parse(["--config", str(path)])))
        assert made.accelerator.device.type == pretend.NAME
        assert all(isinstance(weight.data, pretend.Far) for weight in made.module.parameters())
        return made

    return make


def watched(trainer: Trainer) -> list[list[str]]:
    """The waits of each step of the run."""
    seen: list[list[str]] = []
    one = trainer._train_step

    def step(batches: Any) -> bool:
        with pretend.waits() as waits:
            stop = one(batches)
        seen.append(waits)
        return stop

    trainer._train_step = step  # type: ignore[method-assign]
    assert trainer.fit()
    return seen


@pytest.mark.parametrize(
    "changes",
    [{}, SR, LEARNED, CONDITIONS, {"optim.kind": "adafactor"}, {"optim.muon_lr": 1e-3}],
    ids=["base", "sr", "learned", "conditions", "adafactor", "muon"],
)
def test_a_step_waits_once(trainer: Callable[..., Trainer], changes: dict[str, Any]) -> None:
    for waits in watched(trainer(**changes)):
        assert len(waits) == 1, waits
        assert "trainer.py" in waits[0]


def test_text_is_waited_for_once_more(trainer: Callable[..., Trainer], t5: dict[str, Any]) -> None:
    """transformers looks whether a mask hides anything."""
    for waits in watched(trainer(**t5)):
        assert len(waits) == 2, waits


def test_one_look_a_step_is_found(trainer: Callable[..., Trainer]) -> None:
    made = trainer()
    losses = made.task.losses
    made.task.losses = lambda model, batch: losses(model, batch) * (batch.t.sum().item() > 0)
    assert [len(waits) for waits in watched(made)] == [2, 2, 2]


def test_a_tensor_left_on_the_cpu_is_found(trainer: Callable[..., Trainer]) -> None:
    made = trainer()
    losses = made.task.losses
    made.task.losses = lambda model, batch: losses(model, batch) * torch.ones(4)
    with pytest.raises(RuntimeError, match="expected all tensors on pretend:0"):
        made.fit()


def test_what_is_measured_and_drawn_meanwhile_lies_there(trainer: Callable[..., Trainer], t5: dict[str, Any]) -> None:
    grid = {"every": 2, "count": 3, "batch_size": 2, "num_inference_steps": 2, "raw": True}
    validation = {"every": 2, "samples": 3, "levels": 2, "batch_size": 2, "data": {"kind": "shapes"}}
    made = trainer(
        **t5, grid={**grid, "prompts": ["a red star"]}, validation=validation, **{"train.checkpoint_every": 2}
    )
    watched(made)
    assert sorted(path.name for path in (made.run / "samples").iterdir()) == [
        "step-00000002.png",
        "step-00000003.png",
    ]
    with pretend.waits() as waits, made.ema.swapped_in(made.module):
        record = made.task.measure(1)
    assert 0 < record["val_loss"] < 100
    assert sum("validation.py" in wait for wait in waits) == 2, waits  # the table, and its mean


def test_a_super_resolution_run_draws_its_rows_there(trainer: Callable[..., Trainer]) -> None:
    grid = {"every": 3, "count": 2, "batch_size": 2, "num_inference_steps": 2}
    made = trainer(**SR, grid=grid)
    watched(made)
    rows: list[Tensor] = []
    words, lowres, truth = made.task.grids._given()
    rows.append(made.task.grids.sample(made.module, words, lowres))
    assert rows[0].device.type == truth.device.type == pretend.NAME
    assert os.listdir(made.run / "samples") == ["step-00000003.png"]


@pytest.mark.parametrize("prompts", [[], ["a red star", "a star"]], ids=["held-out", "prompts"])
def test_a_run_with_conditions_draws_there(trainer: Callable[..., Trainer], prompts: list[str], t5: Any) -> None:
    """Those of held-out pictures, or beside prompts their nulls."""
    grid = {
        "every": 3,
        "count": 2,
        "batch_size": 2,
        "num_inference_steps": 1,
        "prompts": prompts,
        "guidance_scale": 2.0,
    }
    made = trainer(**t5, **CONDITIONS, grid=grid, **{"train.steps": 1})
    watched(made)
    assert os.listdir(made.run / "samples") == ["step-00000001.png"]
