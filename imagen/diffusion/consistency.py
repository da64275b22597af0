"""A super-resolution stage held to the colours of its input.

A network's small errors add up over a flat area to another colour, and what lies between two colours of its training is
drawn toward one of them. Only the enlarged picture's detail is the stage's to decide: what it looks like from afar is
given. So each estimate of the clean picture can take its low frequencies from the input, as ILVR does with the state
(Choi et al. 2021, arXiv 2108.02938) and DDNM with the estimate (Wang et al. 2022, arXiv 2212.00490): with A, the means
over cells, and its inverse A+, here a smooth enlargement, x0 becomes x0 + A+(A lowres - A x0). The paper does neither.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from imagen.diffusion.augmentation import resize


def match_lowres(lowres: Tensor, cell: int) -> Callable[[Tensor], Tensor]:
    """What moves an estimate so that over every cell its mean is that of ``lowres``, up to what enlarging blurs.

    Cells of one low-res pixel would also take away what a stage draws below that pixel's resolution wherever its mean
    is not exactly the pixel's, as in a texture that the low-res picture shows as its mean; in cells of a few pixels
    such differences average out and colours stay.

    Args:
        lowres: (B, C, h, w) in [-1, 1], what the stage started from, without noise.
        cell: side of a cell in pixels of ``lowres``, >= 1; rounded so that whole cells fill the picture.

    Returns:
        x0 (B, C, H, W) in [-1, 1] to the same, clamped; for make_x0_fn's ``correct``. When called with another batch or
        other channels it raises ValueError.

    Raises:
        ValueError: no positive cell.
    """
    if cell < 1:
        raise ValueError(f"cell is {cell}; expected at least 1")
    height, width = (max(1, round(side / cell)) for side in lowres.shape[-2:])
    means = resize(lowres, (height, width), "area")

    def correct(x0: Tensor) -> Tensor:
        if x0.shape[:2] != lowres.shape[:2]:
            raise ValueError(f"x0 is {tuple(x0.shape)} and lowres {tuple(lowres.shape)}; expected equal (B, C)")
        missing = means - resize(x0, (height, width), "area")
        return (x0 + resize(missing, (x0.shape[-2], x0.shape[-1]), "bilinear").to(x0.dtype)).clamp(-1, 1)

    return correct
