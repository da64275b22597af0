"""A stage's run that goes on: its stored configuration in the keys of today, and what of it may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen.cascade.training.config.run import RunConfig
from imagen.stages.spec import EARLIER_NAMES
from imagen.training.config import resumed as general
from imagen.training.config.resumed import Changes, read_stored, with_resize


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the configuration in the keys of today, what its owner should know) of a stage's config.yaml of any version."""
    tree, notes = general.migrate(saved)
    stage = tree.get("stage") or {}
    if stage.get("name") in EARLIER_NAMES:
        tree["stage"] = {**stage, "name": EARLIER_NAMES[stage["name"]]}
    return tree, notes


def as_begun(config: RunConfig) -> RunConfig:
    """`config`, what it leaves open filled in as the run that goes on in its folder began, or else as a new one."""
    stored = read_stored(Path(config.run_dir), migrate)
    return with_resize(config, None if stored is None else stored[0])


def may_change(config: RunConfig) -> Changes:
    """What of a stage's sections may change. An adapter's run keeps nothing of the network under it, so that stays."""
    start = () if config.lora.used else ("train.init_from",)
    return Changes(("train.gradient_checkpointing", "sampling", *start), ("text.encoder", "text.cache"))
