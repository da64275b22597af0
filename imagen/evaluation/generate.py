"""Pictures for a suite, from a pipeline: one a prompt, from the prompt's own seed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from imagen.evaluation.suites import Prompt

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

Progress = Callable[[int, int], None]


def load(model: str, device: str | None = None, sampler: str | None = None) -> ImagenPipeline:
    """The pipeline of a folder or Hub id on a device (None: a GPU if there is one), without its own progress bars.

    Args:
        sampler: of every stage, in place of the model's own.

    Raises:
        ValueError: no such model, or an unusable device.
    """
    from imagen.cascade.presets import set_sampler
    from imagen.pipeline import ImagenPipeline

    pipe = ImagenPipeline.from_pretrained(model)
    if sampler is not None:
        for slot in pipe.stage_defaults:
            set_sampler(pipe, slot, sampler)
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        pipe.to(torch.device(name))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def progress_line(label: str) -> Progress:
    """A line on stderr that is rewritten after every batch: how many pictures, and how long it still takes."""
    start = time.monotonic()

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - start) / done * (total - done)
        sys.stderr.write(f"\r{label}: {done}/{total} pictures, {left:.0f} s left   " + ("\n" if done == total else ""))
        sys.stderr.flush()

    return show


def sample(
    pipe: ImagenPipeline,
    prompts: Sequence[Prompt],
    size: int,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    images: Sequence[Image.Image] | None = None,
    progress: Progress | None = None,
) -> dict[int, list[Image.Image]]:
    """One picture a prompt at every stage up to ``size``: side in pixels -> pictures in the prompts' order.

    Args:
        settings: arguments of the pipeline's call that are the same for all (steps, guidance, ...); None values are
            left to the stages' defaults.
        images: pictures to start from, one a prompt; None starts from text alone.

    Raises:
        ValueError: a batch size below 1, or what the pipeline refuses.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    made: dict[int, list[Image.Image]] = {}
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        generators = [torch.Generator().manual_seed(prompt.seed) for prompt in batch]
        if images is not None:
            given["image"] = list(images[start : start + batch_size])
        out: Any = pipe([prompt.text for prompt in batch], generator=generators, size=size, **given)
        for side, pictures in out.stages.items():
            made.setdefault(side, []).extend(pictures)
        if progress is not None:
            progress(start + len(batch), len(prompts))
    return made
