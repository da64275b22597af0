"""The sections of a configuration that any training has: frozen dataclasses, read from YAML and `--a.b value`.

Nothing here imports torch, so that a misspelt key is reported before anything heavy loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from imagen.data.config import DataConfig
from imagen.errors import require, require_reader

SEEDS = 2**62  # seeds below it, and sums of such a one and a number, are taken by torch's generators and NumPy's


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and the learning rate."""

    kind: Literal["adamw", "adafactor", "adam8bit"] = "adamw"
    """adamw (with muon_lr: Muon and AdamW), adafactor (the paper's base stage) or adam8bit (AdamW with 8-bit
    running means: needs bitsandbytes and a CUDA GPU)"""
    lr: float = 1e-4
    """peak learning rate (the paper: 1e-4 for every stage); adafactor multiplies it by each parameter's root mean
    square"""
    muon_lr: float | None = None
    """peak learning rate of Muon, which then trains all weights of two or more axes but those of the first and the
    last convolution; null: AdamW trains everything"""
    betas: tuple[float, float] = (0.9, 0.99)
    """decay of the running mean and of the running square of the gradient (the paper's SR stages: 0.9, 0.999); not of
    adafactor, which has its own"""
    momentum: float | None = None
    """for adafactor: average updates with this decay, at the cost of a copy of the weights; null (the paper): none"""
    eps: float = 1e-8
    """added to the root of the running square; not of adafactor, which has its own"""
    weight_decay: float = 0.0
    """decoupled decay, on weights of two or more axes only (biases and norms are left alone)"""
    warmup: int = 1000
    """steps of linear warm-up (the paper: 10,000)"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """shape of the learning rate after the warm-up"""
    hold: int = 0
    """steps at the peak between the warm-up and the decay"""
    clip_norm: float | None = 1.0
    """gradients are scaled down to this global norm; null for no clipping"""

    def __post_init__(self) -> None:
        require(self.lr >= 0 and math.isfinite(self.lr), f"optim.lr {self.lr} must be zero or a positive number")
        muon = self.muon_lr
        right = muon is None or 0 < muon < math.inf
        require(right, f"optim.muon_lr {muon} must be a positive number, or null for AdamW alone")
        require(self.eps > 0 and math.isfinite(self.eps), f"optim.eps {self.eps} must be a positive number, as 1e-8")
        require(all(0 <= b < 1 for b in self.betas), f"optim.betas {self.betas} must lie in [0, 1)")
        momentum = self.momentum
        require(momentum is None or 0 <= momentum < 1, f"optim.momentum {momentum} must lie in [0, 1), or be null")
        for name in ("weight_decay", "warmup", "hold"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optim.{name} {value} must not be negative, and finite")
        clip = self.clip_norm
        require(clip is None or clip > 0, f"optim.clip_norm {clip} must be positive or null")
        adam = ("adamw", "adam8bit")
        readers = {"muon_lr": ("adamw",), "betas": adam, "eps": adam, "momentum": ("adafactor",)}
        require_reader("optim", self, self.kind, readers)


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
    channels_last: bool = False
    """lay weights and pictures out channels last, which wide U-Nets on a CPU gain by (docs/training.md, Faster); the
    same numbers but for rounding"""
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
    trackers: tuple[str, ...] = ()
    """where the numbers and grids are written beside the run's folder, of what accelerate knows: tensorboard, wandb,
    ... (each needs its package)"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep_last", "log_every"):
            require(getattr(self, name) > 0, f"train.{name} {getattr(self, name)} must be positive")
        for name in ("num_workers", "max_skipped", "max_skipped_in_a_row", "seed"):
            require(getattr(self, name) >= 0, f"train.{name} {getattr(self, name)} must not be negative")
        require(self.seed < SEEDS, f"train.seed {self.seed} must be below {SEEDS}")
        trackers = list(self.trackers)
        require(len({*trackers}) == len(trackers), f"train.trackers {trackers} names one of them twice")
        size, parts, limit = self.batch_size, self.accumulation, self.time_limit
        require(size % parts == 0, f"train.batch_size {size} must be a multiple of train.accumulation ({parts})")
        right = limit is None or 0 < limit < math.inf
        require(right, f"train.time_limit {limit} must be positive minutes, or null for no limit")
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
        require(self.seed < SEEDS, f"validation.seed {self.seed} must be below {SEEDS}")
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


@dataclass(frozen=True)
class RunSettings:
    """A run: what the trainer reads of its configuration. A task's own is one of these with further sections."""

    run_dir: str
    """folder of the run: config.yaml, metrics.jsonl, state/, model/, samples/"""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    grid: GridConfig = field(default_factory=GridConfig)
