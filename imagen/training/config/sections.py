"""The sections of a configuration that any training has: frozen dataclasses, read from YAML and `--a.b value`.

Nothing here imports torch, so that a misspelt key is reported before anything heavy loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from imagen.data.config import DataConfig
from imagen.errors import require
from imagen.training.config.optim import OptimConfig


@dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the weights, which is what a run exports."""

    decay: float = 0.9999
    """the paper gives none (our choice)"""
    warmup: bool = True
    """start from a short average: decay after n updates is min(decay, (1 + n) / (10 + n))"""

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"ema.decay {self.decay} must lie in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    """optimizer steps in all"""
    batch_size: int = 64
    """pictures per optimizer step, over all processes and accumulation steps together"""
    accumulation: int = 1
    """the batch is worked through in this many parts"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """compute in bfloat16 where that is safe; the weights stay as train.dtype says"""
    dtype: Literal["float32", "float64"] = "float32"
    """dtype of the weights (float64 serves checks of exactness)"""
    seed: int = 0
    """of the initial weights and of everything drawn while training"""
    num_workers: int = 1
    """processes that load pictures, per training process; 0 loads in the training process"""
    compile: bool = False
    """torch.compile the network"""
    checkpoint_every: int = 1000
    """steps between two resume points"""
    keep_last: int = 2
    """resume points kept"""
    log_every: int = 10
    """steps between two lines of metrics.jsonl"""
    time_limit: float | None = None
    """save and stop after this many minutes; the same command goes on later"""
    max_skipped: int = 100
    """stop when more steps in all than this were skipped for a non-finite loss or gradient"""
    max_skipped_in_a_row: int = 10
    """stop when more consecutive steps than this were skipped"""
    tensorboard: bool = False
    """also log to TensorBoard (needs the tensorboard package)"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep_last", "log_every"):
            require(getattr(self, name) > 0, f"train.{name} {getattr(self, name)} must be positive")
        for name in ("num_workers", "max_skipped", "max_skipped_in_a_row", "seed"):
            require(getattr(self, name) >= 0, f"train.{name} {getattr(self, name)} must not be negative")
        require(
            self.batch_size % self.accumulation == 0,
            f"train.batch_size {self.batch_size} must be a multiple of train.accumulation ({self.accumulation})",
        )
        require(
            self.time_limit is None or self.time_limit > 0,
            f"train.time_limit {self.time_limit} must be positive minutes or null",
        )
        require(
            self.dtype == "float32" or self.mixed_precision == "no",
            "train.dtype float64 and train.mixed_precision bf16 exclude each other: set mixed_precision to no",
        )


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured on held-out pictures, with the EMA weights."""

    every: int = 0
    """steps between two measurements; 0 for none"""
    data: DataConfig | None = None
    """the held-out pictures: a section with the keys of `data`"""
    samples: int = 128
    """pictures, the first ones there"""
    batch_size: int = 32
    """pictures at once"""
    seed: int = 0
    """of what is drawn for it, and of the pictures of the shapes world"""

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size"):
            require(getattr(self, name) > 0, f"validation.{name} {getattr(self, name)} must be positive")
        for name in ("every", "seed"):
            require(getattr(self, name) >= 0, f"validation.{name} {getattr(self, name)} must not be negative")
        require(
            self.every == 0 or self.data is not None,
            f"validation.every {self.every}, but no validation.data: name the held-out pictures as in data",
        )


@dataclass(frozen=True)
class GridConfig:
    """The samples drawn while training, with the EMA weights."""

    every: int = 1000
    """steps between two grids; 0 for none"""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"grid.every {self.every} must not be negative: 0 draws none")


class RunSettings(Protocol):
    """What the trainer reads of a run's configuration, a frozen dataclass; the rest is its task's."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def run_dir(self) -> str:
        """Folder of the run."""

    @property
    def data(self) -> DataConfig:
        """The pictures."""

    @property
    def optim(self) -> OptimConfig:
        """The optimizer."""

    @property
    def ema(self) -> EmaConfig:
        """The average."""

    @property
    def train(self) -> TrainConfig:
        """The loop."""

    @property
    def validation(self) -> ValidationConfig:
        """The held-out pictures."""

    @property
    def grid(self) -> GridConfig:
        """The samples."""
