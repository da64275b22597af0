"""eps, v and x0: every pair is a round trip, at both ends of a schedule too."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from imagen.diffusion.parameterization import (
    PREDICTION_TYPES,
    per_image,
    q_sample,
    training_target,
    x0_from,
)
from imagen.diffusion.schedules import alpha_sigma

LOG_SNR = torch.tensor([-15.0, -3.0, 0.0, 4.0, 15.0], dtype=torch.float64)


def example() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64)
    alpha, sigma = alpha_sigma(LOG_SNR)
    return x0, eps, q_sample(x0, eps, LOG_SNR), alpha, sigma


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_target_stands_for_the_x0_it_was_made_of(prediction_type: str) -> None:
    x0, eps, z, alpha, sigma = example()
    target = training_target(prediction_type, x0, eps, alpha, sigma)
    # Dividing by alpha = 5e-4 multiplies the rounding of z by 2e3.
    torch.testing.assert_close(x0_from(prediction_type, target, z, alpha, sigma), x0, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("first", "second"), list(product(PREDICTION_TYPES, repeat=2)))
def test_any_output_survives_the_way_through_another_form(first: str, second: str) -> None:
    _, _, z, alpha, sigma = example()
    output = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    middle = slice(1, 4)  # where no form is ill-conditioned
    z, output, alpha, sigma = z[middle], output[middle], alpha[middle], sigma[middle]

    def other_form(prediction_type: str, output: Tensor, wanted: str) -> Tensor:
        x0 = x0_from(prediction_type, output, z, alpha, sigma)
        return training_target(wanted, x0, (z - per_image(alpha, z) * x0) / per_image(sigma, z), alpha, sigma)

    back = other_form(second, other_form(first, output, second), first)
    torch.testing.assert_close(back, output, rtol=0, atol=1e-11)


def test_v_is_the_derivative_of_z_along_the_circle() -> None:
    """z = cos(phi) x0 + sin(phi) eps has dz/dphi = v (Salimans & Ho 2022, appendix D)."""
    x0, eps, *_ = example()
    phi, h = torch.tensor(0.7, dtype=torch.float64), 1e-5
    step = ((phi + h).cos() - (phi - h).cos()) * x0 + ((phi + h).sin() - (phi - h).sin()) * eps
    torch.testing.assert_close(
        training_target("v_prediction", x0, eps, phi.cos(), phi.sin()), step / (2 * h), rtol=0, atol=1e-9
    )


def test_one_value_per_image_does_not_need_square_pictures() -> None:
    x0 = torch.zeros(2, 3, 2, 2)
    z = q_sample(x0, torch.ones_like(x0), torch.tensor([20.0, -20.0]))
    assert (z[0].abs() < 1e-4).all()
    assert (z[1] > 0.99).all()
    assert z.dtype == torch.float32


def test_unknown_prediction_types_are_refused() -> None:
    x0, eps, z, alpha, sigma = example()
    for call in (
        lambda: training_target("eps", x0, eps, alpha, sigma),
        lambda: x0_from("eps", eps, z, alpha, sigma),
    ):
        with pytest.raises(ValueError, match="prediction_type is 'eps'; expected one of epsilon, v_prediction, sample"):
            call()
