"""What ``--model`` names: a saved pipeline, here or on the Hub, or the run folders of stages, commas between them.

It is found and looked at first; then loaded and put where it computes, with the adapters and samplers asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagen.checks import check_device
from imagen.cli.before import adapter_of
from imagen.errors import ConfigError
from imagen.stages.folder import INDEX, RECORD, SavedStage, find_folder, read_model, read_run
from imagen.stages.spec import SLOTS

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

DTYPES = ("float32", "bfloat16", "float16")


class Model(NamedTuple):
    """A model that was found and looked at, but not loaded.

    Attributes:
        stages: those it holds, in the order of the cascade.
        folder: the pipeline's; None: each stage lies in a run of its own.
    """

    stages: dict[str, SavedStage]
    folder: Path | None = None


def find_model(name: str) -> Model:
    """The model that ``name`` means. A Hub id is fetched.

    Raises:
        ValueError: nothing there, or something else; stages that do not fit each other.
    """
    if not name.strip():
        find_folder(name)
    parts = [Path(name)] if Path(name).is_dir() else [Path(part.strip()) for part in name.split(",")]
    if len(parts) > 1 or any((parts[0] / place).is_file() for place in (RECORD, f"model/{RECORD}")):
        return Model(_runs(parts))
    folder = find_folder(name)
    if not (folder / INDEX).is_file() and (folder / "state").is_dir():
        raise ValueError(f"model {name!r} is the folder of a run that has exported no stage yet: let it train on")
    return Model(read_model(folder), folder)


def _runs(folders: Sequence[Path]) -> dict[str, SavedStage]:
    from imagen.cascade.training.compose import check_chain

    stages: dict[str, SavedStage] = {}
    for folder in folders:
        stage = read_run(folder)
        if stage.slot in stages:
            raise ValueError(f"--model names two runs of the stage {stage.slot}, the second is {str(folder)!r}")
        stages[stage.slot] = stage
    ordered = {slot: stages[slot] for slot in SLOTS if slot in stages}
    check_chain(ordered)
    return ordered


def load(args: argparse.Namespace, model: Model, prompts: Sequence[str]) -> ImagenPipeline:
    """The model on its device, with the sampler asked for; prompts it cannot read are refused here, before sampling.

    Raises:
        ValueError: the model cannot be loaded, no such device, a prompt too long for the encoder.
    """
    import diffusers
    import transformers

    from imagen.cascade.presets import apply_preset, set_sampler

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = _device(args)
    pipe = _load_parts(args, model)
    try:
        _load_adapters(args.lora, pipe)
        if args.offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except RuntimeError as error:
        raise ValueError(f"model {args.model!r} cannot be put on {device!r}: {str(error).splitlines()[0]}") from error
    if prompts:
        pipe.reader.check([*prompts, *([args.negative_prompt] if args.negative_prompt is not None else [])])
    if args.preset is not None:
        apply_preset(pipe, args.preset)
    if args.sampler is not None:
        for slot in pipe.stage_defaults:
            set_sampler(pipe, slot, args.sampler)
    return pipe


def _load_parts(args: argparse.Namespace, model: Model) -> ImagenPipeline:
    """The pipeline. Raises ValueError, one line for the many ways in which a broken folder fails in four libraries."""
    import torch

    from imagen.cascade.training.compose import compose
    from imagen.pipeline import ImagenPipeline

    dtype = getattr(torch, args.dtype)
    try:
        if model.folder is None:
            return compose({slot: stage.unet.parent for slot, stage in model.stages.items()}, args.text, dtype)
        return ImagenPipeline.from_pretrained(model.folder, dtype=dtype)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ConfigError) or (
            isinstance(error, ValueError) and reason.startswith(f"model {args.model!r}")
        ):
            raise
        raise ValueError(f"model {args.model!r} cannot be loaded: {reason}; save or fetch it again") from error


def _device(args: argparse.Namespace) -> str:
    """The device asked for, or a GPU where there is one. Raises: ValueError where it is not there."""
    import torch

    device = check_device("--device", args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.offload and torch.device(device).type == "cpu":
        raise ValueError("--offload has no effect: the pictures are made on the CPU; leave it out or give a --device")
    return device


def _load_adapters(words: Sequence[str], pipe: ImagenPipeline) -> None:
    """Load each adapter of --lora, [STAGE=]DIR, and leave a learned variance behind where its training did."""
    from imagen.cascade.adapters import trained_without_variance
    from imagen.cascade.variance import drop_variance

    for word in words:
        slot, folder = adapter_of(word)
        unet = getattr(pipe, f"{slot}_unet", None)
        if unet is not None and unet.facts.learns_variance and trained_without_variance(folder):
            drop_variance(pipe, slot)
        pipe.load_lora_weights(folder, slot)
