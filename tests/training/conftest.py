"""What tests of the trainer share: a small run of the regression task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.data.config import DataConfig
from imagen.training.config.sections import EmaConfig, GridConfig, OptimConfig, TrainConfig, ValidationConfig
from tests.training.regression import RegressionConfig


def write_pictures(folder: Path, seed: int) -> Path:
    """Twelve pictures; the caption of each is 8 times its mean brightness in [0, 1]."""
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels // (1 + number % 3)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(str(round(8 * float((pixels // (1 + number % 3)).mean()) / 255)))
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., RegressionConfig]:
    """make("run", train={...}) -> a run of 12 steps on twelve pictures, with these keys of sections changed."""
    pictures = {name: str(write_pictures(tmp_path / name, seed)) for seed, name in enumerate(("pictures", "held_out"))}

    def config(run: str = "run", **changes: dict[str, Any]) -> RegressionConfig:
        data = DataConfig("folder", pictures["pictures"], resize="area", max_skipped_share=0.2)
        held_out = DataConfig("folder", pictures["held_out"], resize="area")
        whole = RegressionConfig(
            str(tmp_path / run),
            data=data,
            optim=OptimConfig(lr=0.05, warmup=2),
            ema=EmaConfig(decay=0.5),
            train=TrainConfig(steps=12, batch_size=6, num_workers=0, checkpoint_every=100, log_every=3),
            validation=ValidationConfig(every=6, data=held_out, samples=12),
            grid=GridConfig(every=6),
        )
        sections = {name: replace(getattr(whole, name), **values) for name, values in changes.items()}
        return replace(whole, **sections)

    return config
