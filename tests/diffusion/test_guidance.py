"""Classifier-free guidance: equation 2 in every form, and what a dropped caption is."""

from __future__ import annotations

import pytest
import torch

from imagen.diffusion.guidance import cat_text, drop_text, guide, null_text, pad_text
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


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_a_dropped_text_is_one_zero_token_whatever_its_length(dtype: torch.dtype) -> None:
    text = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).to(dtype)
    before = text.clone(), mask.clone()
    out, out_mask = drop_text(text, mask, torch.tensor([True, True, False]))
    one = torch.tensor([1, 0, 0, 0, 0]).to(dtype)
    for row in (0, 1):
        assert torch.equal(out[row], torch.zeros(5, 2))
        assert torch.equal(out_mask[row], one)
    assert torch.equal(out[2], text[2])
    assert torch.equal(out_mask[2], mask[2])
    assert out_mask.dtype == dtype
    assert torch.equal(text, before[0])
    assert torch.equal(mask, before[1])


def test_training_and_sampling_drop_the_same_text() -> None:
    """What attention may see of a dropped row is what null_text holds."""
    text, mask = drop_text(torch.ones(1, 4, 3), torch.ones(1, 4, dtype=torch.bool), torch.tensor([True]))
    null, null_mask = null_text(1, 3)
    assert torch.equal(text[mask], null[null_mask])
    assert null.shape == (1, 1, 3)
    assert null_mask.dtype == torch.bool


def test_a_text_with_nan_is_dropped_too() -> None:
    text, _ = drop_text(torch.full((1, 2, 2), float("nan")), torch.ones(1, 2), torch.tensor([True]))
    assert torch.equal(text, torch.zeros(1, 2, 2))


def test_halves_of_different_length_are_stacked() -> None:
    text, mask = torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.int64)
    both, both_mask = cat_text(null_text(2, 3), (text, mask))
    assert both.shape == (4, 4, 3)
    assert torch.equal(both[2:], text)
    assert both_mask[:2].tolist() == [[True, False, False, False]] * 2
    assert both_mask[2:].all()
    again, again_mask = cat_text((text, mask), null_text(2, 3, dtype=torch.float64))
    assert again.dtype == torch.float32
    assert again_mask.dtype == torch.int64


def test_errors_name_the_shapes() -> None:
    with pytest.raises(ValueError, match="expected \\(B, L, D\\)"):
        drop_text(torch.zeros(2, 3, 4), torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="no token"):
        drop_text(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2))
    with pytest.raises(ValueError, match="more than length=2"):
        pad_text(torch.zeros(1, 3, 4), torch.ones(1, 3), 2)
