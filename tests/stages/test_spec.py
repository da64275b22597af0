"""A setting is declared once: what is written out beside the declaration says the same, and older folders are read."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any, NoReturn, get_args

import pytest
import torch
import yaml
from torch import Tensor

import imagen.pipeline
from imagen import ImagenPipeline
from imagen.cascade.route import Wish
from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.sections import SamplingConfig
from imagen.cascade.training.export import stage_defaults, stage_scheduler
from imagen.cli.sample import parser
from imagen.diffusion.augmentation import aug_noise_shape, augment_lowres, resize
from imagen.diffusion.losses import LossWeighting
from imagen.diffusion.parameterization import training_target, x0_from
from imagen.diffusion.sampling import SAMPLERS, make_scheduler
from imagen.diffusion.schedules import CosineSchedule, make_schedule
from imagen.diffusion.thresholding import Thresholding
from imagen.diffusion.vocabulary import (
    AugSpace,
    PredictionType,
    ResizeMode,
    SamplerKind,
    ScheduleKind,
    ThresholdKind,
    WeightingKind,
)
from imagen.stages.spec import FORMAT_VERSION, OF_CALLS, SETTINGS, StageDefaults, read_stages, slot_named
from tests.cascade.training.conftest import TINY, merge
from tests.factories import seeded, tiny_pipeline

OTHER: dict[str, Any] = {  # a value of each setting that is not its default
    "num_inference_steps": 7,
    "guidance_scale": 2.5,
    "guidance": "interval(low=-3, high=5)+cfg",
    "sampler": "dpm++(use_exponential_sigmas,solver_order=3)",
    "threshold": "static",
    "threshold_p": 0.9,
    "threshold_cap": 1.5,
    "aug_level": 0.35,
    "lowres_consistency": 2,
}
SIZES = {"size": 16, "lowres_size": 8}

# --- the pipeline's call -----------------------------------------------------------------------------------------


def test_the_call_takes_the_settings_of_calls_and_no_other() -> None:
    parameters = inspect.signature(ImagenPipeline.__call__).parameters
    assert {name for name in parameters if name in SETTINGS} == OF_CALLS.keys()
    assert {name: parameters[name].default for name in OF_CALLS} == dict.fromkeys(OF_CALLS)


def test_the_call_s_docstring_says_each() -> None:
    documented = inspect.getdoc(ImagenPipeline.__call__) or ""
    arguments = documented.partition("Args:\n")[2].partition("Returns:")[0].partition("Raises:")[0]
    for name in OF_CALLS:
        assert re.search(rf"(?m)^    (?:\w+, )*{name}(?:, \w+)*: \S", arguments), f"{name} is not documented"


def test_the_call_hands_each_one_on_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_stages: Any, _image: Any, wish: Wish) -> NoReturn:
        raise InterruptedError(wish)

    monkeypatch.setattr(imagen.pipeline, "plan", stop)
    given = {name: OTHER[name] for name in OF_CALLS}
    with pytest.raises(InterruptedError) as stopped:
        tiny_pipeline()("a red circle", size=16, height=4, width=8, **given)
    assert stopped.value.args == (Wish(16, 4, 8, given),)


# --- configurations, storage and the command line --------------------------------------------------------------------


def test_every_setting_has_help_and_another_value_here() -> None:
    assert OTHER.keys() == SETTINGS.keys()
    stored = StageDefaults(size=16, lowres_size=8)
    for name, declared in SETTINGS.items():
        assert len(declared.help.split()) > 3, f"{name} is not explained"
        assert OTHER[name] != getattr(stored, name)
        assert declared.since <= FORMAT_VERSION


def test_configurations_storage_and_command_line_know_the_same_settings() -> None:
    assert {entry.name for entry in dataclasses.fields(SamplingConfig)} - SETTINGS.keys() == {"gamma"}
    kept = {entry.name for entry in dataclasses.fields(StageDefaults)} - SETTINGS.keys()
    assert kept == {"size", "lowres_size", "aug_space", "aug_schedule", "lowres_mode"}
    actions = {action.dest: action for action in parser()._actions}
    assert {name for name in SETTINGS if name in actions} == OF_CALLS.keys()
    for name, flag in OF_CALLS.items():
        assert actions[name].option_strings == [flag]
        assert SETTINGS[name].help in str(actions[name].help)
        assert getattr(parser().parse_args([flag, str(OTHER[name])]), name) == OTHER[name]


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "sampler"])
def test_a_setting_goes_from_yaml_to_storage_and_back(name: str, tmp_path: Path) -> None:
    tree = {"run_dir": "run", "stage": {"name": "sr256", **SIZES}, "sampling": {name: OTHER[name]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(merge(TINY, {**tree, "unet.lowres_channels": 3})))
    sampling = parse(["--config", str(tmp_path / "config.yaml")]).sampling
    assert {entry: getattr(sampling, entry) for entry in SETTINGS if entry != name} == {
        entry: getattr(SamplingConfig(), entry) for entry in SETTINGS if entry != name
    }
    stored = StageDefaults(size=16, lowres_size=8, **{name: getattr(sampling, name)}).to_dict()
    assert stored[name] == OTHER[name]
    assert getattr(StageDefaults.from_dict(stored), name) == OTHER[name]


def test_the_sampler_of_a_configuration_is_that_of_the_scheduler_it_exports(tmp_path: Path) -> None:
    tree = {"run_dir": "run", "sampling": {"sampler": "dpm++"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(merge(TINY, tree)))
    config = parse(["--config", str(tmp_path / "config.yaml")])
    assert isinstance(stage_scheduler(config), SAMPLERS["dpm++"])
    assert stage_defaults(config).sampler is None


# --- older folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if format 2 had brought aug_level, and stages before it had sampled with 0.7."""
    monkeypatch.setitem(SETTINGS, "aug_level", dataclasses.replace(SETTINGS["aug_level"], since=2, before=0.7))


@pytest.mark.usefixtures("newer")
def test_a_setting_newer_than_a_folder_is_what_it_was_before() -> None:
    default = StageDefaults(size=16, lowres_size=8).aug_level
    for version, expected in ((0, 0.7), (1, 0.7), (2, default), (3, default)):
        assert StageDefaults.from_dict(SIZES, format_version=version).aug_level == expected
        assert read_stages({"sr256": SIZES}, version)["sr256"].aug_level == expected
    assert read_stages({"sr256": SIZES}, None)["sr256"].aug_level == 0.7, "no version is version 0"
    assert StageDefaults.from_dict(SIZES).aug_level == default
    assert StageDefaults.from_dict({**SIZES, "aug_level": 0.2}, format_version=1).aug_level == 0.2, "what is stored is"


def test_stages_go_by_their_earlier_names_too() -> None:
    assert [slot_named(name) for name in ("base", "sr256", "sr1024", "base64")] == ["base", "sr256", "sr1024", "base"]
    for name in ("sr64", "BASE", ""):
        with pytest.raises(ValueError, match=f"stage name is {name!r}"):
            slot_named(name)


# --- words: each list holds exactly those that something acts on -----------------------------------------------------


def different(values: list[Tensor]) -> bool:
    return all(
        a.shape != b.shape or not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i]
    )  # no two the same


def test_words_of_schedules() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert different([make_schedule(kind).log_snr(t) for kind in get_args(ScheduleKind)])
    with pytest.raises(ValueError, match=f"is 'sigmoid'; expected one of {', '.join(get_args(ScheduleKind))}"):
        make_schedule("sigmoid")


def test_words_of_samplers() -> None:
    assert tuple(SAMPLERS) == get_args(SamplerKind)
    assert len({*SAMPLERS.values()}) == len(SAMPLERS)
    for kind in get_args(SamplerKind):
        assert type(make_scheduler(kind, CosineSchedule(), "epsilon")) is SAMPLERS[kind]


def test_words_of_weights() -> None:
    log_snr = torch.linspace(-8, 8, 9, dtype=torch.float64)
    options: dict[str, dict[str, float]] = {"clamped_snr": {"low": 0.05}}
    weightings = [LossWeighting(kind, **options.get(kind, {})) for kind in get_args(WeightingKind)]
    assert different([weighting.log_weight(log_snr) for weighting in weightings])
    with pytest.raises(ValueError, match="weighting is 'p2'"):
        LossWeighting("p2")  # type: ignore[arg-type]


def test_words_of_thresholds() -> None:
    x0 = 3 * torch.randn(1, 3, 8, 8, generator=seeded())
    assert different([Thresholding(kind, 0.9)(x0) for kind in get_args(ThresholdKind)])
    with pytest.raises(ValueError, match="'soft'"):
        Thresholding("soft")  # type: ignore[arg-type]


def test_words_of_resampling() -> None:
    x = torch.rand(1, 1, 6, 6, generator=seeded())
    made = [torch.cat([resize(x, 4, mode).flatten(), resize(x, 9, mode).flatten()]) for mode in get_args(ResizeMode)]
    assert different(made)
    with pytest.raises(ValueError, match="mode is 'lanczos'"):
        resize(x, 4, "lanczos")  # type: ignore[arg-type]


def test_words_of_where_noise_is_added() -> None:
    x, level = torch.zeros(1, 1, 4, 4), torch.full((1,), 0.5)
    made = []
    for space in get_args(AugSpace):
        noise = torch.randn(aug_noise_shape(x.shape, 8, space), generator=seeded())
        made.append(augment_lowres(x, level, noise, 8, space))
    assert different(made)
    with pytest.raises(ValueError, match="aug_space is 'latent'"):
        aug_noise_shape(x.shape, 8, "latent")  # type: ignore[arg-type]


def test_words_of_predictions() -> None:
    x0, eps = (torch.randn(1, 1, 2, 2, generator=seeded(seed), dtype=torch.float64) for seed in (1, 2))
    targets = [training_target(kind, x0, eps, 0.6, 0.8) for kind in get_args(PredictionType)]
    assert different(targets)
    for kind, target in zip(get_args(PredictionType), targets, strict=True):
        torch.testing.assert_close(x0_from(kind, target, 0.6 * x0 + 0.8 * eps, 0.6, 0.8), x0)
    with pytest.raises(ValueError, match="prediction_type is 'score'"):
        training_target("score", x0, eps, 0.6, 0.8)
