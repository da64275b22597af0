"""Holding an estimate to its low-res picture: what it keeps, what it leaves alone, and an implementation in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagen.diffusion.augmentation import resize
from imagen.diffusion.consistency import match_lowres
from imagen.diffusion.denoiser import make_x0_fn
from imagen.diffusion.thresholding import Thresholding


def drawn(*shape: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-3, 3) * scale


def block_means(x: Tensor, side: int) -> np.ndarray:
    batch, channels, height, width = x.shape
    return x.numpy().reshape(batch, channels, height // side, side, width // side, side).mean((3, 5))


@pytest.mark.parametrize(("cell", "side"), [(1, 2), (2, 4), (4, 8), (8, 16)])
def test_equals_block_means_enlarged_by_pillow(cell: int, side: int) -> None:
    lowres, x0 = drawn(2, 3, 8, 16, seed=1, scale=0.1), drawn(2, 3, 16, 32, seed=2, scale=0.1)
    missing = block_means(lowres, cell) - block_means(x0, side)
    for picture, changed, each in zip(x0, match_lowres(lowres, cell)(x0), missing, strict=True):
        for plane, result, difference in zip(picture, changed, each, strict=True):
            image = Image.fromarray(difference.astype(np.float32))
            expected = plane.numpy() + np.asarray(image.resize((32, 16), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("cell", [1, 4, 100])
def test_another_tone_all_over_is_taken_back(cell: int) -> None:
    truth = drawn(2, 3, 32, 32, scale=0.2)
    lowres = resize(truth, 16, "area")
    shift = torch.tensor([0.1, -0.05, 0.02], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(match_lowres(lowres, cell)(truth + shift), truth, rtol=0, atol=1e-12)


def test_detail_whose_mean_is_the_inputs_is_left_alone() -> None:
    lowres = drawn(1, 3, 8, 8, scale=0.1)
    checks = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    x0 = resize(lowres, 32, "nearest") + 0.3 * checks
    torch.testing.assert_close(match_lowres(lowres, 1)(x0), x0, rtol=0, atol=1e-12)
    # a stripe of six pixels is no multiple of a low-res pixel's four: small cells would wash it out, larger ones do not
    stripes = (torch.arange(96) // 6 % 2 * 2.0 - 1).expand(1, 3, 96, 96).to(torch.float64) * 0.5
    flat = torch.zeros(1, 3, 24, 24, dtype=torch.float64)
    lost = [float((match_lowres(flat, cell)(stripes) - stripes).square().mean() / 0.25) for cell in (1, 3)]
    assert lost[0] > 0.3
    assert lost[1] < 1e-20


def test_every_picture_by_itself_and_within_the_range() -> None:
    lowres, x0 = drawn(3, 3, 8, 8, seed=3, scale=0.9).clamp(-1, 1), drawn(3, 3, 16, 16, seed=4, scale=0.9).clamp(-1, 1)
    both = match_lowres(lowres, 2)(x0)
    assert both.abs().max() <= 1
    assert (both.abs() == 1).any()
    for index in range(3):
        alone = match_lowres(lowres[index : index + 1], 2)(x0[index : index + 1])
        torch.testing.assert_close(alone[0], both[index], rtol=0, atol=0)
    assert match_lowres(lowres.float(), 2)(x0.float()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 8, 8)])
def test_what_does_not_fit_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cell is 0; expected at least 1"):
        match_lowres(torch.zeros(shape), 0)
    with pytest.raises(ValueError, match=r"x0 is \(1, 3, 16, 16\) and lowres"):
        match_lowres(torch.zeros(shape), 2)(torch.zeros(1, 3, 16, 16))


def test_it_comes_after_guidance_and_thresholding() -> None:
    answers = {"unconditional": 0.2, "conditional": 0.6}  # guided by 3, 1.4, limited to 1
    seen = []

    def correct(x0: Tensor) -> Tensor:
        seen.append(x0)
        return x0 - 0.25

    x0_fn = make_x0_fn(
        lambda z, timestep, branches: [torch.full_like(z, answers[branch]) for branch in branches],
        prediction_type="sample",
        log_snrs=torch.linspace(5, -5, 1000),
        guidance_scale=3.0,
        thresholding=Thresholding("static"),
        correct=correct,
    )
    x0 = x0_fn(torch.zeros(1, 3, 4, 4), torch.tensor([500.0])).x0
    assert (seen[0] == 1).all()
    assert (x0 == 0.75).all()


def areas(x: Tensor, cells: tuple[int, int]) -> Tensor:
    """Means over equal areas, whole pixels or not, written out: each pixel counts by its share of the area."""
    shares = []
    for side, count in zip(x.shape[-2:], cells, strict=True):
        edges = np.arange(side)
        rows = [np.clip(np.minimum(edges + 1, e) - np.maximum(edges, s), 0, 1) for s, e in _intervals(side, count)]
        shares.append(torch.from_numpy(np.stack(rows) * count / side))
    return shares[0] @ x @ shares[1].T


def _intervals(side: int, count: int) -> list[tuple[float, float]]:
    return [(side * n / count, side * (n + 1) / count) for n in range(count)]


@pytest.mark.parametrize(
    ("shape", "cell", "cells"), [((64, 64), 5, (13, 13)), ((64, 24), 5, (13, 5)), ((7, 9), 2, (4, 4))]
)
def test_cells_that_do_not_divide_are_rounded_to_the_nearest_number(
    shape: tuple[int, int], cell: int, cells: tuple[int, int]
) -> None:
    large = (2 * shape[0], 2 * shape[1])
    lowres, x0 = drawn(1, 3, *shape, seed=5, scale=0.1), drawn(1, 3, *large, seed=6, scale=0.1)
    missing = areas(lowres, cells) - areas(x0, cells)
    added = resize(missing, large, "bilinear")
    torch.testing.assert_close(match_lowres(lowres, cell)(x0), x0 + added, rtol=0, atol=1e-12)
