"""The stage runner: noise, conditions and the network bound into the contract, and stepped by the one loop.

The pipeline, the grids drawn while training and the cascade's grid all sample here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imagen.cascade.seeds import stage_generator
from imagen.checks import check_number
from imagen.conditions.condition import Given, Sampled, Target, arguments
from imagen.diffusion.augmentation import aug_noise_shape, augment_lowres, resize
from imagen.diffusion.consistency import match_lowres
from imagen.diffusion.denoiser import Evaluate, make_x0_fn
from imagen.diffusion.guidance import Branch, Guidance, branches, parse_guidance
from imagen.diffusion.loop import LoopState, StepRule, sample_loop
from imagen.diffusion.noise import draw
from imagen.diffusion.schedules import level_log_snrs, make_schedule, timestep_from_t
from imagen.diffusion.thresholding import Thresholding
from imagen.diffusion.timesteps import chosen_timesteps
from imagen.modes import evaluating
from imagen.stages.spec import StageDefaults
from unets.network import Network

PIXELS_PER_CALL = 4 * 1024 * 1024
"""Most pixels a network sees at once, without another limit: four rows of 1024 px (two guided pictures)."""


class Stage(NamedTuple):
    """One stage of one call.

    Attributes:
        slot: "base", "sr256" or "sr1024".
        unet, scheduler: its parts.
        settings: its stored defaults with the call's values on top.
        aspect: height and width of its picture over ``settings.size``; (1, 1) is square.
        rule: how its loop steps, made once a call; None makes it for the run.
        weak: a worse network of the same inputs and outputs, for guidance that asks for one.
    """

    slot: str
    unet: Network
    scheduler: Any
    settings: StageDefaults
    aspect: tuple[Fraction, Fraction] = (Fraction(1), Fraction(1))
    rule: StepRule | None = None
    weak: Network | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the pictures it makes."""
        return scaled(self.settings.size, self.aspect)

    @property
    def dtype(self) -> torch.dtype:
        """What it samples in, whatever its network computes in: float32, or float64 for a network in float64."""
        return torch.promote_types(self.unet.dtype, torch.float32)

    @property
    def channels(self) -> int:
        """Channels of the pictures it makes."""
        return self.unet.facts.in_channels

    @property
    def lowres_channels(self) -> int:
        """Channels of the pictures it starts from; 0 for a base stage."""
        return self.unet.facts.lowres_channels

    @property
    def guidance(self) -> Guidance:
        """How the answers of its network's branches become one."""
        return parse_guidance(self.settings.guidance)

    @property
    def scale(self) -> float:
        """w of equation 2, 1 where the guidance would compare a network with itself."""
        pointless = not self.unet.facts.guidable and "unconditional" in self.guidance.branches
        return 1.0 if pointless else self.settings.guidance_scale

    def changed_scale(self, asked: float | None) -> float:
        """w when a callback has set ``pipe._guidance_scale`` while the stage runs.

        It is read as diffusers reads it, whose callbacks switch guidance off by 0: 1 and less is off.

        Raises:
            ValueError: not a finite number of at least 0, or guidance that begins in a stage that began without.
        """
        own = self.settings.guidance_scale
        if asked == own:
            return self.scale
        w = max(1.0, check_number("pipe._guidance_scale", asked, 0))
        if w != 1 and own == 1:
            raise ValueError(
                f"pipe._guidance_scale is {asked!r} and stage {self.slot} began at guidance_scale=1, which leaves out "
                "what guidance compares with; begin above 1"
            )
        return self.scale if self.scale == 1 else w

    @property
    def branches(self) -> tuple[Branch, ...]:
        """What of its network may be evaluated in a step."""
        return branches(self.guidance, self.scale)


def scaled(side: int, aspect: tuple[Fraction, Fraction]) -> tuple[int, int]:
    """Height and width of a picture whose square form has ``side``."""
    return int(side * aspect[0]), int(side * aspect[1])


class Job(NamedTuple):
    """What all stages of a call share.

    Attributes:
        conditions: what the caller passed (text, ...).
        seeds: one per picture, B in all, prompt by prompt.
        device: where the networks compute.
        sr_batch_size: pictures a super-resolution network sees at once, or None.
        noise: by slot, the first z (B, C, H, W) of stages for which the caller gave one; the others draw theirs.
    """

    conditions: Sequence[Sampled]
    seeds: list[int]
    device: torch.device
    sr_batch_size: int | None = None
    noise: Mapping[str, Tensor] = {}


def run_stage(
    stage: Stage,
    job: Job,
    lowres: Sequence[Tensor] = (),
    callback: Callable[[LoopState], None] | None = None,
    scale: Callable[[], float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample one stage, its networks in eval mode.

    Args:
        lowres: B pictures (C, h, w) in [-1, 1] to start from, of any size; empty for a stage that starts without.
        callback: called after each step; setting ``state.stop`` ends the stage with its estimate of the clean picture.
        scale: asked for w at each evaluation; None: the stage's own throughout.

    Returns:
        (B, C, *stage.shape) in [-1, 1], of the stage's dtype: on the job's device, for the next stage, and the same on
        the CPU. For that copy the host waits for the device; without a callback that looks, for nothing before.

    Raises:
        ValueError: what came out is not finite.
    """
    with evaluating(stage.unet, stage.weak):
        picture = _sampled(stage, job, lowres, callback, scale)
    shown = picture.cpu()
    if not torch.isfinite(shown).all():
        raise ValueError(
            f"stage {stage.slot} made numbers that are not finite: its weights, its text or a callback's z hold some, "
            f"or {stage.unet.dtype} overflowed (bfloat16 and float32 do not)"
        )
    return picture.clamp(-1, 1), shown.clamp(-1, 1)


def _sampled(
    stage: Stage,
    job: Job,
    lowres: Sequence[Tensor],
    callback: Callable[[LoopState], None] | None,
    scale: Callable[[], float] | None,
) -> Tensor:
    settings = stage.settings
    generators = [stage_generator(seed, stage.slot) for seed in job.seeds]
    # drawn where one is given, too: that does not change what is drawn after it
    z = _noise(generators, (stage.channels, *stage.shape), job.device, stage.dtype)
    z = job.noise[stage.slot].to(z.device, z.dtype, non_blocking=True) if stage.slot in job.noise else z
    lowered, correct = None, None
    if settings.lowres_size is not None:
        small_shape = scaled(settings.lowres_size, stage.aspect)
        given = (picture[None].to(z.device, z.dtype, non_blocking=True) for picture in lowres)
        small = torch.cat([resize(picture, small_shape) for picture in given])
        lowered = _low_resolution(stage, small, generators)
        if settings.lowres_consistency:
            correct = match_lowres(small, settings.lowres_consistency)
    x0_fn = make_x0_fn(
        bind(stage, job, lowered),
        prediction_type=stage.scheduler.config.prediction_type,
        log_snrs=level_log_snrs(stage.scheduler),
        guidance=stage.guidance,
        guidance_scale=scale or stage.scale,
        thresholding=Thresholding(settings.threshold, settings.threshold_p, settings.threshold_cap),
        learned_variance=stage.unet.facts.learns_variance,
        correct=correct,
    )

    def watch(state: LoopState) -> None:
        if callback is not None:
            callback(state)
        if state.stop:
            state.z = state.x0  # the estimate of the clean picture is what the loop then returns

    rule = stage.rule or step_rule(stage)
    return sample_loop(x0_fn, z, rule, generators, watch if callback is not None else None)


def step_rule(stage: Stage) -> StepRule:
    """The step rule of a stage's scheduler and steps. Raises: ValueError for steps that it cannot take."""
    levels = stage.scheduler.config.num_train_timesteps
    return StepRule(stage.scheduler, chosen_timesteps(stage.settings.num_inference_steps, levels))


def bind(stage: Stage, job: Job, lowered: Given | None = None) -> Evaluate:
    """The stage's networks with what their pictures are given, each asked for its branches.

    Args:
        lowered: the low-res pictures, as they are given to a network.
    """
    strong = _bind(stage, stage.unet, job, lowered)
    if stage.weak is None or "weak" not in stage.branches:
        return strong
    weak = _bind(stage, stage.weak, job, lowered)

    def evaluate(z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> tuple[Tensor, ...]:
        own: tuple[Branch, ...] = tuple(branch for branch in branches if branch != "weak")
        made: dict[Branch, Tensor] = dict(zip(own, strong(z, timestep, own), strict=True)) if own else {}
        if "weak" in branches:
            (made["weak"],) = weak(z, timestep, ("weak",))
        return tuple(made[branch] for branch in branches)

    return evaluate


def _bind(stage: Stage, network: Network, job: Job, lowered: Given | None) -> Evaluate:
    """One network with what its pictures are given, in as many calls as memory needs.

    The branches of a step are stacked, B rows for each.
    """
    count = len(job.seeds)
    target = Target(network, stage.branches, stage.shape, count)
    given = [condition.given(target) for condition in job.conditions if condition.reads(network.facts)]
    given += [] if lowered is None else [lowered]
    pictures = torch.arange(count, device=job.device)

    @cache
    def calls(branches: tuple[Branch, ...]) -> list[tuple[slice, dict[str, Any]]]:
        """The rows of each call, and what the network is given beside z and timestep."""
        limit = max(1, PIXELS_PER_CALL // math.prod(stage.shape))
        if job.sr_batch_size is not None and stage.settings.lowres_size is not None:
            limit = job.sr_batch_size * len(branches)
        rows = [one.stacked(branches, pictures) for one in given]
        parts = [slice(start, start + limit) for start in range(0, len(branches) * count, limit)]
        chosen = [[one.select(seen[part]) for one, seen in zip(given, rows, strict=True)] for part in parts]
        return [(part, arguments(seen)) for part, seen in zip(parts, chosen, strict=True)]

    def evaluate(z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> tuple[Tensor, ...]:
        z, timestep = (torch.cat([value] * len(branches)) for value in (z, timestep))
        outputs = torch.cat([network(z[part], timestep[part], **seen) for part, seen in calls(branches)])
        return outputs.split(count)

    return evaluate


def _low_resolution(stage: Stage, small: Tensor, generators: Sequence[torch.Generator]) -> Given:
    """The noised and enlarged low-res pictures and their level, as the network takes them (section 2.4)."""
    settings = stage.settings
    shape = aug_noise_shape(small.shape, stage.shape, settings.aug_space)
    # drawn at level 0 too: the level does not change the noise of the steps
    noise = _noise(generators, shape[1:], small.device, stage.dtype)
    level = torch.full((len(small),), settings.aug_level, device=small.device, dtype=torch.float64)
    schedule = make_schedule(**{"kind": "cosine", **settings.aug_schedule})
    noised = augment_lowres(small, level, noise, stage.shape, settings.aug_space, schedule, settings.lowres_mode)
    return Given({"lowres": noised, "aug_timestep": timestep_from_t(level).float()})


def _noise(
    generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Standard normal (B, *shape), one generator per picture; drawn in float32, so that it is the same in every dtype.

    (The noise of ddpm's steps is drawn in the dtype of the state, which is float64 in float64 alone.)
    """
    return draw(generators, (len(generators), *shape), device, torch.float32).to(dtype)
