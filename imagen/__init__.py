"""Imagen: a text-to-image cascade of pixel-space diffusion models, re-implemented in the open.

Importing this package is cheap: :class:`ImagenPipeline`, and with it diffusers and transformers, is imported on first
use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

__all__ = ["ImagenPipeline"]


def __getattr__(name: str) -> Any:
    if name == "ImagenPipeline":
        from imagen.memory import uncollected

        with uncollected():
            from imagen.pipeline import ImagenPipeline
        return ImagenPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
