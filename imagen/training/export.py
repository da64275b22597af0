"""run/model: a trained stage as the pipeline takes it, with the EMA weights.

    unet/         config.json and diffusion_pytorch_model.safetensors (diffusers' ModelMixin.from_pretrained)
    scheduler/    scheduler_config.json: the noise schedule as trained_betas, and what the network predicts
    stage.json    slot, sizes, augmentation and sampling defaults, how text is read, step; with a format version

Where an adapter was trained, it is there in place of network and scheduler (imagen.cascade.adapters).

Every file is replaced as a whole, so that a reader never sees half of one.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from imagen.cascade.adapters import WEIGHTS as ADAPTER
from imagen.cascade.adapters import save_adapter
from imagen.cascade.stages import StageDefaults
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import MAX_EXPORT_ERROR, make_schedule
from imagen.disk import sync, write_text
from imagen.training.config import RunConfig
from imagen.training.ema import EMA
from imagen.training.errors import ConfigError
from imagen.training.origin import LEVELS, Origin, levels_error
from unets.contract import Network, facts

# 1 did not say how text is read: it was masked, and the null text zero; 2 had no lowres_consistency: it was 0
FORMAT_VERSION = 3
SLOTS = {"base64": "base", "sr256": "sr256", "sr1024": "sr1024"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
KEPT = (*LEVELS, "timestep_spacing", "steps_offset")


def stage_defaults(config: RunConfig) -> StageDefaults:
    """What the pipeline stores of this stage."""
    stage, sampling = config.stage, config.sampling
    return StageDefaults(
        size=stage.size,
        lowres_size=stage.lowres_size,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        threshold=sampling.threshold,
        threshold_p=sampling.threshold_p,
        threshold_cap=sampling.threshold_cap,
        aug_level=sampling.aug_level,
        aug_space=stage.aug_space,
        aug_schedule=dataclasses.asdict(stage.aug_schedule),
        lowres_mode=stage.lowres_mode,
        lowres_consistency=sampling.lowres_consistency,
    )


def stage_scheduler(config: RunConfig, origin: Origin | None = None) -> Any:
    """The scheduler that the exported stage samples with by default.

    Where the schedule is that of the stage it started from, its levels are the same to the bit, and their spacing.
    """
    schedule, sampling = config.stage.schedule, config.sampling
    scheduler = make_scheduler(
        sampling.sampler,
        make_schedule(**dataclasses.asdict(schedule)),
        config.stage.prediction_type,
        sampling.gamma,
    )
    changes: dict[str, Any] = {}
    before = None if origin is None else origin.scheduler
    if before is not None and levels_error(schedule, before) <= MAX_EXPORT_ERROR:
        changes = {name: before[name] for name in KEPT if name in before}
    if "variance_type" in scheduler.config and facts(config.unet).learns_variance:
        changes |= {"variance_type": "learned_range", "gamma": 0.0}
    return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler


def export_stage(config: RunConfig, unet: Network, ema: EMA, folder: Path, step: int, origin: Origin) -> None:
    """Write the stage after `step` steps into `folder`, over an earlier export of the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    lora = config.lora
    if lora.rank is not None:
        save_adapter(partial / ADAPTER, ema.average, lora.rank, lora.scale, lora.targets)
    else:
        unet.save_config(partial / "unet")
        save_file({k: v.contiguous() for k, v in ema.average.items()}, partial / "unet" / WEIGHTS, {"format": "pt"})
        stage_scheduler(config, origin).save_pretrained(partial / "scheduler")
    for file in sorted(partial.rglob("*.*")):
        target = folder / file.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync(file)
        file.replace(target)
    shutil.rmtree(partial)
    record = {
        "format_version": FORMAT_VERSION,
        "name": config.stage.name,
        "step": step,
        "images": step * config.train.batch_size,
        "stage": stage_defaults(config).to_dict(),
        "text": {"encoder": config.text.encoder, "max_length": config.text.max_length, **config.text.reading},
        **({"adapter_of": config.train.init_from, "drop_variance": config.train.drop_variance} if lora.used else {}),
    }
    write_text(folder / "stage.json", json.dumps(record, indent=2) + "\n")


def read_stage(folder: Path) -> dict[str, Any]:
    """stage.json of an exported stage; `folder` is a run or its model folder. Adds the folders "unet" and "scheduler".

    Raises:
        ConfigError: no exported stage there, or one of a newer format.
    """
    root = folder / "model" if (folder / "model" / "stage.json").is_file() else folder
    try:
        record: dict[str, Any] = json.loads((root / "stage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {str(folder)!r}: give the run_dir of a training") from None
        raise ConfigError(
            f"{str(folder)!r} holds no exported stage (model/stage.json): give the run_dir of a training"
        ) from None
    if record.get("format_version", 0) > FORMAT_VERSION:
        raise ConfigError(
            f"{root / 'stage.json'} has format version {record['format_version']}, newer than {FORMAT_VERSION}: "
            "update imagen"
        )
    return {**record, "unet": root / "unet", "scheduler": root / "scheduler"}
