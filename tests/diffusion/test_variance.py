"""The learned variance: bounds, divergences and likelihoods against independent forms, and where gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from imagen.diffusion.parameterization import q_sample, x0_from
from imagen.diffusion.schedules import CosineSchedule, DiscreteCosineSchedule, alpha_sigma, level_time
from imagen.diffusion.variance import (
    BIN,
    binned_log_likelihood,
    gaussian_kl,
    interpolated_log_variance,
    posterior_mean,
    step_log_variances,
    vlb_term,
)

LEVELS = DiscreteCosineSchedule().levels()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bounds_are_the_betas_of_ddpm() -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    betas = scheduler.betas.double()
    alpha_bar = (1 - betas).cumprod(0)
    small, large = step_log_variances(LEVELS[1:], LEVELS[:-1])
    torch.testing.assert_close(large.exp(), betas[1:], rtol=1e-4, atol=0)
    tilde = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    torch.testing.assert_close(small.exp(), tilde, rtol=1e-4, atol=0)
    onto_the_picture = step_log_variances(LEVELS[:1], torch.full((1,), math.inf))
    torch.testing.assert_close(onto_the_picture[1].exp(), betas[:1], rtol=1e-4, atol=0)
    assert onto_the_picture[0].exp() == 0


def test_what_is_learned_is_what_diffusers_samples_with() -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    v = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for level in (1, 500, 999):
        bounds = step_log_variances(LEVELS[level], LEVELS[level - 1])
        ours = interpolated_log_variance(v, *bounds)
        assert float(ours[0]) == pytest.approx(float(bounds[0]))
        assert float(ours[-1]) == pytest.approx(float(bounds[1]))
        scheduler.set_timesteps(1000)
        theirs = scheduler._get_variance(level, predicted_variance=v)
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-3, atol=1e-3)


def test_the_posterior_is_the_product_of_two_gaussians() -> None:
    """q(z_s | z_t, x0) by Bayes' rule, from q(z_s | x0) and q(z_t | z_s)."""
    log_snr_t, log_snr_s = torch.tensor([-3.0, 0.5, 6.0]).double(), torch.tensor([-2.0, 0.6, 8.0]).double()
    x0, z = randn(3, 2, 2, 2), randn(3, 2, 2, 2, seed=1)
    (a_t, s_t), (a_s, s_s) = ([part[:, None, None, None] for part in alpha_sigma(x)] for x in (log_snr_t, log_snr_s))
    step = a_t / a_s
    beta = s_t**2 - step**2 * s_s**2
    precision = 1 / s_s**2 + step**2 / beta
    mean = (a_s * x0 / s_s**2 + step * z / beta) / precision
    torch.testing.assert_close(posterior_mean(x0, z, log_snr_t, log_snr_s), mean, rtol=1e-10, atol=1e-12)
    small, large = step_log_variances(log_snr_t, log_snr_s)
    torch.testing.assert_close(small.exp(), 1 / precision.flatten(), rtol=1e-10, atol=0)
    torch.testing.assert_close(large.exp(), beta.flatten(), rtol=1e-10, atol=0)


def test_the_divergence_is_torchs() -> None:
    mean_1, log_1, mean_2, log_2 = randn(4, 50)
    expected = kl_divergence(Normal(mean_1, (log_1 / 2).exp()), Normal(mean_2, (log_2 / 2).exp()))
    torch.testing.assert_close(gaussian_kl(mean_1, log_1, mean_2, log_2), expected)
    assert gaussian_kl(mean_1, log_1, mean_1, log_1).abs().max() == 0


def test_the_bins_of_all_values_hold_all_the_mass() -> None:
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    mean, log_variance = torch.tensor([-0.99, 0.1, 0.7]).double(), torch.tensor([-9.0, -3.0, 1.0]).double()
    likelihood = binned_log_likelihood(values, mean, log_variance)
    torch.testing.assert_close(likelihood.exp().sum(0), torch.ones(3).double(), rtol=1e-9, atol=1e-9)
    normal = Normal(mean, (log_variance / 2).exp())
    inner = (normal.cdf(values[100] + BIN / 2) - normal.cdf(values[100] - BIN / 2)).clamp(min=1e-12)
    torch.testing.assert_close(likelihood[100], inner.log())


@pytest.mark.parametrize("schedule", [DiscreteCosineSchedule(), CosineSchedule()], ids=["levels", "continuous"])
def test_a_term_has_its_closed_form(schedule) -> None:
    t = level_time(torch.tensor([0.0003, 0.0013, 0.4, 0.9995], dtype=torch.float64))
    x0 = (randn(4, 3, 4, 4).clamp(-1, 1) / BIN).round() * BIN
    z = q_sample(x0, randn(4, 3, 4, 4, seed=1), schedule.log_snr(t))
    terms = vlb_term(torch.full_like(z, -1.0), x0, x0, z, t, schedule)
    assert terms[1:].abs().max() < 1e-9  # the posterior itself
    assert terms[0] > 0
    # v = 1: means agree, and the divergence is that of the variances; with r = beta-tilde / beta, (r - 1 - log r) / 2
    small, large = step_log_variances(schedule.log_snr(t), schedule.log_snr(t - 1 / 1000))
    ratio = (small - large)[1:]
    expected = (ratio.exp() - 1 - ratio) / 2 / math.log(2)
    torch.testing.assert_close(vlb_term(torch.ones_like(z), x0, x0, z, t, schedule)[1:], expected)
    # the first level: bits of the picture's values under a Gaussian around the estimate, variance beta
    estimate = x0 + 0.01
    log_variance = torch.nn.functional.logsigmoid(-schedule.log_snr(t))[0]
    first = -binned_log_likelihood(x0[0], estimate[0], log_variance).mean() / math.log(2)
    found = vlb_term(torch.ones_like(z), estimate, x0, z, t, schedule)[0]
    torch.testing.assert_close(found, first)


def test_the_first_level_ends_where_the_next_begins() -> None:
    """Times below 0.0015 have timesteps below 1 and no level before them: with v = -1 and the picture itself as the
    estimate every other term is 0, and theirs is not.
    """
    schedule = CosineSchedule()
    t = torch.tensor([0.0, 0.0005, 0.0014, 0.00150001, 0.002, 1.0], dtype=torch.float64)
    x0 = (randn(6, 3, 4, 4).clamp(-1, 1) / BIN).round() * BIN
    z = q_sample(x0, randn(6, 3, 4, 4, seed=1), schedule.log_snr(t))
    terms = vlb_term(torch.full_like(z, -1.0), x0, x0, z, t, schedule)
    assert ((terms > 1e-6) == (t < 0.0015)).all()
    assert terms.isfinite().all()


@pytest.mark.parametrize("narrow", range(4), ids=["v", "x0_estimate", "x0", "z"])
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_narrow_numbers_are_counted_as_wide_ones(narrow: int, wide: torch.dtype) -> None:
    """Any of the four in bfloat16 is that value, in the precision of ``v`` and never less than float32's."""
    schedule, t = CosineSchedule(), level_time(torch.tensor([0.0001, 0.3, 0.999], dtype=torch.float64))
    given = [0.5 * randn(3, 3, 4, 4, seed=seed).to(wide) for seed in range(4)]
    given[narrow] = given[narrow].bfloat16()
    term = vlb_term(*given, t, schedule)
    assert term.dtype == (torch.float32 if narrow == 0 else wide)
    exact = vlb_term(*(value.double() for value in given), t, schedule)
    torch.testing.assert_close(term.double(), exact, rtol=1e-3, atol=1e-3)


def test_the_bound_trains_the_variance_alone() -> None:
    schedule, t = DiscreteCosineSchedule(), level_time(torch.tensor([0.0001, 0.3, 0.999], dtype=torch.float64))
    x0, eps, output, v = randn(4, 3, 3, 4, 4)
    log_snr = schedule.log_snr(t)
    z = q_sample(x0, eps, log_snr)
    output.requires_grad_()
    v.requires_grad_()
    estimate = x0_from("epsilon", output, z, *alpha_sigma(log_snr))
    term = vlb_term(v, estimate, x0, z, t, schedule)
    assert torch.isfinite(term).all()
    term.sum().backward()
    assert output.grad is None
    assert torch.isfinite(v.grad).all()
    assert (v.grad.flatten(1).norm(dim=1) > 0).all()
