"""Several stages, each of a run or of a composed pipeline, and a text encoder -> one pipeline folder.

python -m imagen.training.compose --base64 runs/a --sr256 runs/b --sr1024 runs/c --text T5_FOLDER --out my_model
python -m imagen.training.compose --base64 runs/new --sr256 my_model --sr1024 my_model --text my_model --out better
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from imagen.cascade.folder import INDEX, check_complete, check_folder, read_index
from imagen.cascade.stages import TextDefaults
from imagen.errors import ConfigError
from imagen.training.export import SLOTS, read_stage

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_chain(stages: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError where a stage does not start from the size that the one before it makes."""
    before: tuple[str, int] | None = None
    for name, record in stages.items():
        size, lowres = record["stage"]["size"], record["stage"]["lowres_size"]
        if before is not None and lowres != before[1]:
            raise ConfigError(f"{name} starts from {lowres} px but {before[0]} makes {before[1]} px: train one anew")
        before = (name, size)


def text_reading(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How all stages read text. Raises: ConfigError where two differ, or one is an adapter without its network."""
    found: dict[str, dict[str, Any]] = {}
    for name, record in stages.items():
        if "adapter_of" in record:
            raise ConfigError(
                f"{name} is an adapter of {record['adapter_of']!r}, not a network: load it into a pipeline with "
                "sample.py --lora or ImagenPipeline.load_lora_weights"
            )
        found[name] = {key: record["text"][key] for key in ("padding", "null", "lowercase") if key in record["text"]}
    first = next(iter(found))
    for name, reading in found.items():
        if TextDefaults.from_dict(reading) != TextDefaults.from_dict(found[first]):
            raise ConfigError(f"{first} reads text as {found[first]}, {name} as {reading}: train one anew")
    return found[first]


def read_source(name: str, folder: Path) -> dict[str, Any]:
    """What read_stage says of the stage `name`, of a run or of the pipeline that was composed in `folder`.

    Raises:
        ConfigError: no such stage there.
    """
    if not (folder / INDEX).is_file():
        record = read_stage(folder)
        if record["name"] != name:
            raise ConfigError(
                f"--{name} {str(folder)!r} holds the stage {record['name']}: pass it as --{record['name']}"
            )
        return record
    try:
        index, stages, slot = read_index(folder), check_folder(folder), SLOTS[name]
    except ValueError as error:
        raise ConfigError(f"--{name}: {error}") from error
    if slot not in stages:
        raise ConfigError(f"--{name}: the pipeline {str(folder)!r} has no {name}, only {', '.join(stages) or 'text'}")
    encoder = str(folder) if (folder / "text_encoder").is_dir() else None
    return {
        "name": name,
        "stage": stages[slot].to_dict(),
        "text": {"encoder": encoder, "max_length": index["max_length"], **(index.get("text") or {})},
        "unet": folder / f"{slot}_unet",
        "scheduler": folder / f"{slot}_scheduler",
    }


def load_unet(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The network saved in a folder, without the folder's name, which is nobody's business once composed.

    Raises:
        ConfigError: a folder without one.
    """
    import unets

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
        unet = getattr(unets, kind).from_pretrained(folder, torch_dtype=dtype)
        check_complete(folder, unet.state_dict())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder} holds no network: {' '.join(str(error).split())}") from error
    unet.register_to_config(_name_or_path="")
    return unet


def load_scheduler(folder: Path) -> Any:
    """The scheduler saved in a folder."""
    import diffusers

    from imagen.diffusion import sampling

    kind = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
    return (getattr(sampling, kind, None) or getattr(diffusers, kind)).from_pretrained(folder)


def compose(stages: Mapping[str, Path], text: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """An ImagenPipeline of exported stages.

    Args:
        stages: stage name (base64, sr256, sr1024) -> run_dir, its model folder, or the folder of a composed pipeline.
        text: T5 folder or Hub id; None takes the one that the stages were trained with.
        dtype: of all weights.

    Raises:
        ConfigError: no such stage, sizes that do not meet, or different text encoders.
    """
    from imagen.pipeline import ImagenPipeline
    from imagen.text.encoder import load_text_encoder

    records = {name: read_source(name, stages[name]) for name in SLOTS if name in stages}
    if not records:
        raise ConfigError("no stage given: pass at least one of --base64, --sr256, --sr1024 with its run_dir")
    check_chain(records)
    reading = text_reading(records)
    trained = {record["text"]["encoder"] for record in records.values()} - {None}
    if text is None and len(trained) > 1:
        raise ConfigError(
            f"the stages were trained with different encoders ({', '.join(sorted(trained))}): pass --text"
        )
    components: dict[str, Any] = {}
    before: Any = None
    source = text or next(iter(trained), None)
    if source is not None:
        try:
            components["tokenizer"], encoder = load_text_encoder(source)
            components["text_encoder"] = encoder.to(dtype)
        except ValueError as error:
            raise ConfigError(f"--text: {error}") from error
    for name, record in records.items():
        unet = load_unet(record["unet"], dtype)
        width = unet.config.text_dim
        if width is not None and "text_encoder" in components and components["text_encoder"].config.d_model != width:
            raise ConfigError(
                f"--text {source!r} has width {components['text_encoder'].config.d_model}, {name} needs {width}"
            )
        if before is not None and unet.config.lowres_channels != before.config.in_channels:
            raise ConfigError(
                f"{name} starts from {unet.config.lowres_channels} channels but the stage before it makes "
                f"{before.config.in_channels}: train one anew"
            )
        before = components[f"{SLOTS[name]}_unet"] = unet
        components[f"{SLOTS[name]}_scheduler"] = load_scheduler(record["scheduler"])
    return ImagenPipeline(
        **components,
        stages={SLOTS[name]: record["stage"] for name, record in records.items()},
        max_length=max(record["text"]["max_length"] for record in records.values()),
        text=reading,
    )


def save(pipeline: Any, out: Path, max_shard_size: str | None = None) -> None:
    """Write a pipeline folder; files in `out` that are no part of a pipeline (a model card) stay.

    Raises:
        ConfigError: `out` cannot be written, or holds parts that the new pipeline lacks; a size that is none.
    """
    check_out(pipeline, out)
    partial, old = (out.with_name(f"{out.name}.{word}") for word in ("partial", "replaced"))
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        pipeline.save_pretrained(
            partial, safe_serialization=True, **({"max_shard_size": max_shard_size} if max_shard_size else {})
        )
        out.mkdir(parents=True, exist_ok=True)
        old.mkdir()
        for child in sorted(partial.iterdir()):  # renamed only: no moment without the old part or the new one
            if (out / child.name).exists():
                (out / child.name).rename(old / child.name)
            child.rename(out / child.name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out {str(out)!r} cannot be written: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_out(pipeline: Any, out: Path) -> None:
    """Raises ConfigError where writing to `out` would leave parts of the pipeline there behind, or is not possible."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file: give a folder")
    lost = [name for name, part in pipeline.components.items() if part is None and (out / name).is_dir()]
    if lost:
        stages = {f"{slot}_unet": name for name, slot in SLOTS.items()}
        keep = next((f"--{stages[name]} {out}" for name in lost if name in stages), "another --out")
        raise ConfigError(
            f"--out {str(out)!r} holds {lost[0]}, which this pipeline lacks: add {keep}, or clear it first"
        )


def command(
    out: Path,
    base64: Path | None = None,
    sr256: Path | None = None,
    sr1024: Path | None = None,
    text: str | None = None,
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
    max_shard_size: str | None = None,
) -> None:
    """Compose stage runs into one folder that sample.py --model and ImagenPipeline.from_pretrained load.

    Args:
        out: folder to write; of a pipeline that is there the parts are replaced, other files stay.
        base64: run_dir of the base stage, or a composed pipeline to take it from.
        sr256: the same for the 64 -> 256 stage.
        sr1024: the same for the 256 -> 1024 stage.
        text: T5 folder or Hub id; by default the one that the stages were trained with.
        dtype: of the stored weights.
        max_shard_size: split weight files above this size, for example 14MB.
    """
    given = {"base64": base64, "sr256": sr256, "sr1024": sr1024}
    pipeline = compose({name: path for name, path in given.items() if path is not None}, text, DTYPES[dtype])
    save(pipeline, out, max_shard_size)
    print(f"{out}: {', '.join(name for name, part in pipeline.components.items() if part is not None)}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    from jsonargparse import auto_cli

    try:
        auto_cli(command, args=arguments, as_positional=False)
    except ConfigError as error:
        print(f"compose: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
