"""run/model: a trained stage as the pipeline takes it, with the EMA weights.

    unet/         config.json and diffusion_pytorch_model.safetensors (diffusers' ModelMixin.from_pretrained)
    scheduler/    scheduler_config.json: the noise schedule as trained_betas, and what the network predicts
    stage.json    slot, sizes, augmentation and sampling defaults, how text is read, step; with a format version

Where an adapter was trained, it is there in place of network and scheduler (imagen.cascade.adapter_files).

Every file is replaced as a whole, so that a reader never sees half of one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from imagen.cascade.adapter_files import save_adapter
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.inputs.source import named_conditions
from imagen.cascade.training.start.origin import LEVELS, Origin, levels_error
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import MAX_EXPORT_ERROR, make_schedule
from imagen.disk import filling, sync
from imagen.stages.folder import ADAPTER, SavedStage, write_run
from imagen.stages.spec import SETTINGS, StageDefaults
from imagen.training.state.ema import EMA
from unets.contract import facts
from unets.network import Network

WEIGHTS = "diffusion_pytorch_model.safetensors"
KEPT = (*LEVELS, "timestep_spacing", "steps_offset")


def stage_defaults(config: RunConfig) -> StageDefaults:
    """What the pipeline stores of this stage. Raises: ValueError for values that do not go together."""
    trained = {entry.name: getattr(config.stage, entry.name, None) for entry in fields(StageDefaults)}
    settings = {name: getattr(config.sampling, name) for name in SETTINGS if name != "sampler"}  # in the scheduler
    return StageDefaults(**{**trained, **settings, "aug_schedule": asdict(config.stage.aug_schedule)})


def saved_stage(config: RunConfig, folder: Path) -> SavedStage:
    """The stage of a run as its model folder describes it."""
    text, train, adapter = config.text, config.train, config.lora.rank is not None
    return SavedStage(
        slot=config.stage.name,
        defaults=stage_defaults(config),
        unet=folder / "unet",
        scheduler=folder / "scheduler",
        text=text.reading,
        max_length=text.max_length,
        encoder=text.encoder,
        adapter_of=train.init_from if adapter else None,
        drop_variance=train.drop_variance and adapter,
        conditions={condition.name: dict(condition.stored) for condition in named_conditions(config)},
    )


def stage_scheduler(config: RunConfig, before: Mapping[str, Any] = {}) -> Any:
    """The scheduler that the exported stage samples with by default.

    Args:
        before: that of the stage it started from. Where the schedule is the same, the levels are to the bit, and their
            spacing.
    """
    stage, sampling = config.stage, config.sampling
    schedule = make_schedule(**asdict(stage.schedule))
    scheduler = make_scheduler(sampling.sampler, schedule, stage.prediction_type, sampling.gamma)
    changes: dict[str, Any] = {}
    if before and levels_error(stage.schedule, before) <= MAX_EXPORT_ERROR:
        changes = {name: before[name] for name in KEPT if name in before}
    if "variance_type" in scheduler.config and facts(config.unet).learns_variance:
        changes |= {"variance_type": "learned_range", "gamma": 0.0}
    return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler


def export_stage(config: RunConfig, unet: Network, ema: EMA, folder: Path, step: int, origin: Origin) -> None:
    """Write the stage after `step` steps into `folder`, over an earlier export of the same run."""
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with filling(partial):
        lora = config.lora
        if lora.rank is not None:
            save_adapter(partial / ADAPTER, ema.average, lora.rank, lora.scale, lora.targets)
        else:
            unet.save_config(partial / "unet")
            save_file({k: v.contiguous() for k, v in ema.average.items()}, partial / "unet" / WEIGHTS, {"format": "pt"})
            stage_scheduler(config, origin.scheduler).save_pretrained(partial / "scheduler")
        for file in sorted(partial.rglob("*.*")):
            target = folder / file.relative_to(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            file.replace(target)
    shutil.rmtree(partial)
    write_run(folder, saved_stage(config, folder), step=step, images=step * config.train.batch_size)
