"""How a stage in training is sampled from, for grids and for scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from imagen.cascade.runner import Stage
from imagen.cascade.text import pair
from imagen.cascade.training.config.run import RunConfig, StageGridConfig
from imagen.cascade.training.config.sections import ScoresConfig
from imagen.cascade.training.export import stage_defaults
from imagen.cascade.training.inputs.source import named_conditions
from imagen.cascade.training.inputs.texts import Texts
from imagen.conditions.call import CALLED, called
from imagen.conditions.condition import Sampled
from imagen.conditions.text import Words
from imagen.diffusion.guidance import parse_guidance
from imagen.training.randomness import derive_seed
from unets.network import Network


def picture_generators(seed: int, purpose: str, rows: range) -> list[torch.Generator]:
    """One for each picture, so that it is the same in any batch and every time."""
    return [torch.Generator().manual_seed(derive_seed(seed, purpose, row)) for row in rows]


def stage_in_training(config: RunConfig, unet: Network, scheduler: Any, asked: StageGridConfig | ScoresConfig) -> Stage:
    """The stage as it will sample, but for the scheduler, and the steps and guidance scale that are asked for.

    Guidance that needs a weaker network, which a run has not, is classifier-free here.
    """
    stored = stage_defaults(config)
    scale = stored.guidance_scale if asked.guidance_scale is None else asked.guidance_scale
    guidance = "cfg" if "weak" in parse_guidance(stored.guidance).branches else stored.guidance
    settings = replace(stored, num_inference_steps=asked.num_inference_steps, guidance_scale=scale, guidance=guidance)
    return Stage(config.stage.name, unet, scheduler, settings)


def windowed(stage: Stage, side: int) -> Stage:
    """The stage as it samples windows of ``side`` pixels, of data.crop, in place of whole pictures."""
    size, low = stage.settings.size, stage.settings.lowres_size
    settings = replace(stage.settings, size=side, lowres_size=None if low is None else side * low // size)
    return stage._replace(settings=settings)


def sampled_conditions(
    config: RunConfig,
    texts: Texts,
    words: Words,
    raw: Mapping[str, Any] | None,
    stages: Sequence[Stage],
    device: torch.device,
) -> list[Sampled]:
    """Both halves of the text, and the other conditions of held-out samples, collated.

    Without samples, and of those that other stages of a cascade read and this run's does not, the nulls.
    """
    image = None if raw is None else raw["image"].to(device, getattr(torch, config.train.dtype))
    own = [] if raw is None else [condition.sampled(raw, image) for condition in named_conditions(config)]
    if config.reads_text:
        prompt = texts(words)
        own.append(pair(prompt, texts.null(1, prompt[0].shape[-1]), len(words), device))
    nulls = called(dict.fromkeys(CALLED), {}, [stage.unet.facts for stage in stages], device)
    return [*own, *(null for null in nulls if null.name not in {one.name for one in own})]
