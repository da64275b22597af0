"""What a configuration says of the conditions of a stage is what they are made with, and what its pictures have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.cascade.training.config.run import RunConfig, StageTrainConfig
from imagen.cascade.training.config.sections import (
    ConditionsConfig,
    LabelConfig,
    MaskConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
)
from imagen.cascade.training.inputs.source import (
    caption_condition,
    lowres_condition,
    make_conditions,
    make_source,
    named_conditions,
)
from imagen.cascade.training.inputs.texts import Texts
from imagen.conditions.label import Label
from imagen.conditions.lowres import Lowres
from imagen.conditions.mask import Mask
from imagen.conditions.text import Captions
from imagen.data import Want, make
from imagen.data.config import DataConfig
from imagen.data.fields import Encoded, Paired
from imagen.diffusion.schedules import make_schedule
from imagen.errors import ConfigError

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


# --- all conditions of a stage, and its pictures ---------------------------------------------------------------------

FOLDER = DataConfig("folder", "pictures")
UPPER = StageConfig(
    "sr256", 24, 16, aug_space="upsampled", lowres_mode="nearest", schedule=ScheduleConfig("linear"),
    aug_schedule=ScheduleConfig("cosine", shift=0.5, max_log_snr=9.0),
)  # fmt: skip
READS: dict[str, Any] = {"kind": "EfficientUNet", "text_dim": 8}


def test_the_picture_that_a_stage_starts_from_is_made_as_the_stage_says() -> None:
    found = lowres_condition(RunConfig("run", stage=UPPER))
    assert found is not None
    assert (found.size, found.lowres_size, found.space, found.mode) == (24, 16, "upsampled", "nearest")
    t = torch.linspace(0.001, 0.999, 9, dtype=torch.float64)
    assert torch.equal(found.schedule.log_snr(t), make_schedule("cosine", shift=0.5, max_log_snr=9.0).log_snr(t))
    assert lowres_condition(RunConfig("run")) is None


@pytest.mark.parametrize(("text", "data", "expected"), [
    (TextConfig("t5", max_length=9), DataConfig(), ("zero", True, None)),
    (TextConfig("t5", unconditional="empty"), DataConfig(), ("empty", True, None)),
    (TextConfig(cache="c"), DataConfig(), ("zero", True, None)),
    (TextConfig(max_length=9), replace(FOLDER, embedding="npy"), ("zero", False, Encoded(9, 8))),
])  # fmt: skip
def test_a_stage_with_text_needs_a_caption_of_every_picture_or_what_was_made_of_it(
    text: TextConfig, data: DataConfig, expected: Any
) -> None:
    config = RunConfig("run", unet=READS, text=text, data=data)
    texts = Texts(config)
    found = caption_condition(config, texts)
    assert found is not None
    assert found.read is texts
    assert (found.null, found.required, found.encoded) == expected
    assert caption_condition(RunConfig("run"), texts) is None


def test_every_condition_that_a_stage_has_is_made_and_only_those() -> None:
    named = ConditionsConfig(LabelConfig(names=("a", "b")), MaskConfig("stored"))
    config = RunConfig("run", unet=READS, stage=UPPER, text=TextConfig("t5"), conditions=named)
    assert [type(one) for one in make_conditions(config, Texts(config))] == [Captions, Lowres, Label, Mask]
    label, mask = named_conditions(config)
    assert (label, mask) == (Label(2, ("a", "b")), Mask(24, True))
    for conditions, kinds in ((replace(named, mask=None), [Label]), (replace(named, label=None), [Mask])):
        alone = RunConfig("run", conditions=conditions)
        assert [type(one) for one in make_conditions(alone, Texts(alone))] == kinds
    drawn = RunConfig("run", conditions=ConditionsConfig(LabelConfig(3), MaskConfig()))
    assert named_conditions(drawn) == [Label(3, ()), Mask(64, False)]
    assert make_conditions(RunConfig("run"), Texts(config)) == []


def test_the_pictures_have_the_size_channels_and_fields_that_network_and_conditions_want(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(make, "make_source", lambda *given: seen.append(given))
    named = ConditionsConfig(LabelConfig(3), MaskConfig("stored"))
    grey = {**READS, "in_channels": 1, "text_dim": None}
    config = RunConfig("run", unet=grey, stage=UPPER, data=FOLDER, conditions=named, train=StageTrainConfig(seed=5))
    make_source(config)
    make_source(config, seed=0)
    make_source(RunConfig("run", text=TextConfig("t5"), data=FOLDER))
    (data, want, seed), (_, again, other), (_, plain, _) = seen
    assert (data, seed, other) == (FOLDER, 5, 0)
    assert (want.size, want.lowres_size, want.channels, want.captions) == (24, 16, 1, "optional")
    assert list(want.fields) == ["label", "mask"]
    assert again == want
    assert plain == Want(64, captions="required"), "where no network is named, pictures have colours"


def test_pictures_that_are_not_there_or_cannot_be_read_are_told_with_their_section(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="^data: there is no folder '/nowhere'"):
        make_source(RunConfig("run", data=DataConfig("folder", "/nowhere")))

    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(make, "make_source", broken)
    with pytest.raises(ConfigError, match="^data: .*Input/output error"):
        make_source(RunConfig("run"))
