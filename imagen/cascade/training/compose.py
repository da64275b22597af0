"""Several stages, each of a run or of a composed pipeline, and a text encoder -> one pipeline folder."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imagen.cascade.assembly import assemble
from imagen.cascade.presets import Preset, read_presets
from imagen.disk import filling, occupied, read_json
from imagen.errors import ConfigError, config_errors, require
from imagen.pipeline import ImagenPipeline
from imagen.stages.folder import INDEX, SavedStage, read_index, read_saved
from imagen.stages.model import check_chain
from imagen.stages.spec import SLOTS, slot_named

OF_RUNS = ("config.yaml", "metrics.jsonl", "stage.json")  # what tells a run's folder, and that of its export


def read_source(slot: str, folder: Path) -> SavedStage:
    """The stage of that slot, of a run or of the pipeline that was composed in ``folder``.

    Raises:
        ConfigError: no such stage there.
    """
    with config_errors(f"--{slot}: "):
        found = read_saved(folder)
    if slot in found:
        return found[slot]
    if not (folder / INDEX).is_file():
        other = next(iter(found))
        raise ConfigError(f"--{slot} {str(folder)!r} holds the stage {other}: pass it as --{other}")
    raise ConfigError(f"--{slot}: the pipeline {str(folder)!r} has no {slot}, only {', '.join(found) or 'text'}")


def compose(
    stages: Mapping[str, Path],
    text: str | None = None,
    dtype: torch.dtype = torch.float32,
    presets: Mapping[str, Any] | None = None,
) -> ImagenPipeline:
    """An ImagenPipeline of exported stages.

    Args:
        stages: slot (base, sr256, sr1024) -> run_dir, its model folder, or the folder of a composed pipeline.
        text: folder or Hub id of a text encoder; None takes the one that the stages were trained with.
        dtype: of all weights.
        presets: ways to sample it, by name and slot; None: those that the pipelines have which the stages come from,
            the usual three of a run's stage.

    Raises:
        ConfigError: no such stage, no such preset, sizes that do not meet, or different text encoders.
    """
    given = {slot_named(name): folder for name, folder in stages.items()}
    saved = {slot: read_source(slot, given[slot]) for slot in SLOTS if slot in given}
    require(bool(saved), "no stage given: pass at least one of --base, --sr256, --sr1024 with its run_dir")
    check_chain(saved)
    parts = assemble(saved, {"dtype": dtype}, text)
    defaults = {slot: stage.defaults for slot, stage in saved.items()}
    with config_errors("--presets: "):
        presets = kept_presets(given, saved) if presets is None else read_presets(presets, defaults)
    return ImagenPipeline(**parts, presets=presets)


def kept_presets(folders: Mapping[str, Path], saved: Mapping[str, SavedStage]) -> dict[str, Preset]:
    """What the stages' own models call by the same names, put together; what not all of them have is told of and left.

    Args:
        folders, saved: of the stages, by slot.
    """
    own: dict[str, dict[str, Preset]] = {}
    for slot, stage in saved.items():
        stored = read_index(folders[slot]).get("presets") if (folders[slot] / INDEX).is_file() else None
        own[slot] = read_presets(stored, {slot: stage.defaults})
    names = list(dict.fromkeys(name for presets in own.values() for name in presets))
    whole = [name for name in names if all(slot in own[slot].get(name, {}) for slot in saved)]
    if left := [name for name in names if name not in whole]:
        warnings.warn(f"presets left out, which not every stage's model has: {', '.join(left)}", stacklevel=3)
    return {name: {slot: own[slot][name][slot] for slot in saved} for name in whole}


def save(pipeline: Any, out: Path, max_shard_size: str | None = None) -> None:
    """Write a pipeline folder; files in `out` that are no part of a pipeline (a model card) stay.

    Raises:
        ConfigError: `out` cannot be written, or holds parts that the new pipeline lacks; a size that is none.
    """
    check_out(pipeline, out)
    with contextlib.ExitStack() as held:
        with config_errors("--out ", also=OSError):
            held.enter_context(occupied(out))
        _replace(pipeline, out, max_shard_size)


def _beside(out: Path) -> tuple[Path, Path]:
    """Where the new parts are written to first, and where the old ones go."""
    return out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.replaced")


def _replace(pipeline: Any, out: Path, max_shard_size: str | None) -> None:
    partial, old = _beside(out)
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    with config_errors(f"--out {str(out)!r} cannot be written: ", also=OSError), filling(partial):
        pipeline.save_pretrained(partial, safe_serialization=True, max_shard_size=max_shard_size or None)
        old.mkdir()
        for child in sorted(partial.iterdir()):  # renamed only: no moment without the old part or the new one
            if (out / child.name).exists():
                (out / child.name).rename(old / child.name)
            child.rename(out / child.name)
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)


def check_out(pipeline: Any, out: Path) -> None:
    """Raises ConfigError where writing to `out` would leave parts of the pipeline there behind, or replace what is no
    pipeline's, or is not possible.
    """
    require(out.is_dir() or not out.exists(), f"--out {str(out)!r} is a file: give a folder")
    partial, _ = _beside(out)
    with config_errors("--out: "):
        ours = (out / INDEX).is_file() and "stages" in read_json(out / INDEX)
    if not ours and not partial.exists():  # where it is, an earlier call was killed half-way
        parts = (name for name, part in pipeline.components.items() if part is not None)
        other = next((name for name in (*OF_RUNS, *parts) if (out / name).exists()), None)
        require(other is None, f"--out {str(out)!r} holds {other}, and is no pipeline: give a folder of its own")
    lost = [name for name, part in pipeline.components.items() if part is None and (out / name).is_dir()]
    if lost:
        stages = {f"{slot}_unet": slot for slot in SLOTS}
        keep = next((f"--{stages[name]} {out}" for name in lost if name in stages), "another --out")
        raise ConfigError(
            f"--out {str(out)!r} holds {lost[0]}, which this pipeline lacks: add {keep}, or clear it first"
        )
