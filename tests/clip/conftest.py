"""What tests of the CLIP share: a small run on twelve pictures of plain colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagen.clip.config import ClipConfig, ContrastConfig, TowerConfig
from imagen.data.config import DataConfig
from imagen.training.config.sections import EmaConfig, GridConfig, OptimConfig, TrainConfig, ValidationConfig

COLORS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
SMALL = TowerConfig(width=16, layers=1, heads=2)


def write_pictures(folder: Path, tint: int = 0) -> Path:
    """Twelve pictures of a colour each, three shades of four, with captions."""
    folder.mkdir()
    for number in range(12):
        name, color = list(COLORS.items())[number % 4]
        shade = tuple(max(0, part - 15 * (number // 4) - tint) for part in color)
        Image.new("RGB", (16, 16), shade).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {name} picture, shade {number // 4}")
    return folder


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ContrastConfig]:
    """make("run", train={...}) -> a run of 8 steps on twelve pictures, with these keys of sections changed."""
    folders = {name: str(write_pictures(tmp_path / name, tint)) for name, tint in (("pictures", 0), ("held_out", 5))}

    def config(run: str = "run", **changes: dict[str, Any]) -> ContrastConfig:
        whole = ContrastConfig(
            str(tmp_path / run),
            data=DataConfig("folder", folders["pictures"]),
            optim=OptimConfig(lr=0.01, warmup=2),
            ema=EmaConfig(decay=0.5),
            train=TrainConfig(steps=8, batch_size=6, num_workers=0, checkpoint_every=100, log_every=2),
            validation=ValidationConfig(every=4, data=DataConfig("folder", folders["held_out"]), samples=12),
            grid=GridConfig(every=8),
            clip=ClipConfig(
                image_size=16, patch_size=8, image=SMALL, text=SMALL, projection=8, max_length=12, vocabulary=50
            ),
        )
        return replace(whole, **{name: replace(getattr(whole, name), **values) for name, values in changes.items()})

    return config
