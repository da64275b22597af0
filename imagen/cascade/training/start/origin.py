"""What train.init_from says beside its weights: the network, the noise schedule, how text is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from diffusers import DDPMScheduler

from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.config.sections import ATTENTION, WITHOUT_TEXT, ScheduleConfig
from imagen.diffusion.schedules import MAX_EXPORT_ERROR, NUM_TIMESTEPS, level_log_snrs, make_schedule
from imagen.diffusion.vocabulary import ScheduleKind
from imagen.errors import ConfigError, config_errors
from imagen.stages.folder import INDEX, SavedStage, network_folder, stage_beside

#: What makes a scheduler's levels.
LEVELS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


class Origin(NamedTuple):
    """A trained stage; what its folder does not say is empty, or None.

    Attributes:
        unet: kind and arguments of its network, as in a configuration.
        scheduler: its scheduler's config.
        stage: what is stored of it.
    """

    unet: Mapping[str, Any] = {}
    scheduler: Mapping[str, Any] = {}
    stage: SavedStage | None = None


def of_stage(folder: str, slot: str) -> str:
    """The network of a stage where ``folder`` is a composed pipeline; else ``folder``: a run, its export, a network."""
    network = Path(folder) / f"{slot}_unet"
    return str(network) if (Path(folder) / INDEX).is_file() and network.is_dir() else folder


def no_network(folder: str) -> ConfigError:
    """The error for a train.init_from without a network."""
    if not Path(folder).is_dir():
        return ConfigError(
            f"train.init_from {folder!r} does not exist: train that stage first, or convert a checkpoint with "
            "python -m imagen.convert"
        )
    return ConfigError(
        f"train.init_from {folder!r} holds no exported network: give the folder of a run that has saved one, or of a "
        "pipeline with a stage of this name"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def unet_section(network: Path) -> dict[str, Any]:
    """Kind and arguments of a saved network, as in a configuration; nothing where its folder does not say."""
    config = _json(network / "config.json")
    arguments = {name: value for name, value in config.items() if not name.startswith("_")}
    return {"kind": config.get("_class_name"), **arguments} if config else {}


def read_origin(folder: str) -> Origin:
    """What an exported stage, or a network in a pipeline folder, says of itself.

    Raises:
        ConfigError: entries that no stage has.
    """
    place = network_folder(folder)
    with config_errors(f"train.init_from {folder!r} is no stage of imagen: "):
        stage = stage_beside(place)
    scheduler = place.parent / "scheduler" if stage is None else stage.scheduler
    return Origin(unet_section(place), _json(scheduler / "scheduler_config.json"), stage)


def with_origin(config: RunConfig) -> tuple[RunConfig, Origin]:
    """The configuration, its unet filled in where it is left out, and what it starts from.

    Raises:
        ConfigError: no network is described, or drop_variance where there is no learned variance.
    """
    start, dropped = config.train.init_from, config.train.drop_variance
    # when a run goes on its start may be gone, but what was exported says the same
    known = start is None or Path(start).is_dir()
    origin = (
        Origin()
        if start is None
        else read_origin(of_stage(start, config.stage.name) if known else str(Path(config.run_dir) / "model"))
    )
    if config.unet:
        return with_targets(config), origin
    if start is None:
        raise ConfigError("unet is missing: add its kind and arguments, or train.init_from to take those of a stage")
    if not origin.unet:
        raise no_network(start)
    unet = dict(origin.unet)
    if dropped and unet.get("out_channels") == 2 * unet.get("in_channels", 0):
        unet["out_channels"] = unet["in_channels"]
    return with_targets(replace(config, unet=unet)), origin


def with_targets(config: RunConfig) -> RunConfig:
    """The configuration; where lora.targets are left open and the network reads no text, without the layers for it."""
    if config.lora.rank is None or config.lora.targets != ATTENTION or config.unet.get("text_dim", 0) is not None:
        return config
    return replace(config, lora=replace(config.lora, targets=WITHOUT_TEXT))


def levels_error(schedule: ScheduleConfig, scheduler: Mapping[str, Any]) -> float:
    """The largest difference in log-SNR between a schedule's 1000 levels and those of a scheduler's config."""
    known = {name: scheduler[name] for name in LEVELS if name in scheduler}
    levels = level_log_snrs(DDPMScheduler(**known))
    t = (torch.arange(len(levels), dtype=torch.float64) + 0.5) / len(levels)
    return float((make_schedule(**asdict(schedule)).log_snr(t) - levels).abs().max())


def _schedule_difference(config: RunConfig, scheduler: Mapping[str, Any]) -> list[str]:
    ours = config.stage.schedule
    error = levels_error(ours, scheduler) if scheduler.get("num_train_timesteps") == NUM_TIMESTEPS else 0.0
    if error <= MAX_EXPORT_ERROR:
        return []
    kinds = get_args(ScheduleKind)
    fits = [kind for kind in kinds if levels_error(ScheduleConfig(kind=kind), scheduler) <= MAX_EXPORT_ERROR]
    remedy = f"set stage.schedule.kind {fits[0]}" if fits else "set stage.schedule as in the run that made it"
    return [f"stage.schedule ({ours.kind}) is another than the network's (by {error:.2g} in log-SNR): {remedy}"]


def differences(config: RunConfig, origin: Origin) -> list[str]:
    """Where a run would train a network on something else than it was trained on, and what to set: one line each."""
    stage, text, there = config.stage, config.text, origin.stage
    pairs: list[tuple[str, Any, Any]] = []
    if there is not None and text.used:
        pairs += [
            ("text.padding", text.padding, there.text.padding),
            ("text.unconditional", text.unconditional, there.text.null),
            ("text.lowercase", text.lowercase, there.text.lowercase),
            ("text.max_length", text.max_length, there.max_length),
        ]
    if origin.scheduler:
        pairs.append(("stage.prediction_type", stage.prediction_type, origin.scheduler.get("prediction_type")))
    if there is not None and there.defaults.lowres_size is not None and stage.lowres_size is not None:
        pairs += [
            ("stage.aug_space", stage.aug_space, there.defaults.aug_space),
            ("stage.lowres_mode", stage.lowres_mode, there.defaults.lowres_mode),
            ("stage.aug_schedule.kind", stage.aug_schedule.kind, there.defaults.aug_schedule.get("kind", "cosine")),
        ]
    found = [f"{key} is {ours!r}: set {key} {theirs}" for key, ours, theirs in pairs if ours != theirs]
    return found + _schedule_difference(config, origin.scheduler)
