"""What a dropped caption is, and how texts of different length become one batch."""

from __future__ import annotations

import pytest
import torch

from imagen.conditions.text import cat_text, drop_text, null_text, pad_text


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
