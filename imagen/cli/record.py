"""What a run of sample.py leaves behind: each picture as a file, with what is needed to make it again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from imagen.cli.png import free_stem, slug, write_png

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline


class Picture(NamedTuple):
    """One picture to make: its prompt (None: the model reads no text) and its seed."""

    prompt: str | None
    seed: int


def describe(args: argparse.Namespace, pipe: ImagenPipeline, image: Image.Image | None) -> dict[str, Any]:
    """The settings that all pictures of the run share, enough to make them again."""
    from importlib.metadata import version

    stages = pipe.settings(
        image,
        args.size,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance,
        aug_level=args.aug_level,
        lowres_consistency=args.lowres_consistency,
        shape=(args.height, args.width),
    )
    schedulers = {pipe.stage_defaults[slot].size: getattr(pipe, f"{slot}_scheduler") for slot in pipe.stage_defaults}
    entered = {str(size): stage for size, stage in stages.items() if stage.lowres_size is not None}
    return {
        "negative_prompt": args.negative_prompt,
        "model": args.model,
        "image": args.image,
        "size": max(stages),
        "height": args.height,
        "width": args.width,
        "preset": args.preset,
        "steps": {str(size): stage.num_inference_steps for size, stage in stages.items()},
        "guidance": {str(size): stage.guidance_scale for size, stage in stages.items()},
        "aug_level": {size: stage.aug_level for size, stage in entered.items()},
        "lowres_consistency": {size: stage.lowres_consistency for size, stage in entered.items()},
        "sampler": {str(size): type(schedulers[size]).__name__ for size in stages},
        "lora": args.lora,
        "dtype": args.dtype,
        "device": str(pipe._execution_device),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def command(args: argparse.Namespace, picture: Picture, settings: dict[str, Any]) -> str:
    """The command line that makes this one picture again."""
    words = ["python", "sample.py", *([picture.prompt] if picture.prompt is not None else [])]
    words += ["--model", args.model, "--seed", str(picture.seed), "--size", str(settings["size"])]
    for name in ("steps", "guidance", "aug_level", "lowres_consistency"):
        if settings[name]:
            words += [
                f"--{name.replace('_', '-')}",
                ",".join(f"{size}={value}" for size, value in settings[name].items()),
            ]
    optional = {"--sampler": args.sampler, "--image": args.image, "--negative-prompt": args.negative_prompt}
    optional |= {"--height": args.height, "--width": args.width, "--preset": args.preset}
    words += [word for option, value in optional.items() if value is not None for word in (option, str(value))]
    words += [word for adapter in args.lora for word in ("--lora", adapter)]
    return shlex.join([*words, "--dtype", args.dtype])


@dataclass
class Writer:
    """Writes the pictures of one batch as their stages finish.

    Attributes:
        args, shared: the command line, and the settings that all its pictures share.
        out: the folder.
        batch: the pictures the pipeline works on.
        finished: those of the last stage, of all batches.
        stems: file names of this batch's pictures, chosen when the first stage ends.
    """

    args: argparse.Namespace
    shared: dict[str, Any]
    out: Path
    batch: Sequence[Picture] = ()
    finished: list[Image.Image] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)

    def begin(self, batch: Sequence[Picture]) -> None:
        """The next batch."""
        suffixes = ["", *(f"_{size}px" for size in self.shared["steps"])]
        self.batch, self.stems = batch, []
        for picture in batch:
            name = picture.prompt if picture.prompt is not None else Path(self.args.image or "unconditional").stem
            self.stems.append(free_stem(self.out, f"{slug(name)}_seed{picture.seed}", suffixes))

    def stage_end(self, pipe: Any, size: int, images: Sequence[Image.Image]) -> None:
        """The pipeline's callback_on_stage_end."""
        final = size == self.shared["size"]
        for picture, stem, image in zip(self.batch, self.stems, images, strict=True):
            if final or self.args.save_stages:
                settings = {"prompt": picture.prompt, "seed": picture.seed, **self.shared, "stage": size}
                settings["command"] = command(self.args, picture, self.shared)
                self.write(image, stem if final else f"{stem}_{size}px", settings)
        if final:
            self.finished += images

    def write(self, image: Image.Image, stem: str, settings: dict[str, Any]) -> None:
        """Write one file and say its name."""
        print(write_png(image, self.out, stem, settings), flush=True)
