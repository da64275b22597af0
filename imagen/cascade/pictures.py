"""Pictures in and out: what callers hold (PIL, arrays, tensors) <-> (B, C, H, W) float32 in [-1, 1].

On their way out they meet the safety checker and the watermark that some released checkpoints carry (DeepFloyd IF).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from imagen.cascade.route import cropped
from imagen.data.decode import Unusable, decode
from imagen.data.profiles import to_srgb

OUTPUT_TYPES = ("pil", "np", "pt")
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MARK_SIDE = 62
"""Side of IF's watermark on a picture of 1024 px."""


def load_pictures(image: Any, channels: int, aspect: tuple[int, int] = (1, 1)) -> list[Tensor]:
    """Pictures to start from -> a list of (C, H, W) float32 in [-1, 1], of one shape and each of its own size.

    Args:
        image: a PIL image, an array (H, W, C) or (H, W), a tensor (C, H, W), a batch (B, H, W, C) or (B, C, H, W) of
            one of these, or a list of any. Floats are 0 to 1, as `output_type` np and pt give; 16-bit integers without
            a sign are 0 to 65535, booleans 0 and 1, other integers 0 to 255.
        channels: that the network expects. PIL images come to it as in training (:func:`imagen.data.decode.decode`:
            colours as their profiles mean them, transparency laid over white, all bits of 16-bit greys); for 4 channels
            they become RGBA.
        aspect: height to width; what has another shape is cropped to its centre.

    Raises:
        ValueError: another type, shape, number of channels or range.
    """
    if isinstance(image, Sequence) and not isinstance(image, str | bytes):
        if not image:
            raise ValueError("image is an empty list; give at least one picture")
        return [picture for entry in image for picture in load_pictures(entry, channels, aspect)]
    if isinstance(image, Image.Image):
        return [_crop(_from_pil(image, channels), aspect)]
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim not in (3, 4):
            raise ValueError(f"image is an array of shape {image.shape}; expected (H, W, C), (H, W) or (B, H, W, C)")
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, -3)))
    if not isinstance(image, Tensor):
        raise ValueError(
            f"image is a {type(image).__name__}; expected a PIL image, an array, a tensor or a list of these"
        )
    if image.ndim not in (3, 4):
        raise ValueError(f"image is a tensor of shape {tuple(image.shape)}; expected (C, H, W) or (B, C, H, W)")
    batch = image if image.ndim == 4 else image[None]
    if batch.shape[1] != channels or not batch.numel():
        raise ValueError(f"image has shape {tuple(image.shape)}; this model's pictures have {channels} channels")
    return [_crop(_from_range(picture), aspect) for picture in batch]


def _from_pil(image: Image.Image, channels: int) -> Tensor:
    if channels not in PIL_MODES:
        raise ValueError(f"this model's pictures have {channels} channels, a PIL image cannot hold them; give a tensor")
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep and channels == 4:
        raise ValueError(f"image is of mode {image.mode}, and this model's pictures are RGBA; give one of mode RGBA")
    if image.mode == "F":
        grey = torch.from_numpy(np.array(ImageOps.exif_transpose(image)))
        return _from_range(grey.expand(channels, *grey.shape))
    if channels == 4:
        pixels = np.asarray(to_srgb(ImageOps.exif_transpose(image))[0].convert("RGBA"))
    else:
        try:
            pixels = decode(image, "", channels).pixels
        except Unusable as error:
            raise ValueError(f"image {error}") from error
    picture = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return picture if picture.is_floating_point() else _from_range(picture)


def _from_range(picture: Tensor) -> Tensor:
    if picture.dtype == torch.bool:
        return picture.float() * 2 - 1
    if picture.dtype == torch.uint16:
        return picture.float() / 32767.5 - 1
    if picture.is_complex():
        raise ValueError("image holds complex numbers; expected floats in [0, 1] or integers in [0, 255]")
    if not picture.is_floating_point():
        low, high = picture.long().aminmax()
        if low < 0 or high > 255:
            raise ValueError(f"image has integers from {low.item()} to {high.item()}; expected [0, 255], or uint16")
        return picture.float() / 127.5 - 1
    picture = picture.detach().float()
    low, high = picture.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)) or low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"image has values from {low.item():.3g} to {high.item():.3g}; expected floats in [0, 1] or integers in "
            "[0, 255] (a picture in [-1, 1] is brought there by x / 2 + 0.5)"
        )
    return picture * 2 - 1


def _crop(picture: Tensor, aspect: tuple[int, int]) -> Tensor:
    """The largest centred part of (C, H, W) whose height is to its width as ``aspect`` says."""
    height, width = picture.shape[-2:]
    kept = cropped(height, width, aspect)
    top, left = (height - kept[0]) // 2, (width - kept[1]) // 2
    return picture[..., top : top + kept[0], left : left + kept[1]]


def check_output_type(output_type: str, channels: int) -> None:
    """Raises: ValueError for a type that does not exist or cannot hold the model's channels."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; expected one of {', '.join(OUTPUT_TYPES)}")
    if output_type == "pil" and channels not in PIL_MODES:
        raise ValueError(f"output_type='pil' cannot hold {channels} channels; use output_type='np' or 'pt'")


def to_pil(pixels: np.ndarray) -> list[Image.Image]:
    """(B, H, W, C) floats in [0, 1] -> PIL images."""
    whole = (pixels * 255).round().astype(np.uint8)
    return [Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture) for picture in whole]


def finish(
    x: Tensor,
    output_type: str,
    safety_checker: Any = None,
    feature_extractor: Any = None,
    watermarker: Any = None,
) -> Any:
    """Pictures as the caller gets them, checked and marked as diffusers' IF pipelines do it.

    The checker sees what leaves as "pil" or "np" and blacks out what it refuses (with a warning); the watermark is put
    on "pil" pictures; tensors ("pt") leave as they are, for a later stage or a checker of the caller's own.

    The mark lies in the lower right corner, 62 / 1024 of the square root of the picture's area to a side: one of fewer
    than 273 pixels (16 x 16, say) has no room for a pixel of it, and leaves unmarked. diffusers' class takes a picture
    whose shorter side is below ``sample_size`` for a part of a larger one, and would put the mark beside it: it is told
    that side.

    Args:
        x: (B, C, H, W) in [-1, 1].
        safety_checker, feature_extractor, watermarker: the pipeline's, or None.

    Returns:
        a list of PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), both float32 on the CPU and in [0, 1].

    Raises:
        ValueError: a checker without the feature extractor that prepares its input.
    """
    unit = (x.detach().float().cpu() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return unit
    pixels = unit.permute(0, 2, 3, 1).numpy()
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
    return watermarker.apply_watermark(images, min(width, height))
