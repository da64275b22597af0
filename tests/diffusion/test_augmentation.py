"""Resampling against Pillow and integrals, and noise-conditioning augmentation in both spaces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imagen.diffusion.augmentation import aug_noise_shape, augment_lowres, resize
from imagen.diffusion.schedules import CosineSchedule, LinearSchedule, alpha_sigma


def picture(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


@pytest.mark.parametrize(("size", "new"), [((24, 24), (6, 6)), ((24, 15), (7, 4)), ((9, 16), (9, 5))])
def test_reducing_keeps_mean_and_range(size: tuple[int, int], new: tuple[int, int]) -> None:
    x = picture(2, 3, *size)
    small = resize(x, new)
    assert small.shape[-2:] == new
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)), rtol=0, atol=1e-12)
    assert small.max() <= x.max()
    assert small.min() >= x.min()


def test_reducing_is_the_average_over_the_area() -> None:
    """An odd factor: 5 -> 2 pixels, so the middle one belongs to both by halves."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double().expand(1, 1, 5, 5)
    expected = torch.tensor([(1 + 2 + 1.5) / 2.5, (1.5 + 4 + 5) / 2.5]).double()
    torch.testing.assert_close(resize(x, (5, 2))[0, 0, 0], expected, rtol=1e-6, atol=0)


def test_two_reductions_are_one() -> None:
    x = picture(1, 3, 36, 36)
    torch.testing.assert_close(resize(resize(x, 12), 4), resize(x, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(resize(resize(x, 18), 6), resize(x, 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", [8, 19, 48])
def test_filters_are_pillows(mode: str, size: int) -> None:
    x = picture(1, 1, 24, 24, dtype=torch.float32)
    expected = np.array(Image.fromarray(x[0, 0].numpy()).resize((size, size), Image.Resampling[mode.upper()]))
    torch.testing.assert_close(resize(x, size, mode)[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-5)  # type: ignore[arg-type]


def test_auto_enlarges_by_bicubic_and_treats_axes_apart() -> None:
    x = picture(1, 3, 8, 8)
    assert torch.equal(resize(x, 32), resize(x, 32, "bicubic"))
    mixed = resize(x, (4, 16))
    torch.testing.assert_close(mixed, resize(resize(x, (4, 8)), (4, 16), "bicubic"), rtol=0, atol=1e-12)
    assert resize(x, 8) is x
    assert resize(mixed, (4, 16)) is mixed
    assert resize(mixed, (16, 4)).shape[-2:] == (16, 4)


def test_other_modes() -> None:
    x = picture(1, 1, 4, 4)
    corners = resize(x, 13, "bilinear_corners")
    torch.testing.assert_close(corners[..., ::4, ::4], x, rtol=0, atol=1e-12)
    assert torch.equal(resize(x, 8, "nearest"), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert resize(x.bfloat16(), 2).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "size", "mode", "message"),
    [
        ((1, 3, 4, 4), 8, "cubic", "mode is 'cubic'"),
        ((1, 3, 4, 4), 0, "auto", "size=0"),
        ((1, 3, 4, 4), (8, 0), "area", "size=\\(8, 0\\)"),
        ((1, 3, 4, 4), (0, 8), "nearest", "size=\\(0, 8\\)"),
        ((3, 4, 4), 8, "auto", "expected \\(B, C, H, W\\)"),
        ((1, 1, 3, 4, 4), 8, "auto", "expected \\(B, C, H, W\\)"),
    ],
)
def test_resize_refuses(shape: tuple[int, ...], size: int, mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize(torch.zeros(shape), size, mode)  # type: ignore[arg-type]


def test_resize_takes_floats_alone_and_down_to_one_pixel() -> None:
    with pytest.raises(ValueError, match=r"x is \(1, 3, 4, 4\) torch.uint8; expected .* in floating point"):
        resize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 8)
    assert resize(torch.ones(1, 3, 4, 4), (1, 2)).tolist() == [[[[1, 1]]] * 3]


def test_the_papers_space_noises_the_small_picture() -> None:
    lowres, noise = picture(2, 3, 8, 8), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    level = torch.tensor([0.1, 0.7])
    alpha, sigma = alpha_sigma(CosineSchedule().log_snr(level.double()))
    out = augment_lowres(lowres, level, noise, 32)
    noisy = torch.stack([a * x + s * n for a, s, x, n in zip(alpha, sigma, lowres, noise, strict=True)])
    torch.testing.assert_close(out, resize(noisy, 32), rtol=0, atol=1e-12)


def test_averaging_blocks_undoes_the_noise_only_in_the_enlarged_space() -> None:
    """Why the small picture is noised: blocks of 4 x 4 average independent noise away, to a quarter of it."""
    generator = torch.Generator().manual_seed(0)
    lowres, level = torch.zeros(1, 1, 32, 32), torch.tensor([0.5])
    sigma = alpha_sigma(CosineSchedule().log_snr(level))[1].item()
    left = {}
    for space in ("lowres", "upsampled"):
        noise = torch.randn(aug_noise_shape(lowres.shape, 128, space), generator=generator)  # type: ignore[arg-type]
        left[space] = F.avg_pool2d(augment_lowres(lowres, level, noise, 128, space), 4).std().item() / sigma  # type: ignore[arg-type]
    assert left["upsampled"] == pytest.approx(0.25, rel=0.1)
    assert left["lowres"] > 0.7


def test_upsampled_space_and_schedule() -> None:
    lowres, noise, level = picture(1, 3, 4, 4), torch.randn(1, 3, 8, 12).double(), torch.tensor([0.3])
    alpha, sigma = alpha_sigma(LinearSchedule().log_snr(level.double()))
    out = augment_lowres(lowres, level, noise, (8, 12), "upsampled", LinearSchedule(), "bilinear_corners")
    torch.testing.assert_close(
        out, alpha * resize(lowres, (8, 12), "bilinear_corners") + sigma * noise, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("space", ["lowres", "upsampled"])
@pytest.mark.parametrize("mode", ["bilinear", "bilinear_corners", "nearest"])
def test_the_picture_is_enlarged_in_the_mode_that_is_asked_for(space: Any, mode: Any) -> None:
    lowres, none = picture(1, 3, 4, 4), torch.zeros(1, 3, *((4, 4) if space == "lowres" else (8, 8))).double()
    level = torch.tensor([0.5])
    alpha, _ = alpha_sigma(CosineSchedule().log_snr(level.double()))
    out = augment_lowres(lowres, level, none, 8, space, mode=mode)
    torch.testing.assert_close(out, alpha * resize(lowres, 8, mode), rtol=0, atol=1e-12)


def test_level_zero_leaves_the_picture_all_but_clean() -> None:
    lowres, noise = picture(1, 3, 8, 8), torch.randn(1, 3, 8, 8).double()
    clean = resize(lowres, 16)
    assert (augment_lowres(lowres, torch.zeros(1), noise, 16) - clean).abs().max() < 0.08
    assert (augment_lowres(lowres, torch.zeros(1), noise, 16, schedule=LinearSchedule()) - clean).abs().max() < 1e-3


def test_shapes_are_checked() -> None:
    lowres = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="aug_space='upsampled' needs \\(2, 3, 8, 8\\)"):
        augment_lowres(lowres, torch.zeros(2), lowres, 8, "upsampled")
    with pytest.raises(ValueError, match="one level per image"):
        augment_lowres(lowres, torch.zeros(1), lowres, 8)
    with pytest.raises(ValueError, match="aug_space is 'pixel'"):
        augment_lowres(lowres, torch.zeros(2), lowres, 8, "pixel")  # type: ignore[arg-type]


SHARED = [
    *[((12, 18), (4, 6)), ((13, 10), (4, 7)), ((5, 9), (2, 4))],
    *[((12, 10), (4, 5)), ((4, 24), (2, 12)), ((21, 3), (9, 2))],
    *[
        ((9, 6), (2, 3)),
        ((6, 9), (3, 2)),
    ],  # each side is a multiple of the other's new one  # another factor along each axis; longer than high
]


@pytest.mark.parametrize(("size", "new"), SHARED)
def test_reducing_noise_is_the_share_of_every_pixel(size: tuple[int, int], new: tuple[int, int]) -> None:
    """Written out pixel by pixel; noise, because of a ramp every symmetric kernel gives the same."""
    x = picture(1, 2, *size)
    expected = torch.zeros(1, 2, *new, dtype=torch.float64)
    tall, wide = size[0] / new[0], size[1] / new[1]
    for top in range(new[0]):
        for left in range(new[1]):
            for row in range(size[0]):
                for column in range(size[1]):
                    down = min(row + 1, (top + 1) * tall) - max(row, top * tall)
                    across = min(column + 1, (left + 1) * wide) - max(column, left * wide)
                    share = max(down, 0) * max(across, 0) / (tall * wide)
                    expected[..., top, left] += share * x[..., row, column]
    torch.testing.assert_close(resize(x, new), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(resize(x, new, "area"), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["auto", "area", "bicubic", "bilinear", "bilinear_corners", "nearest"])
@pytest.mark.parametrize("size", [(3, 5), (8, 9), (4, 8)])
def test_narrow_pictures_are_computed_in_float32_and_rounded_once(mode: str, size: tuple[int, int]) -> None:
    x = picture(2, 3, 6, 7).bfloat16()
    assert torch.equal(resize(x, size, mode), resize(x.float(), size, mode).bfloat16())  # type: ignore[arg-type]


def test_levels_and_noise_go_with_their_pictures_and_half_precision_comes_back() -> None:
    lowres, noise = picture(3, 3, 4, 6), torch.randn(3, 3, 4, 6, dtype=torch.float64)
    level = torch.tensor([0.0, 0.4, 1.0])
    together = augment_lowres(lowres, level, noise, (12, 18))
    assert together.shape == (3, 3, 12, 18)
    for index in range(3):
        row = slice(index, index + 1)
        alone = augment_lowres(lowres[row], level[row], noise[row], (12, 18))
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-12)
    half = augment_lowres(lowres.bfloat16(), level, noise.bfloat16(), (12, 18))
    assert half.dtype == torch.bfloat16
    assert (half.double() - together).abs().max() < 0.05
