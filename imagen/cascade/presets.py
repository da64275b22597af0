"""Sampling presets of the DeepFloyd IF family: samplers, steps and guidance per stage. No torch at import.

``if`` and ``if-fast`` are the lists that the checkpoints were released with. The others are few-step settings of
DPM-Solver++, whose author found 50 steps enough for the base stage and 15 to 25 for super-resolution (diffusers #3314).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagen.stages.spec import StageDefaults

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "if": {
        "base": {"sampler": "ddpm", "num_inference_steps": "smart100", "guidance_scale": 7.0},
        "sr256": {"sampler": "ddpm", "num_inference_steps": "smart50", "guidance_scale": 4.0},
    },
    "if-fast": {
        "base": {"sampler": "ddpm", "num_inference_steps": "fast27", "guidance_scale": 7.0},
        "sr256": {"sampler": "ddpm", "num_inference_steps": "smart27", "guidance_scale": 4.0},
    },
    "few-step": {
        "base": {"sampler": "dpm++", "num_inference_steps": 50, "guidance_scale": 7.0},
        "sr256": {"sampler": "dpm++", "num_inference_steps": 25, "guidance_scale": 4.0},
    },
    "fewest-step": {
        "base": {"sampler": "dpm++", "num_inference_steps": 20, "guidance_scale": 7.0},
        "sr256": {"sampler": "dpm++", "num_inference_steps": 15, "guidance_scale": 4.0},
    },
}


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
    beyond = [slot for slot in stages if slot not in PRESETS[name]]
    if beyond:
        raise ValueError(f"preset {name!r} is for DeepFloyd IF's stages and says nothing of {beyond[0]}; use --steps")
    return {slot: dataclasses.replace(stage, **_settings(name, slot)) for slot, stage in stages.items()}


def _settings(name: str, slot: str) -> dict[str, Any]:
    return {key: value for key, value in PRESETS[name][slot].items() if key != "sampler"}


def apply_preset(pipe: Any, name: str) -> None:
    """Set samplers and stored defaults of the stages that are there, for all later calls.

    Raises:
        ValueError: as :func:`with_preset`.
    """
    for slot in with_preset(name, pipe.stage_defaults):
        set_sampler(pipe, slot, PRESETS[name][slot]["sampler"])
        pipe.set_stage_defaults(slot, **_settings(name, slot))
