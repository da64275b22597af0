"""The sections of a stage: both sides of each bound, what fits together, and what one that says nothing means."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import inf, nan
from typing import Any

import pytest

from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig, StageGridConfig, StageTrainConfig
from imagen.cascade.training.config.sections import (
    ConditionsConfig,
    LabelConfig,
    LoraConfig,
    LossConfig,
    MaskConfig,
    SamplingConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
)
from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.text.reading import TextDefaults

SR: dict[str, Any] = {"name": "sr256", "size": 16, "lowres_size": 8}
BOUNDS: list[tuple[type, dict[str, Any], str, list[Any], list[Any]]] = [  # section, beside, field, at the edge, behind
    (ScheduleConfig, {}, "shift", [1e-9], [0.0, -1.0]),
    (ScheduleConfig, {}, "max_log_snr", [1e-9], [0.0, -20.0]),
    (LossConfig, {}, "gamma", [1e-9], [0.0, -1.0]),
    (LossConfig, {"gamma": 3.0}, "low", [0.0, 3.0], [-1e-9, 3.1]),
    (LossConfig, {}, "vlb_weight", [0.0, 2.0], [-1e-9, inf, nan]),
    (StageConfig, {}, "size", [1], [0]),
    (StageConfig, {}, "text_dropout", [0.0, 1.0], [-1e-9, 1.1]),
    (StageConfig, SR, "lowres_size", [1, 16], [None, 0, 17]),
    (StageConfig, {}, "lowres_size", [None], [8]),
    (StageConfig, {}, "aug_space", ["lowres"], ["upsampled"]),
    (StageConfig, {}, "aug_schedule", [ScheduleConfig()], [ScheduleConfig("linear")]),
    (StageConfig, {}, "lowres_mode", ["auto"], ["nearest"]),
    (StageConfig, SR, "lowres_mode", ["auto", "nearest"], []),
    (SamplingConfig, {}, "gamma", [0.0, 1.0], [-1e-9, 1.1]),
    (SamplingConfig, {"sampler": "ddim"}, "gamma", [0.0], [0.1]),
    (TextConfig, {}, "max_length", [1], [0]),
    (TextConfig, {"padding": "visible", "lowercase": True}, "cache", [None], ["c"]),
    (TextConfig, {"padding": "visible"}, "cache", [None], ["c"]),
    (TextConfig, {"lowercase": True}, "cache", [None], ["c"]),
    (TextConfig, {"unconditional": "empty"}, "cache", [None, "c"], []),
    (LoraConfig, {}, "rank", [None, 1], [0, -4]),
    (LoraConfig, {"rank": 4}, "alpha", [None, 1e-9], [0.0, -1.0, inf, nan]),
    (LoraConfig, {"rank": 4}, "targets", [("to_q",)], [()]),
    (LoraConfig, {}, "targets", [], [("to_q",), ()]),
    (LoraConfig, {}, "alpha", [None], [3.0]),
    (LoraConfig, {}, "base_dtype", ["float32"], ["bfloat16"]),
    (LoraConfig, {"rank": 4}, "base_dtype", ["float32", "bfloat16"], []),
    (LossPerLevelConfig, {}, "levels", [1], [0]),
    (LossPerLevelConfig, {}, "samples", [1], [0]),
    (StageGridConfig, {}, "every", [0], [-1]),
    (StageGridConfig, {}, "batch_size", [1], [0]),
    (StageGridConfig, {}, "count", [1], [0]),
    (StageGridConfig, {}, "num_inference_steps", [1, 1000], [0, 1001]),
]


@pytest.mark.parametrize(("section", "beside", "field", "good", "bad"), BOUNDS, ids=lambda part: f"{part}"[:30])
def test_a_value_at_the_bound_is_taken_and_one_behind_it_named(
    section: type, beside: dict[str, Any], field: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        assert getattr(section(**{**beside, field: value}), field) == value
    for value in bad:
        with pytest.raises(ConfigError, match=rf"\b{field}\b"):
            section(**{**beside, field: value})


def test_the_first_slot_has_an_earlier_name() -> None:
    names: list[Any] = ["base", "base64"]
    assert [StageConfig(name).name for name in names] == ["base", "base"]
    with pytest.raises(ValueError, match="stage name is 'sr64'; expected one of base, sr256, sr1024"):
        StageConfig("sr64")  # type: ignore[arg-type]


@pytest.mark.parametrize(("classes", "names", "count"), [(3, (), 3), (0, ("a", "b"), 2), (2, ("a", "b"), 2)])
def test_classes_are_counted_or_named(classes: int, names: tuple[str, ...], count: int) -> None:
    assert LabelConfig(classes, names).count == count


@pytest.mark.parametrize(("classes", "names", "told"), [
    (0, (), "has no classes"), (-1, (), "has no classes"), (3, ("a", "b"), "classes 3 and 2 names"),
    (1, ("a", "b"), "classes 1 and 2 names"),
])  # fmt: skip
def test_classes_that_do_not_count_are_refused(classes: int, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        LabelConfig(classes, names)


def test_an_adapter_s_scale_is_its_rank_unless_it_is_given() -> None:
    assert [LoraConfig().scale, LoraConfig(4).scale, LoraConfig(4, 0.5).scale] == [1.0, 4.0, 0.5]


def test_text_is_used_with_an_encoder_or_a_cache_and_read_as_it_says() -> None:
    assert not TextConfig().used
    assert TextConfig("t5").used
    assert TextConfig(cache="c").used
    assert TextConfig(padding="visible", unconditional="zero").reading == TextDefaults("visible", "zero", False)
    assert TextConfig(unconditional="empty", lowercase=True).reading == TextDefaults("masked", "empty", True)


# --- what sections say of each other ---------------------------------------------------------------------------------

FOLDER = DataConfig("folder", "pictures")
GIVEN = replace(FOLDER, embedding="npy")
PAIRED = replace(FOLDER, conditioning="pairs")
ADAPTED = StageTrainConfig(init_from="model")
FIT: list[tuple[dict[str, Any], dict[str, Any], str]] = [  # a run, the change that it does not take, what it is told
    ({}, {"run_dir": ""}, "run_dir is missing"),
    ({"lora": LoraConfig(4), "train": ADAPTED}, {"train": StageTrainConfig()}, "lora.rank 4 adapts a trained network"),
    ({"train": replace(ADAPTED, drop_variance=True)}, {"train": StageTrainConfig(drop_variance=True)}, "drop_variance"),
    (
        {"lora": LoraConfig(4, base_dtype="bfloat16"), "train": ADAPTED},
        {"train": replace(ADAPTED, dtype="float64")},
        "lora.base_dtype bfloat16 and train.dtype float64 exclude each other",
    ),
    ({"train": StageTrainConfig(dtype="float64")}, {}, ""),
    ({"data": GIVEN}, {"text": TextConfig("t5")}, "both say what the network reads"),
    ({"data": GIVEN}, {"text": TextConfig(cache="c")}, "both say what the network reads"),
    ({"data": GIVEN}, {"text": TextConfig(padding="visible")}, "is read as it is"),
    ({"data": GIVEN}, {"text": TextConfig(unconditional="empty")}, "is read as it is"),
    ({"data": GIVEN}, {"text": TextConfig(lowercase=True)}, "is read as it is"),
    ({"data": GIVEN}, {"grid": StageGridConfig(prompts=("a",))}, "grid.prompts cannot be encoded"),
    ({"data": GIVEN, "grid": StageGridConfig(every=0, prompts=("a",))}, {}, ""),
    (
        {"data": GIVEN, "validation": LossPerLevelConfig(data=replace(GIVEN, path="other"))},
        {"validation": LossPerLevelConfig(data=replace(FOLDER, path="other"))},
        "validation.data.embedding is missing",
    ),
    ({"text": TextConfig("t5", padding="visible", unconditional="empty", lowercase=True)}, {}, ""),
    ({"stage": StageConfig("sr256", 16, 16), "data": PAIRED}, {"data": FOLDER}, "equals stage.size: .* data.condition"),
    ({"stage": StageConfig("sr256", 16, 15)}, {}, ""),
    ({"data": FOLDER}, {"data": PAIRED}, "data.conditioning 'pairs', but this stage takes no low-res input"),
    ({"data": FOLDER, "validation": LossPerLevelConfig(data=replace(FOLDER, path="other"))},
     {"validation": LossPerLevelConfig(data=replace(PAIRED, path="other"))}, "^validation.data.conditioning 'pairs'"),
    ({"stage": StageConfig(**SR), "data": DataConfig(crop=16)}, {"data": DataConfig(crop=18)}, "data.crop 18 must be"),
    ({"stage": StageConfig(**SR), "data": DataConfig(crop=2)}, {"data": DataConfig(crop=3)}, "a multiple of 2"),
    ({"stage": StageConfig("sr256", 24, 16), "data": DataConfig(crop=3)}, {"data": DataConfig(crop=4)}, "iple of 3"),
    ({"data": DataConfig(crop=65)}, {}, ""),  # a base stage's windows are the source's to refuse
    ({"data": FOLDER, "validation": LossPerLevelConfig(data=replace(FOLDER, path="other"))},
     {"validation": LossPerLevelConfig(data=FOLDER)}, "validation.data equals data"),
    ({"validation": LossPerLevelConfig(data=DataConfig())}, {}, ""),  # other pictures of the endless world
]  # fmt: skip


@pytest.mark.parametrize(("run", "change", "told"), FIT, ids=lambda part: part[:30] if isinstance(part, str) else "")
def test_a_run_whose_sections_fit_is_taken_and_one_whose_do_not_told_why(
    run: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    config = RunConfig(**{"run_dir": "run", **run})
    if told:
        with pytest.raises(ConfigError, match=told):
            replace(config, **change)


def test_the_pictures_of_a_run_are_its_data_and_what_is_held_out() -> None:
    assert RunConfig("run", data=FOLDER).pictures == {"data": FOLDER}
    both = RunConfig("run", data=FOLDER, validation=LossPerLevelConfig(data=DataConfig())).pictures
    assert both == {"data": FOLDER, "validation.data": DataConfig()}


def test_a_stage_reads_text_of_an_encoder_a_cache_or_its_data() -> None:
    texts = {"text": TextConfig("t5")}, {"text": TextConfig(cache="c")}, {"data": GIVEN}
    assert [RunConfig("run", **given).reads_text for given in ({}, *texts)] == [False, True, True, True]  # type: ignore


def test_a_configuration_that_says_nothing_means_the_same_in_every_version() -> None:
    """Configurations that people keep leave most keys out, and a run that goes on is compared with these values."""
    found = asdict(RunConfig("run"))
    schedule = {"kind": "cosine", "shift": 1.0, "max_log_snr": 20.0}
    assert found["unet"] == {}
    assert found["stage"] == {
        **{"name": "base", "size": 64, "lowres_size": None, "prediction_type": "epsilon", "schedule": schedule},
        "loss": {
            **{"kind": "uniform", "gamma": 5.0, "low": 0.0, "vlb_weight": 0.001, "bias": 0.0, "per": "t"},
        },
        **{"text_dropout": 0.1, "aug_space": "lowres", "aug_schedule": schedule, "lowres_mode": "auto"},
    }
    assert {key: found["sampling"][key] for key in ("sampler", "gamma")} == {"sampler": "ddpm", "gamma": 0.0}
    assert found["text"] == {
        **{"encoder": None, "cache": None, "max_length": 128, "dtype": "float32", "padding": "masked"},
        **{"unconditional": "zero", "lowercase": False},
    }
    assert found["conditions"] == {"label": None, "mask": None}
    assert asdict(ConditionsConfig(LabelConfig(2), MaskConfig())) == {
        "label": {"classes": 2, "names": ()},
        "mask": {"source": "drawn"},
    }
    of_stage = {"stratified_t": True, "gradient_checkpointing": False, "init_from": None, "drop_variance": False}
    assert {key: found["train"][key] for key in of_stage} == of_stage
    attention = ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0")
    assert found["lora"] == {"rank": None, "alpha": None, "targets": attention, "base_dtype": "float32"}
    assert found["validation"]["levels"] == 8
    assert found["grid"] == {
        **{"every": 1000, "num_inference_steps": 20, "guidance_scale": None, "prompts": (), "count": 8},
        **{"raw": False, "cascade": None, "batch_size": 16},
    }
