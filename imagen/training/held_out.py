"""The pictures that ``validation.data`` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from imagen.data.config import DataConfig
from imagen.data.pictures import StreamDataset
from imagen.errors import config_errors, require
from imagen.training.config.sections import ValidationConfig
from imagen.training.randomness import derive_seed


def held_out_source(
    settings: ValidationConfig, make: Callable[[DataConfig, int], Any], needs: Mapping[str, int] | None = None
) -> Any:
    """Samples by number: those of validation.data or, of a stream, its first ones.

    Args:
        make: section and seed -> source. Of the shapes world the seed makes pictures that training does not see.
        needs: keys of validation that say how many pictures are looked at, and how many; None: its samples.

    Raises:
        ConfigError: nothing there, or fewer than are looked at.
    """
    assert settings.data is not None, "held-out pictures are named wherever they are measured"
    with config_errors("validation."):
        source = make(settings.data, derive_seed(settings.seed, "validation"))
    needs = {"samples": settings.samples} if needs is None else needs
    found = source.head(max(needs.values())) if isinstance(source, StreamDataset) else source
    length = len(found) if isinstance(found, list) else found.length
    for key, count in needs.items():
        require(
            length is None or count <= length,
            f"validation.{key} {count} is more than the {length} pictures of validation.data: use fewer",
        )
    return found
