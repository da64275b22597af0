"""Classifier-free guidance: the conditional and the unconditional half in sampling (paper, section 2.2)."""

from __future__ import annotations

from torch import Tensor

from imagen.diffusion.parameterization import per_image


def guide(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """scale * cond + (1 - scale) * uncond (paper, equation 2); 1 is exactly cond. Same shape as the inputs, (B, ...).

    eps, v and x0 of one z are affine images of each other, so it does not matter which of them is guided.

    Args:
        scale: a number for all images, or a tensor: (B,) is one value per image, anything else broadcasts as usual.

    Raises:
        ValueError: (N,) values for another number of images than N, unless N is 1.
    """
    if isinstance(scale, Tensor):
        if scale.ndim == 1 and len(scale) not in (1, len(cond)):
            raise ValueError(f"scale has {len(scale)} values for {len(cond)} images; give one, or one per image")
        scale = per_image(scale, cond)
    return scale * cond + (1 - scale) * uncond
