"""What a call asks, spread over the stages it runs, two of which may make pictures of one side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.cascade.route import ByStage, Wish, option, per_stage, resolve, route
from imagen.stages.spec import StageDefaults
from tests.factories import Calls, sample, tiny_base, tiny_pipeline, tiny_sr

# 64 -> 256 -> 256: what keeps its size runs behind what makes it, whatever the slots' order
KEEPING = {
    "base": StageDefaults(size=64),
    "sr256": StageDefaults(size=256, lowres_size=64),
    "sr1024": StageDefaults(size=256, lowres_size=256),
}
SWAPPED = {"base": KEEPING["base"], "sr256": KEEPING["sr1024"], "sr1024": KEEPING["sr256"]}
ON = {  # the same and a stage that goes on from there
    "base": StageDefaults(size=64),
    "sr256": StageDefaults(size=1024, lowres_size=64),
    "sr1024": StageDefaults(size=64, lowres_size=64),
}


def test_a_side_means_the_last_stage_of_that_side_and_slots_are_answered() -> None:
    made = ByStage([("base", 64, "a"), ("sr256", 256, "b")])
    made.add("sr1024", 256, "c")
    assert (made[64], made[256]) == ("a", "c")
    assert (made["base"], made["sr256"], made["sr1024"]) == ("a", "b", "c")
    assert dict(made) == {64: "a", 256: "c"}
    assert list(made.slots.items()) == [("base", "a"), ("sr256", "b"), ("sr1024", "c")]
    for key in (64, 256, "base", "sr256", "sr1024"):
        assert key in made
        assert made.get(key) == made.get(key, "other") == made[key]
    for key in (1024, "sr64"):
        assert key not in made
        assert made.get(key) is None
        assert made.get(key, "other") == "other"
        with pytest.raises(KeyError):
            made[key]


def test_what_is_made_may_be_none_or_empty() -> None:
    made = ByStage([("base", 64, None)])
    assert 64 in made
    assert made.get(64, "other") is None
    assert made.get("base", "other") is None


@pytest.mark.parametrize(
    ("stages", "size", "side", "slots"),
    [
        (KEEPING, None, None, ["base", "sr256", "sr1024"]),
        (KEEPING, 256, None, ["base", "sr256", "sr1024"]),
        (KEEPING, 64, None, ["base"]),
        (KEEPING, None, 64, ["sr256", "sr1024"]),
        (KEEPING, None, 256, ["sr1024"]),
        (SWAPPED, None, None, ["base", "sr1024", "sr256"]),
        (SWAPPED, 256, None, ["base", "sr1024", "sr256"]),
        (SWAPPED, None, 255, ["sr1024", "sr256"]),
        (ON, None, None, ["base", "sr1024", "sr256"]),
        (ON, 64, None, ["base", "sr1024"]),
    ],
)
def test_a_stage_that_keeps_its_size_runs_behind_the_one_that_makes_it(
    stages: Mapping[str, StageDefaults], size: int | None, side: int | None, slots: list[str]
) -> None:
    assert route(stages, size, side) == slots


def test_values_by_slot_and_by_side() -> None:
    running = list(KEEPING)
    assert per_stage("x", {"sr256": 1, "base": 2}, running, KEEPING) == {"base": 2, "sr256": 1, "sr1024": None}
    assert per_stage("x", {256: 1}, running, KEEPING) == {"base": None, "sr256": None, "sr1024": 1}
    assert per_stage("x", {256: 1, "sr256": 2}, running, KEEPING) == {"base": None, "sr256": 2, "sr1024": 1}
    assert per_stage("x", {"sr1024": 1}, ["base"], KEEPING) == {"base": None}
    assert per_stage("x", "smart50", running, KEEPING) == dict.fromkeys(running, "smart50")
    for key in ("sr64", 1024, "256"):
        with pytest.raises(ValueError, match=f"x names stage {key!r}; this model has 64, 256, 256"):
            per_stage("x", {key: 1}, running, KEEPING)


@pytest.mark.parametrize(
    ("wish", "word", "flag"),
    [
        ({"size": 0}, "size", "--size"),
        ({"height": 64}, "height", "--height"),
        ({"height": 64, "width": 0}, "width", "--width"),
        ({"settings": {"num_inference_steps": 0}}, "num_inference_steps", "--steps"),
        ({"settings": {"num_inference_steps": [1, 2, 3, 4]}}, "num_inference_steps", "--steps"),
        ({"settings": {"guidance_scale": {"sr64": 1}}}, "guidance_scale", "--guidance"),
        ({"settings": {"aug_level": 2.0}}, "aug_level", "--aug-level"),
        ({"size": 64, "settings": {"lowres_consistency": 1}}, "lowres_consistency", "--lowres-consistency"),
    ],
)
def test_a_mistake_is_named_in_the_words_of_who_made_it(wish: dict[str, Any], word: str, flag: str) -> None:
    asked = Wish(**wish)
    with pytest.raises(ValueError, match=rf"^{word}\b"):
        resolve(KEEPING, asked)
    with pytest.raises(ValueError, match=rf"^{flag}\b"):
        resolve(KEEPING, asked, say=option)


def test_settings_take_the_place_of_stored_ones_in_the_stages_named() -> None:
    wish = Wish(
        settings={"guidance_scale": {256: 2.0, "base": 3.0}, "aug_level": [0.3, 0.4], "lowres_consistency": None}
    )
    chosen = resolve(KEEPING, wish)
    assert list(chosen) == list(KEEPING)
    assert [stage.guidance_scale for stage in chosen.values()] == [3.0, KEEPING["sr256"].guidance_scale, 2.0]
    assert [stage.aug_level for stage in chosen.values()] == [KEEPING["base"].aug_level, 0.3, 0.4]


def test_a_list_of_values_is_in_the_order_in_which_stages_run() -> None:
    for name, values in (("guidance_scale", [2.0, 3.0, 4.0]), ("aug_level", [0.3, 0.4])):
        chosen = resolve(SWAPPED, Wish(settings={name: values}))
        assert list(chosen) == ["base", "sr1024", "sr256"]
        assert [getattr(stage, name) for stage in chosen.values()][-2:] == values[-2:]


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    """16 -> 32 -> 32."""
    stages = {"base": {"size": 16}, "sr256": {"size": 32, "lowres_size": 16}, "sr1024": {"size": 32, "lowres_size": 32}}
    return tiny_pipeline(
        base_unet=tiny_base(text_dim=None),
        sr256_unet=tiny_sr(2, text_dim=None),
        sr1024_unet=tiny_sr(3, text_dim=None),
        stages={slot: {**stage, "num_inference_steps": 2, "aug_level": 0.0} for slot, stage in stages.items()},
    )


def test_two_stages_of_one_side_both_run_and_are_both_returned(pipe: ImagenPipeline) -> None:
    ended: list[tuple[str | None, int]] = []
    with Calls(pipe.sr256_unet) as first, Calls(pipe.sr1024_unet) as second:
        out = sample(pipe, callback_on_stage_end=lambda pipe, size, _: ended.append((pipe.stage, size)))
    assert ended == [("base", 16), ("sr256", 32), ("sr1024", 32)]
    assert list(out.stages) == [16, 32]
    assert list(out.stages.slots) == ["base", "sr256", "sr1024"]
    assert out.stages["sr256"].shape == out.stages["sr1024"].shape == (1, 3, 32, 32)
    assert not torch.equal(out.stages["sr256"], out.stages["sr1024"])
    assert out.images is out.stages[32] is out.stages["sr1024"]
    assert len(first.samples) == len(second.samples) == 2
    # at level 0 what the last stage starts from is nearly the picture of the one before
    given = second.samples[0]["lowres"] / 2 + 0.5
    assert (given - out.stages["sr256"]).abs().mean() < 0.02 < (given - out.stages["sr1024"]).abs().mean()


def test_settings_of_two_stages_of_one_side_are_told_apart_by_slot(pipe: ImagenPipeline) -> None:
    asked = {"num_inference_steps": {"sr256": 3, 32: 4}}
    settings = pipe.settings(**asked)
    assert {slot: stage.num_inference_steps for slot, stage in settings.slots.items()} == {
        "base": 2, "sr256": 3, "sr1024": 4,
    }  # fmt: skip
    assert settings[32] == settings["sr1024"]
    with Calls(pipe.sr256_unet) as first, Calls(pipe.sr1024_unet) as second:
        sample(pipe, **asked)
    assert (len(first.samples), len(second.samples)) == (3, 4)
