"""What train.init_from says beside its weights: the network, the noise schedule, how text is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler

from imagen.cascade.stages import StageDefaults, TextDefaults
from imagen.diffusion.levels import level_log_snrs
from imagen.diffusion.schedules import MAX_EXPORT_ERROR, NUM_TIMESTEPS, make_schedule
from imagen.errors import ConfigError
from imagen.training.config import RunConfig
from imagen.training.stage_config import ScheduleConfig

#: What makes a scheduler's levels.
LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


@dataclass(frozen=True)
class Origin:
    """A trained stage; what its folder does not say is None.

    Attributes:
        unet: kind and arguments of its network, as in a configuration.
        scheduler: its scheduler's config.
        stage: its sampling defaults.
        text: how it reads text; max_length: the most tokens.
    """

    unet: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] | None = None
    stage: StageDefaults | None = None
    text: TextDefaults | None = None
    max_length: int | None = None


def network_folder(folder: str) -> Path:
    """The folder of the network itself: ``folder``, or its unet folder where it is an exported stage."""
    root = Path(folder)
    return root / "unet" if (root / "unet").is_dir() else root


def no_network(folder: str) -> ConfigError:
    """The error for a train.init_from without a network."""
    if not Path(folder).is_dir():
        return ConfigError(
            f"train.init_from {folder!r} does not exist: train that stage first, or convert a checkpoint with "
            "python -m imagen.convert"
        )
    return ConfigError(f"train.init_from {folder!r} holds no exported network: give a run/model folder")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def read_origin(folder: str) -> Origin:
    """What an exported stage, or a network in a pipeline folder, says of itself.

    Raises:
        ConfigError: entries that no stage has.
    """
    place = network_folder(folder)
    config = _json(place / "config.json")
    unet = None
    if config is not None:
        unet = {"kind": config.get("_class_name"), **{k: v for k, v in config.items() if not k.startswith("_")}}
    slot = place.name.removesuffix("_unet")
    index, record = _json(place.parent / "model_index.json"), _json(place.parent / "stage.json")
    try:
        if index is not None and slot in (index.get("stages") or {}):
            scheduler = _json(place.parent / f"{slot}_scheduler" / "scheduler_config.json")
            stage = StageDefaults.from_dict(index["stages"][slot])
            return Origin(unet, scheduler, stage, TextDefaults.from_dict(index.get("text")), index.get("max_length"))
        scheduler = _json(place.parent / "scheduler" / "scheduler_config.json")
        if record is None:
            return Origin(unet, scheduler)
        text = {key: value for key, value in record["text"].items() if key in TextDefaults.__dataclass_fields__}
        stage = StageDefaults.from_dict(record["stage"])
        return Origin(unet, scheduler, stage, TextDefaults.from_dict(text), record["text"]["max_length"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"train.init_from {folder!r} is no stage of imagen: {error!r}") from error


def with_origin(config: RunConfig) -> tuple[RunConfig, Origin]:
    """The configuration, its unet filled in where it is left out, and what it starts from.

    Raises:
        ConfigError: no network is described, or drop_variance where there is no learned variance.
    """
    start, dropped = config.train.init_from, config.train.drop_variance
    # when a run goes on its start may be gone, but what was exported says the same
    known = start is None or Path(start).is_dir()
    origin = Origin() if start is None else read_origin(start if known else str(Path(config.run_dir) / "model"))
    if config.unet:
        return config, origin
    if start is None:
        raise ConfigError("unet is missing: add its kind and arguments, or train.init_from to take those of a stage")
    if origin.unet is None:
        raise no_network(start)
    unet = dict(origin.unet)
    if dropped and unet.get("out_channels") == 2 * unet.get("in_channels", 0):
        unet["out_channels"] = unet["in_channels"]
    return replace(config, unet=unet), origin


def levels_error(schedule: ScheduleConfig, scheduler: Mapping[str, Any]) -> float:
    """The largest difference in log-SNR between a schedule's 1000 levels and those of a scheduler's config."""
    known = {name: scheduler[name] for name in LEVELS if name in scheduler}
    levels = level_log_snrs(DDPMScheduler(**known))
    t = (torch.arange(len(levels), dtype=torch.float64) + 0.5) / len(levels)
    return float((make_schedule(**asdict(schedule)).log_snr(t) - levels).abs().max())


def _schedule_difference(config: RunConfig, scheduler: Mapping[str, Any]) -> list[str]:
    if scheduler.get("num_train_timesteps") != NUM_TIMESTEPS:
        return []
    error = levels_error(config.stage.schedule, scheduler)
    if error <= MAX_EXPORT_ERROR:
        return []
    known = [ScheduleConfig(kind="cosine"), ScheduleConfig(kind="linear"), ScheduleConfig(kind="cosine_discrete")]
    fits = [one.kind for one in known if levels_error(one, scheduler) <= MAX_EXPORT_ERROR]
    ours = config.stage.schedule.kind
    remedy = f"set stage.schedule.kind {fits[0]}" if fits else "set stage.schedule as in the run that made it"
    return [f"stage.schedule ({ours}) is another than the network's (by {error:.2g} in log-SNR): {remedy}"]


def differences(config: RunConfig, origin: Origin) -> list[str]:
    """Where a run would train a network on something else than it was trained on, and what to set: one line each."""
    stage, text = config.stage, config.text
    pairs: list[tuple[str, Any, Any]] = []
    if origin.text is not None and text.used:
        pairs += [
            ("text.padding", text.padding, origin.text.padding),
            ("text.unconditional", text.unconditional, origin.text.null),
            ("text.lowercase", text.lowercase, origin.text.lowercase),
            ("text.max_length", text.max_length, origin.max_length),
        ]
    if origin.scheduler is not None:
        pairs.append(("stage.prediction_type", stage.prediction_type, origin.scheduler.get("prediction_type")))
    there = origin.stage
    if there is not None and there.lowres_size is not None and stage.lowres_size is not None:
        pairs += [
            ("stage.aug_space", stage.aug_space, there.aug_space),
            ("stage.lowres_mode", stage.lowres_mode, there.lowres_mode),
            ("stage.aug_schedule.kind", stage.aug_schedule.kind, there.aug_schedule.get("kind", "cosine")),
        ]
    found = [f"{key} is {ours!r}: set {key} {theirs}" for key, ours, theirs in pairs if ours != theirs]
    return found + ([] if origin.scheduler is None else _schedule_difference(config, origin.scheduler))
