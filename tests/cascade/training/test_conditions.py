"""What a configuration says of the picture that a stage starts from is what its condition is made with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.inputs.source import lowres_condition
from imagen.data.fields import Paired

KINDS = ("cosine", "linear", "cosine_discrete")
SR: dict[str, Any] = {"name": "sr256", "size": 8, "lowres_size": 4}


@pytest.mark.parametrize("own", KINDS)
@pytest.mark.parametrize("aug", KINDS)
def test_the_levels_of_the_small_picture_are_those_of_its_own_schedule(
    config: Callable[..., RunConfig], own: str, aug: str
) -> None:
    stage = {**SR, "schedule": {"kind": own}, "aug_schedule": {"kind": aug}}
    condition = lowres_condition(config(stage=stage, **{"unet.lowres_channels": 3}))
    assert condition is not None
    assert condition.on_levels == (aug == "cosine_discrete")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_pictures_have_the_small_side_and_the_channels_that_the_network_takes(
    config: Callable[..., RunConfig], tmp_path: Path, channels: int
) -> None:
    settings: dict[str, Any] = {"data.kind": "folder", "data.path": str(tmp_path), "unet.lowres_channels": channels}
    condition = lowres_condition(config(stage=SR, **settings, **{"data.conditioning": str(tmp_path)}))
    assert condition is not None
    assert condition.paired == Paired(4, channels)
    own = lowres_condition(config(stage=SR, **settings))
    assert own is not None
    assert own.paired is None
