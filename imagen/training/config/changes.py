"""Which parts of a configuration may change when a run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from imagen.cascade.training.config.run import RunConfig

# What may differ when a run goes on. Anything not named changes what the run means, and is refused.
FREE = ("train.num_workers", "train.checkpoint_every", "train.keep_last", "train.log_every", "train.time_limit",
        "train.max_skipped", "train.max_skipped_in_a_row", "train.tensorboard", "train.compile", "train.init_from",
        "train.gradient_checkpointing",
        "train.accumulation", "run_dir", "grid", "validation", "sampling", "data.max_skipped_share")  # fmt: skip
START = "train.init_from"
SWITCHES = ("optim.muon_lr", "optim.momentum")  # null or not decides what state there is
REFUSED = ("optim.kind",)  # in a section that is else WARNED
WARNED = ("train.steps", "train.mixed_precision", "optim", "ema", "text.encoder", "text.cache", "data.path")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, so that a YAML round trip compares equal."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def changed_keys(old: Mapping[str, Any], new: RunConfig) -> tuple[list[str], list[str]]:
    """(keys whose change is worth a warning, keys whose change is refused) between a saved run and `new`."""
    defaults = {key: value for key, value in flatten(asdict(RunConfig(new.run_dir, {}))).items() if key != "unet"}
    before, after = defaults | flatten(old), flatten(asdict(new))
    warned: list[str] = []
    refused: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        # an adapter's run keeps nothing of the network under it, so that must stay
        free = any(key == f or key.startswith(f + ".") for f in FREE) and not (key == START and new.lora.used)
        if before.get(key) == after.get(key) or free:
            continue
        switched = key in SWITCHES and (before.get(key) is None) != (after.get(key) is None)
        is_warned = not switched and key not in REFUSED and any(key == w or key.startswith(w + ".") for w in WARNED)
        (warned if is_warned else refused).append(f"{key} {before.get(key)} -> {after.get(key)}")
    return warned, refused
