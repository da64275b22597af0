"""Classifier-free guidance: equation 2 in every form."""

from __future__ import annotations

import pytest
import torch

from imagen.diffusion.guidance import guide
from imagen.diffusion.parameterization import PREDICTION_TYPES, q_sample, x0_from
from imagen.diffusion.schedules import alpha_sigma


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_guiding_the_output_is_guiding_x0(prediction_type: str) -> None:
    x0, eps, cond, uncond = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_snr = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    z = q_sample(x0, eps, log_snr)
    first = x0_from(prediction_type, guide(cond, uncond, 7.5), z, alpha, sigma)
    last = guide(*(x0_from(prediction_type, half, z, alpha, sigma) for half in (cond, uncond)), 7.5)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-12)


def test_guidance_is_equation_two() -> None:
    cond, uncond = torch.tensor([3.0]), torch.tensor([1.0])
    assert guide(cond, uncond, 5.0).item() == 5 * 3 - 4 * 1
    noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(noise[0], noise[1], 1.0), noise[0])
    assert torch.equal(guide(noise[0], noise[1], 0.0), noise[1])


def test_a_scale_per_image_acts_on_whole_images() -> None:
    """As wide as the batch is large, so that values along the wrong axis would pass unseen."""
    cond, uncond = torch.randn(2, 3, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    scales = [1.0, 2.5, 7.0]
    each = torch.stack([guide(c, u, s) for c, u, s in zip(cond, uncond, scales, strict=True)])
    assert torch.equal(guide(cond, uncond, torch.tensor(scales, dtype=torch.float64)), each)
    for same in (torch.tensor(2.5), torch.tensor([2.5]), torch.full((3, 1, 1, 1), 2.5)):
        assert torch.equal(guide(cond, uncond, same), guide(cond, uncond, 2.5))
    with pytest.raises(ValueError, match="scale has 2 values for 3 images"):
        guide(cond, uncond, torch.tensor([1.0, 2.0]))
