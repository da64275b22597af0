"""Scores of pairs: closed forms, another implementation, and masks outside which nothing counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imagen.scores.pairs import mae, pair_scores, psnr, ssim
from imagen.scores.sets import Array

SCORES: list[Callable[..., float]] = [psnr, ssim, lambda x, y, data_range, mask=None: mae(x, y, mask)]


def pair(
    channels: int = 3, height: int = 20, width: int = 26, seed: int = 0, noise: float = 0.1
) -> tuple[Array, Array]:
    """Smooth pictures about [0, 1], and the same with noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [0.5 + 0.5 * np.sin(rows / (i + 2) + columns / (3 + i)) for i in range(channels)]
    return np.stack(waves) + noise * rng.normal(size=(channels, height, width)), np.stack(waves)


def left_half(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.broadcast_to(np.arange(shape[-1]) < shape[-1] // 2, shape)


@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("masked", [False, True])
def test_torchmetrics_finds_the_same(channels: int, data_range: float, masked: bool) -> None:
    """Without a mask, and with one that leaves nothing out."""
    from torch import from_numpy
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
    from torchmetrics.functional.regression import mean_absolute_error

    x, y = pair(channels)
    x, y = x * data_range, y * data_range
    mask = np.ones(x.shape, dtype=bool) if masked else None
    a, b = from_numpy(x)[None], from_numpy(y)[None]
    assert psnr(x, y, data_range, mask) == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range)), rel=1e-6)
    theirs = structural_similarity_index_measure(a, b, data_range=data_range)
    assert ssim(x, y, data_range, mask) == pytest.approx(float(theirs), abs=1e-7)  # their window is in float32
    assert mae(x, y, mask) == pytest.approx(float(mean_absolute_error(a, b)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_identical_pictures(masked: bool, offset: float) -> None:
    x = pair()[0] + offset
    mask = left_half(x.shape[1:]) if masked else None
    assert psnr(x, x, 1.0, mask) == math.inf
    assert ssim(x, x, 1.0, mask) == pytest.approx(1, abs=1e-7)
    assert mae(x, x, mask) == 0


@pytest.mark.parametrize("masked", [False, True])
def test_a_constant_offset(masked: bool) -> None:
    """Of constant pictures the structure is equal, and SSIM is what is left of its first factor."""
    x, y = np.full((2, 9, 12), 0.5), np.full((2, 9, 12), 0.75)
    mask = left_half((9, 12)) if masked else None
    assert psnr(x, y, 2.0, mask) == pytest.approx(20 * math.log10(2.0 / 0.25))
    assert mae(x, y, mask) == pytest.approx(0.25)
    c1 = (0.01 * 2.0) ** 2
    assert ssim(x, y, 2.0, mask) == pytest.approx((2 * 0.5 * 0.75 + c1) / (0.5**2 + 0.75**2 + c1), abs=1e-12)


def test_units_do_not_matter_where_the_range_has_them() -> None:
    x, y = pair()
    for score in (psnr, ssim):
        assert score(1000 * x, 1000 * y, 1000) == pytest.approx(score(x, y, 1.0), rel=1e-12)
    assert mae(1000 * x, 1000 * y) == pytest.approx(1000 * mae(x, y))


def test_channels_may_have_units_of_their_own() -> None:
    x, y = pair(2)
    scale = np.array([1.0, 50.0])[:, None, None]
    for score in (psnr, ssim):
        assert score(scale * x, scale * y, [1.0, 50.0]) == pytest.approx(score(x, y, 1.0), rel=1e-12)
        assert score(scale * x, scale * y, 50.0) != pytest.approx(score(x, y, 1.0), rel=1e-3)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("outside", [0.0, 1e6, np.nan, -np.inf])
def test_nothing_outside_a_mask_counts(score: Callable[..., float], outside: float) -> None:
    x, y = pair()
    rng = np.random.default_rng(1)
    mask = rng.random(x.shape[1:]) < 0.6
    expected = score(x, y, 1.0, mask)
    assert expected == score(x, y, 1.0, np.broadcast_to(mask, x.shape)), "a mask of all channels, and of each"
    assert score(np.where(mask, x, outside), y, 1.0, mask) == expected
    assert score(x, np.where(mask, y, outside), 1.0, mask) == expected
    spoiled = x.copy()
    spoiled[:, mask.nonzero()[0][0], mask.nonzero()[1][0]] += 3
    assert score(spoiled, y, 1.0, mask) != expected


def test_a_mask_is_the_picture_that_was_cut_out_but_for_mirrored_edges() -> None:
    x, y = pair(width=40)
    mask = left_half(x.shape[1:])
    cut_x, cut_y = x[..., :20], y[..., :20]
    assert psnr(x, y, 1.0, mask) == pytest.approx(psnr(cut_x, cut_y, 1.0), rel=1e-12)
    assert mae(x, y, mask) == pytest.approx(mae(cut_x, cut_y), rel=1e-12)
    assert ssim(x, y, 1.0, mask) == pytest.approx(ssim(cut_x, cut_y, 1.0), abs=0.02)


def test_ssim_with_a_mask_is_its_definition_window_by_window() -> None:
    x, y = pair(1, 13, 15)
    mask = np.random.default_rng(3).random((13, 15)) < 0.7
    distance = np.arange(-5, 6)
    bell = np.exp(-(distance**2) / (2 * 1.5**2))
    bell = np.outer(bell, bell)
    padded = [np.pad(one, 5, mode="reflect") for one in (x[0], y[0], mask)]
    found = []
    for row, column in zip(*mask.nonzero(), strict=True):
        a, b, inside = (one[row : row + 11, column : column + 11] for one in padded)
        weights = bell * inside / (bell * inside).sum()
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        cov = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 0.01**2, 0.03**2
        light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        found.append(light * (2 * cov + c2) / (var_a + var_b + c2))
    assert ssim(x, y, 1.0, mask) == pytest.approx(np.mean(found), rel=1e-10)


def test_a_mask_may_differ_between_channels() -> None:
    x, y = pair(2)
    mask = np.stack([np.ones(x.shape[1:], dtype=bool), np.zeros(x.shape[1:], dtype=bool)])
    for score in SCORES:
        assert score(x, y, 1.0, mask) == pytest.approx(score(x[:1], y[:1], 1.0), rel=1e-12)


def test_whole_numbers_are_no_bytes() -> None:
    """uint8 would wrap around below 0."""
    x, y = np.full((1, 8, 8), 3, dtype=np.uint8), np.full((1, 8, 8), 5, dtype=np.uint8)
    assert mae(x, y) == 2
    assert psnr(x, y, 255) == pytest.approx(20 * math.log10(255 / 2))
    assert mae(np.ones((1, 1, 1)), np.zeros((1, 1, 1))) == 1, "of one pixel, too"
    assert ssim(np.ones((1, 1, 1)), np.ones((1, 1, 1)), 1.0) == pytest.approx(1)


def test_pairs_are_scored_one_by_one() -> None:
    pairs = [pair(1 + i, 8 + i, 10, seed=i) for i in range(3)]
    masks = [left_half(x.shape[1:]) for x, _ in pairs]
    for given in (None, masks):
        found = pair_scores((x for x, _ in pairs), (y for _, y in pairs), 1.0, given)
        one_by_one = given or [None] * 3
        for name, score in zip(("psnr", "ssim", "mae"), SCORES, strict=True):
            expected = [score(x, y, 1.0, mask) for (x, y), mask in zip(pairs, one_by_one, strict=True)]
            assert found[name].tolist() == expected
    assert set(found) == {"psnr", "ssim", "mae"}


X = np.zeros((2, 4, 4))
HOLE = np.where(np.arange(4) == 2, np.nan, X)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"y": np.zeros((2, 4, 5))}, r"pictures are float64 \(2, 4, 4\) and float64 \(2, 4, 5\); expected numbers"),
        ({"x": X[0], "y": X[0]}, r"pictures are float64 \(4, 4\) and"),
        ({"x": X[:0], "y": X[:0]}, r"pictures are float64 \(0, 4, 4\) and"),
        ({"x": X > 0}, r"pictures are bool \(2, 4, 4\) and float64"),
        ({"x": HOLE}, "pictures hold values that are not finite; leave their pixels out by a mask"),
        ({"y": HOLE}, "pictures hold values that are not finite"),
        ({"mask": X > 0}, r"the mask is bool \(2, 4, 4\), 0 pixels inside; expected"),
        ({"mask": X + 1}, r"the mask is float64 \(2, 4, 4\), 32 pixels inside; expected bool \(H, W\)"),
        (
            {"mask": X[:1] == 0},
            r"the mask is bool \(1, 4, 4\), 16 pixels inside; .* of pictures \(2, 4, 4\), not empty",
        ),
    ],
)
def test_what_is_no_pair(change: dict[str, Any], told: str) -> None:
    given = {"x": X, "y": X, "mask": None, **change}
    for score in SCORES:
        with pytest.raises(ValueError, match=f"^{told}"):
            score(given["x"], given["y"], 1.0, given["mask"])
    with pytest.raises(ValueError, match=f"^pair 1: {told}"):
        pair_scores([X, given["x"]], [X, given["y"]], 1.0, [None, given["mask"]])


@pytest.mark.parametrize("data_range", [0, -1.0, np.nan, [1.0, 0.0], [1.0, 1.0, 1.0], np.inf])
def test_what_is_no_range(data_range: Any) -> None:
    for score in (psnr, ssim):
        with pytest.raises(ValueError, match="^data_range is .*; expected a number above 0, or one for each of 2 chan"):
            score(X, X, data_range)


def test_other_numbers_of_pictures() -> None:
    with pytest.raises(ValueError, match="^2 pictures, 1 beside them, 2 masks; expected as many of each"):
        pair_scores([X, X], [X], 1.0)
    with pytest.raises(ValueError, match="^1 pictures, 1 beside them, 0 masks"):
        pair_scores([X], [X], 1.0, [])
    with pytest.raises(ValueError, match="^0 pictures"):
        pair_scores([], [], 1.0)
