"""The schedulers that the sampling loop steps (:mod:`imagen.diffusion.loop`).

Step rules are rented from diffusers; all of them see x0 estimates only (``prediction_type="sample"``), so guidance and
thresholding, which happen in x0_fn, act once. The loop works on a clone of the scheduler, made by
:func:`sampling_clone`, that differs where stock schedulers go wrong for this use:

* alpha_bar is kept in float64: in float32, 1 - alpha_bar loses its digits near the clean end.
* The last update lands on x0, and adds no noise.
* DDIM goes to the next timestep of its list; the stock one goes 1000 // N down, another level unless N divides 1000.
* "trailing" spacing has exactly N timesteps; the stock one has a last timestep of -1 for some N (61, 103, ...).
* Samplers that place their steps by sigma / alpha, of which a network's schedule knows up to thousands, are given no
  level above :data:`MAX_SIGMA`: noise beyond it says nothing of a picture, and there they would spend their steps.
* z is handed to x0_fn in variance-preserving form with the timestep of exactly its noise level, also by the samplers
  that scale z by sigma or place their levels between two timesteps.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

# ConfigMixin and SchedulerMixin are named here because diffusers looks them up in the module of a saved component.
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from imagen.checks import check_choice
from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.parameterization import check_prediction_type
from imagen.diffusion.schedules import NUM_TIMESTEPS, Schedule, level_log_snrs, trained_betas
from imagen.diffusion.unipc import HostUniPCScheduler

#: sigma / alpha of the noisiest level of samplers that step in it, and from where on levels are pressed together below
#: it. The largest at which Heun's first step, of 12 evaluations, lands as near to the exact picture as Euler's does.
MAX_SIGMA, PRESSED_SIGMA = 50.0, 40.0

_LEARNED = ("learned", "learned_range")


def _accepted(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that ``cls`` takes."""
    names = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {name: value for name, value in options.items() if name in names}


class ImagenDDPMScheduler(DDPMScheduler, SchedulerMixin, ConfigMixin):
    """The paper's ancestral sampler: a DDPM scheduler whose variance lies between small and large (appendix A).

    From level t to level s the noise has variance small^(1 - gamma) * large^gamma with
    small = (1 - e^(l_t - l_s)) sigma_s^2, the posterior's, and large = (1 - e^(l_t - l_s)) sigma_t^2. The paper gives
    no value of gamma; our default is 0. A learned variance (variance_type "learned_range") is a gamma per pixel.

    Its other defaults differ from DDPMScheduler's where those do not fit: "trailing" spacing, no clipping. The file and
    the name of this class are part of every saved pipeline and do not move.

    Raises:
        ValueError: gamma outside [0, 1]; variance_type fixed_large, which is gamma = 1 here; gamma with a learned one.
    """

    @register_to_config
    def __init__(  # the arguments are DDPMScheduler's, which diffusers requires to be spelled out, and gamma
        self,
        num_train_timesteps: int = NUM_TIMESTEPS,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = False,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        gamma: float = 0.0,
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma={gamma} is outside [0, 1]; 0 is the small variance, 1 the large one")
        if variance_type not in ("fixed_small", *_LEARNED):
            raise ValueError(
                f"variance_type={variance_type!r}: ImagenDDPMScheduler has 'fixed_small' with gamma (gamma=1 is the "
                f"large variance) and {_LEARNED}"
            )
        if variance_type in _LEARNED and gamma != 0:
            raise ValueError(f"gamma={gamma} has no effect on a {variance_type} variance; drop it or use fixed_small")
        # by name: diffusers records positional arguments as defaults, and drops those on a swap
        super().__init__(**_accepted(DDPMScheduler, self.config))

    def register_to_config(self, **settings: Any) -> None:  # behind __init__, whose decorator has this name
        """Keep the settings, but a gamma of 0, which no scheduler that is made from this one's config could miss."""
        super().register_to_config(**{name: value for name, value in settings.items() if name != "gamma" or value})

    def _get_variance(
        self, t: int, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        """The variance of the step from t (its logarithm for "learned_range", as in the parent); none onto x0."""
        kind = variance_type or self.config.variance_type
        if self.previous_timestep(t) < 0:
            shape = self.one if predicted_variance is None else predicted_variance
            return torch.full_like(shape, -torch.inf if kind == "learned_range" else 0.0)
        small = super()._get_variance(t, predicted_variance, kind)
        if kind != "fixed_small":
            return small
        large = super()._get_variance(t, variance_type="fixed_large")
        gamma = self.config.get("gamma", 0.0)
        return small ** (1 - gamma) * large**gamma


class _AheadDDPMScheduler(ImagenDDPMScheduler, SchedulerMixin, ConfigMixin):
    """The same for x0 estimates, with noise that it is given (Ho et al. 2020, equation 7). Not saved."""

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, variance_noise: Tensor | None = None, **_: Any
    ) -> tuple[Tensor]:
        x0, v = model_output, None
        if self.config.variance_type in _LEARNED:
            x0, v = model_output.chunk(2, dim=1)
        before = self.previous_timestep(timestep)
        alpha_bar_t = self.alphas_cumprod[timestep]
        alpha_bar_s = self.alphas_cumprod[before] if before >= 0 else self.one
        ratio = alpha_bar_t / alpha_bar_s
        mean = (alpha_bar_s**0.5 * (1 - ratio)) / (1 - alpha_bar_t) * x0
        mean = mean + ratio**0.5 * (1 - alpha_bar_s) / (1 - alpha_bar_t) * sample
        if before < 0 or variance_noise is None:
            return (mean,)
        variance = self._get_variance(int(timestep), v)
        std = torch.exp(0.5 * variance) if self.config.variance_type == "learned_range" else variance**0.5
        return (mean + std * variance_noise,)


class _ListDDIMScheduler(DDIMScheduler, SchedulerMixin, ConfigMixin):
    """DDIM from each timestep to the next of the list, and from the last to x0 (paper, appendix A). Not saved."""

    def step_list(self, timesteps: list[int]) -> None:
        self.num_inference_steps, self.timesteps = len(timesteps), torch.tensor(timesteps)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **_: Any) -> tuple[Tensor]:
        later = self.timesteps[self.timesteps < timestep]
        alpha_bar_t = self.alphas_cumprod[timestep]
        alpha_bar_s = self.alphas_cumprod[later[0]] if len(later) else self.final_alpha_cumprod
        eps = (sample - alpha_bar_t.sqrt() * model_output) / (1 - alpha_bar_t).sqrt()
        return (alpha_bar_s.sqrt() * model_output + (1 - alpha_bar_s).sqrt() * eps,)


#: The samplers make_scheduler knows by name.
SAMPLERS: dict[str, type] = {
    "ddpm": ImagenDDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
}
#: ... and one that no stage is stored with.
STEP_RULES: dict[str, type] = {**SAMPLERS, "singlestep": DPMSolverSinglestepScheduler}
#: Those whose state is x0 + sigma eps instead of alpha x0 + sigma eps.
_SCALED_BY_SIGMA = (EulerDiscreteScheduler, HeunDiscreteScheduler)
_SUPPORTED = (
    *(DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler),
    *_SCALED_BY_SIGMA,
)
#: Those whose step is written here: to the list's next timestep, or so that the host never waits for the device.
_OWN_STEP: dict[type, type] = {
    ImagenDDPMScheduler: _AheadDDPMScheduler,
    DDIMScheduler: _ListDDIMScheduler,
    UniPCMultistepScheduler: HostUniPCScheduler,
}
#: x0 is final when it comes (no clipping, no thresholding), and the last update lands on it.
_NEUTRAL = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True, "final_sigmas_type": "zero"}
#: With other values UniPC divides by the last step's noise, which is 0: all it makes is NaN.
_UNIPC = {"solver_type": "bh2", "predict_x0": True, "lower_order_final": True}
#: What it sets itself in order to land on x0, with two warnings each time.
_SINGLESTEP = {"lower_order_final": True}
#: DPM-Solver for noise estimates -> its counterpart for the x0 estimates it is given here.
_FOR_X0 = {"dpmsolver": "dpmsolver++", "sde-dpmsolver": "sde-dpmsolver++"}


def make_scheduler(kind: str, schedule: Schedule, prediction_type: str, gamma: float = 0.0) -> Any:
    """The scheduler of a stage: the schedule as ``trained_betas``, what the network predicts, and spacing that fits.

    The first evaluation is at the noisiest trained level ("trailing" spacing), the last update lands on x0.

    Args:
        kind: "ddpm", "ddim", "dpm++" (2M), "unipc", "euler" or "heun".
        schedule: exported at t = (i + 1/2) / 1000.
        prediction_type: "epsilon", "v_prediction" or "sample"; kept in the scheduler's config, as in diffusers.
        gamma: of "ddpm" only; see :class:`ImagenDDPMScheduler`.

    Raises:
        ValueError: an unknown kind or prediction_type, gamma for another kind than ddpm, a schedule with no export.
    """
    cls = SAMPLERS[check_choice("sampler", kind, list(SAMPLERS))]
    check_prediction_type(prediction_type)
    if gamma != 0 and kind != "ddpm":
        raise ValueError(f"gamma={gamma} has no effect on {kind}; it belongs to ddpm")
    options: dict[str, Any] = {
        "num_train_timesteps": NUM_TIMESTEPS,
        "trained_betas": trained_betas(schedule),
        "prediction_type": prediction_type,
        "timestep_spacing": "trailing",
        **_NEUTRAL,
    }
    if gamma != 0:
        options["gamma"] = gamma
    return cls(**_accepted(cls, options))


def sampling_clone(scheduler: Any) -> Any:
    """A copy of a stage's scheduler for the loop to step: it takes x0, never clips, and lands on x0.

    Its own timestep spacing, solver order and the like are kept, but for what does not go with that (DPM-Solver becomes
    DPM-Solver++, UniPC its bh2 form). A plain DDPMScheduler becomes an :class:`ImagenDDPMScheduler` (gamma 0 or 1 for
    its small or large variance).

    Raises:
        ValueError: a scheduler that cannot take x0 estimates of a variance-preserving process.
    """
    if not isinstance(scheduler, _SUPPORTED):
        raise ValueError(
            f"{type(scheduler).__name__} cannot step x0 estimates; supported are "
            f"{', '.join(cls.__name__ for cls in _SUPPORTED)} (and ImagenDDPMScheduler)"
        )
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        raise ValueError(
            f"{type(scheduler).__name__} is set up for flow matching (use_flow_sigmas or prediction_type "
            "'flow_prediction'); the networks here are trained on a variance-preserving process, so turn it off"
        )
    if config.get("use_beta_sigmas"):
        raise ValueError(
            f"{type(scheduler).__name__} has use_beta_sigmas, which leaves its steps to the levels at both ends and "
            "draws nothing right in few steps: use use_exponential_sigmas or use_karras_sigmas instead"
        )
    _check_order(type(scheduler).__name__, config.get("solver_order", 1))
    cls: type = type(scheduler)
    if cls is DDPMScheduler:
        cls = ImagenDDPMScheduler
        if config["variance_type"] not in _LEARNED:
            config["gamma"] = 1.0 if config["variance_type"].startswith("fixed_large") else 0.0
            config["variance_type"] = "fixed_small"
    config.update(prediction_type="sample", **_NEUTRAL)
    if cls is UniPCMultistepScheduler:
        config.update(_UNIPC)
    elif cls is DPMSolverSinglestepScheduler:
        config.update(_SINGLESTEP)
    if config.get("algorithm_type") in _FOR_X0:
        config["algorithm_type"] = _FOR_X0[config["algorithm_type"]]
    clone, log_snrs = _OWN_STEP.get(cls, cls)(**_accepted(cls, config)), level_log_snrs(scheduler)
    clone.alphas_cumprod = torch.sigmoid(pressed(log_snrs) if hasattr(clone, "sigmas") else log_snrs)
    return clone


def _check_order(name: str, order: Any) -> None:
    """Raises ValueError for an order that the library does not have, or that loses pictures in few steps."""
    known = [1, 2] if name == "UniPCMultistepScheduler" else [1, 2, 3]
    if order not in known:
        why = ", which loses pictures in few steps with guidance" if order == 3 else ""
        raise ValueError(f"{name} has solver_order {order!r}{why}; use one of {', '.join(map(str, known))}")


def pressed(log_snrs: Tensor) -> Tensor:
    """log-SNR of levels, (num,), of which none is below that of :data:`MAX_SIGMA`: what lies below that of
    :data:`PRESSED_SIGMA` is pressed together between the two, evenly, for samplers divide by differences of levels.
    """
    start, end = -2 * math.log(PRESSED_SIGMA), -2 * math.log(MAX_SIGMA)
    if log_snrs.min() >= end:
        return log_snrs
    share = (start - log_snrs) / (start - log_snrs.min())  # 0 at the start, 1 at the noisiest level
    return torch.where(log_snrs < start, start + (end - start) * share, log_snrs)


def model_output(clone: Any, denoised: Denoised) -> Tensor:
    """x0 as the step rule takes it: with the learned variance behind it if the scheduler reads one."""
    if not (isinstance(clone, DDPMScheduler) and clone.config.variance_type in _LEARNED):
        return denoised.x0
    if denoised.variance is None:
        raise ValueError(
            f"the scheduler's variance_type is {clone.config.variance_type!r} but the network learned no variance; "
            "use a scheduler with variance_type='fixed_small'"
        )
    return torch.cat([denoised.x0, denoised.variance], dim=1)


def scaled_by_sigma(clone: Any) -> bool:
    """Whether the scheduler's state is x0 + sigma eps instead of alpha x0 + sigma eps."""
    return isinstance(clone, _SCALED_BY_SIGMA)


def noise_dtype(clone: Any, dtype: torch.dtype) -> torch.dtype | None:
    """In what dtype its steps are given noise, for states of ``dtype``; None: they add none, or draw it themselves."""
    if isinstance(clone, _AheadDDPMScheduler):
        return dtype
    stochastic = str(clone.config.get("algorithm_type")).startswith("sde")
    takes = "variance_noise" in inspect.signature(clone.step).parameters
    return torch.float32 if stochastic and takes else None
