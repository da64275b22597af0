"""The networks of the cascade; they know torch and diffusers' ModelMixin, never ``imagen``."""

from .base import BaseUNet
from .conditioning import TextContext

__all__ = ["BaseUNet", "TextContext"]
