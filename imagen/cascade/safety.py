"""The safety checker and the watermark that some released checkpoints carry (DeepFloyd IF)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from imagen.cascade.pictures import to_output, to_pil

MARK_SIDE = 62
"""Side of IF's watermark on a picture of 1024 px."""


def finish(
    x: torch.Tensor,
    output_type: str,
    side: int,
    safety_checker: Any = None,
    feature_extractor: Any = None,
    watermarker: Any = None,
) -> Any:
    """Pictures as the caller gets them, checked and marked as diffusers' IF pipelines do it.

    The checker sees what leaves as "pil" or "np" and blacks out what it refuses (with a warning); the watermark is put
    on "pil" pictures; tensors ("pt") leave as they are, for a later stage or a checker of the caller's own.

    The mark lies in the lower right corner, 62 / 1024 of the square root of the picture's area to a side: one of fewer
    than 273 pixels (16 x 16, say) has no room for a pixel of it, and leaves unmarked. diffusers' class takes a picture
    whose shorter side is below ``sample_size`` for a part of a larger one, and would put the mark beside it.

    Args:
        x: (B, C, H, W) in [-1, 1].
        side: the stage's size, for the watermark; of a picture with a shorter side it is that side.
        safety_checker, feature_extractor, watermarker: the pipeline's, or None.

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
    width, height = images[0].size
    has_pixels = width * height * MARK_SIDE**2 >= 1024**2  # without any the watermark's class stops
    if watermarker is None or not has_pixels:
        return images
    return watermarker.apply_watermark(images, min(side, width, height))


def load_checker(folder: Path, options: Mapping[str, Any]) -> Any:
    """A pipeline folder's safety checker. transformers 5 cannot load the class that diffusers ships, so we do.

    Args:
        options: those of ``from_pretrained``: dtype, variant.

    Raises:
        ValueError: weights are missing or do not fit.
    """
    from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
    from transformers import CLIPConfig

    checker = IFSafetyChecker(CLIPConfig.from_pretrained(folder))
    variant = options.get("variant")
    files = sorted(folder.glob(f"*.{variant}*.safetensors")) if variant else []
    values = {}
    for file in files or sorted(folder.glob("model*.safetensors")):
        values.update(load_file(file))
    values = {name: value for name, value in values.items() if not name.endswith(".position_ids")}  # a mere count
    try:
        checker.load_state_dict(values)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model folder {str(folder.parent)!r}: safety_checker does not load: {reason}") from error
    dtype = options.get("dtype")
    return checker.to(dtype if isinstance(dtype, torch.dtype) else torch.float32).requires_grad_(False).eval()
