"""The conditions of a stage, as its configuration names them, and the pictures that it is trained on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.inputs.texts import Texts
from imagen.conditions.condition import Condition, NamedCondition
from imagen.conditions.label import Label
from imagen.conditions.lowres import Lowres
from imagen.conditions.mask import Mask
from imagen.conditions.text import Captions
from imagen.data import ShapesDataset, Want, make
from imagen.data.fields import Encoded, Paired
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.diffusion.schedules import make_schedule
from imagen.errors import config_errors
from unets.contract import Facts, facts


def make_conditions(config: RunConfig, texts: Texts) -> list[Condition[Any]]:
    """Every condition of the stage. Nothing is loaded: `texts` may be so later.

    Raises:
        ValueError: settings that do not go together.
    """
    found = (caption_condition(config, texts), lowres_condition(config))
    return [*(condition for condition in found if condition is not None), *named_conditions(config)]


def named_conditions(config: RunConfig) -> list[NamedCondition[Any]]:
    """Those that the network reads by name."""
    label, mask = config.conditions.label, config.conditions.mask
    found: list[NamedCondition[Any]] = [] if label is None else [Label(label.count, label.names)]
    return found if mask is None else [*found, Mask(config.stage.size, mask.source == "stored")]


def network_facts(config: RunConfig) -> Facts:
    """Of the run's network; without a section it is that of train.init_from, which need not be there to read data."""
    return facts(config.unet or {"kind": "EfficientUNet"})


def caption_condition(config: RunConfig, texts: Texts) -> Captions | None:
    """The text; None for a stage that reads none."""
    if not config.reads_text:
        return None
    given, width = config.data.embedding is not None, network_facts(config).text_dim
    encoded = Encoded(config.text.max_length, width) if given and width is not None else None
    return Captions(texts, config.text.unconditional, config.text.used, encoded)


def lowres_condition(config: RunConfig) -> Lowres | None:
    """What the stage starts from; None for one that starts from noise alone."""
    stage, paired = config.stage, None
    if stage.lowres_size is None:
        return None
    if config.data.conditioning is not None:
        paired = Paired(stage.lowres_size, network_facts(config).lowres_channels)
    schedule, on_levels = make_schedule(**asdict(stage.aug_schedule)), stage.aug_schedule.kind == "cosine_discrete"
    return Lowres(stage.size, stage.lowres_size, schedule, on_levels, stage.aug_space, stage.lowres_mode, paired)


def make_source(config: RunConfig, seed: int | None = None) -> PictureDataset | ShapesDataset | StreamDataset:
    """The pictures that `config` trains on, with all that its conditions want of them.

    Args:
        seed: replaces the run's seed where the source draws pictures, for samples that training does not see.

    Raises:
        ConfigError: nothing there, or sizes that the source cannot make.
    """
    with config_errors("data: ", also=OSError):
        want = Want(config.stage.size, channels=network_facts(config).in_channels, captions="optional")
        for condition in make_conditions(config, Texts(config)):
            want = condition.wants(want)
        return make.make_source(config.data, want, config.train.seed if seed is None else seed)
