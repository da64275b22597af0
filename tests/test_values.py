"""Settings, conditions and facts are values: equal where their numbers are, and nobody changes them on the way."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import imagen.conditions
import imagen.diffusion
import unets
from unets.hosting import NetworkOutput


def test_they_are_frozen_and_compare_by_their_fields() -> None:
    """But for the dict that diffusers' outputs are."""
    found: set[type] = set()
    for package in (imagen.conditions, imagen.diffusion, unets):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == module.name:
                    found.add(value)
    assert len(found) > 15
    changeable = {cls for cls in found if not cls.__dataclass_params__.frozen}  # type: ignore[attr-defined]
    assert changeable == {NetworkOutput}
    assert all(cls.__dataclass_params__.eq for cls in found)  # type: ignore[attr-defined]
