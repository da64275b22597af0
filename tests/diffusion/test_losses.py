"""One weighting is one loss, in whatever form the network answers, and equals the literature's formulas."""

from __future__ import annotations

import math

import pytest
import torch

from imagen.diffusion.losses import LossWeighting, diffusion_loss, output_weight
from imagen.diffusion.parameterization import PREDICTION_TYPES, per_image, q_sample, training_target
from imagen.diffusion.schedules import alpha_sigma

LOG_SNR = torch.linspace(-20, 20, 41, dtype=torch.float64)
WEIGHTINGS = [
    LossWeighting(),
    LossWeighting("min_snr"),
    LossWeighting("min_snr", gamma=1.0),
    LossWeighting("clamped_snr", low=0.05),
    LossWeighting("sigmoid"),
    LossWeighting("sigmoid", bias=-3.0),
]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_eps_v_and_x0_forms_are_one_loss(weighting: LossWeighting) -> None:
    generator = torch.Generator().manual_seed(0)
    log_snr = torch.linspace(-8, 8, 17, dtype=torch.float64)
    x0, eps, guess = torch.randn(3, 17, 3, 4, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    z = q_sample(x0, eps, log_snr)
    noise_guess = (z - per_image(alpha, z) * guess) / per_image(sigma, z)
    losses = {
        kind: diffusion_loss(kind, training_target(kind, guess, noise_guess, alpha, sigma), x0, eps, log_snr, weighting)
        for kind in PREDICTION_TYPES
    }
    for kind in PREDICTION_TYPES:
        torch.testing.assert_close(losses[kind], losses["epsilon"], rtol=1e-9, atol=0)
    # And that loss is the stated weight times the mean squared error in eps.
    plain = (noise_guess - eps).square().mean(dim=(1, 2, 3))
    stated = output_weight("epsilon", log_snr, weighting)
    torch.testing.assert_close(losses["epsilon"], stated * plain, rtol=1e-9, atol=0)


def test_the_papers_loss_is_the_plain_squared_error_in_eps() -> None:
    eps, output = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    loss = diffusion_loss("epsilon", output, torch.zeros_like(eps), eps, torch.linspace(-15, 15, 4))
    torch.testing.assert_close(
        loss, torch.stack([torch.nn.functional.mse_loss(o, e) for o, e in zip(output, eps, strict=True)])
    )


def test_min_snr_has_the_forms_of_the_literature() -> None:
    """Hang et al. 2023: min(SNR, 5) on x0, min(SNR, 5) / SNR on eps, min(SNR, 5) / (SNR + 1) on v."""
    snr, weighting = LOG_SNR.exp(), LossWeighting("min_snr")
    clipped = snr.clamp(max=5)
    for kind, expected in (("sample", clipped), ("epsilon", clipped / snr), ("v_prediction", clipped / (snr + 1))):
        torch.testing.assert_close(output_weight(kind, LOG_SNR, weighting), expected, rtol=1e-12, atol=0)


def test_clamped_snr_is_a_clamped_weight_on_x0() -> None:
    weighting = LossWeighting("clamped_snr", gamma=5.0, low=0.05)
    on_x0 = output_weight("sample", LOG_SNR, weighting)
    torch.testing.assert_close(on_x0, LOG_SNR.exp().clamp(0.05, 5.0), rtol=1e-12, atol=0)
    on_eps = output_weight("epsilon", LOG_SNR, weighting)
    torch.testing.assert_close(on_eps, on_x0 / LOG_SNR.exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_sigmoid_has_the_forms_of_the_literature(bias: float) -> None:
    """1 / (1 + SNR e^-b) on eps (Kingma & Gao); e^b sigmoid(log SNR - b) on x0 (Hoogeboom et al.): a smooth min."""
    weighting, snr = LossWeighting("sigmoid", bias=bias), LOG_SNR.exp()
    torch.testing.assert_close(output_weight("epsilon", LOG_SNR, weighting), 1 / (1 + snr * math.exp(-bias)))
    on_x0 = output_weight("sample", LOG_SNR, weighting)
    torch.testing.assert_close(on_x0, math.exp(bias) * torch.sigmoid(LOG_SNR - bias))
    assert (on_x0 < snr.clamp(max=math.exp(bias))).all()
    ends = torch.tensor([bias - 12, bias + 12], dtype=torch.float64)
    torch.testing.assert_close(
        output_weight("sample", ends, weighting), ends.exp().clamp(max=math.exp(bias)), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_float32_losses_are_finite_at_the_clamped_ends(kind: str, weighting: LossWeighting) -> None:
    x0 = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    loss = diffusion_loss(kind, x0 + 1, x0, x0, torch.tensor([-20.0, 20.0]), weighting)
    assert loss.dtype == torch.float32
    assert loss.shape == (2,)
    assert loss.isfinite().all()


def test_half_precision_outputs_are_compared_in_float32() -> None:
    x0 = torch.full((1, 1, 2, 2), 0.123456)
    loss = diffusion_loss("sample", torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), x0, x0, torch.zeros(1))
    assert loss.item() == pytest.approx(0.123456**2, rel=1e-5)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "snr"}, "loss weighting is 'snr'"),
        ({"kind": "uniform", "gamma": 3.0}, "gamma=3.0 has no effect"),
        ({"kind": "min_snr", "low": 0.1}, "low=0.1 has no effect"),
        ({"kind": "uniform", "low": 0.1}, "low=0.1 has no effect on uniform"),
        ({"kind": "sigmoid", "low": 0.1}, "low=0.1 has no effect on sigmoid"),
        ({"kind": "uniform", "bias": 0.1}, "bias=0.1 has no effect on uniform"),
        ({"kind": "clamped_snr", "bias": -0.1}, "bias=-0.1 has no effect on clamped_snr"),
        ({"kind": "min_snr", "gamma": -1.0}, "gamma=-1.0"),
        ({"kind": "min_snr", "gamma": 0.0}, "low=0.0, gamma=0.0: expected"),
        ({"kind": "clamped_snr", "gamma": math.nan}, "gamma=nan"),
        ({"kind": "clamped_snr", "low": -0.1}, "low=-0.1, gamma=5.0: expected"),
        ({"kind": "min_snr", "gamma": math.inf}, "gamma=inf"),
        ({"kind": "clamped_snr", "low": 6.0}, "low=6.0"),
        ({"kind": "sigmoid", "gamma": 3.0}, "gamma=3.0 has no effect on sigmoid"),
        ({"kind": "min_snr", "bias": 1.0}, "bias=1.0 has no effect on min_snr"),
        ({"kind": "sigmoid", "bias": math.nan}, "bias=nan"),
        ({"kind": "sigmoid", "bias": -math.inf}, "bias=-inf"),
    ],
)
def test_bad_weightings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossWeighting(**options)  # type: ignore[arg-type]


def test_bounds_may_meet_and_lie_anywhere_above_nothing() -> None:
    """low = gamma is one weight on x0 at every level; a bound however small is one."""
    assert output_weight("sample", LOG_SNR, LossWeighting("clamped_snr", 0.25, 0.25)).tolist() == [
        pytest.approx(0.25)
    ] * len(LOG_SNR)
    tiny = output_weight("sample", LOG_SNR, LossWeighting("min_snr", gamma=1e-3))
    torch.testing.assert_close(tiny, LOG_SNR.exp().clamp(max=1e-3))


def test_shapes_are_checked() -> None:
    x0 = torch.zeros(2, 3, 2, 2)
    with pytest.raises(ValueError, match="output has shape"):
        diffusion_loss("epsilon", torch.zeros(2, 6, 2, 2), x0, x0, torch.zeros(2))
    with pytest.raises(ValueError, match="one value per image"):
        diffusion_loss("epsilon", x0, x0, x0, torch.zeros(1))
    with pytest.raises(ValueError, match=r"log_snr has shape \(\); expected one value per image, \(2,\)"):
        diffusion_loss("epsilon", x0, x0, x0, torch.tensor(0.0))
