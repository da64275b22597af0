"""What the tests of fine-tuning share: configurations of a small converted stage, and how well it does."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from imagen import ImagenPipeline
from imagen.cascade.training.inputs.batches import draw_batch
from imagen.data.sources import collate
from imagen.training.trainer import Trainer
from tests.factories import seeded

CAPTIONS = ["a red circle", "two blue star", "a small green circle", "a blue star"]
IF_STAGE = {
    "stage.schedule.kind": "cosine_discrete",
    "text.max_length": 77,
    "text.padding": "visible",
    "text.unconditional": "empty",
    "text.lowercase": "true",
    "data.kind": "folder",
    "optim.warmup": 0,
    "train.batch_size": 4,
    "train.num_workers": 0,
    "train.log_every": 2,
    "train.checkpoint_every": 100,
    "grid.every": 0,
}
BASE = {**IF_STAGE, "stage.size": 16, "train.drop_variance": "true"}
SECOND = {
    **IF_STAGE,
    "stage.name": "sr256",
    "stage.size": 32,
    "stage.lowres_size": 16,
    "stage.aug_space": "upsampled",
    "stage.aug_schedule.kind": "cosine_discrete",
    "stage.lowres_mode": "bilinear_corners",
}
LORA = {"lora.rank": 4, "lora.alpha": 8, "optim.lr": 5e-3, "ema.decay": 0.9}


def pipeline(folder: Path) -> ImagenPipeline:
    pipe = ImagenPipeline.from_pretrained(folder, safety_checker=None, watermarker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def held_out_loss(trainer: Trainer) -> float:
    """The loss on pictures that no run was shown and noise that it did not see."""
    generator = seeded(9)
    rows = [copy.copy(trainer.source[i]) for i in range(4)]
    raw = collate(rows)
    raw["image"] = raw["image"] + 0.05 * torch.randn(raw["image"].shape, generator=generator)
    losses = []
    with torch.no_grad():
        for step in range(8):
            batch = trainer.task.batch_maker(raw, draw_batch(99, step, 4, 0.0, True), 10_000 + step, range(4))
            losses.append(trainer.task.objective(trainer.module, batch).mean())
    return float(torch.stack(losses).mean())
