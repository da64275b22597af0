"""The sections of a stage's training that other trainings lack; see :mod:`imagen.cascade.training.config.run`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from imagen.diffusion.vocabulary import AugSpace, PredictionType, ResizeMode, SamplerKind, ScheduleKind, WeightingKind
from imagen.errors import config_errors, require
from imagen.stages.spec import SamplingSettings, slot_named
from imagen.text.reading import Null, Padding, TextDefaults
from imagen.training.config.sections import SEEDS


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
            fits = self.lowres_size is not None and 0 < self.lowres_size <= self.size
            require(
                fits, f"stage.lowres_size {self.lowres_size}: {self.name} needs a side up to stage.size ({self.size})"
            )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(SamplingSettings):
    """How the finished stage samples unless told otherwise; stored in stage.json, and used for the grids."""

    sampler: SamplerKind = "ddpm"
    """ddpm is the paper's ancestral sampler"""
    gamma: float = 0.0
    """of ddpm: its variance between the small one, 0, and the large one, 1 (paper, appendix A, which gives no value)"""

    def __post_init__(self) -> None:
        with config_errors("sampling."):
            super().__post_init__()
        require(
            0 <= self.gamma <= (1 if self.sampler == "ddpm" else 0),
            f"sampling.gamma {self.gamma} must lie in [0, 1], and be 0 with another sampler than ddpm",
        )


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder, or embeddings that it made earlier."""

    encoder: str | None = None
    """folder or Hub id of a T5 or CLIP with its tokenizer; null trains without text, or with what made text.cache"""
    cache: str | None = None
    """folder that python -m imagen.text.cache wrote: train from it and load no encoder"""
    max_length: int = 128
    """captions are cut to this many tokens, the paper gives none (our choice); a CLIP reads 77 at most"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype the encoder computes in; its output is float32"""
    padding: Padding = "masked"
    """masked: the network never sees it; visible (IF): captions are padded to max_length and all positions are read"""
    unconditional: Null = "zero"
    """what stands for a dropped caption: one zero token, or (IF) the encoding of an empty one"""
    lowercase: bool = False
    """strip and lower-case captions, as IF's were"""

    @property
    def reading(self) -> TextDefaults:
        """How captions are read, in the words of a stored model."""
        return TextDefaults(self.padding, self.unconditional, self.lowercase)

    @property
    def used(self) -> bool:
        """Whether the stage is trained with text."""
        return self.encoder is not None or self.cache is not None

    def __post_init__(self) -> None:
        require(self.max_length > 0, f"text.max_length {self.max_length} must be positive")
        require(
            self.cache is None or (self.padding == "masked" and not self.lowercase),
            f"text.cache {self.cache!r} keeps captions as written and without padding: set text.cache null to train "
            "with text.padding visible or text.lowercase",
        )


@dataclass(frozen=True)
class LabelConfig:
    """A class of each picture, by number or name (imagen.conditions.label); data.fields.label says where it stands."""

    classes: int = 0
    """how many there are; 0: as many as names. The network has the same number in unet.classes.label"""
    names: tuple[str, ...] = ()
    """of the classes, in order, by which they may be stored and asked for; empty: numbers alone"""

    @property
    def count(self) -> int:
        """How many classes."""
        return self.classes or len(self.names)

    def __post_init__(self) -> None:
        require(self.count > 0, "conditions.label has no classes: give classes, or names")
        require(
            not self.names or len(self.names) == self.count,
            f"conditions.label.classes {self.classes} and {len(self.names)} names: give as many, or one of both",
        )


@dataclass(frozen=True)
class MaskConfig:
    """Painting into a part of each picture (imagen.conditions.mask). The network has unet.extra_channels.mask, one more
    than a picture has."""

    source: Literal["drawn", "stored"] = "drawn"
    """drawn: other rectangles at every step; stored: the pictures that data.fields.mask names, white where to paint"""


@dataclass(frozen=True)
class ConditionsConfig:
    """Conditions beside text and low-res picture; null is none."""

    label: LabelConfig | None = None
    """a class of each picture: classes, how many, or names, which"""
    mask: MaskConfig | None = None
    """a part of each picture that is to be painted, the rest is given: source, where the masks come from, or {}"""


@dataclass(frozen=True)
class ScoresConfig:
    """Samples of the EMA weights against held-out pictures, as sets (imagen.scores): the first ones of validation.data
    are the reference, and the samples have their texts and, for super-resolution, their inputs."""

    features: str = ""
    """the feature network: folder or Hub id of a CLIP, SigLIP, DINOv2 or ViT, or the file of the FID's Inception"""
    every: int = 5000
    """steps between two measurements: a multiple of validation.every"""
    count: int = 256
    """pictures; distances of few are larger than of many: compare like with like"""
    num_inference_steps: int = 20
    """DDIM steps"""
    guidance_scale: float | None = None
    """null takes sampling.guidance_scale"""
    batch_size: int = 16
    """pictures sampled at once"""
    seed: int = 0
    """of the samples' noise"""

    def __post_init__(self) -> None:
        require(self.count > 1, f"validation.scores.count {self.count} must be at least 2: a distance is of sets")
        for name in ("every", "batch_size"):
            require(getattr(self, name) > 0, f"validation.scores.{name} {getattr(self, name)} must be positive")
        require(0 <= self.seed < SEEDS, f"validation.scores.seed {self.seed} must lie in [0, {SEEDS})")
        check_drawing("validation.scores", self.num_inference_steps, self.guidance_scale)
        named = "name a folder or Hub id of a CLIP, or the file of the FID's Inception"
        require(bool(self.features), f"validation.scores.features is missing: {named}")


def check_drawing(section: str, steps: int, scale: float | None) -> None:
    """Raises ConfigError for DDIM steps, or a guidance scale, that nothing can be sampled with while training."""
    require(1 <= steps <= 1000, f"{section}.num_inference_steps {steps} must lie in [1, 1000]")
    right = scale is None or 0 <= scale < math.inf
    told = f"{section}.guidance_scale {scale} must be at least 0 and finite, or null for the sampling section's"
    require(right, told)


ATTENTION = ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0")
WITHOUT_TEXT = tuple(name for name in ATTENTION if not name.startswith("add_"))


@dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter (Hu et al. 2021) on some layers of the network in train.init_from, which stays as it is."""

    rank: int | None = None
    """rank of the adapter's matrices; null trains all weights"""
    alpha: float | None = None
    """the adapter's output is multiplied by alpha/rank; null takes rank, a factor of 1"""
    targets: tuple[str, ...] = ATTENTION
    """layers to adapt, linear ones and convolutions, by the end of their names; default: all of attention"""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the frozen weights, and so of the network's arithmetic; the adapter itself has train.dtype"""

    @property
    def scale(self) -> float:
        """alpha, with its default filled in."""
        return float(self.rank or 1) if self.alpha is None else self.alpha

    def __post_init__(self) -> None:
        rank, alpha = self.rank, self.alpha
        good = rank is None or rank > 0
        require(good, f"lora.rank {rank} must be positive: 4 to 64 is usual, null trains all weights")
        good = alpha is None or (alpha > 0 and math.isfinite(alpha))
        require(good, f"lora.alpha {alpha} must be a positive number, or null for lora.rank")
        good = bool(self.targets) and all(self.targets)  # every name ends in nothing
        require(good, f"lora.targets {list(self.targets)} names nothing: name layers to adapt, such as to_q")
        for name in ("alpha", "targets", "base_dtype"):
            value = getattr(self, name)
            acts = rank is not None or value == type(self).__dataclass_fields__[name].default
            require(acts, f"lora.{name} {value!r} has no effect without lora.rank: set lora.rank, or leave it out")
