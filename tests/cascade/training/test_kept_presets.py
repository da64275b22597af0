"""A pipeline that is composed of another's stages keeps that one's presets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from imagen.cascade.training.compose import compose
from tests.factories import tiny_pipeline

QUICK = {"base": {"num_inference_steps": 2, "guidance_scale": 2.5}, "sr256": {}, "sr1024": {"num_inference_steps": 1}}
SLOW = {"base": {"num_inference_steps": 77}, "sr256": {}, "sr1024": {}}


def stored(folder: Path, presets: dict[str, Any] | None) -> Path:
    pipe = tiny_pipeline()
    if presets is not None:
        pipe.register_to_config(presets=presets)
    pipe.save_pretrained(folder)
    return folder


def composed(**stages: Path) -> dict[str, Any]:
    presets: dict[str, Any] = compose(stages).presets
    return presets


def test_presets_come_along_with_the_stages(tmp_path: Path) -> None:
    model = stored(tmp_path / "a", {"quick": QUICK, "slow": SLOW})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert composed(base=model, sr256=model, sr1024=model) == {"quick": QUICK, "slow": SLOW}
        assert composed(base=model) == {name: {"base": one["base"]} for name, one in (("quick", QUICK), ("slow", SLOW))}


def test_of_two_models_each_stage_has_its_own_and_what_one_lacks_is_told(tmp_path: Path) -> None:
    first = stored(tmp_path / "a", {"fast": QUICK, "slow": SLOW})
    second = stored(tmp_path / "b", None)  # the usual three
    usual = tiny_pipeline().presets["fast"]
    with pytest.warns(
        UserWarning, match="presets left out, which not every stage's model has: slow, balanced, quality$"
    ):
        made = compose({"base": first, "sr256": second, "sr1024": first}, text=str(first)).presets
    assert made == {"fast": {"base": QUICK["base"], "sr256": usual["sr256"], "sr1024": QUICK["sr1024"]}}


def test_presets_that_are_given_stand_alone(tmp_path: Path) -> None:
    model = stored(tmp_path / "a", {"quick": QUICK})
    given = {"own": {"base": {"num_inference_steps": 3}}}
    assert compose({"base": model}, presets=given).presets == given
