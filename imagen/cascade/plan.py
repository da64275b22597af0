"""Which stages a call runs, with what settings, on what text: its inputs checked against what is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from imagen.cascade.pictures import load_pictures
from imagen.cascade.route import Wish, check_shape, per_stage, resolve
from imagen.cascade.runner import Stage, step_rule
from imagen.cascade.text import pair
from imagen.conditions.condition import Sampled
from imagen.conditions.text import null_text
from imagen.diffusion.loop import StepRule
from imagen.diffusion.parameterization import check_prediction_type
from imagen.diffusion.samplers import resampled
from imagen.diffusion.schedules import make_schedule
from imagen.errors import one_line
from imagen.stages.spec import check_steps

logger = logging.get_logger(__name__)


def plan(available: Mapping[str, Stage], image: Any, wish: Wish) -> tuple[list[Stage], list[Tensor]]:
    """The stages of a call, with its settings in place of the stored ones where it gives any.

    Args:
        available: the model's stages by slot, in order.
        image: picture(s) to start from, or None.
        wish: what the call asks.

    Returns:
        the stages that run, in order, and the pictures to start from as (C, h, w) in [-1, 1] (none: an empty list).

    Raises:
        ValueError: no such route through the stages, a value out of range, or a shape that a network cannot make.
    """
    given: list[Tensor] = []
    if image is not None and available:
        entries = [stage for stage in available.values() if stage.lowres_channels] or list(available.values())
        given = load_pictures(image, entries[0].lowres_channels or entries[0].channels, wish.aspect)
    stored = {slot: stage.settings for slot, stage in available.items()}
    sides = [(picture.shape[1], picture.shape[2]) for picture in given]
    chosen = resolve(stored, wish, sides)
    stages = [available[slot]._replace(settings=settings) for slot, settings in chosen.items()]
    stages = [_stepped(stage) for stage in stages]
    for stage in stages:
        _check_networks(stage)
    for before, after in pairwise(stages):
        if after.lowres_channels != before.channels:
            raise ValueError(
                f"{before.slot} makes pictures of {before.channels} channels and {after.slot} starts from "
                f"{after.lowres_channels}; give size={before.settings.size}, or a stage that fits"
            )
    return stages if wish.height is None else _shaped(stages, *wish.aspect), given


def _check_networks(stage: Stage) -> None:
    """Raises ValueError where a stage's settings ask of its networks what they cannot do.

    That is to keep colours of pictures that have others, or to guide by a weaker network that is not there, or has
    other inputs (further conditions it may lack).
    """
    if stage.settings.lowres_consistency and stage.lowres_channels != stage.channels:
        raise ValueError(
            f"stage {stage.slot}: lowres_consistency is {stage.settings.lowres_consistency}; expected 0 where pictures "
            f"of {stage.channels} channels are made from {stage.lowres_channels}"
        )
    if "weak" not in stage.branches:
        return
    if stage.weak is None:
        raise ValueError(
            f"stage {stage.slot}: guidance {stage.settings.guidance!r} needs a weaker network, and "
            f"{stage.slot}_weak_unet is empty; give one (pipe.register_modules), or choose another guidance"
        )
    own, weak = stage.unet.facts, stage.weak.facts
    ours, theirs = ({**asdict(facts), **facts.classes, **facts.extra_channels} for facts in (own, weak))
    for name in ("in_channels", "out_channels", "lowres_channels", "text_dim", *weak.classes, *weak.extra_channels):
        here, there = ours.get(name), theirs[name]
        if here != there:
            raise ValueError(f"{stage.slot}_weak_unet has {name} {there}, {stage.slot}_unet {here}; expected the same")


def _stepped(stage: Stage) -> Stage:
    """The stage with the scheduler that its settings ask for, and how that steps. Raises: ValueError, of either."""
    if stage.settings.sampler is not None:
        try:
            stage = stage._replace(scheduler=resampled(stage.scheduler, stage.settings.sampler))
        except ValueError as error:
            raise ValueError(f"stage {stage.slot}: {error}") from error
    return stage._replace(rule=check_sampler(stage))


def check_sampler(stage: Stage) -> StepRule:
    """How a stage's loop steps: all that can be wrong with it is said before the stages ahead have run for nothing.

    Raises:
        ValueError: a scheduler that the loop cannot step, steps that it cannot take, no such noise schedule.
    """
    config = stage.scheduler.config
    levels = config.get("num_train_timesteps")
    check_steps("num_inference_steps", stage.settings.num_inference_steps, levels)
    try:
        rule = step_rule(stage)
        check_prediction_type(config.prediction_type)
        make_schedule(**{"kind": "cosine", **stage.settings.aug_schedule})
        if len(rule.clone.alphas_cumprod) != levels:
            found = len(rule.clone.alphas_cumprod)
            raise ValueError(f"its scheduler has {found} levels for num_train_timesteps={levels}")
    except (ValueError, IndexError, RuntimeError) as error:  # the last of options that leave a scheduler no levels
        raise ValueError(f"stage {stage.slot}: {one_line(error)}") from error
    return rule


def _shaped(stages: Sequence[Stage], height: int, width: int) -> list[Stage]:
    """The stages with the last one's picture (height, width) and the others' in proportion.

    Raises:
        ValueError: a side that is not a multiple of what the networks' strides and the stages' sizes allow.
    """
    last = stages[-1].settings.size
    settings = {stage.slot: stage.settings for stage in stages}
    check_shape(settings, {stage.slot: stage.unet.facts.divisor for stage in stages}, height, width)
    aspect = (Fraction(height, last), Fraction(width, last))
    return [stage._replace(aspect=aspect) for stage in stages]


def start_noise(latents: Any, available: Mapping[str, Stage], stages: Sequence[Stage], count: int) -> dict[str, Tensor]:
    """The first z that a call gives its stages, by slot; a stage it does not name draws its own.

    Args:
        latents: None, a tensor (B, C, H, W) for the first stage that runs, a list with one or None for each stage, or a
            dict by side or slot.
        available: the model's stages by slot, in order.
        stages: those that run.
        count: B, how many pictures.

    Raises:
        ValueError: one for a stage that does not run, or of another shape, not of floats, not finite.
    """
    if latents is None:
        return {}
    running = {stage.slot: stage for stage in stages}
    given = {stages[0].slot: latents}
    if isinstance(latents, Mapping | list | tuple):
        stored = {slot: stage.settings for slot, stage in available.items()}
        every = isinstance(latents, Mapping) or len(latents) == len(stored)
        given = per_stage("latents", latents, list(stored if every else running), stored)
    noise = {}
    for slot, value in given.items():
        if value is None:
            continue
        if slot not in running:
            raise ValueError(f"latents has noise for stage {slot}, which does not run; here {', '.join(running)} do")
        shape = (count, running[slot].channels, *running[slot].shape)
        found = type(value).__name__
        if isinstance(value, Tensor):
            found = f"{value.dtype} {tuple(value.shape)}"
        if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
            raise ValueError(f"latents of stage {slot}: {found}; expected a tensor of floats {shape}, standard normal")
        noise[slot] = value.to(running[slot].dtype)
        if not noise[slot].isfinite().all():
            raise ValueError(
                f"latents of stage {slot} holds numbers that are not finite; expected standard normal ones"
            )
    return noise


def join(
    stages: Sequence[Stage],
    prompt: tuple[Tensor, Tensor] | None,
    negative: tuple[Tensor, Tensor] | None,
    others: Sequence[Sampled],
    pictures: int,
    device: torch.device,
    null: Callable[[int], tuple[Tensor, Tensor]],
) -> tuple[list[Sampled], int]:
    """The conditions of a call, both halves of its text among them, checked against the stages that run.

    Args:
        prompt, negative: embeddings (P, L, D) and mask (P, L) each, or None.
        others: conditions beside the text.
        pictures: how many pictures the call starts from; 0 for none.
        null: makes the unconditional half's text of a width, where ``negative`` is None and guidance needs it.

    Returns:
        the conditions, and the number of prompts (without text: of pictures or other conditions, at least 1).

    Raises:
        ValueError: a prompt is missing, or given for nobody; widths or numbers that do not fit.
    """
    numbers = {"prompts": 1 if prompt is None else len(prompt[0]), "pictures to start from": pictures or 1}
    numbers |= {f"{other.name}s": len(other) for other in others}
    count = max(numbers.values())
    for name, number in numbers.items():
        if number not in (1, count):
            most = next(name for name, number in numbers.items() if number == count)
            raise ValueError(f"{number} {name} for {count} {most}; give one, or one for each")
    reading = [stage for stage in stages if stage.unet.facts.text_dim is not None]
    if prompt is None and reading:
        raise ValueError(f"no prompt: stage {reading[0].slot} reads text; give prompt= or prompt_embeds=")
    if not reading:
        for name, given in (("prompt", prompt), ("negative_prompt", negative)):
            if given is not None:
                raise ValueError(f"{name} is given but no stage that runs reads text (text_dim=None); leave it out")
    if prompt is None:
        return list(others), count
    guided = any("unconditional" in stage.branches for stage in stages)
    if negative is not None and not guided:
        logger.warning("negative_prompt has no effect at guidance_scale=1: the unconditional half is not computed")
    width = prompt[0].shape[-1]
    for stage in reading:
        if stage.unet.facts.text_dim != width:
            raise ValueError(
                f"the text has width {width} but stage {stage.slot} was trained on {stage.unet.facts.text_dim}; "
                "use the text encoder it was trained with"
            )
    if negative is None:
        negative = null(width) if guided else null_text(1, width)  # unread without guidance
    return [pair(prompt, negative, count, device), *others], count
