"""What a run leaves for a pipeline: the average as a network, its scheduler, and what is stored of the stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from imagen.cascade.adapter_files import read_adapter
from imagen.cascade.adapters import attach
from imagen.cascade.training.config.run import RunConfig, StageTrainConfig
from imagen.cascade.training.config.sections import (
    ConditionsConfig,
    LabelConfig,
    LoraConfig,
    MaskConfig,
    SamplingConfig,
    ScheduleConfig,
    StageConfig,
    TextConfig,
)
from imagen.cascade.training.export import export_stage, saved_stage, stage_scheduler
from imagen.cascade.training.start.origin import Origin
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import make_schedule
from imagen.stages.folder import ADAPTER as WEIGHTS
from imagen.stages.folder import read_run
from imagen.stages.load import load_network, load_scheduler
from imagen.text.reading import TextDefaults
from imagen.training.state.ema import EMA
from tests.factories import tiny_base

UNET: dict[str, Any] = {"kind": "BaseUNet", "text_dim": None}
CONFIG = RunConfig("run", unet=UNET, stage=StageConfig(size=16, prediction_type="v_prediction"))


def test_what_is_stored_of_a_stage_is_what_it_was_trained_with() -> None:
    config = replace(
        CONFIG,
        stage=StageConfig("sr1024", 32, 16, aug_space="upsampled"),
        sampling=SamplingConfig(aug_level=0.3, guidance_scale=2.5),
        text=TextConfig("t5", max_length=9, padding="visible", unconditional="empty", lowercase=True),
        conditions=ConditionsConfig(LabelConfig(names=("a", "b")), MaskConfig()),
    )
    stage = saved_stage(config, Path("m"))
    assert (stage.slot, stage.unet, stage.scheduler) == ("sr1024", Path("m/unet"), Path("m/scheduler"))
    assert (stage.text, stage.max_length, stage.encoder) == (TextDefaults("visible", "empty", True), 9, "t5")
    assert (stage.defaults.size, stage.defaults.lowres_size, stage.defaults.aug_space) == (32, 16, "upsampled")
    assert (stage.defaults.aug_level, stage.defaults.guidance_scale) == (0.3, 2.5)
    assert stage.conditions.keys() == {"label", "mask"}
    assert stage.conditions["label"] == {"names": ["a", "b"]}


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dropped", [False, True])
def test_only_an_adapter_names_its_network_and_that_it_left_the_variance_behind(
    rank: int | None, dropped: bool
) -> None:
    train = StageTrainConfig(init_from="start", drop_variance=dropped)
    stage = saved_stage(replace(CONFIG, train=train, lora=LoraConfig(rank)), Path("m"))
    assert stage.adapter_of == (None if rank is None else "start")
    assert stage.drop_variance == (dropped and rank is not None)


@pytest.mark.parametrize("same", [True, False])
def test_a_run_that_keeps_its_start_s_schedule_keeps_its_levels_to_the_bit_and_their_spacing(same: bool) -> None:
    """An own scheduler has them as betas, rounded otherwise; of another schedule nothing is taken over."""
    rule = DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", steps_offset=1)
    schedule = ScheduleConfig("cosine_discrete" if same else "linear")
    config = replace(CONFIG, stage=replace(CONFIG.stage, schedule=schedule))
    before = dict(rule.config)
    found, alone = stage_scheduler(config, before).config, stage_scheduler(config).config
    for name in ("trained_betas", "beta_schedule", "timestep_spacing", "steps_offset"):
        assert found[name] == (before[name] if same else alone[name]), name
    assert found.prediction_type == "v_prediction"
    assert type(stage_scheduler(config, before)) is type(stage_scheduler(config))
    fewer = {name: value for name, value in before.items() if name != "timestep_spacing"}
    assert stage_scheduler(config, fewer).config.timestep_spacing == alone.timestep_spacing


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_the_scheduler_is_the_sampler_that_is_asked_for(sampler: Any) -> None:
    config = replace(CONFIG, sampling=SamplingConfig(sampler=sampler))
    schedule = make_schedule("cosine", shift=1.0, max_log_snr=20.0)
    expected = make_scheduler(sampler, schedule, "v_prediction")
    assert type(stage_scheduler(config)) is type(expected)
    assert dict(stage_scheduler(config).config) == dict(expected.config)


def test_a_learned_variance_is_said_where_the_sampler_can_use_it() -> None:
    wide = replace(CONFIG, unet={**UNET, "out_channels": 6})
    assert stage_scheduler(wide).config.variance_type == "learned_range"
    assert stage_scheduler(CONFIG).config.variance_type == "fixed_small"
    assert "variance_type" not in stage_scheduler(replace(wide, sampling=SamplingConfig(sampler="ddim"))).config


def test_an_export_is_the_average_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    config, unet = replace(CONFIG, train=StageTrainConfig(batch_size=6)), tiny_base(text_dim=None)
    ema = EMA(unet, decay=0.5, warmup=False)
    folder = tmp_path / "model"
    (folder / "partial").mkdir(parents=True)
    (folder / "partial" / "old.json").write_text("of a writer that was killed")
    (folder / "notes.txt").write_text("a user's")
    rule = make_scheduler("ddim", make_schedule("cosine"), "v_prediction")
    origin = Origin(scheduler={**rule.config, "timestep_spacing": "trailing", "steps_offset": 3})
    for step in (5, 7):
        with torch.no_grad():
            unet.conv_in.weight.add_(1)
        ema.update(unet)
        ema.average["conv_out.weight"] = ema.average["conv_out.weight"].transpose(0, 1).contiguous().transpose(0, 1)
        export_stage(config, unet, ema, folder, step, origin)
    found = load_network(folder / "unet").state_dict()
    assert found.keys() == ema.average.keys()
    assert all(torch.equal(value, ema.average[name]) for name, value in found.items())
    assert read_run(folder) == saved_stage(config, folder)
    assert load_scheduler(folder / "scheduler").config.steps_offset == 3, "that of its start"
    record = json.loads((folder / "stage.json").read_text())
    assert (record["step"], record["images"]) == (7, 42)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert files == {"stage.json", "notes.txt", "unet/config.json", weights, "scheduler/scheduler_config.json"}
    assert not (folder / "partial").exists()


def test_an_adapter_is_exported_alone_with_its_numbers(tmp_path: Path) -> None:
    unet = tiny_base(text_dim=None)
    attach(unet, 2, 6.0, ["to_q", "to_k"])
    lora = LoraConfig(2, 6.0, ("to_q", "to_k"))
    config = replace(CONFIG, train=StageTrainConfig(init_from="start"), lora=lora)
    export_stage(config, unet, EMA(unet), tmp_path, 1, Origin())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([WEIGHTS, "stage.json"])
    adapter = read_adapter(tmp_path)
    assert (adapter.config["r"], adapter.config["lora_alpha"]) == (2, 6.0)
    assert len(load_file(tmp_path / WEIGHTS)) == len([name for name in unet.state_dict() if "lora_" in name])
    assert read_run(tmp_path).adapter_of == "start"
