"""A run that goes on: its stored configuration in the keys of today, and what of it may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from imagen.data.config import DataConfig
from imagen.errors import ConfigError, one_line, require
from imagen.training.config.sections import RunSettings
from imagen.training.state.checkpoint import StateFolder

Migration = Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[str]]]
"""A config.yaml of any version -> (in the keys of today, what its owner should know)."""
SettingsT = TypeVar("SettingsT", bound=RunSettings)


class Later(NamedTuple):
    """A key of `data` that came later: what a run that began before has, and what a new one has."""

    old: str | int
    new: str | int
    before: str


LATER = {
    "resize": Later("bicubic", "area", "before pictures were reduced by area"),
    "rules": Later(1, 2, "before colour profiles, dots in names, links and sizes counted"),
}


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the configuration in the keys of today, what its owner should know) of a config.yaml of any version.

    Stored pictures are found, read and reduced as they were when the run began.
    """
    tree, notes = dict(saved), []
    data = tree.get("data") or {}
    for key, later in LATER.items():
        if key not in data and data.get("kind", "shapes") != "shapes":
            tree["data"] = data = {**data, key: later.old}
            notes.append(
                f"the run began {later.before} and goes on as it began, with data.{key} {later.old}; a new run_dir, "
                f"with train.init_from to start from its weights, takes {later.new}"
            )
    train = dict(tree.get("train") or {})
    if "tensorboard" in train:  # true or false, before there were others
        train["trackers"] = ["tensorboard"] if train.pop("tensorboard") else []
        tree["train"] = train
    return tree, notes


def read_stored(run: Path, migration: Migration) -> tuple[dict[str, Any], list[str]] | None:
    """The migrated configuration of the run that goes on in the folder `run`, and notes; None where none does.

    Raises:
        ConfigError: there are resume points, and the configuration that they are of is gone or damaged.
    """
    path = run / "config.yaml"
    if not StateFolder(run / "state").steps():
        return None
    remedy = "put it back as it was, or give another run_dir, with train.init_from to start from the weights"
    require(path.is_file(), f"{str(run)!r} has resume points, but no config.yaml that says what they are of: {remedy}")
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML ({one_line(error)}): {remedy}") from error
    require(isinstance(stored, dict), f"{str(path)!r} is no configuration: {remedy}")
    return migration(stored)


def with_rules(config: SettingsT, stored: Mapping[str, Any] | None) -> SettingsT:
    """`config` with a value for each key of :data:`LATER` that is null: the run's own or, in a new run, today's.

    Held-out pictures are read like those that are trained on.
    """
    began = (stored or {}).get("data") or {}
    rules: dict[str, Any] = {
        key: getattr(config.data, key) or began.get(key) or later.new for key, later in LATER.items()
    }

    rules["min_size"] = config.data.min_size

    def filled(data: DataConfig) -> DataConfig:
        given: dict[str, Any] = {key: getattr(data, key) or rule for key, rule in rules.items()}
        return data if data.kind == "shapes" else replace(data, **given)

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
    "train.trackers",
    "train.compile",
    "train.channels_last",
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
