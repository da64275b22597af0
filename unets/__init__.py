"""The networks of the cascade; they know torch and diffusers' ModelMixin, never ``imagen``."""

import importlib
from typing import Any

from .contract import Facts, TextContext

#: The one registry: a network's name and the module that holds it, which is loaded when the name is first used.
NETWORKS = {
    "BaseUNet": "unets.base",
    "EfficientUNet": "unets.efficient",
    "DiT": "unets.dit",
}

__all__ = ["NETWORKS", "Facts", "TextContext"]


def __getattr__(name: str) -> Any:
    if name in NETWORKS:
        return getattr(importlib.import_module(NETWORKS[name]), name)
    raise AttributeError(f"module 'unets' has no attribute {name!r}; its networks are {', '.join(NETWORKS)}")
