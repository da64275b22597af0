"""The model that was found and looked at: loaded, put where it computes, with the adapters asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from imagen.checks import check_device
from imagen.cli.before import adapter_of
from imagen.errors import ConfigError
from imagen.stages.model import Model

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

DTYPES = ("float32", "bfloat16", "float16")


def load(args: argparse.Namespace, model: Model, prompts: Sequence[str]) -> ImagenPipeline:
    """The model on its device; prompts it cannot read are refused here, before sampling.

    Raises:
        ValueError: the model cannot be loaded, no such device, a prompt too long for the encoder.
    """
    import diffusers
    import transformers

    from imagen.cascade.parts import fast_dtype

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = _device(args)
    if args.dtype == "auto":
        args.dtype = str(fast_dtype(device)).removeprefix("torch.")  # which the pictures' records then name
    pipe = _load_parts(args, model)
    try:
        _load_adapters(args.lora, pipe)
        if args.offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except RuntimeError as error:
        raise ValueError(f"model {args.model!r} cannot be put on {device!r}: {str(error).splitlines()[0]}") from error
    if args.compile:
        pipe.compile()
    if prompts:
        pipe.reader.check([*prompts, *([args.negative_prompt] if args.negative_prompt is not None else [])])
    return pipe


def _load_parts(args: argparse.Namespace, model: Model) -> ImagenPipeline:
    """The pipeline. Raises ValueError, one line for the many ways in which a broken folder fails in four libraries."""
    import torch

    from imagen.cascade.assembly import assemble
    from imagen.pipeline import ImagenPipeline

    dtype = getattr(torch, args.dtype)
    try:
        if model.folder is None:
            return ImagenPipeline(**assemble(model.stages, {"dtype": dtype}, args.text))
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
    """Load each adapter of --lora, [STAGE=]DIR[:SCALE], and leave a learned variance behind where its training did."""
    from imagen.cascade.adapter_files import trained_without_variance
    from imagen.cascade.variance import drop_variance

    for word in words:
        slot, folder, scale = adapter_of(word)
        unet = getattr(pipe, f"{slot}_unet", None)
        if unet is not None and unet.facts.learns_variance and trained_without_variance(folder):
            drop_variance(pipe, slot)
        pipe.load_lora_weights(folder, slot, scale=scale)
