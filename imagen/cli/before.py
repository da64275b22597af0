"""What can be said of a call before the weights of its model are loaded, from the files beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagen.cascade.route import Wish, check_shape, option
from imagen.checks import check_choice
from imagen.diffusion.guidance import branches, parse_guidance
from imagen.disk import read_json
from imagen.stages.folder import SavedStage, find_adapter
from imagen.stages.spec import SLOTS, StageDefaults, check_steps


def check_files(stages: Mapping[str, SavedStage]) -> None:
    """Raises ValueError for a stage of a run whose folder holds no weights."""
    for stage in stages.values():
        if stage.adapter_of is None and not any(stage.unet.glob("*.safetensors")):
            raise ValueError(
                f"{str(stage.unet)!r} holds no *.safetensors weights: let the run train on, or copy it whole"
            )


def check_adapters(words: Sequence[str], stages: Mapping[str, SavedStage]) -> None:
    """Raises ValueError for an entry of --lora, [STAGE=]DIR[:SCALE], for a stage that is not there or of no adapter."""
    for word in words:
        slot, folder, _ = adapter_of(word)
        if slot not in stages:
            raise ValueError(f"--lora {word!r} is for the stage {slot}, this model has {', '.join(stages)}: name one")
        try:
            find_adapter(folder)
        except ValueError as error:
            raise ValueError(f"--lora {error}") from error


def adapter_of(word: str) -> tuple[str, str, float]:
    """Stage, folder and scale that an entry of --lora names. Raises: ValueError for a stage or a scale that is none."""
    if Path(word).exists():
        return "base", word, 1.0
    slot, equals, place = word.partition("=")
    slot, place = (check_choice("--lora STAGE", slot, SLOTS), place) if equals else ("base", word)
    folder, colon, text = place.rpartition(":")
    if not colon or Path(place).exists():
        return slot, place, 1.0
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(
            f"--lora {word!r}: no such place, nor is {text!r} a scale; give DIR, or DIR:0.8 for less of it"
        )
    return slot, folder, scale


def check_call(wish: Wish, running: Mapping[str, StageDefaults], stages: Mapping[str, SavedStage]) -> None:
    """Check steps, guidance and shape against what the model's files say.

    Args:
        running: the stages that run, with the call's settings.
        stages: as they lie in their folders, those that run among them.

    Raises:
        ValueError: more steps than a stage has levels, a weaker network that is not there, sides that do not fit.
    """
    for slot, settings in running.items():
        stage = stages[slot]
        network, levels = read_json(stage.unet / "config.json"), _levels(stage)
        steps, name = settings.num_inference_steps, option("num_inference_steps")
        if levels is not None:
            check_steps(f"{name} of {slot}", steps, levels)
        asked = branches(parse_guidance(settings.guidance), settings.guidance_scale)
        guidable = network.get("text_dim") is not None or network.get("classes")
        pointless = "unconditional" in asked and not guidable
        if "weak" in asked and not pointless and not (stage.unet.parent / f"{slot}_weak_unet").is_dir():
            raise ValueError(
                f"stage {slot}: {option('guidance')} {settings.guidance!r} needs a weaker network, and this model has "
                f"no {slot}_weak_unet: give {option('guidance')} cfg, or save a pipeline with one "
                f"(pipe.register_modules({slot}_weak_unet=...))"
            )
    if wish.height is not None and wish.width is not None:
        from unets.contract import facts

        sections = {slot: read_json(stages[slot].unet / "config.json") for slot in running}
        units = {
            slot: facts({**_named(section), "kind": section.get("_class_name")}) for slot, section in sections.items()
        }
        check_shape(running, {slot: unit.divisor for slot, unit in units.items()}, wish.height, wish.width, option)


def _named(section: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in section.items() if not name.startswith("_")}


def _levels(stage: SavedStage) -> int | None:
    """How many levels its scheduler has; None where its file does not say, which is told when it is loaded."""
    levels = read_json(stage.scheduler / "scheduler_config.json").get("num_train_timesteps")
    return levels if isinstance(levels, int) else None
