"""What a network must have to be trained as a run says, and what it starts from: every mistake and its remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from imagen.cascade.training.config.parsing import check_unet_arguments
from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig, StageTrainConfig
from imagen.cascade.training.config.sections import (
    ConditionsConfig,
    LabelConfig,
    LossConfig,
    MaskConfig,
    SamplingConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
)
from imagen.cascade.training.start.network import check_fit, load_initial, load_trained, make_unet
from imagen.cascade.training.start.origin import (
    Origin,
    differences,
    levels_error,
    no_network,
    of_stage,
    read_origin,
    unet_section,
    with_origin,
)
from imagen.data.config import DataConfig
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import make_schedule
from imagen.errors import ConfigError
from imagen.stages.folder import SavedStage
from imagen.stages.spec import StageDefaults
from imagen.text.reading import TextDefaults
from tests.factories import save_stage, tiny_base, tiny_pipeline, tiny_sr
from unets import BaseUNet, EfficientUNet
from unets.contract import facts

FOLDER = DataConfig("folder", "pictures")
BASE: dict[str, Any] = {"kind": "BaseUNet", "model_channels": 8, "channel_mult": [1, 2], "text_dim": None}
SR: dict[str, Any] = {"kind": "EfficientUNet", "channels": [8, 8], "strides": [2, 2], "text_dim": None}
TO_16 = StageConfig("sr256", 16, 8)
VARIANCE = {"in_channels": 3, "out_channels": 6}
FIT: list[tuple[dict[str, Any], dict[str, Any], str]] = [  # a run, its network's arguments, what is told
    ({}, {}, ""),
    ({}, {"in_channels": 1, "out_channels": 1}, "unet.in_channels 1, but .* data.kind shapes have three channels"),
    ({"data": FOLDER}, {"in_channels": 1, "out_channels": 1}, ""),
    ({"stage": StageConfig(size=7)}, {}, "stage.size 7 is not a multiple of 2, the network's stride"),
    ({"stage": StageConfig(size=7), "data": DataConfig(crop=4)}, {}, ""),
    ({"data": DataConfig(crop=3)}, {}, "data.crop 3 is not a multiple of 2"),
    ({"validation": LossPerLevelConfig(data=DataConfig(crop=3))}, {}, "validation.data.crop 3 is not a multiple of 2"),
    ({}, {"lowres_channels": 3}, "unet.lowres_channels 3: base has no low-res input, use 0"),
    ({"stage": TO_16}, {}, ""),
    ({"stage": TO_16}, {"lowres_channels": 0}, "unet.lowres_channels is 0: sr256 needs"),
    ({"stage": TO_16}, {"lowres_channels": 1}, r"unet.lowres_channels 1, but .* unet.in_channels \(3\)"),
    ({"stage": TO_16, "data": replace(FOLDER, conditioning="pairs")}, {"lowres_channels": 1}, ""),
    (
        {
            "stage": TO_16,
            "data": replace(FOLDER, conditioning="pairs"),
            "sampling": SamplingConfig(lowres_consistency=4),
        },
        {"lowres_channels": 1},
        "sampling.lowres_consistency 4: pictures of 3 channels are made from 1",
    ),
    ({"stage": TO_16, "sampling": SamplingConfig(lowres_consistency=4)}, {}, ""),
    ({"sampling": SamplingConfig(lowres_consistency=4)}, {}, "pictures of 3 channels are made from 0"),
    ({}, {"text_dim": 8}, "unet.text_dim 8, but text.encoder is null"),
    ({"text": TextConfig("t5")}, {"text_dim": 8}, ""),
    ({"text": TextConfig("t5")}, {}, "unet.text_dim is null: text.encoder 't5' needs its width"),
    ({"data": replace(FOLDER, embedding="npy")}, {"text_dim": 8}, ""),
    ({"data": replace(FOLDER, embedding="npy")}, {}, "unet.text_dim is null: data.embedding 'npy' needs its width"),
    ({}, VARIANCE, ""),
    ({"train": StageTrainConfig(init_from="m", drop_variance=True)}, VARIANCE, "unet.out_channels is 6: set it to 3"),
    ({"train": StageTrainConfig(init_from="m", drop_variance=True)}, {}, ""),
    ({"data": FOLDER}, {"in_channels": 4, "out_channels": 3}, "unet.out_channels 3 with in_channels 4"),
    ({}, {"out_channels": 9}, "unet.out_channels 9 with in_channels 3: give as many, or twice as many"),
    ({"stage": StageConfig(loss=LossConfig(vlb_weight=0.5))}, {}, "stage.loss.vlb_weight 0.5 has no effect"),
    ({"stage": StageConfig(loss=LossConfig(vlb_weight=0.5))}, VARIANCE, ""),
]


@pytest.mark.parametrize(("run", "arguments", "told"), FIT, ids=lambda part: part[:40] if isinstance(part, str) else "")
def test_a_network_fits_its_run_or_is_told_what_to_change(
    run: dict[str, Any], arguments: dict[str, Any], told: str
) -> None:
    section = (BASE if run.get("stage", StageConfig()).name == "base" else SR) | arguments
    config = RunConfig("run", unet=section, **run)
    if not told:
        return check_fit(config, facts(section))
    with pytest.raises(ConfigError, match=told):
        check_fit(config, facts(section))
    return None


BOTH = ConditionsConfig(LabelConfig(3), MaskConfig())


@pytest.mark.parametrize(("conditions", "arguments", "told"), [
    (BOTH, {"classes": {"label": 3}, "extra_channels": {"mask": 4}}, ""),
    (BOTH, {"classes": {"label": 3}}, "conditions.mask is given, .* set unet.extra_channels.mask to 4"),
    (BOTH, {"extra_channels": {"mask": 4}}, "conditions.label is given, .* set unet.classes.label to 3"),
    (BOTH, {"classes": {"label": 3}, "extra_channels": {"mask": 3}}, "unet.extra_channels.mask is 3, but .* gives 4"),
    (BOTH, {"classes": {"label": 4}, "extra_channels": {"mask": 4}}, "unet.classes.label is 4, but .* gives 3"),
    (BOTH, {"classes": {"mask": 4}, "extra_channels": {"label": 3}}, "conditions.label is given"),
    (ConditionsConfig(LabelConfig(3)), {"classes": {"label": 3}, "extra_channels": {"mask": 4}}, "has 'mask', but"),
    (ConditionsConfig(mask=MaskConfig()), {"classes": {"label": 3}, "extra_channels": {"mask": 4}}, "has 'label', but"),
    (ConditionsConfig(LabelConfig(3)), {"classes": {"label": 3, "tone": 2}}, "unet.classes has 'tone', but nothing"),
])  # fmt: skip
def test_conditions_by_name_are_given_and_read(
    conditions: ConditionsConfig, arguments: dict[str, Any], told: str
) -> None:
    section = BASE | arguments
    config = RunConfig("run", unet=section, conditions=conditions)
    if not told:
        return check_fit(config, facts(section))
    with pytest.raises(ConfigError, match=told):
        check_fit(config, facts(section))
    return None


@pytest.mark.parametrize(("section", "told"), [
    ({}, ""), ({"model_channels": 16, "channel_mult": [1, 2, 3]}, ""), ({"text_dim": None}, ""),
    ({"modelchannels": 16}, "'unet.modelchannels' in the arguments of BaseUNet; did you mean 'unet.model_channels'"),
    ({"self": 1}, "unknown key 'unet.self'"), ({"kwargs": 1}, "unknown key 'unet.kwargs'"),
    ({"model_channels": "many"}, "wrong value for .*model_channels.*many"), ({"channel_mult": 3}, "channel_mult"),
])  # fmt: skip
def test_the_keys_of_a_network_are_its_constructor_s(section: dict[str, Any], told: str) -> None:
    section = {"kind": "BaseUNet", **section}
    if not told:
        return check_unet_arguments(section, BaseUNet.__init__)
    with pytest.raises(ConfigError, match=told) as caught:
        check_unet_arguments(section, BaseUNet.__init__)
    assert "\n" not in str(caught.value)
    return None


def test_a_new_network_is_the_seed_s_and_whole_numbers_may_stand_for_tuples() -> None:
    config = RunConfig("run", unet={**BASE, "norm_groups": 4, "attention_levels": []})
    torch.manual_seed(7)
    first, again = make_unet(config), make_unet(config)
    other: Any = make_unet(replace(config, train=StageTrainConfig(seed=1)))
    assert isinstance(first, BaseUNet)
    for (name, value), same in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(value, same), name
    assert not torch.equal(first.conv_in.weight, other.conv_in.weight)
    assert next(make_unet(config, device="meta").parameters()).is_meta
    with pytest.raises(ConfigError, match="^unet.kind is 'UNet'; expected one of"):
        make_unet(replace(config, unet={"kind": "UNet"}))


@pytest.mark.parametrize("change", ["less", "more", "shape"])
def test_a_resume_point_of_another_network_is_refused(change: str) -> None:
    unet = tiny_base()
    saved = {name: value.clone() for name, value in unet.state_dict().items()}
    load_trained(unet, saved)
    name = sorted(saved)[-1]
    saved |= {"zzz": torch.zeros(1)} if change == "more" else {name: torch.zeros(99)}
    if change == "less":
        del saved[name]
    odd = "zzz" if change == "more" else name
    with pytest.raises(ConfigError, match=f"does not fit this network: {odd} differs; use another run_dir"):
        load_trained(unet, saved)


# --- what a run starts from ------------------------------------------------------------------------------------------


def test_a_folder_without_a_network_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist: train that stage first" in str(no_network(str(tmp_path / "none")))
    assert "holds no exported network: give the folder of a run" in str(no_network(str(tmp_path)))
    for folder, told in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no exported network")):
        with pytest.raises(ConfigError, match=told):
            load_initial(tiny_base(), str(folder), False, torch.float32)
        with pytest.raises(ConfigError, match=told):
            with_origin(RunConfig(str(tmp_path / "run"), train=StageTrainConfig(init_from=str(folder))))
    with pytest.raises(ConfigError, match="unet is missing: add its kind and arguments, or train.init_from"):
        with_origin(RunConfig("run"))


def test_weights_in_several_files_are_one_network(tmp_path: Path) -> None:
    trained, unet = tiny_base(1), tiny_base(2)
    names = sorted(trained.state_dict())
    for part in range(3):
        tensors = {name: trained.state_dict()[name].clone() for name in names[part::3]}
        save_file(tensors, tmp_path / f"{part}.safetensors")
    load_initial(unet, str(tmp_path), False, torch.float32)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"], ids=["empty", "cut", "list", "number"])
def test_a_network_s_folder_that_does_not_say_what_it_is_says_nothing(tmp_path: Path, content: str) -> None:
    assert unet_section(tmp_path) == {}
    (tmp_path / "config.json").write_text(content)
    assert unet_section(tmp_path) == {}


def exported(folder: Path, slot: str = "sr256", **scheduler: Any) -> SavedStage:
    """A stage as a run exports it, its settings none of the defaults."""
    rule = make_scheduler("ddpm", make_schedule(**{"kind": "cosine", **scheduler}), "v_prediction")
    text = {"text": TextDefaults("visible", "empty", True), "max_length": 9, "encoder": "t5"}
    if slot == "base":
        return save_stage(folder, slot, tiny_base(out_channels=6), rule, defaults=StageDefaults(size=16), **text)
    shown = {"aug_space": "upsampled", "aug_schedule": {"kind": "linear"}, "lowres_mode": "nearest"}
    defaults = StageDefaults(size=16, lowres_size=8, **shown)  # type: ignore[arg-type]
    return save_stage(folder, slot, tiny_sr(), rule, defaults=defaults, **text)


def test_all_that_a_stage_says_of_itself_is_read(tmp_path: Path) -> None:
    stage = exported(tmp_path)
    for folder in (tmp_path, tmp_path / "unet"):
        origin = read_origin(str(folder))
        assert origin.stage == stage
        assert origin.scheduler["prediction_type"] == "v_prediction"
        assert (origin.unet["kind"], origin.unet["channels"]) == ("EfficientUNet", [8, 8])
        assert not [name for name in origin.unet if name.startswith("_")]
    (tmp_path / "stage.json").unlink()  # a network of other making beside its scheduler
    origin = read_origin(str(tmp_path / "unet"))
    assert (origin.stage, origin.scheduler["prediction_type"]) == (None, "v_prediction")


@pytest.mark.parametrize(("dropped", "out"), [(False, 6), (True, 3)])
def test_a_network_that_is_left_out_is_the_start_s_and_a_given_one_stays(
    tmp_path: Path, dropped: bool, out: int
) -> None:
    exported(tmp_path, "base")
    train = StageTrainConfig(init_from=str(tmp_path), drop_variance=dropped)
    config, origin = with_origin(RunConfig("run", train=train))
    assert (config.unet["kind"], config.unet["in_channels"], config.unet["out_channels"]) == ("BaseUNet", 3, out)
    assert origin.unet["out_channels"] == 6
    own = RunConfig("run", unet=BASE, train=train)
    assert with_origin(own) == (own, origin)
    assert with_origin(RunConfig("run", unet=BASE)) == (RunConfig("run", unet=BASE), Origin())


def test_one_without_a_learned_variance_keeps_its_channels_whatever_is_dropped(tmp_path: Path) -> None:
    exported(tmp_path)
    train = StageTrainConfig(init_from=str(tmp_path), drop_variance=True)
    assert with_origin(RunConfig("run", train=train))[0].unet["out_channels"] == 3


def scheduler_of(**schedule: Any) -> dict[str, Any]:
    return dict(make_scheduler("ddpm", make_schedule(**schedule), "epsilon").config)


def test_the_distance_of_two_schedules_is_the_largest_anywhere() -> None:
    for kind in ("cosine", "linear"):
        assert levels_error(ScheduleConfig(kind), scheduler_of(kind=kind)) < 1e-2  # type: ignore[arg-type]
    shifted = levels_error(ScheduleConfig(shift=0.5), scheduler_of(kind="cosine"))
    assert shifted == pytest.approx(2 * torch.log(torch.tensor(2.0)).item(), abs=0.05)


STAGE = StageConfig("sr256", 16, 8, "v_prediction", aug_space="upsampled", lowres_mode="nearest",
                    aug_schedule=ScheduleConfig("linear"))  # fmt: skip
TEXT = TextConfig("t5", padding="visible", unconditional="empty", lowercase=True, max_length=9)


@pytest.mark.parametrize(("stage", "text", "told"), [
    ({}, {}, []),
    ({}, {"padding": "masked"}, ["text.padding is 'masked': set text.padding visible"]),
    ({}, {"unconditional": "zero"}, ["text.unconditional is 'zero': set text.unconditional empty"]),
    ({}, {"lowercase": False}, ["text.lowercase is False: set text.lowercase True"]),
    ({}, {"max_length": 8}, ["text.max_length is 8: set text.max_length 9"]),
    ({}, {"encoder": None, "max_length": 8, "padding": "masked"}, []),  # reads none
    ({"prediction_type": "sample"}, {}, ["stage.prediction_type is 'sample': set stage.prediction_type v_prediction"]),
    ({"aug_space": "lowres"}, {}, ["stage.aug_space is 'lowres': set stage.aug_space upsampled"]),
    ({"lowres_mode": "auto"}, {}, ["stage.lowres_mode is 'auto': set stage.lowres_mode nearest"]),
    ({"aug_schedule": ScheduleConfig()}, {}, ["stage.aug_schedule.kind is 'cosine': set stage.aug_schedule.kind lin"]),
    ({"schedule": ScheduleConfig("linear")}, {}, ["stage.schedule (linear) is another than the network's (by "]),
    ({"aug_space": "lowres"}, {"max_length": 8}, ["text.max_length is 8", "stage.aug_space is 'lowres'"]),
])  # fmt: skip
def test_each_difference_from_what_it_was_trained_on_is_told(
    tmp_path: Path, stage: dict[str, Any], text: dict[str, Any], told: list[str]
) -> None:
    exported(tmp_path)
    config = RunConfig("run", stage=replace(STAGE, **stage), text=replace(TEXT, **text))
    found = differences(config, read_origin(str(tmp_path)))
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))
    assert differences(config, Origin()) == []


def test_a_base_has_no_low_resolution_picture_to_differ_in(tmp_path: Path) -> None:
    exported(tmp_path, "base")
    config = RunConfig("run", stage=STAGE, text=TEXT)
    assert differences(config, read_origin(str(tmp_path))) == []


@pytest.mark.parametrize(("ours", "theirs", "told"), [
    ("linear", {"kind": "cosine"}, "set stage.schedule.kind cosine"),
    ("cosine", {"kind": "linear"}, "set stage.schedule.kind linear"),
    ("cosine", {"kind": "cosine", "shift": 0.5}, "set stage.schedule as in the run that made it"),
])  # fmt: skip
def test_another_schedule_names_the_kind_that_fits(
    tmp_path: Path, ours: Any, theirs: dict[str, Any], told: str
) -> None:
    exported(tmp_path, "base", **theirs)
    origin = read_origin(str(tmp_path))
    config = RunConfig("run", stage=replace(STAGE, schedule=ScheduleConfig(ours)), text=TEXT)
    (found,) = differences(config, origin)
    assert found.endswith(told)
    fewer = origin._replace(scheduler={**origin.scheduler, "num_train_timesteps": 50})
    assert differences(config, fewer) == [], "of other levels nothing is known"


def test_kinds_of_networks_are_what_they_say(tmp_path: Path) -> None:
    exported(tmp_path)
    config, _ = with_origin(RunConfig("run", stage=STAGE, text=TEXT, train=StageTrainConfig(init_from=str(tmp_path))))
    assert isinstance(make_unet(config), EfficientUNet)


@pytest.mark.parametrize("place", ["run", "run/model", "run/model/unet", "whole", "whole/base_unet"])
def test_a_run_its_export_and_a_composed_model_are_starts(tmp_path: Path, place: str) -> None:
    network = tiny_base()
    target = tmp_path / "whole" / "base_unet" if place.startswith("whole") else tmp_path / "run" / "model" / "unet"
    network.save_pretrained(target)
    if place.startswith("whole"):
        pipe = tiny_pipeline()
        pipe.base_unet = network
        pipe.save_pretrained(tmp_path / "whole")
    else:
        pipe = tiny_pipeline()
        pipe.base_scheduler.save_pretrained(target.parent / "scheduler")
    start = of_stage(str(tmp_path / place), "base")
    origin, scheduler = read_origin(start), pipe.base_scheduler.config
    assert origin.unet["kind"] == "BaseUNet"
    assert origin.scheduler["prediction_type"] == scheduler.prediction_type
    assert origin.scheduler["trained_betas"] == pytest.approx(scheduler.trained_betas)
    fresh = tiny_base()
    for parameter in fresh.parameters():
        parameter.data.zero_()
    load_initial(fresh, start, False, torch.float32)
    for name, parameter in network.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], parameter), name


def test_a_composed_model_without_this_stage_is_a_line(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "whole")
    start = of_stage(str(tmp_path / "whole"), "other")
    with pytest.raises(ConfigError, match="holds no exported network: give the folder of a run"):
        load_initial(tiny_base(), start, False, torch.float32)
