"""``python sample.py "PROMPT"``: pictures from prompts. Arguments and model folder are checked before it is loaded."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from PIL import Image

from imagen.cascade.presets import PRESETS, with_preset
from imagen.cascade.route import Wish, cropped, option, resolve
from imagen.checks import check_int
from imagen.cli.load import load
from imagen.cli.model import DTYPES, Model, find_model
from imagen.cli.png import sheet
from imagen.cli.record import Picture, Writer, describe
from imagen.conditions.options import OPTIONS, picture
from imagen.diffusion.vocabulary import SamplerKind
from imagen.errors import Stopped, run_command
from imagen.stages.spec import OF_CALLS, SETTINGS, Setting, StageDefaults

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

MODEL_HELP = "a model, or the folders of training runs: runs/base64,runs/sr256; default: %(default)s"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        start, _, words = message.partition("unrecognized arguments: ")
        unknown = [] if start else words.split()[:1]
        near = [option for word in unknown for option in difflib.get_close_matches(word, self._option_string_actions)]
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")


def parser() -> Parser:
    """The options of sample.py."""
    p = Parser(
        prog="sample.py",
        description="Sample pictures from prompts. STEPS, GUIDANCE and other settings of stages are one value for "
        "all (50), one for each stage that runs (50,20,10), or named by side or slot (64=50,1024=10 or base=50); else "
        "the model's own defaults hold.",
    )
    p.add_argument("prompt", nargs="*", metavar="PROMPT", help="what to show, in quotes; several make several pictures")
    p.add_argument("--prompts", metavar="FILE", help="a text file with one prompt per line (blank lines are skipped)")
    p.add_argument("--model", default="pretrained/shapes", metavar="DIR_OR_HUB_ID", help=MODEL_HELP)
    p.add_argument("--out", default="samples", metavar="DIR", help="where the pictures go; default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="of the first picture, the next has one more; default: 0")
    p.add_argument("--num-images", type=int, default=1, metavar="N", help="pictures of each prompt; default: 1")
    p.add_argument("--negative-prompt", metavar="TEXT", help="what guidance leads away from, in place of no text")
    p.add_argument(
        "--size", type=int, help="side to stop at in pixels, e.g. 64, 256 or 1024; default: the last stage's"
    )
    p.add_argument(
        "--height", type=int, metavar="PX", help="of the last stage's picture, with --width; default: square"
    )
    p.add_argument("--width", type=int, metavar="PX", help="see --height")
    p.add_argument("--image", metavar="FILE", help="a picture to start the super-resolution stages from")
    for name, extra in OPTIONS.items():
        p.add_argument(extra.flag, dest=name, metavar=extra.metavar, help=extra.help)
    p.add_argument("--preset", choices=PRESETS, help="sampler and steps for checkpoints of the DeepFloyd IF family")
    for name, flag in OF_CALLS.items():
        declared = SETTINGS[name]
        told = f"per stage: {declared.help}"
        p.add_argument(flag, dest=name, type=_values(declared), metavar=declared.metavar, help=told)
    p.add_argument(
        "--sampler", choices=get_args(SamplerKind), help="step rule of every stage; default: the model's own"
    )
    p.add_argument("--batch-size", type=int, metavar="N", help="pictures at once; default: 1 on a CPU, else 4")
    p.add_argument("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    p.add_argument(
        "--offload", action="store_true", help="hold one part of the model at a time on the GPU, the others on the CPU"
    )
    p.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[STAGE=]DIR",
        help="an adapter, its file or the folder of its run, for base (the default), sr256 or sr1024; may be repeated",
    )
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="the networks compute in; default: %(default)s")
    p.add_argument("--grid", action="store_true", help="also write all pictures side by side as one")
    p.add_argument("--save-stages", action="store_true", help="also write the pictures of the earlier stages")
    return p


def _values(declared: Setting) -> Callable[[str], Any]:
    """argparse type for one value, a,b,c or size=a,slot=b."""

    def parse(text: str) -> Any:
        try:
            entries = [entry.strip() for entry in re.split(r",(?![^(]*\))", text)]  # not at commas in brackets
            named = [re.fullmatch(r"(\w+)=(.*)", entry) for entry in entries]
            if any(named):
                pairs = [(match[1], match[2]) for match in named if match]
                if len(pairs) < len(entries):
                    raise ValueError
                return {int(key) if key.isdigit() else key: declared.parse(value) for key, value in pairs}
            return declared.parse(text) if len(entries) == 1 else [declared.parse(entry) for entry in entries]
        except ValueError as error:
            told = str(error) if declared.written is None else f"{text!r} is not understood; write {declared.written}"
            raise argparse.ArgumentTypeError(told) from None

    return parse


def wish(args: argparse.Namespace) -> Wish:
    """What the command line asks of the stages."""
    return Wish(args.size, args.height, args.width, {name: getattr(args, name) for name in OF_CALLS})


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of the command line and of the file, in this order.

    Raises:
        ValueError: an empty prompt, a file that cannot be read or that holds none.
    """
    prompts = list(args.prompt)
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ValueError(f"prompt {number} is empty ({prompt!r}); say what to show")
        if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ValueError(f"prompt {number} ({prompt!r}) is no text in this terminal's encoding; write it in UTF-8")
    if args.prompts is not None:
        try:
            lines = Path(args.prompts).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ValueError(f"--prompts {args.prompts!r} cannot be read: {reason}") from error
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"--prompts {args.prompts!r} holds no prompt; write one per line")
        prompts += found
    return prompts


def check(
    args: argparse.Namespace, prompts: Sequence[str]
) -> tuple[Model, Image.Image | None, dict[str, StageDefaults]]:
    """Everything that can be said before the model is loaded: options, its folder, the picture to start from.

    Returns:
        the model, fetched from the Hub if need be, the picture or None, and the stages that run with their settings.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    check_int("--seed", args.seed, 0, 2**62)
    for name, value in (("--num-images", args.num_images), ("--batch-size", args.batch_size)):
        if value is not None:
            check_int(name, value, 1)
    asked = wish(args)
    image = picture("--image", args.image) if args.image is not None else None
    args.conditions = {n: o.read(o.flag, getattr(args, n)) for n, o in OPTIONS.items() if getattr(args, n) is not None}
    if not prompts and image is None and (Path(args.model) / "text_encoder").is_dir():
        raise ValueError('no prompt: write one in quotes (sample.py "a red circle"), or give a file with --prompts')
    model = find_model(args.model)
    stages = model.stages if args.preset is None else with_preset(args.preset, model.stages)
    pictures = [] if image is None else [cropped(image.height, image.width, asked.aspect)]
    return model, image, resolve(stages, asked, pictures, option)


def _out_folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {name!r} cannot be made: {error.strerror}; give a folder to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {name!r} cannot be written to; give another folder")
    return folder


def sample(
    args: argparse.Namespace, pipe: ImagenPipeline, pictures: Sequence[Picture], image: Any, writer: Writer
) -> None:
    """Make the pictures batch by batch, each written as soon as it is done.

    Raises:
        MemoryError: a batch does not fit into the device's memory.
        Stopped: numbers that are not finite.
    """
    import torch

    settings = {name: getattr(args, name) for name in OF_CALLS}
    size = args.batch_size or (1 if pipe._execution_device.type == "cpu" else 4)
    for start in range(0, len(pictures), size):
        batch = pictures[start : start + size]
        writer.begin(batch)
        if len(pictures) > len(batch):
            span = f"{start + 1}" if len(batch) == 1 else f"{start + 1}-{start + len(batch)}"
            pipe.set_progress_bar_config(desc=f"{span} of {len(pictures)}")
        with_text = batch[0].prompt is not None
        try:
            pipe(
                prompt=[str(picture.prompt) for picture in batch] if with_text else None,
                negative_prompt=args.negative_prompt,
                num_images_per_prompt=1 if with_text else len(batch),
                **settings,
                **args.conditions,
                generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
                image=image,
                size=args.size,
                height=args.height,
                width=args.width,
                callback_on_stage_end=writer.stage_end,
            )
        except ValueError as error:  # numbers that are not finite
            raise Stopped(str(error)) from error
        except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU there is only its text
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            remedy = "use a smaller --batch-size" if len(batch) > 1 else "use --dtype bfloat16 or a smaller --size"
            many = f"{len(batch)} pictures of {writer.shared['size']} px"
            raise MemoryError(f"{many} do not fit into the memory of {pipe._execution_device}; {remedy}") from error
    if args.grid:
        columns = args.num_images if args.num_images > 1 else math.ceil(math.sqrt(len(pictures)))
        settings = {**writer.shared, "prompts": [picture.prompt for picture in pictures], "seed": args.seed}
        writer.write(sheet(writer.finished, columns), f"grid_seed{args.seed}", settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        its exit code: 0; 2 for bad input, with one line on stderr; 1 when the machine fails; 130 after Ctrl-C.
    """
    args = parser().parse_intermixed_args(argv)
    return run_command("sample.py", partial(run, args), f"; what was finished is in {args.out}")


def run(args: argparse.Namespace) -> None:
    """Make what the arguments ask for. Raises: ValueError, before anything is sampled; MemoryError, Stopped."""
    prompts = read_prompts(args)
    model, image, running = check(args, prompts)
    out = _out_folder(args.out)
    pipe = load(args, model, prompts, running)
    asked = wish(args)
    running = pipe.settings(image, asked.size, asked.height, asked.width, **asked.settings).slots
    writer = Writer(args, describe(args, pipe, running), out, running)
    wanted: Sequence[str | None] = prompts or [None]
    every = [prompt for prompt in wanted for _ in range(args.num_images)]
    sample(args, pipe, [Picture(prompt, args.seed + index) for index, prompt in enumerate(every)], image, writer)
