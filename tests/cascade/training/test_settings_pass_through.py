"""Every setting of a stage, one by one: from YAML through training and its export to the pipeline that samples, and
back. No value here is a default, so one that is dropped on the way shows; a new field without a value here fails.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose, save
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.config.sections import SamplingConfig, StageConfig
from imagen.cascade.training.inputs.batches import BatchMaker, Draws
from imagen.cascade.training.inputs.source import make_conditions
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.task import StageTask
from imagen.diffusion.schedules import level_log_snrs, make_schedule
from imagen.stages.spec import StageDefaults
from imagen.training.trainer import Trainer
from tests.factories import WIDTH, sample, seeded, tiny_sr

VALUES: dict[str, Any] = {
    "stage.name": "sr256",
    "stage.size": 16,
    "stage.lowres_size": 8,
    "stage.prediction_type": "v_prediction",
    "stage.schedule.kind": "linear",
    "stage.schedule.shift": 0.5,
    "stage.schedule.max_log_snr": 12.0,
    "stage.loss.kind": "clamped_snr",
    "stage.loss.gamma": 3.0,
    "stage.loss.low": 0.5,
    "stage.loss.bias": -1.0,
    "stage.loss.vlb_weight": 0.25,
    "stage.loss.per": "log_snr",
    "stage.text_dropout": 0.3,
    "stage.aug_space": "upsampled",
    "stage.aug_schedule.kind": "linear",
    "stage.aug_schedule.shift": 0.75,
    "stage.aug_schedule.max_log_snr": 9.0,
    "stage.lowres_mode": "bilinear_corners",
    "sampling.sampler": "dpm++",
    "sampling.gamma": 0.3,
    "sampling.num_inference_steps": 3,
    "sampling.guidance_scale": 2.5,
    "sampling.guidance": "rescaled(phi=0.7)+cfg",
    "sampling.threshold": "static",
    "sampling.threshold_p": 0.9,
    "sampling.threshold_cap": 1.5,
    "sampling.aug_level": 0.35,
    "sampling.lowres_consistency": 2,
}
OTHER_OPTIONS = {  # what one run cannot have beside the others: each is the subject of a run of its own
    "stage.loss.bias": {"stage.loss.kind": "sigmoid"},
    "stage.loss.vlb_weight": {"unet.out_channels": 6},
    "sampling.sampler": {"sampling.gamma": 0.0},
}
STORED = {  # field of a stored stage -> the key that it is trained with
    "size": "stage.size",
    "lowres_size": "stage.lowres_size",
    "num_inference_steps": "sampling.num_inference_steps",
    "guidance_scale": "sampling.guidance_scale",
    "guidance": "sampling.guidance",
    "threshold": "sampling.threshold",
    "threshold_p": "sampling.threshold_p",
    "threshold_cap": "sampling.threshold_cap",
    "aug_level": "sampling.aug_level",
    "aug_space": "stage.aug_space",
    "aug_schedule": "stage.aug_schedule",
    "lowres_mode": "stage.lowres_mode",
    "lowres_consistency": "sampling.lowres_consistency",
}
EXPECTED = {
    field: VALUES[key]
    if key in VALUES
    else {name.rpartition(".")[2]: value for name, value in VALUES.items() if name.startswith(f"{key}.")}
    for field, key in STORED.items()
} | {"sampler": None}  # the exported scheduler is of sampling.sampler
ONE_RUN = {key: value for key, value in VALUES.items() if key not in OTHER_OPTIONS}


def leaves(section: type, prefix: str) -> dict[str, Any]:
    """Dotted key of every setting in a section and the sections in it -> its default."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[item.name]):
            found |= leaves(hints[item.name], f"{prefix}.{item.name}")  # type: ignore[arg-type]
        else:
            found[f"{prefix}.{item.name}"] = item.default
    return found


def test_no_value_here_is_a_default_and_none_is_missing() -> None:
    defaults = leaves(StageConfig, "stage") | leaves(SamplingConfig, "sampling")
    assert VALUES.keys() == defaults.keys(), "give each new setting of a stage a value here"
    assert {key for key in defaults if VALUES[key] == defaults[key]} == set()
    assert EXPECTED.keys() == {item.name for item in dataclasses.fields(StageDefaults)}
    stored = StageDefaults(size=64)
    assert {field for field, value in EXPECTED.items() if value == getattr(stored, field)} == {"sampler"}
    kept = ("stage.name", "stage.prediction_type", "stage.schedule", "stage.loss", "stage.text_dropout")
    elsewhere = {key for key in VALUES if key.startswith((*kept, "sampling.sampler", "sampling.gamma"))}
    reached = {key for key in VALUES for stored_as in STORED.values() if f"{key}.".startswith(f"{stored_as}.")}
    assert elsewhere | reached == VALUES.keys()


@pytest.fixture
def trained(config: Callable[..., RunConfig]) -> RunConfig:
    """A stage that was trained for a step with ONE_RUN."""
    settings = config(
        **{"unet.lowres_channels": 3, "train.steps": 1, "train.batch_size": 2, "stage": {}, **ONE_RUN},
    )
    assert Trainer(StageTask(settings)).fit()
    return settings


def check_scheduler(scheduler: Any, gamma: float) -> None:
    assert scheduler.config.prediction_type == VALUES["stage.prediction_type"]
    assert scheduler.config.gamma == gamma
    schedule = make_schedule("linear", shift=0.5, max_log_snr=12.0)
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    torch.testing.assert_close(level_log_snrs(scheduler), schedule.log_snr(t), rtol=0, atol=1e-3)


def test_a_stage_samples_as_its_run_was_told_and_keeps_it(trained: RunConfig, tmp_path: Path) -> None:
    record = json.loads((Path(trained.run_dir) / "model" / "stage.json").read_text())
    assert record["name"] == VALUES["stage.name"]
    assert record["stage"] == EXPECTED
    save(compose({"sr256": Path(trained.run_dir)}), tmp_path / "first")
    save(compose({"sr256": tmp_path / "first"}), tmp_path / "second")  # of a pipeline, not of a run
    pipe = ImagenPipeline.from_pretrained(tmp_path / "second")
    pipe.save_pretrained(tmp_path / "third")
    for name in ("first", "second", "third"):
        pipe = ImagenPipeline.from_pretrained(tmp_path / name)
        assert pipe.stage_defaults["sr256"].to_dict() == EXPECTED
        assert dataclasses.asdict(pipe.settings(image=torch.zeros(3, 8, 8))[16]) == EXPECTED
        check_scheduler(pipe.sr256_scheduler, VALUES["sampling.gamma"])


def test_each_stored_setting_can_be_changed_alone(trained: RunConfig) -> None:
    others = {
        **{"size": 32, "lowres_size": 4, "num_inference_steps": "fast27", "guidance_scale": 3.5, "aug_level": 0.45},
        **{"threshold": "none", "threshold_p": 0.8, "threshold_cap": 2.5, "aug_space": "lowres"},
        **{"guidance": "apg(eta=0, norm=inf, momentum=0)", "sampler": "heun(use_karras_sigmas)"},
        **{"aug_schedule": {"kind": "cosine", "s": 0.1}, "lowres_mode": "area", "lowres_consistency": 4},
    }
    assert others.keys() == EXPECTED.keys()
    for field, value in others.items():
        pipe = compose({"sr256": Path(trained.run_dir)})
        pipe.set_stage_defaults("sr256", **{field: value})
        assert pipe.stage_defaults["sr256"].to_dict() == {**EXPECTED, field: value}


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_the_sampler_is_the_run_s(config: Callable[..., RunConfig], sampler: str) -> None:
    changes = {**ONE_RUN, "sampling.gamma": 0.0, "sampling.sampler": sampler}
    settings = config(**{"unet.lowres_channels": 3, "train.steps": 1, "train.batch_size": 2, "stage": {}, **changes})
    assert Trainer(StageTask(settings)).fit()
    name = compose({"sr256": Path(settings.run_dir)}).sr256_scheduler.config["_class_name"]
    assert name == {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler"}[sampler]


# --- that each one acts ----------------------------------------------------------------------------------------------

SAMPLED = {  # field of a stored stage -> another value, which makes another picture
    "num_inference_steps": 4,
    "threshold": "static",
    "threshold_p": 0.5,
    "threshold_cap": 1.2,
    "aug_level": 0.6,
    "aug_space": "lowres",
    "aug_schedule": {"kind": "cosine"},
    "lowres_mode": "nearest",
    "lowres_consistency": 4,
    "guidance_scale": 4.0,
    "guidance": "interval(low=8)",
}


def wild_pipeline() -> ImagenPipeline:
    """A random stage from 8 to 16 px, with text, whose estimates leave [-1, 1] so that each threshold acts."""
    stored = {**EXPECTED, "threshold": "dynamic", "threshold_cap": 100.0}
    pipe = ImagenPipeline(
        sr256_unet=tiny_sr(5, text_dim=WIDTH),
        sr256_scheduler=DDIMScheduler(prediction_type="epsilon", timestep_spacing="trailing"),
        stages={"sr256": stored},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_stored_setting_acts_on_the_picture() -> None:
    assert SAMPLED.keys() | {"size", "lowres_size"} == STORED.keys()
    given = {
        "prompt_embeds": torch.randn(1, 3, WIDTH, generator=seeded(1)),
        "image": torch.rand(3, 8, 8, generator=seeded(2)),
    }
    plain = sample(wild_pipeline(), **given).images
    assert torch.equal(sample(wild_pipeline(), **given).images, plain)
    for field, value in SAMPLED.items():
        pipe = wild_pipeline()
        changed = {field: value}
        pipe.set_stage_defaults("sr256", **changed)
        assert (sample(pipe, **given).images - plain).abs().max() > 1e-3, f"{field} has no effect"
        if field in ("num_inference_steps", "guidance_scale", "aug_level", "lowres_consistency"):
            asked = sample(wild_pipeline(), **given, **changed).images
            assert torch.equal(asked, sample(pipe, **given).images), f"{field} of a call is another one"


NEEDED = {  # what a setting of training needs beside it to be read
    "stage.loss.gamma": {"stage.loss.kind": "min_snr"},
    "stage.loss.low": {"stage.loss.kind": "clamped_snr"},
    "stage.loss.bias": {"stage.loss.kind": "sigmoid"},
    "stage.loss.vlb_weight": {},
}


def changed(section: Any, changes: dict[str, Any]) -> Any:
    """A section with dotted keys of it set."""
    for key, value in changes.items():
        name, _, rest = key.partition(".")
        part = changed(getattr(section, name), {rest: value}) if rest else value
        section = dataclasses.replace(section, **{name: part})
    return section


def test_every_setting_of_training_acts_on_the_loss() -> None:
    """The loss of a random network on one batch: what it is trained on, and how its errors are weighted."""
    times = torch.tensor([0.05, 0.5, 0.99999], dtype=torch.float64)
    drawn = {
        name: torch.randn(3, 3, side, side, generator=seeded(side)) for name, side in (("image", 16), ("lowres", 8))
    }
    draws = Draws(times, times < 0, times.flip(0))
    plain = {out: tiny_sr(7, text_dim=None, out_channels=out) for out in (3, 6)}

    def loss(changes: dict[str, Any], out_channels: int) -> float:
        stage = StageConfig(name="sr256", size=16, lowres_size=8)
        stage = changed(stage, {key.removeprefix("stage."): value for key, value in changes.items()})
        config = RunConfig("run", stage=stage)
        make = BatchMaker(make_conditions(config, Texts(config)), 3, torch.float32, torch.device("cpu"))
        with torch.no_grad():
            return float(Objective(stage)(plain[out_channels], make(drawn, draws, 0, range(3))).mean())

    whose = {"stage.name", "stage.size", "stage.lowres_size", "stage.text_dropout"}  # of the data
    acting = leaves(StageConfig, "stage").keys() - whose
    for key in sorted(acting):
        out = 6 if key == "stage.loss.vlb_weight" else 3
        before = NEEDED.get(key, {})
        assert loss({**before, key: VALUES[key]}, out) != pytest.approx(loss(before, out), rel=1e-6), f"{key} is unread"
