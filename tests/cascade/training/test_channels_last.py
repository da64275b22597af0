"""train.channels_last lays out weights otherwise, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.training.trainer import Trainer
from tests.training.regression import stop_after

FILES = ("unet.safetensors", "ema.safetensors")


def trained(config: RunConfig) -> Trainer:
    trainer = Trainer(StageTask(config))
    trainer.fit()
    return trainer


def newest(config: RunConfig) -> list[dict[str, torch.Tensor]]:
    """Weights and average of the last resume point."""
    state = sorted((Path(config.run_dir) / "state").iterdir())[-1]
    return [load_file(state / name) for name in FILES]


@pytest.mark.parametrize("optimizer", [{}, {"optim.muon_lr": 1e-3}, {"optim.kind": "adafactor"}], ids=str)
def test_the_same_is_learned_but_for_rounding_and_a_run_goes_on_to_the_bit(
    config: Callable[..., RunConfig], tmp_path: Path, optimizer: dict[str, object]
) -> None:
    def run(name: str, **changes: object) -> RunConfig:
        return config(**optimizer, **changes, run_dir=str(tmp_path / name))

    plain, last, parts = (run(name, **{"train.channels_last": name != "plain"}) for name in ("plain", "last", "parts"))
    layouts = {weight.is_contiguous() for weight in trained(plain).module.parameters()}
    assert layouts == {True}
    module = trained(last).module
    assert module.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not module.conv_in.weight.is_contiguous()
    far = 1e-3 if "optim.muon_lr" in optimizer else 2e-5  # Muon computes in bfloat16
    for one, other in zip(newest(plain), newest(last), strict=True):
        for name, value in one.items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-3, atol=far, msg=lambda told, name=name: f"{name}: {told}"
            )
    stop_after(Trainer(StageTask(parts)), 3).fit()
    trained(parts)
    for one, other in zip(newest(last), newest(parts), strict=True):
        assert all(torch.equal(other[name], value) for name, value in one.items())


def test_a_run_may_go_on_in_another_layout(config: Callable[..., RunConfig]) -> None:
    stop_after(Trainer(StageTask(config())), 3).fit()
    trainer = trained(config(**{"train.channels_last": True}))
    assert trainer.step == 6
    assert not trainer.module.conv_in.weight.is_contiguous()
