"""The safety checker and the watermark that some released checkpoints carry (DeepFloyd IF)."""

from __future__ import annotations

from typing import Any

import torch

from imagen.cascade.pictures import to_output, to_pil


def finish(
    x: torch.Tensor, output_type: str, safety_checker: Any, feature_extractor: Any, watermarker: Any, side: int
) -> Any:
    """Pictures as the caller gets them, checked and marked as diffusers' IF pipelines do it.

    The checker sees what leaves as "pil" or "np" and blacks out what it refuses (with a warning); the watermark is put
    on "pil" pictures; tensors ("pt") leave as they are, for a later stage or a checker of the caller's own.

    Args:
        x: (B, C, H, W) in [-1, 1].
        safety_checker, feature_extractor, watermarker: the pipeline's, or None.
        side: the stage's size, to which the watermark is scaled.

    Returns:
        what :func:`imagen.cascade.pictures.to_output` does.

    Raises:
        ValueError: a checker without the feature extractor that prepares its input.
    """
    if output_type == "pt":
        return to_output(x, "pt")
    pixels = to_output(x, "np")
    if safety_checker is not None:
        if feature_extractor is None:
            raise ValueError("safety_checker needs feature_extractor; load both, or set safety_checker to None")
        seen = feature_extractor(to_pil(pixels), return_tensors="pt").pixel_values
        parameter = next(safety_checker.parameters())
        pixels, *_ = safety_checker(images=pixels, clip_input=seen.to(parameter.device, parameter.dtype))
    if output_type == "np":
        return pixels
    images = to_pil(pixels)
    return images if watermarker is None else watermarker.apply_watermark(images, side)
