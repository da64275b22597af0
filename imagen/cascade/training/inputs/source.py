"""The pictures that a stage is trained on."""

from __future__ import annotations

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.inputs.conditions import make_conditions, network_facts
from imagen.cascade.training.inputs.texts import Texts
from imagen.data import ShapesDataset, Want, make
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.errors import ConfigError


def make_source(config: RunConfig, seed: int | None = None) -> PictureDataset | ShapesDataset | StreamDataset:
    """The pictures that `config` trains on, with all that its conditions want of them.

    Args:
        seed: replaces the run's seed where the source draws pictures, for samples that training does not see.

    Raises:
        ConfigError: nothing there, or sizes that the source cannot make.
    """
    try:
        want = Want(config.stage.size, channels=network_facts(config).in_channels, captions="optional")
        for condition in make_conditions(config, Texts(config)):
            want = condition.wants(want)
        return make.make_source(config.data, want, config.train.seed if seed is None else seed)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data: {error}") from error
