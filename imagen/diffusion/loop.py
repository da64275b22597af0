"""The one sampling loop: from noise to a picture, for every stage and sampler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from imagen.diffusion.denoiser import X0Fn
from imagen.diffusion.sampling import model_output, sampling_clone, scaled_by_sigma
from imagen.diffusion.schedules import level_log_snrs, log_snr_at, timestep_at


@dataclass
class LoopState:
    """What a callback sees after each completed step, and may change.

    step: 0 ... total - 1. timestep: where x0_fn was evaluated last. z: (B, C, H, W), the state after the step in
    variance-preserving form; change it in place (through torch: not by z.data or numpy) or assign another of its shape.
    x0: the estimate. stop: set True to end the loop.
    """

    step: int
    total: int
    timestep: float
    z: Tensor
    x0: Tensor
    stop: bool = False


class StepRule:
    """A scheduler's step rule, set to the steps of one loop; made once for a call, begun anew by every loop.

    Args:
        scheduler: a supported diffusers scheduler (see :func:`imagen.diffusion.sampling.sampling_clone`), which is not
            changed.
        num_inference_steps: 1 to the scheduler's number of levels, or the falling list of timesteps to visit; Heun
            evaluates x0_fn twice in all but the last.

    Attributes:
        clone: what is stepped.
        total: steps.
        times: the timestep of every evaluation.
        scales: what the state is, as a multiple of the variance-preserving z, at each evaluation and at the end.

    Raises:
        ValueError: an unsupported scheduler, steps out of range or a list it cannot take.
    """

    def __init__(self, scheduler: Any, num_inference_steps: int | Sequence[int]) -> None:
        self.clone, self.steps = sampling_clone(scheduler), num_inference_steps
        levels = self.clone.config.num_train_timesteps
        self.total = num_inference_steps if isinstance(num_inference_steps, int) else len(num_inference_steps)
        if not 1 <= self.total <= levels:
            raise ValueError(f"num_inference_steps={num_inference_steps} is out of range; expected 1 to {levels}")
        self.begin()
        self.times = _evaluated(self.clone)
        self.scales = [1.0] * (len(self.times) + 1)
        if scaled_by_sigma(self.clone):
            self.scales = (self.clone.sigmas.double().square() + 1).sqrt().tolist()

    def begin(self) -> None:
        """Forget the steps of an earlier loop.

        Raises:
            ValueError: a list that does not fall or leaves the trained levels, or a sampler that takes none.
        """
        clone, levels = self.clone, self.clone.config.num_train_timesteps
        if isinstance(self.steps, int):
            clone.set_timesteps(self.steps, device="cpu")
            if clone.timesteps.min() < 0:
                # numpy.arange(1000, 0, -1000 / N) has one element too many when N * (1000 / N) rounds below 1000.
                clone.set_timesteps(self.steps * (1 - 1e-9), device="cpu")
        else:
            listed = list(self.steps)
            falling = all(a > b for a, b in pairwise(listed))
            if not falling or not 0 <= listed[-1] <= listed[0] < levels:
                raise ValueError(f"timesteps {listed} must fall within {levels - 1} ... 0")
            if hasattr(clone, "step_list"):
                clone.step_list(listed)
            elif "timesteps" in inspect.signature(clone.set_timesteps).parameters:
                clone.set_timesteps(timesteps=listed, device="cpu")
            else:
                raise ValueError(
                    f"{type(clone).__name__} takes no list of timesteps; give a number of steps, or another sampler "
                    "(ddpm, ddim, dpm++ or euler)"
                )
        if hasattr(clone, "set_begin_index"):
            clone.set_begin_index(0)

    def options(self, generators: Sequence[torch.Generator] | None) -> dict[str, Any]:
        """What its ``step`` is called with beside estimate, timestep and state."""
        if "generator" not in inspect.signature(self.clone.step).parameters:
            return {"return_dict": False}
        return {"return_dict": False, "generator": None if generators is None else list(generators)}

    def half_done(self, i: int) -> bool:
        """Whether evaluation ``i`` was the first half of a step, which Heun's rule has."""
        return i + 1 < len(self.times) and not getattr(self.clone, "state_in_first_order", True)


def _evaluated(clone: Any) -> list[float]:
    """The timestep of every evaluation: the list's own, or the fractional one that has the state's noise level."""
    timesteps: list[float] = clone.timesteps.double().tolist()
    if not hasattr(clone, "sigmas"):
        return timesteps
    log_snrs = level_log_snrs(clone)
    wanted = -2 * clone.sigmas[: len(timesteps)].double().log()
    nominal = log_snr_at(torch.tensor(timesteps, dtype=torch.float64), log_snrs)
    exact = timestep_at(wanted, log_snrs)
    return torch.where((nominal - wanted).abs() < 1e-5, clone.timesteps.double(), exact).tolist()


def _countable(z: Tensor) -> Tensor:
    """``z`` as a tensor of which torch counts the changes in place: of one made in inference mode it is a copy."""
    with torch.inference_mode(False):
        return z.clone() if z.is_inference() else z


def _changes(callback: Callable[[LoopState], None], state: LoopState) -> bool:
    """Calls back; whether ``state.z`` is another tensor afterwards or was changed.

    Comparing values would wait for the device. torch counts the changes in place of a tensor and of its views; one
    through ``z.data`` or ``z.numpy()`` is not counted and goes unseen.

    Raises:
        ValueError: it has another shape.
    """
    z, version = state.z, state.z._version
    callback(state)
    if state.z.shape != z.shape:
        raise ValueError(f"the callback made z {tuple(state.z.shape)}; expected {tuple(z.shape)}, as it was")
    return state.z is not z or state.z._version != version


def sample_loop(
    x0_fn: X0Fn,
    z: Tensor,
    rule: StepRule,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callable[[LoopState], None] | None = None,
) -> Tensor:
    """Denoise z from pure noise to a picture.

    Args:
        x0_fn: the contract, see :mod:`imagen.diffusion.denoiser`; called with z in variance-preserving form and the
            matching timestep (B,), float.
        z: (B, C, H, W), standard normal.
        rule: how a state is stepped, and at which timesteps.
        generators: one per image, for samplers that add noise, so that a picture does not depend on its batch; None
            uses the global generator.
        callback: called with a :class:`LoopState` after each completed step.

    Returns:
        (B, C, H, W), the last x0 estimate, in at least float32; after a callback's stop, z as it is.

    Raises:
        ValueError: not one generator per image, no learned variance.
    """
    if generators is not None and len(generators) != len(z):
        raise ValueError(f"{len(generators)} generators for {len(z)} images; expected one per image")
    rule.begin()
    clone, times, scales, options = rule.clone, rule.times, rule.scales, rule.options(generators)
    state, step = z.to(torch.promote_types(z.dtype, torch.float32)) * scales[0], 0
    for i, timestep in enumerate(clone.timesteps):
        scaled = clone.scale_model_input(state, timestep)
        denoised = x0_fn(scaled, torch.full((len(z),), times[i], device=z.device, dtype=state.dtype))
        state = clone.step(model_output(clone, denoised), timestep, state, **options)[0]
        if callback is None or rule.half_done(i):
            continue
        report = LoopState(step, rule.total, times[i], _countable(state / scales[i + 1]), denoised.x0)
        if _changes(callback, report):
            state = report.z.to(state) * scales[i + 1]
        if report.stop:
            return report.z
        step += 1
    return state
