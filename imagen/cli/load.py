"""The model of a command, loaded and put where it computes, with the adapters and samplers that were asked for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from imagen.cli.model import Model
from imagen.stages.spec import StageDefaults

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline


def _load_model(args: argparse.Namespace, model: Model) -> ImagenPipeline:
    """The pipeline. Raises ValueError, one line for the many ways in which a broken folder fails in four libraries."""
    try:
        return model.load(args.dtype)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ValueError) and reason.startswith(f"model {args.model!r}"):
            raise
        raise ValueError(f"model {args.model!r} cannot be loaded: {reason}; save or fetch it again") from error


def load(
    args: argparse.Namespace, model: Model, prompts: Sequence[str], running: Mapping[str, StageDefaults]
) -> ImagenPipeline:
    """The model on its device, with the sampler asked for; prompts it cannot read are refused here, before sampling.

    Args:
        running: the stages that run, by slot.

    Raises:
        ValueError: the model cannot be loaded, no such device, a prompt too long for the encoder.
    """
    import diffusers
    import transformers

    from imagen.cascade.presets import apply_preset, set_sampler

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = _device(args)
    pipe = _load_model(args, model)
    try:
        _load_adapters(args.lora, pipe)
        if args.offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except RuntimeError as error:
        raise ValueError(f"model {args.model!r} cannot be put on {device!r}: {str(error).splitlines()[0]}") from error
    _check_prompts(args, pipe, prompts, running)
    if args.preset is not None:
        apply_preset(pipe, args.preset)
    if args.sampler is not None:
        for slot in pipe.stage_defaults:
            set_sampler(pipe, slot, args.sampler)
    return pipe


def _device(args: argparse.Namespace) -> str:
    """The device asked for, or a GPU where there is one. Raises: ValueError where it is not there."""
    import torch

    device: str = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} is not there: {str(error).splitlines()[0]}; try --device cpu") from error
    if args.offload and torch.device(device).type == "cpu":
        raise ValueError("--offload has no effect: the pictures are made on the CPU; leave it out or give a --device")
    return device


def _load_adapters(words: Sequence[str], pipe: ImagenPipeline) -> None:
    """Load each adapter of --lora, [STAGE=]DIR, and leave a learned variance behind where its training did."""
    from imagen.cascade.adapters import trained_without_variance
    from imagen.cascade.variance import drop_variance

    for word in words:
        stage, _, folder = word.rpartition("=")
        slot = stage or "base"
        unet = getattr(pipe, f"{slot}_unet", None)
        if unet is not None and unet.facts.learns_variance and trained_without_variance(folder):
            drop_variance(pipe, slot)
        pipe.load_lora_weights(folder, slot)


def _check_prompts(
    args: argparse.Namespace, pipe: ImagenPipeline, prompts: Sequence[str], running: Mapping[str, StageDefaults]
) -> None:
    """Raises ValueError for prompts that nothing reads, none where one is read, or one that the encoder would cut."""
    reading = [slot for slot in running if getattr(pipe, f"{slot}_unet").config.text_dim is not None]
    if bool(prompts) != bool(reading):
        need = 'reads text: give a prompt, sample.py "a red circle"'
        if prompts:
            where = (
                "reads no text"
                if len(running) == len(pipe.stage_defaults)
                else f"reads no text in {next(iter(running))}"
            )
            need = f"{where}: leave the prompt out"
        raise ValueError(f"model {args.model!r} {need}")
    if reading and (pipe.tokenizer is None or pipe.text_encoder is None):
        raise ValueError(
            f"model {args.model!r} holds no tokenizer/ and text_encoder/: save it again with its text encoder"
        )
    if reading:
        pipe.reader.check([*prompts, *([args.negative_prompt] if args.negative_prompt is not None else [])])
