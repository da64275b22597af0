"""Several stages, each of a run or of a composed pipeline, and a text encoder -> one pipeline folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from imagen.disk import filling, occupied, read_json
from imagen.errors import ConfigError, config_errors, require
from imagen.pipeline import ImagenPipeline
from imagen.stages.folder import INDEX, SavedStage, read_saved
from imagen.stages.load import load_network, load_scheduler
from imagen.stages.spec import SLOTS, slot_named
from imagen.text.encoder import load_text_encoder
from imagen.text.kinds import check_max_length, text_width

OF_RUNS = ("config.yaml", "metrics.jsonl", "stage.json")  # what tells a run's folder, and that of its export


def check_chain(stages: Mapping[str, SavedStage]) -> None:
    """Raises ConfigError where stages cannot be one pipeline.

    That is where one does not start from the size that the one before it makes, is an adapter without its network,
    reads text otherwise, or keeps something else of a condition.
    """
    for (before, made), (slot, stage) in pairwise(stages.items()):
        if stage.defaults.lowres_size != made.defaults.size:
            raise ConfigError(
                f"{slot} starts from {stage.defaults.lowres_size} px but {before} makes {made.defaults.size} px: "
                "train one anew"
            )
    first = next(iter(stages.values()))
    conditions: dict[str, Any] = {}
    for slot, stage in stages.items():
        if stage.adapter_of is not None:
            raise ConfigError(
                f"{slot} is an adapter of {stage.adapter_of!r}, not a network: load it into a pipeline with "
                "sample.py --lora or ImagenPipeline.load_lora_weights"
            )
        if stage.text != first.text:
            raise ConfigError(f"{first.slot} reads text as {first.text}, {slot} as {stage.text}: train one anew")
        for name, stored in stage.conditions.items():
            if conditions.setdefault(name, stored) != stored:
                raise ConfigError(f"{slot} was trained with {name} {stored}, a stage before it with {conditions[name]}")


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


def compose(stages: Mapping[str, Path], text: str | None = None, dtype: torch.dtype = torch.float32) -> ImagenPipeline:
    """An ImagenPipeline of exported stages.

    Args:
        stages: slot (base, sr256, sr1024) -> run_dir, its model folder, or the folder of a composed pipeline.
        text: folder or Hub id of a text encoder; None takes the one that the stages were trained with.
        dtype: of all weights.

    Raises:
        ConfigError: no such stage, sizes that do not meet, or different text encoders.
    """
    given = {slot_named(name): folder for name, folder in stages.items()}
    saved = {slot: read_source(slot, given[slot]) for slot in SLOTS if slot in given}
    require(bool(saved), "no stage given: pass at least one of --base, --sr256, --sr1024 with its run_dir")
    check_chain(saved)
    components = _text_parts(saved, text, dtype)
    before: Any = None
    for slot, stage in saved.items():
        with config_errors(f"--{slot}: "):
            unet, components[f"{slot}_scheduler"] = load_network(stage.unet, dtype), load_scheduler(stage.scheduler)
        _check_meets(slot, unet, before, components.get("text_encoder"))
        before = components[f"{slot}_unet"] = unet
    return ImagenPipeline(
        **components,
        stages={slot: stage.defaults for slot, stage in saved.items()},
        max_length=max(stage.max_length for stage in saved.values()),
        text=next(iter(saved.values())).text.to_dict(),
        conditions={name: stored for stage in saved.values() for name, stored in stage.conditions.items()},
    )


def _text_parts(saved: Mapping[str, SavedStage], text: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Tokenizer and text encoder of the stages, none for stages without text. Raises: ConfigError where they differ."""
    trained = {stage.encoder for stage in saved.values() if stage.encoder is not None}
    one = text is not None or len(trained) <= 1
    require(one, f"the stages were trained with different encoders ({', '.join(sorted(trained))}): pass --text")
    source = text or next(iter(trained), None)
    if source is None:
        return {}
    lost = text is None and Path(source).is_absolute() and not Path(source).is_dir()
    require(not lost, f"the text encoder of the stages is not at {source!r} any more: say with --text where it is now")
    with config_errors("--text: "):
        tokenizer, encoder = load_text_encoder(source)
        check_max_length(max(stage.max_length for stage in saved.values()), encoder.config)
    return {"tokenizer": tokenizer, "text_encoder": encoder.to(dtype)}


def _check_meets(slot: str, unet: Any, before: Any, encoder: Any) -> None:
    """Raises ConfigError where a network does not fit the text encoder, or the network of the stage before it."""
    width = unet.config.text_dim
    if width is not None and encoder is not None and (found := text_width(encoder.config)) != width:
        raise ConfigError(f"the text encoder has width {found}, {slot} needs {width}: pass --text")
    if before is not None and unet.config.lowres_channels != before.config.in_channels:
        raise ConfigError(
            f"{slot} starts from {unet.config.lowres_channels} channels but the stage before it makes "
            f"{before.config.in_channels}: train one anew"
        )


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
