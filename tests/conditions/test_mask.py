"""The mask as numbers: which pixels a rectangle holds, and a call's picture brought to a stage's size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imagen.conditions.condition import Draw, Target
from imagen.conditions.mask import Mask, Masked, make_masked, masked, rectangles
from tests.factories import seeded, tiny_base

NONE = torch.zeros(2, dtype=torch.bool)


def span(low: float, high: float, side: int) -> list[float]:
    """The pixels along one axis that a rectangle between these borders holds."""
    both = torch.tensor([[[low, high, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    return rectangles(both, side, 1)[0, 0, :, 0].tolist()


@pytest.mark.parametrize("border", [0.5, 0.375, 0.4, 0.0])
def test_rectangles_that_meet_share_no_pixel_and_leave_none_out(border: float) -> None:
    """A pixel is held where its centre lies at or behind the first border and before the second: of 4, 0.375 is one."""
    first, second = span(0.0, border, 4), span(border, 1.0, 4)
    assert [a + b for a, b in zip(first, second, strict=True)] == [1.0] * 4
    assert sum(first) == sum(centre < border for centre in (0.125, 0.375, 0.625, 0.875))


def test_every_rectangle_counts_and_rows_are_not_columns() -> None:
    uniform = torch.tensor([[[0.0, 0.5, 0.0, 0.25], [0.5, 1.0, 0.75, 1.0]]])
    expected = torch.zeros(4, 8)
    expected[:2, :2] = expected[2:, 6:] = 1
    assert torch.equal(rectangles(uniform, 4, 8)[0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_a_stored_mask_comes_in_the_dtype_of_the_pictures(dtype: torch.dtype) -> None:
    image = torch.rand(2, 3, 4, 4, generator=seeded(), dtype=torch.float64)
    stored = torch.tensor([[0, 1, 1, 0]] * 4).expand(2, 1, 4, 4)
    condition = Mask(4, stored_masks=True)
    part = condition.batch({"mask": stored.to(dtype)}, image, NONE)
    seen = condition.inputs(part, Draw(NONE, torch.zeros(2), lambda *_: image)).named["mask"]
    assert torch.equal(seen, masked(image, stored.double()))
    assert seen.dtype == torch.float64
    held_out = torch.stack(condition.sampled({"mask": stored.to(dtype)}, image).pictures)
    assert torch.equal(held_out, torch.cat([image, 1 - 2 * stored.double()], dim=1))  # opacity, from -1 to 1


def test_drawn_masks_are_as_high_and_as_wide_as_the_pictures() -> None:
    image = torch.rand(2, 3, 4, 8, generator=seeded())
    asked: list[tuple[str, tuple[int, ...]]] = []

    def noise(purpose: str, shape: tuple[int, ...]) -> Tensor:
        asked.append((purpose, shape))
        return torch.randn(2, *shape, generator=seeded())

    seen = Mask(8).inputs((image, None), Draw(NONE, torch.zeros(2), noise)).named["mask"]
    assert seen.shape == (2, 4, 4, 8)
    assert asked == [("mask", (2, 4))]
    borders = torch.special.ndtr(torch.randn(2, 2, 4, generator=seeded()))  # normal numbers made even in [0, 1]
    assert torch.equal(seen, masked(image, rectangles(borders, 4, 8)))


def seen_of(picture: Tensor, shape: tuple[int, int]) -> Tensor:
    network = tiny_base(extra_channels={"mask": 4})
    return Masked((picture,)).given(Target(network, ("conditional",), shape, 1)).named["mask"][0]


def ramp(pixels: int, *between: float) -> Tensor:
    """Values at the centres of pixels of which ``between`` are held by equal parts, straight from one to the next."""
    places = ((torch.arange(pixels) + 0.5) * len(between) / pixels - 0.5).clamp(0, len(between) - 1)
    low = places.floor().clamp(max=len(between) - 2).long()
    values = torch.tensor(between)
    return torch.lerp(values[low], values[low + 1], places - low)


def test_a_picture_is_enlarged_along_straight_lines() -> None:
    """Neither in blocks nor past its values, and the edge of what is painted lies where half is transparent."""
    picture = torch.ones(4, 1, 4)
    picture[:3, 0] = torch.tensor([-0.5, 0.5, 1.0, 1.0])
    seen = seen_of(picture, (8, 16))
    torch.testing.assert_close(seen[:3], ramp(16, -0.5, 0.5, 1.0, 1.0).expand(3, 8, 16), rtol=0, atol=1e-6)
    assert not seen[3].any()
    picture[3, 0] = torch.tensor([1.0, 1.0, -1.0, 0.5])  # opacity 1, 1, 0, 3/4
    edges = ramp(16, 1.0, 1.0, 0.0, 0.75) <= 0.5
    assert torch.equal(seen_of(picture, (8, 16))[3], edges.float().expand(8, 16))
    assert 0 < int(edges.sum()) < 8


def test_a_tall_picture_is_enlarged_like_a_wide_one() -> None:
    picture = torch.ones(4, 8, 4)
    picture[:3] = torch.tensor([-0.5, 0.5, 1.0, 0.0])
    torch.testing.assert_close(seen_of(picture, (16, 8))[:3], ramp(8, -0.5, 0.5, 1.0, 0.0).expand(3, 16, 8))


def test_of_a_picture_that_is_made_smaller_the_opaque_part_of_a_pixel_counts() -> None:
    """Four pixels to one by their mean, each by its opacity: a fully and a half opaque one beside two hidden ones."""
    picture = torch.zeros(4, 2, 2)
    picture[3] = torch.tensor([[1.0, 1.0], [0.5, -1.0]])  # opacity 1, 1, 3/4, 0
    picture[0] = torch.tensor([[0.2, 0.4], [-0.8, 1.0]])
    seen = seen_of(picture.repeat(1, 8, 8), (8, 8))
    assert not seen[3].any()
    torch.testing.assert_close(seen[0], torch.full((8, 8), (0.2 + 0.4 - 0.75 * 0.8) / 2.75), rtol=0, atol=1e-6)


def test_channels_are_asked_of_every_network_that_reads_a_mask_and_of_no_other() -> None:
    reads, other = tiny_base(extra_channels={"mask": 4}).facts, tiny_base(in_channels=1, out_channels=1).facts
    picture = torch.zeros(4, 8, 8)
    for networks in ([reads, other], [other, reads]):
        assert len(make_masked([picture] * 2, {}, networks, torch.device("cpu"))) == 2
        with pytest.raises(ValueError, match="mask has 5 channels; expected 4, the last one opacity"):
            make_masked([torch.zeros(5, 8, 8)], {}, networks, torch.device("cpu"))
    assert make_masked(None, {}, [reads], torch.device("cpu")).pictures == ()


def test_without_a_picture_nothing_of_the_stage_s_shape_is_seen() -> None:
    network = tiny_base(extra_channels={"mask": 4})
    given = Masked(()).given(Target(network, ("unconditional", "conditional"), (4, 8), 3))
    seen = given.select(given.stacked(("unconditional", "conditional"), torch.arange(3))).named["mask"]
    assert torch.equal(seen, masked(torch.zeros(6, 3, 4, 8), torch.ones(6, 1, 4, 8)))


def test_its_channels_are_the_picture_s_and_one_more() -> None:
    assert Mask(8).needs(3) == ("extra_channels", 4)
    assert Mask(8).needs(1) == ("extra_channels", 2)
    assert Mask(8).stored == {}
