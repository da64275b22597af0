"""Sources of pictures with captions, the order they are read in, and the shapes world.

Importing this package is cheap, for `imagen.data.config` is read before anything heavy: the names come when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .make import make_source
    from .prepare import Want
    from .shapes.dataset import ShapesDataset

__all__ = ["ShapesDataset", "Want", "make_source"]
_HOMES = {"ShapesDataset": "shapes.dataset", "Want": "prepare", "make_source": "make"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
