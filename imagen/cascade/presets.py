"""Presets: ways to sample a whole cascade by name, each setting by slot. No torch at import.

Every model holds three, which it is stored with: ``quality``, its stages' own settings; ``balanced`` and ``fast``,
which evaluate the networks less often. Beside them the settings of the DeepFloyd IF family are known for its stages:
``if`` and ``if-fast`` are the lists that the checkpoints were released with, the others few-step settings of
DPM-Solver++, whose author found 50 steps enough for the base stage and 15 to 25 for super-resolution (diffusers #3314).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagen.checks import check_keys
from imagen.diffusion.timesteps import count_steps
from imagen.stages.spec import OF_CALLS, SLOTS, StageDefaults

Preset = Mapping[str, Mapping[str, Any]]
"""Settings (:data:`imagen.stages.spec.OF_CALLS`) by slot."""


def _if(sampler: str, base: int | str, sr256: int | str) -> Preset:
    return {
        slot: {"sampler": sampler, "num_inference_steps": steps, "guidance_scale": scale}
        for slot, steps, scale in (("base", base, 7.0), ("sr256", sr256, 4.0))
    }


IF_PRESETS: dict[str, Preset] = {
    "if": _if("ddpm", "smart100", "smart50"),
    "if-fast": _if("ddpm", "fast27", "smart27"),
    "few-step": _if("dpm++", 50, 25),
    "fewest-step": _if("dpm++", 20, 15),
}
FEWER = {"balanced": (2, 16), "fast": (3, 8)}
"""What a stage's steps are divided by, and how many are left at least, where a model was stored without presets."""
FEW_STEPS = "dpm++"
"""What takes few steps there: at its own spacing, which no schedule's ends can stretch (docs/sampling.md, Samplers)."""


def usual_presets(stages: Mapping[str, StageDefaults]) -> dict[str, Preset]:
    """The presets of a model that was stored with none.

    A stage of few steps keeps its own sampler, and its own steps.
    """
    made: dict[str, Preset] = {"quality": {slot: {} for slot in stages}}
    for name, (divisor, least) in FEWER.items():
        fewer = {slot: max(least, count_steps(stage.num_inference_steps) // divisor) for slot, stage in stages.items()}
        made[name] = {
            slot: {"sampler": FEW_STEPS, "num_inference_steps": fewer[slot]} if fewer[slot] < stage.steps else {}
            for slot, stage in stages.items()
        }
    return made


def read_presets(presets: Any, stages: Mapping[str, StageDefaults]) -> dict[str, Preset]:
    """What a model stores as its presets, with every setting as it is kept; the usual ones where it stores none.

    Raises:
        ValueError: an unknown slot or setting, or a value out of range, naming the preset.
    """
    if presets is None:
        return usual_presets(stages)
    if not isinstance(presets, Mapping):
        raise ValueError(f"presets is {presets!r}; expected settings by name and slot")
    made: dict[str, Preset] = {}
    for name, preset in presets.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"preset {name!r}: a name is text, in YAML in quotes where it looks like something else")
        if not isinstance(preset, Mapping):
            raise ValueError(f"preset {name!r} is {preset!r}; expected settings by slot, as {{base: {{}}}}")
        check_keys(preset, SLOTS, f"preset {name!r}")
        made[name] = {}
        for slot, settings in preset.items():
            if not isinstance(settings, Mapping):
                raise ValueError(f"preset {name!r} of {slot} is {settings!r}; expected settings by name, {{}} for none")
            check_keys(settings, list(OF_CALLS), f"preset {name!r} of {slot}")
            if slot not in stages:  # left out by whoever loads the model
                continue
            try:
                whole = dataclasses.replace(stages[slot], **settings)
            except ValueError as error:
                raise ValueError(f"preset {name!r} of {slot}: {error}") from error
            made[name] = {**made[name], slot: {setting: getattr(whole, setting) for setting in settings}}
    return made


def with_preset(
    name: str | None, stages: Mapping[str, StageDefaults], presets: Mapping[str, Preset], size: int | None = None
) -> dict[str, StageDefaults]:
    """The stages of a model as a preset has them sample; None: as they are.

    Args:
        presets: the model's own; those of the IF family are known beside them.
        size: of the last stage that runs; what is larger stays as it is where the preset says nothing of it.

    Raises:
        ValueError: an unknown preset, or a stage that it says nothing of.
    """
    if name is None:
        return dict(stages)
    known = {**IF_PRESETS, **presets}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join([*presets, *IF_PRESETS])}")
    runs = [slot for slot, stage in stages.items() if not isinstance(size, int) or stage.size <= size]
    beyond = [slot for slot in runs if slot not in known[name]]
    if beyond and known[name] is IF_PRESETS.get(name):
        raise ValueError(
            f"preset {name!r} is for DeepFloyd IF's stages and says nothing of {beyond[0]}; use {', '.join(presets)}"
        )
    if beyond:
        raise ValueError(f"preset {name!r} says nothing of {beyond[0]}; give its settings one by one (as --steps)")
    return {slot: dataclasses.replace(stage, **known[name].get(slot, {})) for slot, stage in stages.items()}
