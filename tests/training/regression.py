"""The smallest task that is none of a diffusion: a linear map from pictures to the number that is their caption."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagen.data import Want, make_source
from imagen.data.sources import Source, collate
from imagen.training.config.resumed import Changes, migrate
from imagen.training.config.sections import RunSettings
from imagen.training.processes import Processes
from imagen.training.randomness import draw_noise
from imagen.training.state.ema import EMA
from imagen.training.task import Loaded
from imagen.training.trainer import Trainer

SIDE = 4


@dataclass(frozen=True)
class MapConfig:
    """The section `map`."""

    noise: float = 0.1
    """on the pictures"""
    start: str | None = None
    """weights that another run exported"""


@dataclass(frozen=True)
class RegressionConfig(RunSettings):
    """A run."""

    map: MapConfig = field(default_factory=MapConfig)


class Linear(nn.Module):
    """A linear map that counts, in a buffer, what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * SIDE * SIDE, 1)
        self.register_buffer("shown", torch.zeros((), dtype=torch.int64))

    def forward(self, pictures: Tensor) -> Tensor:
        if self.training:
            self.shown += len(pictures)
        return self.map(pictures.flatten(1))[:, 0]


class Rows(NamedTuple):
    """pictures (B, 3, 4, 4) and numbers (B,)."""

    pictures: Tensor
    numbers: Tensor


class RegressionTask:
    """A task (see :class:`imagen.training.task.Task`); its groups are even and odd numbers."""

    weights = "linear"
    groups = ("even", "odd")

    def __init__(self, config: RegressionConfig) -> None:
        self.config = config

    @property
    def changes(self) -> Changes:
        return Changes(free=("map.start",), warned=("map.noise",))

    @property
    def notes(self) -> Sequence[str]:
        return ("a line for the user",)

    def migrate(self, saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        tree, notes = migrate(saved)
        if "linear" in tree:  # as if the section had been called so once
            tree["map"] = tree.pop("linear")
            notes.append("linear is map now")
        return tree, notes

    def load(self, device: torch.device, processes: Processes, saved: Mapping[str, Tensor] | None) -> Loaded:
        torch.manual_seed(self.config.train.seed)
        self.module = Linear().to(device)
        start = self.config.map.start
        if saved is None and start is not None:
            saved = load_file(Path(start) / "linear.safetensors")
        if saved is not None:
            self.module.load_state_dict(saved)
        self.device = device
        want = Want(SIDE)
        held_out = self.config.validation.data
        self.held_out: Source | None = None if held_out is None else make_source(held_out, want)  # type: ignore
        return Loaded(self.module, make_source(self.config.data, want, self.config.train.seed))

    def batch(self, raw: Mapping[str, Any], step: int, rows: range) -> Rows:
        numbers = torch.tensor([float(caption) for caption in raw["caption"]], device=self.device)
        noise = draw_noise((3, SIDE, SIDE), self.config.train.seed, "picture", step, rows, torch.Generator(self.device))
        return Rows(raw["image"].to(self.device) + self.config.map.noise * noise, numbers)

    def losses(self, model: nn.Module, batch: Rows) -> Tensor:
        return (model(batch.pictures) - batch.numbers).square()

    def group(self, batch: Rows) -> Tensor:
        return batch.numbers.long() % 2

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        assert self.held_out is not None
        raw = collate([self.held_out[row] for row in range(self.config.validation.samples)])
        self.module.eval()
        loss = self.losses(self.module, Rows(raw["image"], torch.tensor([float(c) for c in raw["caption"]])))
        self.module.train()
        return {"val_loss": loss.mean().item(), "val_loss/worst": loss.max().item()}

    def draw(self, ema: EMA, path: Path) -> list[Path]:
        """A row of pixels, which are the bytes of the weights, and the row mirrored."""
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = np.frombuffer(ema.average["map.weight"].numpy().tobytes(), np.uint8).reshape(1, -1, 3)
        paths = [path, path.with_stem(f"{path.stem}-mirrored")]
        for one, pixels in zip(paths, (weights, weights[:, ::-1]), strict=True):
            Image.fromarray(np.ascontiguousarray(pixels)).save(one)
        return paths

    def export(self, ema: EMA, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(ema.average), folder / "linear.safetensors", {"step": str(step)})


def lines(config: RegressionConfig) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "clock"} for line in found]


def stop_after(trainer: Trainer, step: int) -> Trainer:
    train_step = trainer._train_step
    trainer._train_step = lambda batches: train_step(batches) or trainer.step == step  # type: ignore[method-assign]
    return trainer
