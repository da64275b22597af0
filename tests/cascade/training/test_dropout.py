"""Dropout inside the network is a function of (seed, step, row of the global batch)."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from imagen.cascade.training.task import StageTask
from imagen.training.trainer import Trainer


def newest(run: str) -> Path:
    return sorted((Path(run) / "state").iterdir())[-1]


def test_accumulation_does_not_change_what_dropout_drops(config, read_metrics, tmp_path):
    """Losses, gradients and weights are those of the undivided batch, to rounding."""
    runs = []
    for parts in (1, 2, 4):
        settings = config(
            run_dir=str(tmp_path / f"run{parts}"),
            **{
                "unet.dropout": 0.3, "train.steps": 6, "train.batch_size": 8, "train.accumulation": parts,
                "train.dtype": "float64", "train.log_every": 1, "train.checkpoint_every": 50,
            },
        )  # fmt: skip
        Trainer(StageTask(settings)).fit()
        runs.append((read_metrics(settings.run_dir), load_file(newest(settings.run_dir) / "unet.safetensors")))
    (lines, weights), *others = runs
    for other_lines, other_weights in others:
        for one, other in zip(lines, other_lines, strict=True):
            for key in ("loss", "loss_t0", "loss_t1", "loss_t2", "loss_t3", "grad_norm"):
                assert one[key] == pytest.approx(other[key], abs=1e-8)
        assert max((value - other_weights[name]).abs().max().item() for name, value in weights.items()) < 1e-8


def test_every_row_and_step_has_a_dropout_seed_of_its_own(config):
    trainer = Trainer(StageTask(config(**{"train.steps": 3, "train.batch_size": 8, "train.accumulation": 2})))
    objective, seeds = trainer.task.objective, []

    def watch(unet, batch):
        seeds.extend(batch.inputs["dropout_seeds"].tolist())
        return objective(unet, batch)

    trainer.task.objective = watch
    trainer.fit()
    assert len(seeds) == len(set(seeds)) == 3 * 8
