"""A run that goes on: its stored configuration in the keys of today, and what of it may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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


class Changes(NamedTuple):
    """Keys, or sections, that may differ when a run goes on; any other change alters what the run means.

    Attributes:
        free: without a word.
        warned: with a warning.
    """

    free: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()


NONE = Changes()
FREE = (
    "train.num_workers",
    "train.checkpoint_every",
    "train.keep_last",
    "train.log_every",
    "train.time_limit",
    "train.max_skipped",
    "train.max_skipped_in_a_row",
    "train.tensorboard",
    "train.compile",
    "train.accumulation",
    "run_dir",
    "grid",
    "validation",
    "data.max_skipped_share",
)
WARNED = ("train.steps", "train.mixed_precision", "optim", "ema", "data.path")
SWITCHES = ("optim.muon_lr", "optim.momentum")  # null or not decides what state there is
REFUSED = ("optim.kind",)  # in a section that is else WARNED


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, so that a YAML round trip compares equal."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def changed_keys(old: Mapping[str, Any], new: RunSettings, of_task: Changes = NONE) -> tuple[list[str], list[str]]:
    """(keys whose change is worth a warning, keys whose change is refused) between a saved run and `new`.

    Args:
        of_task: what may change beside what any run may change.
    """
    after = flatten(asdict(new))
    defaults = flatten(asdict(type(new)(run_dir=new.run_dir)))  # type: ignore[call-arg]  # what an older one lacks
    before = {key: value for key, value in defaults.items() if key in after} | flatten(old)
    warned: list[str] = []
    refused: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key) or _among(key, FREE + of_task.free):
            continue
        switched = key in SWITCHES and (before.get(key) is None) != (after.get(key) is None)
        is_warned = not switched and key not in REFUSED and _among(key, WARNED + of_task.warned)
        (warned if is_warned else refused).append(f"{key} {before.get(key)} -> {after.get(key)}")
    return warned, refused


def _among(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
