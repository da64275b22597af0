"""What a run of sample.py leaves behind: each picture as a file, with what is needed to make it again."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from imagen.cli.commands import typed
from imagen.cli.png import free_stem, slug, write_png
from imagen.conditions.options import OPTIONS
from imagen.stages.spec import OF_CALLS, SETTINGS, StageDefaults

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline


ASKED = ("text", "image", "negative_prompt", *OPTIONS, "height", "width")
"""Options that are recorded as they were given."""


class Picture(NamedTuple):
    """One picture to make.

    Attributes:
        prompt: None: the model reads no text.
        seed: of its generator.
        chosen: how it was chosen among others, for its record; empty where it was not.
    """

    prompt: str | None
    seed: int
    chosen: Mapping[str, Any] = {}


def describe(args: argparse.Namespace, pipe: ImagenPipeline, running: Mapping[str, StageDefaults]) -> dict[str, Any]:
    """The settings that all pictures of the run share, enough to make them again.

    Args:
        running: the stages that run with their settings, by slot.
    """
    from importlib.metadata import version

    names = stage_names(running)
    settings: dict[str, dict[str, Any]] = {}
    for name, flag in OF_CALLS.items():
        takes = [slot for slot in running if running[slot].lowres_size is not None or not SETTINGS[name].from_picture]
        settings[recorded(flag)] = {names[slot]: getattr(running[slot], name) for slot in takes}
    return {
        **{name: getattr(args, name) for name in ("model", "preset", "lora", "dtype", "compile", *ASKED)},
        "size": list(running.values())[-1].size,
        **settings,
        "scheduler": {names[slot]: type(getattr(pipe, f"{slot}_scheduler")).__name__ for slot in running},
        "device": str(pipe._execution_device),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
    }


def stage_names(running: Mapping[str, StageDefaults]) -> dict[str, str]:
    """What a record calls each stage: its side or, where two make pictures of one side, its slot."""
    sides = [stage.size for stage in running.values()]
    return {slot: str(stage.size) if sides.count(stage.size) == 1 else slot for slot, stage in running.items()}


def recorded(flag: str) -> str:
    """The key of a setting in a record: its option without dashes."""
    return flag.removeprefix("--").replace("-", "_")


def command(args: argparse.Namespace, picture: Picture, settings: dict[str, Any]) -> str:
    """The command line that makes this one picture again."""
    words = [*typed("sample").split(), *([picture.prompt] if picture.prompt is not None else [])]
    words += ["--model", args.model, "--seed", str(picture.seed), "--size", str(settings["size"])]
    for flag in OF_CALLS.values():
        values = {stage: value for stage, value in settings[recorded(flag)].items() if value is not None}
        words += [flag, ",".join(f"{stage}={value}" for stage, value in values.items())] if values else []
    optional = {name: getattr(args, name) for name in ("preset", *ASKED)}
    for name, value in optional.items():
        words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    words += [word for adapter in args.lora for word in ("--lora", adapter)]
    words += ["--compile"] if args.compile else []
    return shlex.join([*words, "--dtype", args.dtype])


@dataclass
class Writer:
    """Writes the pictures of one batch as their stages finish.

    Attributes:
        args, shared: the command line, and the settings that all its pictures share.
        out: the folder.
        running: the stages that run, by slot.
        batch: the pictures the pipeline works on.
        finished: those of the last stage, of all batches.
        stems: file names of this batch's pictures, chosen when the first stage ends.
    """

    args: argparse.Namespace
    shared: dict[str, Any]
    out: Path
    running: Mapping[str, StageDefaults]
    batch: Sequence[Picture] = ()
    finished: list[Image.Image] = field(default_factory=list)
    stems: list[str] = field(default_factory=list)

    def begin(self, batch: Sequence[Picture]) -> None:
        """The next batch."""
        suffixes = ["", *(self.suffix(slot) for slot in self.running)]
        self.batch, self.stems = batch, []
        for picture in batch:
            name = picture.prompt if picture.prompt is not None else Path(self.args.image or "unconditional").stem
            self.stems.append(free_stem(self.out, f"{slug(name)}_seed{picture.seed}", suffixes))

    def suffix(self, slot: str) -> str:
        """What the name of an earlier stage's file ends in."""
        name = stage_names(self.running)[slot]
        return f"_{name}px" if name.isdigit() else f"_{name}"

    def stage_end(self, pipe: Any, size: int, images: Sequence[Image.Image]) -> None:
        """The pipeline's callback_on_stage_end."""
        final = pipe.stage == list(self.running)[-1]
        for picture, stem, image in zip(self.batch, self.stems, images, strict=True):
            if final or self.args.save_stages:
                settings = {"prompt": picture.prompt, "seed": picture.seed, **picture.chosen, **self.shared}
                settings["stage"] = size
                settings["command"] = command(self.args, picture, self.shared)
                self.write(image, stem if final else stem + self.suffix(pipe.stage), settings)
        if final:
            self.finished += images

    def write(self, image: Image.Image, stem: str, settings: dict[str, Any]) -> None:
        """Write one file and say its name."""
        print(write_png(image, self.out, stem, settings), flush=True)
