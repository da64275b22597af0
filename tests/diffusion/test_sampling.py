"""The loop and its schedulers: what acts once, where it starts and lands, what it draws, what is saved."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.loop import StepRule, sample_loop
from imagen.diffusion.sampling import (
    MAX_SIGMA,
    SAMPLERS,
    ImagenDDPMScheduler,
    make_scheduler,
    sampling_clone,
)
from imagen.diffusion.schedules import (
    CosineSchedule,
    LinearSchedule,
    alpha_sigma,
    level_log_snrs,
    log_snr_at,
    t_from_timestep,
)

SUPPORTED = [
    ImagenDDPMScheduler,
    DDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
]
BASE = make_scheduler("ddpm", CosineSchedule(), "v_prediction")
every_class = pytest.mark.parametrize("cls", SUPPORTED)


def noise(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def constant(value: float, seen: list[float] | None = None) -> Any:
    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        assert timestep.shape == z.shape[:1]
        assert timestep.is_floating_point()
        if seen is not None:
            seen.append(timestep[0].item())
        return Denoised(torch.full_like(z, value))

    return x0_fn


@every_class
@pytest.mark.parametrize("steps", [1, 2, 7, 61])
def test_x0_is_neither_clipped_nor_thresholded_and_is_where_the_loop_lands(cls: Any, steps: int) -> None:
    """x0 = 3 goes through a scheduler that was told to clip and threshold; it starts at the noisiest trained level, or
    at the one where sigma / alpha is as large as samplers are given that step in it.
    """
    scheduler = cls.from_config(BASE.config, clip_sample=True, thresholding=True, sample_max_value=1.0)
    before = dict(scheduler.config)
    seen: list[float] = []
    out = sample_loop(constant(3.0, seen), noise(), StepRule(scheduler, steps))
    assert (out - 3).abs().max() < 2e-4
    first = -2 * math.log(MAX_SIGMA) if hasattr(scheduler, "sigmas") else level_log_snrs(scheduler)[-1].item()
    assert log_snr_at(torch.tensor(seen[:1]), level_log_snrs(scheduler)).item() == pytest.approx(first, abs=2e-3)
    assert all(0 <= t < 1000 for t in seen)
    assert sorted(seen, reverse=True) == seen
    assert len(seen) == (2 * steps - 1 if cls is HeunDiscreteScheduler else steps)
    assert dict(scheduler.config) == before, "the stage's scheduler was changed"


@pytest.mark.parametrize("variance_type", ["fixed_large", "learned_range", "learned"])
def test_the_last_ancestral_step_adds_no_noise(variance_type: str) -> None:
    """Nor does the large variance, which is not zero there: at the last of 4 timesteps, 249."""

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        return Denoised(torch.full_like(z, 3.0), torch.ones_like(z))

    scheduler = DDPMScheduler(variance_type=variance_type, timestep_spacing="trailing")
    assert torch.equal(sample_loop(x0_fn, noise(), StepRule(scheduler, 4)), torch.full((2, 1, 4, 4), 3.0))


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(set_alpha_to_one=False),
        DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", algorithm_type="dpmsolver++"),
        UniPCMultistepScheduler(final_sigmas_type="sigma_min"),
        EulerDiscreteScheduler(final_sigmas_type="sigma_min"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_scheduler_that_would_end_at_the_last_trained_level_lands_on_x0(scheduler: Any) -> None:
    assert (sample_loop(constant(3.0), noise(), StepRule(scheduler, 5)) - 3).abs().max() < 2e-4


def test_without_generators_noise_is_the_global_generators() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(sample_loop(lambda z, t: Denoised(torch.tanh(z)), noise(), StepRule(BASE, 3)))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_our_ancestral_sampler_has_diffusers_defaults_but_for_clipping_and_spacing() -> None:
    ours, theirs = (inspect.signature(cls.__init__).parameters for cls in (ImagenDDPMScheduler, DDPMScheduler))
    differ = {name: p.default for name, p in ours.items() if name not in theirs or p.default != theirs[name].default}
    assert differ == {"clip_sample": False, "timestep_spacing": "trailing", "gamma": 0.0}
    assert theirs.keys() <= ours.keys()


OPTIONS = {
    "ddim": (DDIMScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "dpm++ karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "dpm++ lu": (DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
    "singlestep": (DPMSolverSinglestepScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "unipc karras": (UniPCMultistepScheduler, {"use_karras_sigmas": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler linspace": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "euler leading": (EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    "euler karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "heun": (HeunDiscreteScheduler, {}),
    "heun linspace": (HeunDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "heun karras": (HeunDiscreteScheduler, {"use_karras_sigmas": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()], ids=["cosine", "linear"])
def test_z_is_variance_preserving_and_agrees_with_the_timestep(name: str, schedule: Any) -> None:
    """If all data is one picture, every ODE sampler keeps z = alpha x0 + sigma eps with the eps it started with."""
    cls, options = OPTIONS[name]
    scheduler = cls.from_config(make_scheduler("ddpm", schedule, "epsilon").config, **options)
    log_snrs = level_log_snrs(scheduler)
    picture, levels, eps = 0.7, [], []

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        low = timestep.double().floor().clamp(max=998).long()
        log_snr = torch.lerp(log_snrs[low], log_snrs[low + 1], timestep.double() - low)
        alpha, sigma = (c[:, None, None, None] for c in alpha_sigma(log_snr))
        levels.append(log_snr[0].item())
        eps.append((z - alpha * picture) / sigma)
        return Denoised(torch.full_like(z, picture))

    sample_loop(x0_fn, noise().double(), StepRule(scheduler, 9))
    assert len(set(levels)) == 9
    for level, now in zip(levels, eps, strict=True):
        # Heun's first step, from sigma = 1283 to 6 in float32, is worth a thousandth.
        assert (now - eps[0]).abs().max() < 3e-3, f"at log-SNR {level}"


def test_a_picture_does_not_depend_on_its_batch() -> None:
    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        return Denoised(torch.tanh(z))

    z = noise(3)
    for kind in ("ddpm", "dpm++"):
        scheduler = make_scheduler(kind, CosineSchedule(), "epsilon")
        together = sample_loop(x0_fn, z, StepRule(scheduler, 5), [torch.Generator().manual_seed(i) for i in range(3)])
        for i in range(3):
            alone = sample_loop(x0_fn, z[i : i + 1], StepRule(scheduler, 5), [torch.Generator().manual_seed(i)])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)
    sde = DPMSolverMultistepScheduler.from_config(BASE.config, algorithm_type="sde-dpmsolver++")
    first, second = (sample_loop(x0_fn, z[:1], StepRule(sde, 5), [torch.Generator().manual_seed(i)]) for i in (0, 1))
    assert not torch.equal(first, second), "the generators of a stochastic dpm++ are not used"


def variances(scheduler: Any, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    return torch.stack([scheduler._get_variance(t) for t in scheduler.timesteps[:-1]]).double()


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()], ids=["cosine", "linear"])
def test_gamma_lies_between_the_papers_small_and_large_variance(schedule: Any) -> None:
    """Appendix A: small (1 - e^(l_t - l_s)) sigma_s^2, large (1 - e^(l_t - l_s)) sigma_t^2."""
    steps = 10
    times = torch.arange(999, 0, -100)
    log_snr = schedule.log_snr(t_from_timestep(times.double()))
    ratio = torch.exp(log_snr[:-1] - log_snr[1:])
    noise_power = torch.sigmoid(-log_snr)
    small, large = (1 - ratio) * noise_power[1:], (1 - ratio) * noise_power[:-1]
    for gamma, expected in ((0.0, small), (1.0, large), (0.3, small**0.7 * large**0.3)):
        ours = variances(sampling_clone(make_scheduler("ddpm", schedule, "epsilon", gamma=gamma)), steps)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_gamma_zero_and_one_are_diffusers_fixed_small_and_large() -> None:
    config = {k: v for k, v in BASE.config.items() if not k.startswith("_") and k != "gamma"}
    for gamma, kind in ((0.0, "fixed_small"), (1.0, "fixed_large")):
        ours = ImagenDDPMScheduler(**config, gamma=gamma)
        theirs = DDPMScheduler(**{**config, "variance_type": kind})
        torch.testing.assert_close(variances(ours, 13), variances(theirs, 13), rtol=1e-12, atol=0)
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(1000)
        assert ours._get_variance(1) == theirs._get_variance(1) > 0, "the first level is reached by a step with noise"
        assert sampling_clone(theirs).config.get("gamma", 0.0) == gamma
        logarithmic = DDPMScheduler(**{**config, "variance_type": f"{kind}_log"})
        torch.testing.assert_close(variances(sampling_clone(logarithmic), 13), variances(ours, 13), rtol=1e-5, atol=0)
    ours, theirs = ImagenDDPMScheduler(**config), DDPMScheduler(**config)
    z, v = noise(seed=1), noise(seed=2)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(13)
    steps = [s.step(v, s.timesteps[4], z, generator=torch.Generator().manual_seed(0)) for s in (ours, theirs)]
    assert torch.equal(steps[0].prev_sample, steps[1].prev_sample)


def test_a_learned_variance_is_a_gamma_per_pixel_and_ddpms_alone() -> None:
    def x0_fn(value: float) -> Any:
        return lambda z, timestep: Denoised(0.5 * z, torch.full_like(z, value))

    def run(scheduler: Any, value: float) -> Tensor:
        return sample_loop(
            x0_fn(value), noise(), StepRule(scheduler, 6), [torch.Generator().manual_seed(i) for i in range(2)]
        )

    config = {k: v for k, v in BASE.config.items() if not k.startswith("_") and k != "gamma"}
    for learned in (DDPMScheduler, ImagenDDPMScheduler):
        scheduler = learned(**{**config, "variance_type": "learned_range"})
        for value, gamma in ((-1.0, 0.0), (0.0, 0.5), (1.0, 1.0)):
            plain = make_scheduler("ddpm", CosineSchedule(), "v_prediction", gamma=gamma)
            torch.testing.assert_close(run(scheduler, value), run(plain, value), rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="learned no variance"):
            sample_loop(constant(0.0), noise(), StepRule(scheduler, 2))
    for kind in SAMPLERS:
        scheduler = make_scheduler(kind, CosineSchedule(), "v_prediction")
        assert torch.equal(run(scheduler, -1.0), run(scheduler, 1.0)), kind


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("schedule", [CosineSchedule(shift=0.25), LinearSchedule()], ids=["cosine", "linear"])
def test_schedulers_are_saved_with_the_schedule_and_the_prediction(kind: str, schedule: Any, tmp_path: Path) -> None:
    made = make_scheduler(kind, schedule, "v_prediction")
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path)
    assert loaded.config.prediction_type == "v_prediction"
    assert loaded.config.timestep_spacing == "trailing"
    times = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    torch.testing.assert_close(level_log_snrs(loaded), schedule.log_snr(times), rtol=0, atol=1e-9)
    in_float32 = torch.log(loaded.alphas_cumprod / (1 - loaded.alphas_cumprod)).double()
    assert (in_float32 - schedule.log_snr(times)).abs().max() < 2e-3


class OnePart(DiffusionPipeline):
    """A pipeline with nothing but a scheduler."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)


def test_our_scheduler_is_a_saved_component_of_a_pipeline(tmp_path: Path) -> None:
    OnePart(make_scheduler("ddpm", CosineSchedule(), "epsilon", gamma=0.25)).save_pretrained(tmp_path)
    assert '"imagen.diffusion.sampling"' in (tmp_path / "model_index.json").read_text()
    loaded = OnePart.from_pretrained(tmp_path).scheduler
    assert type(loaded) is ImagenDDPMScheduler
    assert loaded.config.gamma == 0.25


@every_class
def test_swapping_a_sampler_keeps_what_was_trained(cls: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`cls.from_config(stage_scheduler.config)` keeps schedule, prediction and spacing, without a warning."""
    logger = diffusers.utils.logging.get_logger("diffusers.configuration_utils")
    logger.addHandler(caplog.handler)
    swapped = cls.from_config(BASE.config)
    logger.removeHandler(caplog.handler)
    assert not caplog.records
    assert swapped.config.prediction_type == "v_prediction"
    assert list(swapped.config.trained_betas) == list(BASE.config.trained_betas)
    if cls is not DPMSolverSinglestepScheduler:  # it has no spacing but the uniform one
        assert swapped.config.timestep_spacing == "trailing"
    back = ImagenDDPMScheduler.from_config(swapped.config)
    assert back.config.prediction_type == "v_prediction"
    assert torch.equal(level_log_snrs(back), level_log_snrs(BASE))


def test_foreign_schedulers_keep_their_spacing() -> None:
    """A converted checkpoint's "leading" list is stepped as it stands, and still lands on x0."""
    seen: list[float] = []
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_large")
    out = sample_loop(constant(0.5, seen), noise(), StepRule(scheduler, 10))
    assert seen == [900.0 - 100 * i for i in range(10)]
    assert torch.equal(out, torch.full_like(out, 0.5))


@pytest.mark.parametrize("trained", [None, BASE.config.trained_betas], ids=["linear", "trained_betas"])
def test_zero_terminal_snr_is_finite(trained: list[float] | None) -> None:
    """A scheduler that rescales steps by other betas than those that it was made of and stores."""
    for cls in (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler):
        scheduler = cls(rescale_betas_zero_snr=True, timestep_spacing="trailing", trained_betas=trained)
        log_snrs = level_log_snrs(scheduler)
        assert log_snrs[-1] == -20
        theirs = torch.logit(torch.cumprod(1 - scheduler.betas.double(), 0)[:-1])
        torch.testing.assert_close(log_snrs[:-1], theirs, rtol=0, atol=1e-6)
        assert sample_loop(constant(0.5), noise(), StepRule(scheduler, 4)).isfinite().all()


def test_half_precision_noise_is_stepped_in_float32() -> None:
    assert sample_loop(constant(0.5), noise().half(), StepRule(BASE, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_loop(constant(0.0), noise(), StepRule(BASE, 0)), "num_inference_steps=0"),
        (lambda: sample_loop(constant(0.0), noise(), StepRule(BASE, 1001)), "num_inference_steps=1001"),
        *(
            (
                lambda count=count: sample_loop(constant(0.0), noise(), StepRule(BASE, 2), [torch.Generator()] * count),
                f"{count} generators for 2 images",
            )
            for count in (0, 1, 3)
        ),
        (lambda: make_scheduler("ddmp", CosineSchedule(), "epsilon"), "sampler is 'ddmp'"),
        (lambda: make_scheduler("ddim", CosineSchedule(), "epsilon", gamma=0.5), "gamma=0.5 has no effect"),
        (lambda: make_scheduler("ddim", CosineSchedule(), "eps"), "prediction_type is 'eps'"),
        (lambda: ImagenDDPMScheduler(gamma=1.001), "gamma=1.001"),
        (lambda: ImagenDDPMScheduler(gamma=-0.001), "gamma=-0.001"),
        (lambda: ImagenDDPMScheduler(gamma=0.5, variance_type="learned"), "gamma=0.5 has no effect"),
        (lambda: ImagenDDPMScheduler(gamma=0.5, variance_type="learned_range"), "gamma=0.5 has no effect"),
        (lambda: ImagenDDPMScheduler(variance_type="fixed_large"), "gamma=1"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
