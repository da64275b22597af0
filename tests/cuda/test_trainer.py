"""Training on a card: in float32 and bfloat16, compiled, and gone on with to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.training.trainer import Trainer
from tests.training.regression import stop_after

Config = Callable[..., RunConfig]


def trained(config: RunConfig, stop: int | None = None) -> Trainer:
    """A run, to its end or to a step."""
    AcceleratorState._reset_state(True)
    trainer = Trainer(StageTask(config))
    assert trainer.accelerator.device.type == "cuda"
    (trainer if stop is None else stop_after(trainer, stop)).fit()
    return trainer


def losses(config: RunConfig) -> list[float]:
    """Of its metrics."""
    told = map(json.loads, (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in told if "loss" in line]


def resume_point(config: RunConfig) -> dict[str, torch.Tensor]:
    """Weights, average and moments of the newest."""
    state = sorted((Path(config.run_dir) / "state").iterdir())[-1]
    found = {
        f"{name} {key}": v for name in ("ema", "unet") for key, v in load_file(state / f"{name}.safetensors").items()
    }
    moments = torch.load(state / "optimizer.pt", weights_only=True, map_location="cpu")["state"]
    return found | {f"{number} {key}": value for number, one in moments.items() for key, value in one.items()}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_it_learns(run_config: Config, precision: str) -> None:
    changes = {"train.steps": 60, "train.mixed_precision": precision, "optim.lr": 3e-3, "train.log_every": 15}
    config = run_config(**changes)
    trainer = trained(config)
    assert trainer.skipped == 0
    told = losses(config)
    assert told[-1] < 0.8 * told[0], told


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(run_config: Config, precision: str) -> None:
    changes = {"train.steps": 6, "train.mixed_precision": precision}
    whole, parts = run_config("whole", **changes), run_config("parts", **changes)
    trained(whole)
    trained(parts, stop=3)
    assert trained(parts).step == 6
    wanted, found = resume_point(whole), resume_point(parts)
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_step_is_the_eager_one_but_for_rounding(run_config: Config) -> None:
    eager, other = run_config("eager"), run_config("compiled", **{"train.compile": True})
    trained(eager)
    trained(other)
    off = max(abs(a - b) for a, b in zip(losses(eager), losses(other), strict=True))
    print(f"compiled losses are off by {off:.1e}")
    assert off < 1e-3


def test_bfloat16_stays_near_float32(run_config: Config) -> None:
    wide, narrow = run_config("wide"), run_config("narrow", **{"train.mixed_precision": "bf16"})
    trained(wide)
    trained(narrow)
    off = max(abs(a - b) / a for a, b in zip(losses(wide), losses(narrow), strict=True))
    print(f"losses in bfloat16 are off by {off:.1e} of those in float32")
    assert off < 5e-2
