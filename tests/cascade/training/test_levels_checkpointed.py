"""Which levels of the network recompute their activations."""

from __future__ import annotations

import pytest

from imagen.cascade.training.task import StageTask
from imagen.errors import ConfigError
from imagen.training.trainer import Trainer


@pytest.mark.parametrize(("levels", "on"), [(True, [1, 1, 1]), ([0], [1, 0, 0]), ([1], [0, 1, 1]), (False, None)])
def test_levels_are_checkpointed_as_told(config, levels, on):
    unet = Trainer(StageTask(config(**{"train.gradient_checkpointing": levels}))).module
    assert unet.gradient_checkpointing == (on is not None)
    if on is not None:
        assert [unet.down_blocks[0].checkpointed, unet.down_blocks[1].checkpointed, unet.mid_block.checkpointed] == on


def test_a_level_that_is_not_there_is_told_before_training(config):
    with pytest.raises(ConfigError, match=r"train\.gradient_checkpointing \[2\]: .* has levels 0 to 1"):
        Trainer(StageTask(config(**{"train.gradient_checkpointing": [2]})))
