"""The networks of the cascade; they know torch and diffusers' ModelMixin, never ``imagen``."""

from .base import BaseUNet
from .conditioning import TextContext
from .efficient import EfficientUNet

__all__ = ["BaseUNet", "EfficientUNet", "TextContext"]
