"""Sampling presets of the DeepFloyd IF family: samplers, steps and guidance per stage. No torch at import.

``if`` and ``if-fast`` are the lists that the checkpoints were released with. The others are few-step settings of
DPM-Solver++, whose author found 50 steps enough for the base stage and 15 to 25 for super-resolution (diffusers #3314).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagen.stages.spec import StageDefaults

PRESETS: dict[str, tuple[str, dict[str, int | str]]] = {
    "if": ("ddpm", {"base": "smart100", "sr256": "smart50"}),
    "if-fast": ("ddpm", {"base": "fast27", "sr256": "smart27"}),
    "few-step": ("dpm++", {"base": 50, "sr256": 25}),
    "fewest-step": ("dpm++", {"base": 20, "sr256": 15}),
}
"""Sampler, and steps of each stage."""
GUIDANCE = {"base": 7.0, "sr256": 4.0}


def set_sampler(pipe: Any, slot: str, sampler: str) -> None:
    """Put another sampler of the same schedule into a stage.

    Args:
        pipe: an ImagenPipeline.
        sampler: one of :data:`imagen.diffusion.sampling.SAMPLERS`. "ddpm" keeps a learned variance; the others drop it.
    """
    from imagen.diffusion.sampling import SAMPLERS

    # gamma is ddpm's own, and diffusers warns of what a class does not know
    config = {name: value for name, value in getattr(pipe, f"{slot}_scheduler").config.items() if name != "gamma"}
    setattr(pipe, f"{slot}_scheduler", SAMPLERS[sampler].from_config(config))  # type: ignore[attr-defined]


def with_preset(name: str, stages: Mapping[str, StageDefaults]) -> dict[str, StageDefaults]:
    """The stages of a model as a preset has them sample.

    Raises:
        ValueError: an unknown preset, or a stage that it says nothing of.
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    beyond = [slot for slot in stages if slot not in GUIDANCE]
    if beyond:
        raise ValueError(f"preset {name!r} is for DeepFloyd IF's stages and says nothing of {beyond[0]}; use --steps")
    made, steps = {}, PRESETS[name][1]
    for slot, stage in stages.items():
        made[slot] = dataclasses.replace(stage, num_inference_steps=steps[slot], guidance_scale=GUIDANCE[slot])
    return made


def apply_preset(pipe: Any, name: str) -> None:
    """Set samplers and stored defaults of the stages that are there, for all later calls.

    Raises:
        ValueError: as :func:`with_preset`.
    """
    for slot, stage in with_preset(name, pipe.stage_defaults).items():
        set_sampler(pipe, slot, PRESETS[name][0])
        pipe.set_stage_defaults(slot, **stage.to_dict())
