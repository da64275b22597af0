"""The configuration of one training run: frozen dataclasses, read from YAML and `--a.b value` (see `parsing`).

Nothing here imports torch, so that a misspelt key is reported before anything heavy loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from imagen.data.config import DataConfig
from imagen.errors import require
from imagen.text.reading import Null, Padding, TextDefaults
from imagen.training.lora_config import LoraConfig
from imagen.training.optim_config import OptimConfig
from imagen.training.stage_config import SamplingConfig, StageConfig, check_pictures


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
    """kind (a name of unets.NETWORKS) and its constructor's arguments; left out: those of train.init_from"""
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
