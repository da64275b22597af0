"""A stage in training as a part of the whole cascade, whose other stages come from a folder (grid.cascade)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from imagen.cascade.route import route
from imagen.cascade.runner import Stage
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.export import stage_defaults
from imagen.cascade.training.inputs.source import named_conditions
from imagen.errors import ConfigError
from imagen.stages.folder import SavedStage, read_saved
from imagen.stages.load import load_network, load_scheduler
from imagen.stages.spec import SLOTS
from unets.contract import facts


def find_stages(config: RunConfig) -> dict[str, SavedStage | None]:
    """The stages that run with this run's own among those of grid.cascade, by slot and in order; None for its own.

    Reads configurations, no weights.

    Raises:
        ConfigError: no pipeline and no stage there, or none that meets this stage's sizes, text or channels.
    """
    folder, own = Path(str(config.grid.cascade)), config.stage.name
    try:
        saved = read_saved(folder)
        stages = {slot: stage.defaults for slot, stage in saved.items()} | {own: stage_defaults(config)}
        slots = route({slot: stages[slot] for slot in SLOTS if slot in stages})
    except ValueError as error:
        raise ConfigError(f"grid.cascade: {error}") from error
    if own not in slots or len(slots) == 1:
        made = " -> ".join(f"{stages[slot].size} px" for slot in slots)
        raise ConfigError(
            f"grid.cascade {str(folder)!r}: its stages do not meet {config.stage.name} ({stages[own].lowres_size} to "
            f"{stages[own].size} px); what runs is {made}"
        )
    found = {slot: None if slot == own else saved[slot] for slot in slots}
    for stage in found.values():
        if stage is not None:
            _check_network(config, stage.unet)
            _check_conditions(config, stage)
    return found


def _check_network(config: RunConfig, folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours, theirs = facts(config.unet), facts({"kind": stored.get("_class_name"), **stored})
    for name in ("text_dim", "in_channels"):
        if getattr(theirs, name) != getattr(ours, name):
            raise ConfigError(
                f"grid.cascade: {folder} has {name} {getattr(theirs, name)}, this run's unet {getattr(ours, name)}: a "
                "cascade's stages share their text encoder and channels"
            )
    for name, number in theirs.classes.items():
        if ours.classes.get(name, number) != number:
            raise ConfigError(
                f"grid.cascade: {folder} has {number} classes of {name}, this run's unet {ours.classes[name]}: a "
                "cascade's stages share what their conditions mean"
            )


def _check_conditions(config: RunConfig, stage: SavedStage) -> None:
    ours = {condition.name: condition.stored for condition in named_conditions(config)}
    for name, stored in stage.conditions.items():
        if ours.get(name, stored) != stored:
            raise ConfigError(
                f"grid.cascade: {stage.slot} was trained with {name} {stored}, this run with {ours[name]}: a cascade's "
                "stages share what their conditions mean"
            )


def load_others(config: RunConfig) -> dict[str, Stage | None]:
    """The stages of grid.cascade, loaded on the CPU, by slot and in order; None for this run's own.

    They sample with their own scheduler and stored settings, in grid.num_inference_steps steps. The text is the run's:
    its encoder must be the one they were trained with.

    Raises:
        ConfigError: as :func:`find_stages`, or weights that are not whole.
    """
    steps = config.grid.num_inference_steps
    found: dict[str, Stage | None] = {}
    for slot, saved in find_stages(config).items():
        if saved is None:
            found[slot] = None
            continue
        try:
            unet, scheduler = load_network(saved.unet), load_scheduler(saved.scheduler)
        except ValueError as error:
            raise ConfigError(f"grid.cascade: {error}") from error
        unet.eval().requires_grad_(False)
        found[slot] = Stage(slot, unet, scheduler, replace(saved.defaults, num_inference_steps=steps))
    return found
