"""A run that an earlier version began: its stored configuration in the keys of today, and what it keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from imagen.data.config import DataConfig
from imagen.training.config.sections import RunSettings
from imagen.training.state.checkpoint import StateFolder

Migration = Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]
"""A config.yaml of any version -> (in the keys of today, what its owner should know)."""
SettingsT = TypeVar("SettingsT", bound=RunSettings)


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the configuration in the keys of today, what its owner should know) of a config.yaml of any version.

    Before `data.resize` there was, stored pictures were reduced as its "bicubic" does.
    """
    tree, notes = dict(saved), []
    data = tree.get("data") or {}
    if "resize" not in data and data.get("kind", "shapes") != "shapes":
        tree["data"] = {**data, "resize": "bicubic"}
        notes.append(
            "the run began before pictures were reduced by area and goes on as it began, with data.resize bicubic; a "
            "new run_dir, with train.init_from to start from its weights, takes area"
        )
    return tree, notes


def read_stored(run: Path, migration: Migration) -> tuple[dict[str, Any], list[str]] | None:
    """The migrated configuration of the run that goes on in the folder `run`, and notes; None where none does."""
    path = run / "config.yaml"
    if not StateFolder(run / "state").steps() or not path.exists():
        return None
    return migration(yaml.safe_load(path.read_text(encoding="utf-8")))


def with_resize(config: SettingsT, stored: Mapping[str, Any] | None) -> SettingsT:
    """`config` with a word for each `data.resize` that is null: the run's own or, in a new run, "area".

    Held-out pictures are reduced like those that are trained on.
    """
    rule = config.data.resize or ((stored or {}).get("data") or {}).get("resize") or "area"

    def filled(data: DataConfig) -> DataConfig:
        return data if data.kind == "shapes" else replace(data, resize=data.resize or rule)

    held_out = config.validation.data
    validation = config.validation if held_out is None else replace(config.validation, data=filled(held_out))
    return replace(config, data=filled(config.data), validation=validation)
