"""Runs in which two steps are not finite, by their loss and by a gradient. Also a program, for several processes."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagen.data.config import DataConfig
from imagen.training.config.sections import EmaConfig, GridConfig, OptimConfig, TrainConfig
from imagen.training.trainer import Trainer
from tests.training import regression
from tests.training.regression import RegressionConfig, RegressionTask, stop_after

STEPS, NAN, INFINITE = 8, 3, 4
KINDS = {
    "adamw": OptimConfig(lr=0.02, weight_decay=0.1),
    "muon": OptimConfig(lr=0.02, muon_lr=0.05, weight_decay=0.1),
    "adafactor": OptimConfig(kind="adafactor", lr=0.02, weight_decay=0.1),
    "adafactor with momentum": OptimConfig(kind="adafactor", lr=0.02, momentum=0.9),
    "adam8bit": OptimConfig(kind="adam8bit", lr=0.02, weight_decay=0.1),
}


class Deep(nn.Module):
    """Three layers, the middle ones of one shape, and a buffer that counts what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [3 * regression.SIDE**2, 6, 6, 6]
        self.layers = nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(sizes)))
        self.last = nn.Linear(6, 1)
        self.register_buffer("shown", torch.zeros((), dtype=torch.int64))

    def forward(self, pictures: Tensor) -> Tensor:
        self.shown += len(pictures)
        return self.last(self.layers(pictures.flatten(1)).tanh())[:, 0]


def settings(run: Path, pictures: str, kind: str) -> RegressionConfig:
    """A run of eight steps with a warm-up, a decay and clipping, a resume point after each."""
    optim = replace(KINDS[kind], warmup=2, schedule="linear", clip_norm=0.5)
    train = TrainConfig(steps=STEPS, batch_size=6, num_workers=0, checkpoint_every=1, keep_last=9, log_every=2)
    data = DataConfig("folder", pictures, resize="area")
    return RegressionConfig(str(run), data=data, optim=optim, train=train, ema=EmaConfig(0.9), grid=GridConfig(every=0))


def broken(config: RegressionConfig, rank: int = 0) -> Trainer:
    """Its trainer. What is not finite comes up on the process of that rank alone."""
    regression.Linear = Deep  # type: ignore[misc, assignment]
    task = RegressionTask(config)
    trainer, losses = Trainer(task), task.losses

    def at(step: int) -> bool:
        return trainer.step == step and trainer.rank == rank

    task.losses = lambda model, batch: losses(model, batch) * (math.nan if at(NAN) else 1)  # type: ignore[method-assign]
    task.module.last.weight.register_hook(lambda gradient: gradient * (math.inf if at(INFINITE) else 1))
    return trainer


def state(trainer: Trainer) -> dict[str, Any]:
    """All that a run changes, by name."""
    named = {p: name for name, p in trainer.module.named_parameters()}
    optimizer: Any = trainer.optimizer.state
    moments = {f"{named[p]} {key}": value for p, kept in optimizer.items() for key, value in kept.items()}
    average = {f"average {name}": value for name, value in trainer.ema.average.items()}
    counts = {"step": trainer.step, "skipped": trainer.skipped, "updates": trainer.ema.updates}
    return {**trainer.module.state_dict(), **moments, **average, **counts}


def main(run: str, pictures: str, kind: str, stop: str) -> None:
    """Train on one of several processes, the last of which breaks, and keep what came of it."""
    config = settings(Path(run), pictures, kind)
    trainer = stop_after(broken(config, rank=1), int(stop))
    assert trainer.world == 2, "the processes did not find each other"
    trainer.fit()
    torch.save(state(trainer), Path(run) / f"rank{trainer.rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
