"""The configuration of one training run: frozen dataclasses, read from YAML and `--a.b value` (see `parsing`).

Nothing here imports torch, so that a misspelt key is reported before anything heavy loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from imagen.training.data_config import DataConfig, check_pictures
from imagen.training.errors import require
from imagen.training.lora_config import LoraConfig
from imagen.training.optim_config import OptimConfig


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

    def __post_init__(self) -> None:
        steps = self.num_inference_steps
        require(1 <= steps <= 1000, f"sampling.num_inference_steps {steps} must lie in [1, 1000]")
        require(
            math.isfinite(self.guidance_scale), f"sampling.guidance_scale {self.guidance_scale} must be a finite number"
        )
        require(0 < self.threshold_p <= 1, f"sampling.threshold_p {self.threshold_p} must lie in (0, 1]")
        require(0 <= self.aug_level <= 1, f"sampling.aug_level {self.aug_level} must lie in [0, 1]")


@dataclass(frozen=True)
class TextConfig:
    """The frozen text encoder, or embeddings that it made earlier."""

    encoder: str | None = None
    """folder or Hub id of a T5 encoder with its tokenizer; null trains without text, or with what made text.cache"""
    cache: str | None = None
    """folder that python -m imagen.text.cache wrote: train from it and load no encoder"""
    max_length: int = 128
    """captions are cut to this many tokens, the paper gives none (our choice)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype the encoder computes in; its output is float32"""
    padding: Literal["masked", "visible"] = "masked"
    """masked: the network never sees it; visible (IF): captions are padded to max_length and all positions are read"""
    unconditional: Literal["zero", "empty"] = "zero"
    """what stands for a dropped caption: one zero token, or (IF) the encoding of an empty one"""
    lowercase: bool = False
    """strip and lower-case captions, as IF's were"""

    @property
    def reading(self) -> dict[str, Any]:
        """How captions are read, in the words of a stored model (imagen.cascade.stages.TextDefaults)."""
        return {"padding": self.padding, "null": self.unconditional, "lowercase": self.lowercase}

    @property
    def used(self) -> bool:
        """Whether the stage is trained with text."""
        return self.encoder is not None or self.cache is not None

    def __post_init__(self) -> None:
        require(self.max_length > 0, f"text.max_length {self.max_length} must be positive")
        plain = self.cache is None or (self.padding == "masked" and not self.lowercase)
        require(
            plain,
            f"text.cache {self.cache!r} keeps captions as written and without padding: set text.cache null to train "
            "with text.padding visible or text.lowercase",
        )


@dataclass(frozen=True)
class EmaConfig:
    """The exponential moving average of the weights, which is what a stage exports."""

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
    stratified_t: bool = True
    """spread the noise levels of a batch evenly over [0, 1] (unbiased, less noisy)"""
    gradient_checkpointing: bool | tuple[int, ...] = False
    """recompute activations in the backward pass, less memory for more time: true for all levels of the network, or a
    list of them as in unet.attention_levels; the first are the largest in pixels and save most"""
    compile: bool = False
    """torch.compile the network"""
    init_from: str | None = None
    """start from the weights of a stage: a run/model folder, or a network in a pipeline folder (models/if/base_unet)"""
    drop_variance: bool = False
    """leave the learned variance of the network in init_from behind: its output then has half of the channels"""
    checkpoint_every: int = 1000
    """steps between two resume points"""
    keep_last: int = 2
    """resume points kept"""
    log_every: int = 10
    """steps between two lines of metrics.jsonl"""
    time_limit: float | None = None
    """save and stop after this many minutes; the same command goes on later"""
    max_skipped: int = 100
    """stop when this many steps in all were skipped for a non-finite loss or gradient"""
    max_skipped_in_a_row: int = 10
    """stop when this many consecutive steps were skipped"""
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
    """The loss on held-out pictures, per noise level, with the EMA weights."""

    every: int = 0
    """steps between two measurements; 0 for none"""
    data: DataConfig | None = None
    """the held-out pictures: a section with the keys of `data`"""
    samples: int = 128
    """pictures, the first ones there"""
    levels: int = 8
    """noise levels, evenly spaced in t; every picture is judged at each"""
    batch_size: int = 32
    """pictures at once"""
    seed: int = 0
    """of the noise, and of the pictures of the shapes world"""

    def __post_init__(self) -> None:
        for name in ("samples", "levels", "batch_size"):
            require(getattr(self, name) > 0, f"validation.{name} {getattr(self, name)} must be positive")
        for name in ("every", "seed"):
            require(getattr(self, name) >= 0, f"validation.{name} {getattr(self, name)} must not be negative")
        require(
            self.every == 0 or self.data is not None,
            f"validation.every {self.every}, but no validation.data: name the held-out pictures as in data",
        )


@dataclass(frozen=True)
class GridConfig:
    """The grids of samples drawn while training, with the EMA weights."""

    every: int = 1000
    """steps between two grids; 0 for none"""
    num_inference_steps: int = 20
    """DDIM steps"""
    guidance_scale: float | None = None
    """null takes sampling.guidance_scale"""
    prompts: tuple[str, ...] = ()
    """base stage and cascade: one column each; empty takes captions of the data, as SR stages alone always do"""
    count: int = 8
    """pictures in a grid where prompts is empty"""
    raw: bool = False
    """below each row of samples, one from the weights as they are, without averaging"""
    cascade: str | None = None
    """a pipeline folder, or the run of another stage: draw a second grid through the whole cascade, where this run's
    network takes its own slot; prompts, or the data's captions where there are none, are its texts"""
    batch_size: int = 16
    """pictures drawn at once"""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"grid.every {self.every} must not be negative: 0 draws none")
        require(self.batch_size > 0, f"grid.batch_size {self.batch_size} must be positive")
        require(self.count > 0, f"grid.count {self.count} must be positive: set grid.every to 0 for no grids")
        steps = self.num_inference_steps
        require(1 <= steps <= 1000, f"grid.num_inference_steps {steps} must lie in [1, 1000]")


@dataclass(frozen=True)
class RunConfig:
    """One training run: one stage, one folder."""

    run_dir: str
    """folder of the run: config.yaml, metrics.jsonl, state/, model/, samples/"""
    unet: dict[str, Any] = field(default_factory=dict)
    """kind (BaseUNet or EfficientUNet) and the arguments of its constructor; left out: those of train.init_from"""
    stage: StageConfig = field(default_factory=StageConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    text: TextConfig = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    grid: GridConfig = field(default_factory=GridConfig)

    def __post_init__(self) -> None:
        self._check_embedding()
        require(bool(self.run_dir), "run_dir is missing: add it to the YAML file or pass --run_dir DIR")
        self._check_start()
        check_pictures("data", self.data, self.stage.size, self.stage.lowres_size)
        held_out = self.validation.data
        if held_out is not None:
            check_pictures("validation.data", held_out, self.stage.size, self.stage.lowres_size)
            require(
                held_out.kind == "shapes" or held_out != self.data,
                "validation.data equals data: these pictures are trained on, name others",
            )

    @property
    def reads_text(self) -> bool:
        """Whether the stage is trained with text."""
        return self.text.used or self.data.embedding is not None

    def _check_embedding(self) -> None:
        """What embeddings that come with the pictures exclude: nothing can be encoded as they were."""
        given, held_out = self.data.embedding, self.validation.data
        if given is None:
            return
        require(
            not self.text.used,
            f"data.embedding {given!r} and text.encoder or text.cache both say what the network reads: set one",
        )
        require(
            self.text.padding == "masked" and self.text.unconditional == "zero" and not self.text.lowercase,
            f"data.embedding {given!r} is read as it is: leave text.padding, text.unconditional and text.lowercase out",
        )
        require(
            not (self.grid.every and self.grid.prompts),
            f"grid.prompts cannot be encoded, texts come from data.embedding {given!r}: leave them out, and the grids "
            "show held-out pictures' texts",
        )
        require(
            held_out is None or held_out.embedding is not None,
            f"validation.data.embedding is missing: texts come from data.embedding {given!r}",
        )

    def _check_start(self) -> None:
        """What can only be done to a network that was trained before."""
        start, rank = self.train.init_from, self.lora.rank
        where = "give train.init_from, a run/model folder or a pipeline's network such as models/if/base_unet"
        require(rank is None or start is not None, f"lora.rank {rank} adapts a trained network: {where}")
        require(not self.train.drop_variance or start is not None, f"train.drop_variance needs a learned one: {where}")
        require(
            self.lora.base_dtype == "float32" or self.train.dtype == "float32",
            f"lora.base_dtype {self.lora.base_dtype} and train.dtype {self.train.dtype} exclude each other",
        )
