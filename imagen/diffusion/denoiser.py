"""The one contract: ``x0_fn(z, timestep) -> Denoised(x0, variance)``.

Whatever samples sees only this: the guided, thresholded estimate of the clean image. What the network predicts,
guidance and thresholding are settled here and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from imagen.diffusion.guidance import CFG, Branch, Guidance, conditional
from imagen.diffusion.parameterization import check_prediction_type, x0_from
from imagen.diffusion.schedules import alpha_sigma, log_snr_at
from imagen.diffusion.thresholding import Thresholding


class Denoised(NamedTuple):
    """What x0_fn answers.

    x0: (B, C, H, W), the estimate of the clean image.
    variance: (B, C, H, W) or None; for networks that learned one, the raw output v that puts the log variance of an
        ancestral step between the small (-1) and the large (+1) one (Nichol & Dhariwal 2021, equation 15). It is
        relative to a step, so only the step rule can make a number of it; only ddpm does, the others ignore it.
    """

    x0: Tensor
    variance: Tensor | None = None


#: z (B, C, H, W) in variance-preserving form and timestep (B,), float in [0, 1000), to :class:`Denoised`.
X0Fn = Callable[[Tensor, Tensor], Denoised]

#: A network with its conditions bound, asked for some of its branches: z (B, C, H, W), timestep (B,) and the branches
#: to one raw output (B, C or 2C, H, W) for each, in their order. Whoever binds the network stacks what one network is
#: asked in one step, and knows which texts the branches see.
Evaluate = Callable[[Tensor, Tensor, tuple[Branch, ...]], Sequence[Tensor]]


class Level(NamedTuple):
    """How noisy a batch is.

    timestep: (B,), as the network is given it.
    log_snr, alpha, sigma: (B,), float64.
    known: log_snr as numbers where the CPU has them; None: whoever asks has to wait for the device.
    """

    timestep: Tensor
    log_snr: Tensor
    alpha: Tensor
    sigma: Tensor
    known: tuple[float, ...] | None = None


class Step:
    """One step of a batch as a guidance sees it: the state, its level, and the network, asked once for each branch.

    Attributes:
        z: (B, C, H, W), the noisy picture; requires a gradient if the guidance asked for one.
        timestep: (B,), as the network is given it.
        log_snr: (B,), float64; as numbers, to decide by, ``log_snrs``.
        scale: w of equation 2 at this step.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        out_channels: int,
        prediction_type: str,
        z: Tensor,
        level: Level,
        scale: float = 1.0,
    ) -> None:
        self.z, self.timestep, self.log_snr, self.scale = z, level.timestep, level.log_snr, scale
        self._evaluate, self._out_channels, self._prediction_type = evaluate, out_channels, prediction_type
        self._level = level
        self._outputs: dict[Branch, Tensor] = {}

    @cached_property
    def log_snrs(self) -> tuple[float, ...]:
        """log_snr as numbers, to decide by: the sampling loop knows them, and asks no device for them."""
        known = self._level.known
        return tuple(self.log_snr.tolist()) if known is None else known

    def evaluate(self, *branches: Branch) -> tuple[Tensor, ...]:
        """What the network says in each branch, (B, C, H, W) in the dtype of z, without a learned variance.

        Branches not yet evaluated at this step are, in one call. Raises: ValueError for outputs of another shape.
        """
        missing = tuple(branch for branch in branches if branch not in self._outputs)
        if missing:
            outputs = self._evaluate(self.z, self.timestep, missing)
            self._outputs.update(zip(missing, map(self._checked, outputs), strict=True))
        return tuple(self._outputs[branch][:, : self.z.shape[1]] for branch in branches)

    def x0(self, output: Tensor) -> Tensor:
        """The clean picture that an output (B, C, H, W), or a mixture of outputs, stands for."""
        return x0_from(self._prediction_type, output, self.z, self._level.alpha, self._level.sigma)

    def variance(self) -> Tensor | None:
        """The conditional branch's learned variance, (B, C, H, W), or None."""
        if self._out_channels == self.z.shape[1]:
            return None
        self.evaluate("conditional")
        return self._outputs["conditional"][:, self.z.shape[1] :]

    def _checked(self, output: Tensor) -> Tensor:
        expected = (self.z.shape[0], self._out_channels, *self.z.shape[2:])
        if tuple(output.shape) != expected:
            raise ValueError(
                f"the network answered {tuple(output.shape)}, expected {expected}; a network that learned its variance "
                "has 2C output channels and needs learned_variance=True"
            )
        return output.to(self.z.dtype)


class Denoiser:
    """An :data:`X0Fn`; the levels of a whole run can be made for it at once.

    Args:
        at: a state (B, C, H, W) and its level -> the answer.
        log_snrs: (num,), the log-SNR of every level.
    """

    def __init__(self, at: Callable[[Tensor, Level], Denoised], log_snrs: Tensor) -> None:
        self.at, self.log_snrs = at, log_snrs

    def __call__(self, z: Tensor, timestep: Tensor) -> Denoised:
        """The contract."""
        log_snr = log_snr_at(timestep, self.log_snrs)
        return self.at(z, Level(timestep, log_snr, *alpha_sigma(log_snr)))

    def levels(self, timesteps: Tensor, batch: int, device: torch.device) -> list[Level]:
        """Of a batch at each of the timesteps, (E,) on the CPU: looked up there, and moved together."""
        log_snr = log_snr_at(timesteps, self.log_snrs.cpu())
        table = torch.stack([timesteps.double(), log_snr, *alpha_sigma(log_snr)])  # (4, E)
        moved = table[..., None].repeat(1, 1, batch).to(device, non_blocking=True)
        known = [(value,) * batch for value in log_snr.tolist()]
        return [Level._make(row) for row in zip(moved[0].to(timesteps.dtype), *moved[1:], known, strict=True)]


def along(x0_fn: X0Fn, times: Sequence[float], z: Tensor) -> Callable[[Tensor, int], Denoised]:
    """``x0_fn`` for a run over these timesteps: a state and the number of its evaluation -> the answer.

    What depends on the timestep alone is made here, for all of them.

    Args:
        z: (B, C, H, W), what the states are like.
    """
    timesteps = torch.tensor(times, dtype=z.dtype)
    if isinstance(x0_fn, Denoiser):
        levels, at = x0_fn.levels(timesteps, len(z), z.device), x0_fn.at
        return lambda state, i: at(state, levels[i])
    rows = timesteps[:, None].repeat(1, len(z)).to(z.device, non_blocking=True)
    return lambda state, i: x0_fn(state, rows[i])


def make_x0_fn(
    evaluate: Evaluate,
    *,
    prediction_type: str,
    log_snrs: Tensor,
    guidance: Guidance | None = None,
    guidance_scale: float | Callable[[], float] = 1.0,
    thresholding: Thresholding | None = None,
    learned_variance: bool = False,
    correct: Callable[[Tensor], Tensor] | None = None,
) -> Denoiser:
    """Wrap a network into the contract, for one run of one stage: what the guidance remembers starts anew here.

    Args:
        evaluate: the network with text and low-res picture bound.
        prediction_type: what it predicts, "epsilon", "v_prediction" or "sample".
        log_snrs: (num,), the log-SNR of every level of the schedule it was trained on
            (imagen.diffusion.schedules.level_log_snrs of its scheduler).
        guidance: which branches are evaluated and how they are combined; None is classifier-free guidance.
        guidance_scale: the paper's w (equation 2), or what is asked for it at each evaluation. 1 is off, and then only
            the conditional branch is evaluated.
        thresholding: of the guided x0 (paper, section 2.3); None is dynamic, p = 0.995.
        learned_variance: the network has 2C output channels, the second C being Denoised.variance. Guidance acts on the
            first C only; the variance is the conditional branch's.
        correct: done last to the limited x0; what :func:`imagen.diffusion.consistency.match_lowres` returns.

    Returns:
        An :data:`X0Fn`. It works in the dtype of z, which is float32 in the cascade, whatever dtype the network
        answers in.

    Raises:
        ValueError: an unknown prediction_type, a guidance_scale that is not finite; when called, an output whose shape
            does not fit.
    """
    check_prediction_type(prediction_type)
    if not callable(guidance_scale) and not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale={guidance_scale} is not finite; 1 is off, 5 to 10 is usual")
    limit = thresholding or Thresholding()
    guidance = guidance or CFG()
    started, gradient = guidance.start(), guidance.gradient

    def at(z: Tensor, level: Level) -> Denoised:
        out_channels = 2 * z.shape[1] if learned_variance else z.shape[1]
        # only here: a guidance may differentiate although whoever samples switched gradients off
        with torch.set_grad_enabled(gradient or torch.is_grad_enabled()):
            leaf = z.detach().requires_grad_() if gradient else z
            scale = guidance_scale() if callable(guidance_scale) else guidance_scale
            step = Step(evaluate, out_channels, prediction_type, leaf, level, scale)
            guide = conditional if scale == 1 else started
            x0, variance = guide(step), step.variance()
        if gradient:
            x0, variance = x0.detach(), None if variance is None else variance.detach()
        x0 = limit(x0)
        x0 = x0 if correct is None else correct(x0)
        return Denoised(x0, variance)

    return Denoiser(at, log_snrs)
