"""What a stage is, what it is trained on, and how it samples; see :mod:`imagen.cascade.training.config.run`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from imagen.data.config import DataConfig
from imagen.diffusion.vocabulary import AugSpace, PredictionType, ResizeMode, SamplerKind, ScheduleKind, WeightingKind
from imagen.errors import ConfigError, require
from imagen.stages.spec import SamplingSettings, slot_named


@dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule (imagen.diffusion.schedules)."""

    kind: ScheduleKind = "cosine"
    """cosine (the paper's base and first SR stage), linear (beta 1e-4 to 0.02), or cosine_discrete (DeepFloyd IF's, of
    1000 levels, on which alone it is trained)"""
    shift: float = 1.0
    """resolution factor reference/size: adds 2 log(shift) to the log-SNR, below 1 is noisier"""
    max_log_snr: float = 20.0
    """log-SNR is clamped to plus or minus this"""

    def __post_init__(self) -> None:
        require(self.shift > 0, f"schedule shift {self.shift} must be positive: 1 leaves the schedule alone")
        require(self.max_log_snr > 0, f"schedule max_log_snr {self.max_log_snr} must be positive: 20 is the default")


@dataclass(frozen=True)
class LossConfig:
    """The weight of the loss as a function of the noise level (imagen.diffusion.losses)."""

    kind: WeightingKind = "uniform"
    """uniform (the paper: 1 on the eps loss), min_snr (min(SNR, gamma)/SNR on the eps loss), clamped_snr or sigmoid
    (sigmoid(bias - log SNR) on the eps loss)"""
    gamma: float = 5.0
    """upper clamp of the SNR, for min_snr and clamped_snr"""
    low: float = 0.0
    """lower clamp of the SNR, for clamped_snr"""
    vlb_weight: float = 0.001
    """weight of the variational bound where the network learns its variance, which it does with twice the channels at
    its output (Nichol & Dhariwal 2021, equation 16)"""
    bias: float = 0.0
    """log-SNR at the middle of the sigmoid, for sigmoid: lower puts weight on noisier levels"""
    per: Literal["t", "log_snr"] = "t"
    """the weight is per unit of t, which is drawn evenly (the paper), or per unit of log-SNR: times
    -1/2 d log SNR / dt, so that the loss does not depend on the schedule (as the papers of the sigmoid state theirs)"""

    def __post_init__(self) -> None:
        require(self.gamma > 0, f"loss gamma {self.gamma} must be positive: 5 is the usual value")
        require(0 <= self.low <= self.gamma, f"loss low {self.low} must lie between 0 and gamma ({self.gamma})")
        good = self.vlb_weight >= 0 and math.isfinite(self.vlb_weight)
        require(good, f"loss vlb_weight {self.vlb_weight} must be zero or a positive number: 0.001 is the usual value")


@dataclass(frozen=True)
class StageConfig:
    """Which stage of the cascade is trained, and on what target."""

    name: Literal["base", "sr256", "sr1024", "base64"] = "base"
    """the slot that this stage takes in a pipeline; base64 is an earlier name of base"""
    size: int = 64
    """side of the pictures this stage makes, in pixels"""
    lowres_size: int | None = None
    """side of the low-resolution or conditioning input in pixels; null for the base stage"""
    prediction_type: PredictionType = "epsilon"
    """what the network predicts, in diffusers' words"""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    text_dropout: float = 0.1
    """share of captions replaced by the null text, for classifier-free guidance (paper, section 2.2)"""
    aug_space: AugSpace = "lowres"
    """noise the low-resolution picture before (the paper) or after (IF) it is resized"""
    aug_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """the schedule that turns an augmentation level into an amount of noise"""
    lowres_mode: ResizeMode = "auto"
    """how the low-resolution picture is enlarged: auto is bicubic, bilinear_corners IF's"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", slot_named(self.name))
        require(self.size > 0, f"stage.size {self.size} must be positive")
        require(0 <= self.text_dropout <= 1, f"stage.text_dropout {self.text_dropout} must lie in [0, 1]")
        if self.name == "base":
            require(self.lowres_size is None, f"stage.lowres_size {self.lowres_size}: base takes none, use null")
            for name, default in (("aug_space", "lowres"), ("aug_schedule", ScheduleConfig()), ("lowres_mode", "auto")):
                value = getattr(self, name)
                require(value == default, f"stage.{name} {value!r}: base has no low-resolution input, leave it out")
        else:
            require(
                self.lowres_size is not None and 0 < self.lowres_size <= self.size,
                f"stage.lowres_size {self.lowres_size}: {self.name} needs a side up to stage.size ({self.size})",
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(SamplingSettings):
    """How the finished stage samples unless told otherwise; stored in stage.json, and used for the grids."""

    sampler: SamplerKind = "ddpm"
    """ddpm is the paper's ancestral sampler"""
    gamma: float = 0.0
    """of ddpm: its variance between the small one, 0, and the large one, 1 (paper, appendix A, which gives no value)"""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(f"sampling.{error}") from None
        require(
            0 <= self.gamma <= (1 if self.sampler == "ddpm" else 0),
            f"sampling.gamma {self.gamma} must lie in [0, 1], and be 0 with another sampler than ddpm",
        )


def check_pictures(name: str, data: DataConfig, size: int, low: int | None) -> None:
    """Raises ConfigError where the section `name` does not fit a stage of these sizes (stage.size, lowres_size)."""
    crop = data.crop
    require(
        low != size or data.conditioning is not None,
        f"stage.lowres_size {low} equals stage.size: such a stage needs paired pictures, {name}.conditioning",
    )
    require(
        low is not None or data.conditioning is None,
        f"{name}.conditioning {data.conditioning!r}, but this stage takes no low-res input: "
        "train it as sr256 or sr1024 with stage.lowres_size",
    )
    if crop is not None and low is not None:
        require(
            crop <= size and crop * low % size == 0,
            f"{name}.crop {crop} must be at most stage.size ({size}) and a multiple of {size // math.gcd(low, size)}",
        )
