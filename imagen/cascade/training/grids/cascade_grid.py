"""A stage in training as a part of the whole cascade, whose other stages come from a folder (grid.cascade)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imagen.cascade.route import route
from imagen.cascade.runner import Stage
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.export import stage_defaults
from imagen.cascade.training.inputs.source import named_conditions
from imagen.cascade.training.start.origin import unet_section
from imagen.errors import ConfigError, config_errors, require
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
    with config_errors("grid.cascade: "):
        saved = read_saved(folder)
        stages = {slot: stage.defaults for slot, stage in saved.items()} | {own: stage_defaults(config)}
        slots = route({slot: stages[slot] for slot in SLOTS if slot in stages})
    if own not in slots or len(slots) == 1:
        made = " -> ".join(f"{stages[slot].size} px" for slot in slots)
        raise ConfigError(
            f"grid.cascade {str(folder)!r}: its stages do not meet {own} ({stages[own].lowres_size} to "
            f"{stages[own].size} px); what runs is {made}"
        )
    for slot in slots:
        if slot != own:
            _check_shared(config, saved[slot])
    return {slot: None if slot == own else saved[slot] for slot in slots}


def _check_shared(config: RunConfig, stage: SavedStage) -> None:
    """Raises ConfigError where another stage reads or makes something else than this run's under the same name."""
    with config_errors("grid.cascade: "):
        ours, theirs = facts(config.unet), facts(unet_section(stage.unet))
    stored = {condition.name: condition.stored for condition in named_conditions(config)}
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in ("text_dim", "in_channels")]
    pairs += [(f"classes of {name}", there, ours.classes.get(name, there)) for name, there in theirs.classes.items()]
    pairs += [(name, there, stored.get(name, there)) for name, there in stage.conditions.items()]
    for name, there, here in pairs:
        require(
            there == here,
            f"grid.cascade: {stage.slot} was trained with {name} {there}, this run with {here}: a cascade's stages "
            "share their text encoder, channels and what their conditions mean",
        )


def load_others(config: RunConfig) -> dict[str, Stage | None]:
    """The stages of grid.cascade, loaded on the CPU, by slot and in order; None for this run's own.

    They sample with their own scheduler and stored settings, in grid.num_inference_steps steps. The text is the run's:
    its encoder must be the one they were trained with.

    Raises:
        ConfigError: as :func:`find_stages`, or weights that are not whole.
    """

    def loaded(saved: SavedStage) -> Stage:
        settings = replace(saved.defaults, num_inference_steps=config.grid.num_inference_steps)
        unet = load_network(saved.unet).eval().requires_grad_(False)
        return Stage(saved.slot, unet, load_scheduler(saved.scheduler), settings)

    stages = find_stages(config)
    with config_errors("grid.cascade: "):
        return {slot: None if saved is None else loaded(saved) for slot, saved in stages.items()}
