"""The configuration of a stage's training: frozen dataclasses, read from YAML and `--a.b value` (see `parsing`).

Nothing here imports torch, so that a misspelt key is reported before anything heavy loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from imagen.data.config import DataConfig
from imagen.diffusion.guidance import branches, parse_guidance
from imagen.errors import require
from imagen.training.config.sections import GridConfig, RunSettings, TrainConfig, ValidationConfig

from .sections import (
    ConditionsConfig,
    LoraConfig,
    SamplingConfig,
    ScoresConfig,
    StageConfig,
    TextConfig,
    check_drawing,
)


@dataclass(frozen=True)
class StageTrainConfig(TrainConfig):
    """The loop, and what a stage's network starts from."""

    stratified_t: bool = True
    """spread the noise levels of a batch evenly over [0, 1] (unbiased, less noisy)"""
    gradient_checkpointing: bool | tuple[int, ...] = False
    """recompute activations in the backward pass, less memory for more time: true for all levels of the network, or a
    list of them as in unet.attention_levels; the first are the largest in pixels and save most"""
    init_from: str | None = None
    """start from the weights of a stage: a run/model folder, or a network in a pipeline folder (models/if/base_unet)"""
    drop_variance: bool = False
    """leave the learned variance of the network in init_from behind: its output then has half of the channels"""


@dataclass(frozen=True)
class LossPerLevelConfig(ValidationConfig):
    """The loss on held-out pictures, per noise level, with the EMA weights."""

    levels: int = 8
    """noise levels, evenly spaced in t; every picture is judged at each"""
    scores: ScoresConfig | None = None
    """distances of samples from held-out pictures, and their CLIP score, where features names a feature network; null
    measures none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels > 0, f"validation.levels {self.levels} must be positive")
        if self.scores is not None:
            every = self.scores.every
            told = f"validation.scores.every {every} must be a multiple of validation.every ({self.every})"
            require(self.every > 0 and every % self.every == 0, f"{told}, at whose steps it is measured")

    @property
    def needs(self) -> dict[str, int]:
        """Keys that say how many held-out pictures are looked at, and how many."""
        scores = {} if self.scores is None else {"scores.count": self.scores.count}
        return {"samples": self.samples, **scores}


@dataclass(frozen=True)
class StageGridConfig(GridConfig):
    """The grids of samples drawn while training, with the EMA weights."""

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
        super().__post_init__()
        require(self.batch_size > 0, f"grid.batch_size {self.batch_size} must be positive")
        require(self.count > 0, f"grid.count {self.count} must be positive: set grid.every to 0 for no grids")
        check_drawing("grid", self.num_inference_steps, self.guidance_scale)


@dataclass(frozen=True)
class RunConfig(RunSettings):
    """One training run: one stage, one folder."""

    unet: dict[str, Any] = field(default_factory=dict)
    """kind (a name of unets.NETWORKS) and its constructor's arguments; left out: those of train.init_from"""
    stage: StageConfig = field(default_factory=StageConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    text: TextConfig = field(default_factory=TextConfig)
    conditions: ConditionsConfig = field(default_factory=ConditionsConfig)
    train: StageTrainConfig = field(default_factory=StageTrainConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    validation: LossPerLevelConfig = field(default_factory=LossPerLevelConfig)
    grid: StageGridConfig = field(default_factory=StageGridConfig)

    def __post_init__(self) -> None:
        self._check_embedding()
        require(bool(self.run_dir), "run_dir is missing: add it to the YAML file or pass --run_dir DIR")
        self._check_start()
        self._check_pictures()
        other = self.data.kind == "shapes" or self.validation.data != self.data
        require(other, "validation.data equals data: these pictures are trained on, name others")

    @property
    def pictures(self) -> dict[str, DataConfig]:
        """The sections that name pictures: data and, where there are held-out ones, validation.data."""
        held_out = self.validation.data
        return {"data": self.data, **({} if held_out is None else {"validation.data": held_out})}

    @property
    def reads_text(self) -> bool:
        """Whether the stage is trained with text."""
        return self.text.used or self.data.embedding is not None

    @property
    def needs_weaker(self) -> bool:
        """Whether the stage samples beside a weaker network, which its run does not train; an adapter has no say."""
        settings = self.sampling
        asked = branches(parse_guidance(settings.guidance), settings.guidance_scale)
        return "weak" in asked and self.lora.rank is None

    def _check_embedding(self) -> None:
        """What embeddings that come with the pictures exclude: nothing can be encoded as they were."""
        if self.data.embedding is None:
            return
        given = f"data.embedding {self.data.embedding!r}"
        require(not self.text.used, f"{given} and text.encoder or text.cache both say what the network reads: set one")
        as_it_is = self.text.padding == "masked" and self.text.unconditional == "zero" and not self.text.lowercase
        require(as_it_is, f"{given} is read as it is: leave text.padding, text.unconditional and text.lowercase out")
        require(
            not (self.grid.every and self.grid.prompts),
            f"grid.prompts cannot be encoded, texts come from {given}: leave them out, and the grids show held-out "
            "pictures' texts",
        )
        everywhere = all(data.embedding is not None for data in self.pictures.values())
        require(everywhere, f"validation.data.embedding is missing: texts come from {given}")

    def _check_pictures(self) -> None:
        """Sections that do not fit the stage's sizes."""
        size, low = self.stage.size, self.stage.lowres_size
        for name, data in self.pictures.items():
            paired = data.conditioning is not None
            require(
                low != size or paired,
                f"stage.lowres_size {low} equals stage.size: such a stage needs paired pictures, {name}.conditioning",
            )
            require(
                low is not None or not paired,
                f"{name}.conditioning {data.conditioning!r}, but this stage takes no low-res input: "
                "train it as sr256 or sr1024 with stage.lowres_size",
            )
            if data.crop is not None and low is not None:
                unit = size // math.gcd(low, size)
                require(
                    data.crop <= size and data.crop % unit == 0,
                    f"{name}.crop {data.crop} must be at most stage.size ({size}) and a multiple of {unit}",
                )

    def _check_start(self) -> None:
        """What can only be done to a network that was trained before."""
        start, rank = self.train.init_from, self.lora.rank
        where = "give train.init_from, a run/model folder or a pipeline's network such as models/if/base_unet"
        require(rank is None or start is not None, f"lora.rank {rank} adapts a trained network: {where}")
        require(not self.train.drop_variance or start is not None, f"train.drop_variance needs a learned one: {where}")
        base, dtype = self.lora.base_dtype, self.train.dtype
        require("float32" in (base, dtype), f"lora.base_dtype {base} and train.dtype {dtype} exclude each other")
