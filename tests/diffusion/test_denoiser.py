"""The contract: guidance, thresholding and the learned variance are settled inside x0_fn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen.diffusion.denoiser import make_x0_fn
from imagen.diffusion.parameterization import PREDICTION_TYPES, training_target, x0_from
from imagen.diffusion.schedules import CosineSchedule, alpha_sigma, log_snr_from_betas, trained_betas
from imagen.diffusion.thresholding import Thresholding, threshold

LOG_SNRS = log_snr_from_betas(trained_betas(CosineSchedule()))
NONE = Thresholding("none")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_it_recovers_x0_from_every_form(prediction_type: str) -> None:
    x0, eps = noise(2, 3, 4, 4), noise(1, 2, 3, 4, 4)[0]
    timestep = torch.tensor([100.0, 750.0])
    alpha, sigma = (c[:, None, None, None] for c in alpha_sigma(LOG_SNRS[timestep.long()]))
    target = training_target(prediction_type, x0, eps, alpha, sigma)
    x0_fn = make_x0_fn(lambda z, t: target, prediction_type=prediction_type, log_snrs=LOG_SNRS, thresholding=NONE)
    x0_out, variance = x0_fn(alpha * x0 + sigma * eps, timestep)
    torch.testing.assert_close(x0_out, x0, rtol=0, atol=1e-12)
    assert variance is None


def test_a_scale_of_one_computes_no_unconditional_half() -> None:
    rows = []

    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        rows.append((len(z), len(timestep)))
        return z

    for scale in (1.0, 3.0):
        make_x0_fn(predict, prediction_type="sample", log_snrs=LOG_SNRS, guidance_scale=scale)(
            noise(2, 3, 4, 4), torch.full((2,), 9.0)
        )
    assert rows == [(2, 2), (4, 4)]


def test_the_second_half_is_the_conditional_one() -> None:
    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        assert torch.equal(z[:2], z[2:])
        assert torch.equal(timestep[:2], timestep[2:])
        return torch.cat([torch.full_like(z[:2], 1.0), torch.full_like(z[:2], 3.0)])

    x0_fn = make_x0_fn(predict, prediction_type="sample", log_snrs=LOG_SNRS, guidance_scale=5.0, thresholding=NONE)
    x0, _ = x0_fn(noise(2, 3, 4, 4), torch.full((2,), 9.0))
    assert torch.equal(x0, torch.full_like(x0, 5 * 3 - 4 * 1))


def test_thresholding_acts_on_the_guided_x0() -> None:
    """Not on the two halves, and with the paper's dynamic kind unless told otherwise."""
    z, timestep = noise(2, 3, 8, 8), torch.tensor([400.0, 600.0])
    halves = noise(1, 4, 3, 8, 8)[0]
    alpha, sigma = alpha_sigma(LOG_SNRS[timestep.long()])
    guided = x0_from("epsilon", 4 * halves[2:] - 3 * halves[:2], z, alpha, sigma)
    for setting in (None, Thresholding("static"), Thresholding("dynamic", 0.9, 1.5)):
        x0_fn = make_x0_fn(
            lambda z, t: halves, prediction_type="epsilon", log_snrs=LOG_SNRS, guidance_scale=4.0, thresholding=setting
        )
        used = setting or Thresholding("dynamic", 0.995)
        expected = threshold(guided, used.kind, used.p, used.cap)
        torch.testing.assert_close(x0_fn(z, timestep).x0, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_learned_variance_is_the_conditional_halfs_and_unguided(scale: float) -> None:
    z = noise(2, 3, 4, 4)
    output = noise(1, 4, 6, 4, 4)[0]

    def predict(z: Tensor, timestep: Tensor) -> Tensor:
        return output[-len(z) :]

    x0_fn = make_x0_fn(
        predict,
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance_scale=scale,
        thresholding=NONE,
        learned_variance=True,
    )
    x0, variance = x0_fn(z, torch.full((2,), 9.0))
    assert variance is not None
    assert torch.equal(variance, output[2:, 3:])
    torch.testing.assert_close(x0, scale * output[2:, :3] + (1 - scale) * output[:2, :3], rtol=0, atol=1e-12)


def test_the_boundary_is_in_the_dtype_of_z() -> None:
    x0_fn = make_x0_fn(lambda z, t: z.bfloat16(), prediction_type="v_prediction", log_snrs=LOG_SNRS)
    assert x0_fn(noise(1, 3, 4, 4).float(), torch.tensor([5.0])).x0.dtype == torch.float32


def test_errors() -> None:
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            make_x0_fn(lambda z, t: z, prediction_type="sample", log_snrs=LOG_SNRS, guidance_scale=scale)
    with pytest.raises(ValueError, match="'x0' is unknown"):
        make_x0_fn(lambda z, t: z, prediction_type="x0", log_snrs=LOG_SNRS)
    x0_fn = make_x0_fn(lambda z, t: torch.cat([z, z], 1), prediction_type="sample", log_snrs=LOG_SNRS)
    with pytest.raises(ValueError, match="learned_variance=True"):
        x0_fn(noise(1, 3, 4, 4), torch.tensor([5.0]))
