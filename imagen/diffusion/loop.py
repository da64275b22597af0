"""The one sampling loop: from noise to a picture, for every stage and sampler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from imagen.diffusion.denoiser import Denoised, X0Fn, along
from imagen.diffusion.noise import draw
from imagen.diffusion.sampling import model_output, noise_dtype, sampling_clone, scaled_by_sigma
from imagen.diffusion.schedules import level_log_snrs, log_snr_at, timestep_at


class LoopState:
    """What a callback sees after each completed step, and may change.

    Attributes:
        step: 0 ... total - 1.
        timestep: where x0_fn was evaluated last.
        x0: (B, C, H, W), the estimate.
        stop: set True to end the loop.
    """

    def __init__(self, step: int, total: int, timestep: float, x0: Tensor, state: Tensor, scale: float) -> None:
        self.step, self.total, self.timestep, self.x0, self.stop = step, total, timestep, x0, False
        self._state, self._scale = state, scale
        self._made: tuple[Tensor, int] | None = None
        self._z: Tensor | None = None

    @property
    def z(self) -> Tensor:
        """(B, C, H, W), the state after the step in variance-preserving form, made where it is read.

        Change it in place (through torch: not by z.data or numpy) or assign another of its shape.
        """
        if self._z is None:
            self._z = _countable(self._state / self._scale)
            self._made = self._z, self._z._version
        return self._z

    @z.setter
    def z(self, z: Tensor) -> None:
        self._z = z

    def changed(self) -> bool:
        """Whether z is another tensor now, or was changed.

        Comparing values would wait for the device. torch counts the changes in place of a tensor and of its views; one
        through ``z.data`` or ``z.numpy()`` is not counted and goes unseen.

        Raises:
            ValueError: it has another shape.
        """
        if self._z is None:
            return False
        if self._z.shape != self._state.shape:
            shapes = f"{tuple(self._z.shape)}; expected {tuple(self._state.shape)}"
            raise ValueError(f"the callback made z {shapes}, as it was")
        made, version = self._made or (None, 0)
        return self._z is not made or self._z._version != version


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
        self.name = type(scheduler).__name__
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
                    f"{self.name} takes no list of timesteps; give a number of steps, or another sampler "
                    "(ddpm, ddim, dpm++ or euler)"
                )
        if hasattr(clone, "set_begin_index"):
            clone.set_begin_index(0)

    def step(self, i: int, denoised: Denoised, state: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        """The state (B, C, H, W) behind evaluation ``i``, which gave this estimate.

        Noise is drawn here, when a GPU was asked for the estimate and is still at it; onto x0 none is added.
        """
        x0, options = denoised.x0, dict[str, Any](return_dict=False)
        dtype = noise_dtype(self.clone, x0.dtype)
        if dtype is not None:
            last = i + 1 == len(self.times)
            noise = torch.zeros_like(x0) if last else draw(generators, x0.shape, x0.device, dtype)
            options["variance_noise"] = noise
        elif "generator" in inspect.signature(self.clone.step).parameters:
            options["generator"] = None if generators is None else list(generators)
        output = model_output(self.clone, denoised)
        stepped: Tensor = self.clone.step(output, self.clone.timesteps[i], state, **options)[0]
        return stepped

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
    clone, scales = rule.clone, rule.scales
    state, step = z.to(torch.promote_types(z.dtype, torch.float32)) * scales[0], 0
    estimate = along(x0_fn, rule.times, state)
    for i, timestep in enumerate(clone.timesteps):
        denoised = estimate(clone.scale_model_input(state, timestep), i)
        state = rule.step(i, denoised, state, generators)
        if callback is None or rule.half_done(i):
            continue
        report = LoopState(step, rule.total, rule.times[i], denoised.x0, state, scales[i + 1])
        callback(report)
        if report.changed():
            state = report.z.to(state) * scales[i + 1]
        if report.stop:
            return report.z
        step += 1
    return state
