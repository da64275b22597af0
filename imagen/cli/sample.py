"""``python sample.py "PROMPT"``: pictures from prompts. Arguments and model folder are checked before it is loaded."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from PIL import Image, ImageOps

from imagen.cascade.presets import PRESETS
from imagen.cascade.stages import check_int, check_number, check_steps, cropped, entry_side, per_stage, route
from imagen.cli.model import DTYPES, Model, find_model
from imagen.cli.png import sheet
from imagen.cli.record import Picture, Writer, describe
from imagen.diffusion.timesteps import RESPACINGS

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

MODEL_HELP = "a model, or the folders of training runs: runs/base64,runs/sr256; default: %(default)s"
SAMPLERS = ("ddpm", "ddim", "dpm++", "unipc", "euler", "heun")


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
        description="Sample pictures from prompts. STEPS, GUIDANCE and LEVEL are one value for all stages (50), one "
        "for each stage that runs (50,20,10), or named by size (64=50,1024=10); else the model's own defaults hold.",
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
    p.add_argument("--preset", choices=PRESETS, help="sampler and steps for checkpoints of the DeepFloyd IF family")
    p.add_argument("--steps", type=_values(_steps), metavar="STEPS", help="per stage: a number, or a list (smart50)")
    p.add_argument("--guidance", type=_values(float), metavar="GUIDANCE", help="guidance scale per stage; 1 is off")
    p.add_argument("--aug-level", type=_values(float), metavar="LEVEL", help="noise on each stage's input, 0 to 1")
    p.add_argument("--lowres-consistency", type=_values(int), metavar="PX", help="keep colours over PX of the input")
    p.add_argument("--sampler", choices=SAMPLERS, help="step rule of every stage; default: the model's own")
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


def _steps(text: str) -> int | str:
    """A number of steps, or the name of a list of timesteps."""
    return text if text in RESPACINGS else int(text)


def _values(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse type for one value, a,b,c or size=a,size=b."""

    def parse(text: str) -> Any:
        try:
            entries = [entry.strip() for entry in text.split(",")]
            if any("=" in entry for entry in entries):
                return {int(size): kind(value) for size, value in (entry.split("=") for entry in entries)}
            return kind(text) if len(entries) == 1 else [kind(entry) for entry in entries]
        except ValueError:
            steps = f"50  or  50,20,10  or  64=50,256=20, or one of the lists {', '.join(RESPACINGS)}"
            wanted = steps if kind is _steps else "5  or  5,3,1.5  or  64=5,256=3"
            raise argparse.ArgumentTypeError(f"{text!r} is not understood; write {wanted}") from None

    return parse


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


def check(args: argparse.Namespace, prompts: Sequence[str]) -> tuple[Model, Image.Image | None, list[str]]:
    """Everything that can be said before the model is loaded: options, its folder, the picture to start from.

    Returns:
        the model, fetched from the Hub if need be, the picture or None, and the slots of the stages that run.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    check_int("--seed", args.seed, 0, 2**62)
    for name, value in (("--num-images", args.num_images), ("--batch-size", args.batch_size), ("--size", args.size)):
        if value is not None:
            check_int(name, value, 1)
    for name, given, most in (("--guidance", args.guidance, math.inf), ("--aug-level", args.aug_level, 1.0)):
        for value in _each(given):
            check_number(name, value, 0.0, most)
    for value in _each(args.lowres_consistency):
        check_int("--lowres-consistency", value, 0)
    for value in _each(args.steps):
        check_steps("--steps", value)
    if (args.height is None) != (args.width is None):
        raise ValueError(f"--height is {args.height} and --width {args.width}; give both or none")
    image = _open_image(args.image) if args.image is not None else None
    if not prompts and image is None and (Path(args.model) / "text_encoder").is_dir():
        raise ValueError('no prompt: write one in quotes (sample.py "a red circle"), or give a file with --prompts')
    model = find_model(args.model)
    stages = model.stages
    shape = (1, 1) if args.height is None else (args.height, args.width)
    check_int("--height", shape[0], 1)
    check_int("--width", shape[1], 1)
    side = entry_side(stages, args.size, shape, cropped(image.height, image.width, shape)) if image else None
    running = route(stages, args.size, side)
    later = {slot: stage for slot, stage in stages.items() if stage.lowres_size is not None}
    entered = [slot for slot in running if slot in later]
    per_stage("--steps", args.steps, running, stages)
    per_stage("--guidance", args.guidance, running, stages)
    for name, value in (("--aug-level", args.aug_level), ("--lowres-consistency", args.lowres_consistency)):
        if value is not None and not entered:
            raise ValueError(f"{name} {value} has no effect: no super-resolution stage runs; leave it out")
        per_stage(name, value, entered, later)
    return model, image, running


def _each(given: Any) -> list[Any]:
    """The values of an option per stage, in whichever form it was written."""
    if given is None:
        return []
    return list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]


def _open_image(name: str) -> Image.Image:
    try:
        with Image.open(name) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"--image {name!r} cannot be read as a picture: {reason}") from error


def _out_folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {name!r} cannot be made: {error.strerror}; give a folder to write to") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--out {name!r} cannot be written to; give another folder")
    return folder


def _load_model(args: argparse.Namespace, model: Model) -> ImagenPipeline:
    """The pipeline. Raises ValueError, one line for the many ways in which a broken folder fails in four libraries."""
    try:
        return model.load(args.dtype)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ValueError) and reason.startswith(f"model {args.model!r}"):
            raise
        raise ValueError(f"model {args.model!r} cannot be loaded: {reason}; save or fetch it again") from error


def load(args: argparse.Namespace, model: Model, prompts: Sequence[str], running: Sequence[str]) -> ImagenPipeline:
    """The model on its device, with the sampler asked for; prompts it cannot read are refused here, before sampling.

    Args:
        running: slots of the stages that run.

    Raises:
        ValueError: the model cannot be loaded, no such device, a prompt too long for the encoder.
    """
    import diffusers
    import torch
    import transformers

    from imagen.cascade.adapters import trained_without_variance
    from imagen.cascade.presets import apply_preset, set_sampler
    from imagen.cascade.variance import drop_variance, learns_variance

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device!r} is not there: {str(error).splitlines()[0]}; try --device cpu") from error
    if args.offload and torch.device(device).type == "cpu":
        raise ValueError("--offload has no effect: the pictures are made on the CPU; leave it out or give a --device")
    pipe = _load_model(args, model)
    try:
        for word in args.lora:
            stage, _, folder = word.rpartition("=")
            slot = stage or "base"
            unet = getattr(pipe, f"{slot}_unet", None)
            if unet is not None and learns_variance(unet.config) and trained_without_variance(folder):
                drop_variance(pipe, slot)
            pipe.load_lora_weights(folder, slot)
        if args.offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
    except RuntimeError as error:
        raise ValueError(f"model {args.model!r} cannot be put on {device!r}: {str(error).splitlines()[0]}") from error
    reading = [slot for slot in running if getattr(pipe, f"{slot}_unet").config.text_dim is not None]
    if bool(prompts) != bool(reading):
        need = 'reads text: give a prompt, sample.py "a red circle"'
        if prompts:
            where = "reads no text" if len(running) == len(pipe.stage_defaults) else f"reads no text in {running[0]}"
            need = f"{where}: leave the prompt out"
        raise ValueError(f"model {args.model!r} {need}")
    if reading and (pipe.tokenizer is None or pipe.text_encoder is None):
        raise ValueError(
            f"model {args.model!r} holds no tokenizer/ and text_encoder/: save it again with its text encoder"
        )
    if reading:
        texts = [*prompts, *([args.negative_prompt] if args.negative_prompt is not None else [])]
        pipe.reader.check(texts)
    if args.preset is not None:
        apply_preset(pipe, args.preset)
    if args.sampler is not None:
        for slot in pipe.stage_defaults:
            set_sampler(pipe, slot, args.sampler)
    return pipe


def sample(
    args: argparse.Namespace, pipe: ImagenPipeline, pictures: Sequence[Picture], image: Any, writer: Writer
) -> None:
    """Make the pictures batch by batch, each written as soon as it is done.

    Raises:
        MemoryError: a batch does not fit into the device's memory.
    """
    import torch

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
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                aug_level=args.aug_level,
                lowres_consistency=args.lowres_consistency,
                generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
                image=image,
                size=args.size,
                height=args.height,
                width=args.width,
                callback_on_stage_end=writer.stage_end,
            )
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
    try:
        try:
            prompts = read_prompts(args)
            model, image, running = check(args, prompts)
            out = _out_folder(args.out)
            pipe = load(args, model, prompts, running)
            writer = Writer(args, describe(args, pipe, image), out)
        except ValueError as error:
            print(f"sample.py: error: {error}", file=sys.stderr)
            return 2
        wanted: Sequence[str | None] = prompts or [None]
        every = [prompt for prompt in wanted for _ in range(args.num_images)]
        sample(args, pipe, [Picture(prompt, args.seed + index) for index, prompt in enumerate(every)], image, writer)
    except (OSError, MemoryError, ValueError) as error:  # ValueError: numbers that are not finite
        print(f"sample.py: error: {error}; what was finished is in {args.out}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nsample.py: interrupted; what was finished is in {args.out}", file=sys.stderr)
        return 130
    return 0
