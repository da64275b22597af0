"""What a stage is, what it is trained on, and how it samples; see :mod:`imagen.training.config`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from imagen.data.config import DataConfig
from imagen.errors import require


@dataclass(frozen=True)
class ScheduleConfig:
    """A noise schedule (imagen.diffusion.schedules)."""

    kind: Literal["cosine", "linear", "cosine_discrete"] = "cosine"
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

    kind: Literal["uniform", "min_snr", "clamped_snr", "sigmoid"] = "uniform"
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

    name: Literal["base64", "sr256", "sr1024"] = "base64"
    """the slot that this stage takes in a pipeline"""
    size: int = 64
    """side of the pictures this stage makes, in pixels"""
    lowres_size: int | None = None
    """side of the low-resolution or conditioning input in pixels; null for the base stage"""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    """what the network predicts, in diffusers' words"""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    text_dropout: float = 0.1
    """share of captions replaced by the null text, for classifier-free guidance (paper, section 2.2)"""
    aug_space: Literal["lowres", "upsampled"] = "lowres"
    """noise the low-resolution picture before (the paper) or after (IF) it is resized"""
    aug_schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """the schedule that turns an augmentation level into an amount of noise"""
    lowres_mode: Literal["auto", "area", "bicubic", "bilinear", "bilinear_corners", "nearest"] = "auto"
    """how the low-resolution picture is enlarged: auto is bicubic, bilinear_corners IF's"""

    def __post_init__(self) -> None:
        require(self.size > 0, f"stage.size {self.size} must be positive")
        require(0 <= self.text_dropout <= 1, f"stage.text_dropout {self.text_dropout} must lie in [0, 1]")
        if self.name == "base64":
            require(self.lowres_size is None, f"stage.lowres_size {self.lowres_size}: base64 takes none, use null")
            for name, default in (("aug_space", "lowres"), ("aug_schedule", ScheduleConfig()), ("lowres_mode", "auto")):
                value = getattr(self, name)
                require(value == default, f"stage.{name} {value!r}: base64 has no low-resolution input, leave it out")
        else:
            require(
                self.lowres_size is not None and 0 < self.lowres_size <= self.size,
                f"stage.lowres_size {self.lowres_size}: {self.name} needs a side up to stage.size ({self.size})",
            )


@dataclass(frozen=True)
class SamplingConfig:
    """How the finished stage samples unless told otherwise; stored in stage.json, and used for the grids."""

    sampler: Literal["ddpm", "ddim", "dpm++"] = "ddpm"
    """ddpm is the paper's ancestral sampler"""
    gamma: float = 0.0
    """of ddpm: its variance between the small one, 0, and the large one, 1 (paper, appendix A, which gives no value)"""
    num_inference_steps: int = 50
    """evaluations of the network; the paper gives no number (our choice)"""
    guidance_scale: float = 5.0
    """classifier-free guidance weight; 1 is off"""
    threshold: Literal["none", "static", "dynamic"] = "dynamic"
    """what keeps the estimate of the picture in [-1, 1] at every step (paper, section 2.3)"""
    threshold_p: float = 0.995
    """quantile of |x0| for dynamic thresholding (paper, section 2.3)"""
    threshold_cap: float | None = None
    """upper bound of that quantile; null is the paper's, 1.5 is IF's"""
    aug_level: float = 0.1
    """noise-conditioning level of the low-resolution input, in [0, 1]"""
    lowres_consistency: int = 0
    """keep the input's mean colours over cells of so many of its pixels; 0 (the paper) is off"""

    def __post_init__(self) -> None:
        require(
            0 <= self.gamma <= (1 if self.sampler == "ddpm" else 0),
            f"sampling.gamma {self.gamma} must lie in [0, 1], and be 0 with another sampler than ddpm",
        )
        steps = self.num_inference_steps
        require(1 <= steps <= 1000, f"sampling.num_inference_steps {steps} must lie in [1, 1000]")
        require(
            math.isfinite(self.guidance_scale), f"sampling.guidance_scale {self.guidance_scale} must be a finite number"
        )
        require(0 < self.threshold_p <= 1, f"sampling.threshold_p {self.threshold_p} must lie in (0, 1]")
        require(0 <= self.aug_level <= 1, f"sampling.aug_level {self.aug_level} must lie in [0, 1]")
        cell = self.lowres_consistency
        require(cell >= 0, f"sampling.lowres_consistency {cell} must be at least 0, which is off")


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
