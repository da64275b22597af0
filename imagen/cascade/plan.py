"""Which stages a call runs, with what settings, on what text: its inputs checked against what is there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from diffusers.utils import logging
from torch import Tensor

from imagen.cascade.denoise import Stage
from imagen.cascade.pictures import load_pictures
from imagen.cascade.stages import FROM_PICTURE, check_int, check_steps, entry_side, per_stage, route
from imagen.cascade.text import Text, pair
from imagen.diffusion.guidance import null_text
from imagen.diffusion.parameterization import check_prediction_type
from imagen.diffusion.sampling import sampling_clone
from imagen.diffusion.schedules import make_schedule
from imagen.diffusion.timesteps import set_timesteps

logger = logging.get_logger(__name__)


class Asked(NamedTuple):
    """A call's own settings of its stages, each None, one value, one per stage, or a dict by size."""

    num_inference_steps: Any = None
    guidance_scale: Any = None
    aug_level: Any = None
    lowres_consistency: Any = None


def plan(
    available: Mapping[str, Stage],
    image: Any,
    size: int | None,
    asked: Asked,
    shape: tuple[int | None, int | None] = (None, None),
) -> tuple[list[Stage], list[Tensor]]:
    """The stages of a call, with its settings in place of the stored ones where it gives any.

    Args:
        available: the model's stages by slot, in order.
        image: picture(s) to start from, or None.
        size: side to stop at, or None for as far as it goes.
        asked: what the call sets in place of stored settings.
        shape: height and width of the last stage's picture; both None for a square.

    Returns:
        the stages that run, in order, and the pictures to start from as (C, h, w) in [-1, 1] (none: an empty list).

    Raises:
        ValueError: no such route through the stages, a value out of range, or a shape that a network cannot make.
    """
    stored = {slot: stage.settings for slot, stage in available.items()}
    if size is not None:
        size = check_int("size", size, 1)
    height, width = shape
    if height is None or width is None:
        if height != width:
            raise ValueError(f"height is {height!r} and width {width!r}; give both or none")
        height = width = 1
    given: list[Tensor] = []
    if image is not None and available:
        entries = [stage for stage in available.values() if stage.lowres_channels] or list(available.values())
        given = load_pictures(image, entries[0].lowres_channels or entries[0].channels, (height, width))
    sides = [entry_side(stored, size, (height, width), (picture.shape[1], picture.shape[2])) for picture in given]
    slots = route(stored, size, min(sides) if sides else None)
    from_picture = {slot: settings for slot, settings in stored.items() if settings.lowres_size is not None}
    spread = {}
    for name, value in asked._asdict().items():
        takes = from_picture if name in FROM_PICTURE else stored
        running = [slot for slot in slots if slot in takes]
        if value is not None and not running:
            raise ValueError(f"{name}={value!r} has no effect: no super-resolution stage runs")
        spread[name] = per_stage(name, value, running, takes)
    stages = []
    for slot in slots:
        values = {name: by_slot[slot] for name, by_slot in spread.items() if by_slot.get(slot) is not None}
        stage = available[slot]._replace(settings=dataclasses.replace(stored[slot], **values))
        _check_sampler(stage)
        _check_consistency(stage)
        stages.append(stage)
    for before, after in pairwise(stages):
        if after.lowres_channels != before.channels:
            raise ValueError(
                f"{before.slot} makes pictures of {before.channels} channels and {after.slot} starts from "
                f"{after.lowres_channels}; give size={before.settings.size}, or a stage that fits"
            )
    return stages if shape == (None, None) else _shaped(stages, height, width), given


def _check_consistency(stage: Stage) -> None:
    """Raises ValueError where the colours of what a stage starts from are not those of what it makes."""
    if stage.settings.lowres_consistency and stage.lowres_channels != stage.channels:
        raise ValueError(
            f"stage {stage.slot}: lowres_consistency is {stage.settings.lowres_consistency}; expected 0 where pictures "
            f"of {stage.channels} channels are made from {stage.lowres_channels}"
        )


def _check_sampler(stage: Stage) -> None:
    """Everything that can be wrong with how a stage samples, before the stages ahead of it have run for nothing.

    Raises:
        ValueError: a scheduler that the loop cannot step, steps that it cannot take, no such noise schedule.
    """
    levels = stage.scheduler.config.get("num_train_timesteps")
    check_steps("num_inference_steps", stage.settings.num_inference_steps, levels)
    try:
        clone = sampling_clone(stage.scheduler)
        check_prediction_type(stage.scheduler.config.prediction_type)
        if len(clone.alphas_cumprod) != levels:
            raise ValueError(f"its scheduler has {len(clone.alphas_cumprod)} levels for num_train_timesteps={levels}")
        set_timesteps(clone, stage.timesteps)
        make_schedule(**{"kind": "cosine", **stage.settings.aug_schedule})
    except (ValueError, IndexError) as error:
        raise ValueError(f"stage {stage.slot}: {error}") from error


def _shaped(stages: Sequence[Stage], height: int, width: int) -> list[Stage]:
    """The stages with the last one's picture (height, width) and the others' in proportion.

    Raises:
        ValueError: a side that is not a multiple of what the networks' strides and the stages' sizes allow.
    """
    last = stages[-1].settings.size
    units = [Fraction(last, stage.settings.size) * stage.unet.facts.divisor for stage in stages]
    units += [Fraction(last, stage.settings.lowres_size) for stage in stages if stage.settings.lowres_size is not None]
    unit = math.lcm(*(entry.numerator for entry in units))
    for name, side in (("height", height), ("width", width)):
        check_int(name, side, 1)
        if side % unit:
            near = max(unit, round(side / unit) * unit)
            raise ValueError(
                f"{name}={side} is not a multiple of {unit}, which these stages need; the nearest is {near}"
            )
    aspect = (Fraction(height, last), Fraction(width, last))
    return [stage._replace(aspect=aspect) for stage in stages]


def join(
    stages: Sequence[Stage],
    prompt: tuple[Tensor, Tensor] | None,
    negative: tuple[Tensor, Tensor] | None,
    pictures: int,
    device: torch.device,
    null: Callable[[int], tuple[Tensor, Tensor]],
) -> tuple[Text | None, int]:
    """Both halves of the text, checked against the stages that run.

    Args:
        prompt, negative: embeddings (P, L, D) and mask (P, L) each, or None.
        pictures: how many pictures the call starts from; 0 for none.
        null: makes the unconditional half's text of a width, where ``negative`` is None and guidance needs it.

    Returns:
        the text, None if no stage reads one; and the number of prompts (without text: of pictures, at least 1).

    Raises:
        ValueError: a prompt is missing, or given for nobody; widths or numbers that do not fit.
    """
    reading = [stage for stage in stages if stage.reads_text]
    if prompt is None and reading:
        raise ValueError(f"no prompt: stage {reading[0].slot} reads text; give prompt= or prompt_embeds=")
    if prompt is None:
        if negative is not None:
            raise ValueError("negative_prompt is given but no stage that runs reads text (text_dim=None); leave it out")
        return None, max(1, pictures)
    if not reading:
        raise ValueError("prompt is given but no stage that runs reads text (text_dim=None); leave it out")
    if negative is not None and not any(stage.guided for stage in stages):
        logger.warning("negative_prompt has no effect at guidance_scale=1: the unconditional half is not computed")
    width = prompt[0].shape[-1]
    for stage in reading:
        if stage.unet.config.text_dim != width:
            raise ValueError(
                f"the text has width {width} but stage {stage.slot} was trained on {stage.unet.config.text_dim}; "
                "use the text encoder it was trained with"
            )
    count = max(prompt[0].shape[0], pictures)
    if pictures not in (0, 1, count):
        raise ValueError(f"{pictures} pictures to start from for {count} prompts; give one, or one for each")
    if negative is None:
        guided = any(stage.guided for stage in stages)
        negative = null(width) if guided else null_text(1, width)  # unread without guidance
    return pair(prompt, negative, count, device), count
