"""The watermark lies where diffusers puts it on a picture of that size, on every picture that has room for it; the
checker sees whatever leaves as a picture."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker

from imagen.cascade.pictures import finish


def marked(height: int, width: int) -> np.ndarray:
    """(H, W) bool: the pixels of a grey picture that the mark, a white square, changed."""
    watermarker = IFWatermarker()
    watermarker.watermark_image.fill_(255)
    x = torch.zeros(2, 3, height, width)
    pictures = finish(x, "pil", watermarker=watermarker)
    plain = finish(x, "pil")
    masks = [(np.asarray(a) != np.asarray(b)).any(axis=-1) for a, b in zip(pictures, plain, strict=True)]
    assert np.array_equal(*masks)
    return masks[0]


@pytest.mark.parametrize(
    ("height", "width"),
    [(48, 80), (80, 48), (64, 64), (32, 64), (64, 128), (256, 192), (13, 21), (640, 1280), (1024, 1024)],
)
def test_every_picture_with_room_for_the_mark_has_it_whole_in_its_corner(height: int, width: int) -> None:
    scale = math.sqrt(height * width) / 1024
    mark, gap = int(62 * scale), int(14 * scale)
    expected = np.zeros((height, width), bool)
    expected[height - gap - mark : height - gap, width - gap - mark : width - gap] = True
    assert mark >= 1
    assert np.array_equal(marked(height, width), expected)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 17), (8, 8), (1, 1)])
def test_a_picture_without_room_for_a_pixel_of_the_mark_leaves_as_it_is(height: int, width: int) -> None:
    assert not marked(height, width).any()


class Checker(torch.nn.Module):
    """Refuses pictures whose first pixel is bright, as diffusers' checkers do: black, with a word for each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.given: list[torch.Tensor] = []

    def forward(self, images: np.ndarray, clip_input: torch.Tensor) -> tuple[np.ndarray, list[bool]]:
        self.given.append(clip_input)
        refused = images[:, 0, 0, 0] > 0.5
        return np.where(refused[:, None, None, None], 0.0, images), refused.tolist()


def prepared(pictures: list[Any], return_tensors: str) -> Any:
    """What a checker's feature extractor makes of pictures: here their first pixels."""
    assert return_tensors == "pt"
    return SimpleNamespace(pixel_values=torch.tensor([np.asarray(picture)[0, 0].tolist() for picture in pictures]))


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_what_leaves_as_a_picture_or_an_array_is_checked_every_one_of_it(output_type: str) -> None:
    x = torch.full((3, 3, 4, 4), -0.6)
    x[1:] = torch.tensor([0.6, -0.6]).reshape(2, 1, 1, 1)
    checker = Checker()
    made = finish(x, output_type, checker, prepared)
    shown = [np.asarray(picture, float) / (255 if output_type == "pil" else 1) for picture in made]
    assert [round(float(picture.max()), 1) for picture in shown] == [0.2, 0.0, 0.2]
    (given,) = checker.given
    assert given.dtype == torch.float64, "as the checker computes"
    assert given[:, 0].tolist() == [51, 204, 51]
    with pytest.raises(ValueError, match="safety_checker needs feature_extractor; load both, or set safety_checker"):
        finish(x, output_type, checker)


def test_tensors_leave_unchecked() -> None:
    x = torch.full((1, 3, 4, 4), 0.5)
    checker = Checker()
    assert torch.equal(finish(x, "pt", checker, prepared), torch.full((1, 3, 4, 4), 0.75))
    assert not checker.given
