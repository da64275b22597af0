"""``python sample.py "PROMPT"``: pictures from prompts. Arguments and model folder are checked before it is loaded."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen.cascade.presets import read_presets, with_preset
from imagen.cascade.route import Wish, cropped, option, resolve
from imagen.checks import check_int
from imagen.cli.before import check_adapters, check_call, check_files
from imagen.cli.commands import typed
from imagen.cli.model import DTYPES, load
from imagen.cli.record import Picture, Writer, describe
from imagen.cli.rerank import candidates, choose
from imagen.conditions.options import OPTIONS, check_conditions, picture
from imagen.disk import out_folder, read_json
from imagen.errors import Parser, Stopped, run_command
from imagen.memory import reuse_freed_memory, uncollected
from imagen.stages.folder import SavedStage
from imagen.stages.model import find_model
from imagen.stages.places import DEMO
from imagen.stages.spec import OF_CALLS, SETTINGS, Setting

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline
    from imagen.scores.encoders import DualEncoder

MODEL_HELP = "a model, or the folders of training runs: runs/base64,runs/sr256; default: %(default)s"
DTYPE_HELP = "the networks compute in; auto: bfloat16 where that is fast, else float32; default: %(default)s"
LORA_HELP = (
    "adapters, files or folders of runs, for base (the default), sr256 or sr1024, times SCALE (1); may be repeated"
)


def parser() -> Parser:
    """The options of sample.py."""
    p = Parser(
        prog=typed("sample").removeprefix("python "),
        description="Sample pictures from prompts. STEPS, GUIDANCE and other settings of stages are one value for "
        "all (50), one for each stage that runs (50,20,10), or named by side or slot (64=50,1024=10 or base=50); else "
        "the model's own defaults hold.",
    )
    add = p.add_argument
    add("prompt", nargs="*", metavar="PROMPT", help="what to show, in quotes; several make several pictures")
    add("--prompts", metavar="FILE", help="a text file with one prompt per line (blank lines are skipped)")
    add("--model", default=DEMO, metavar="DIR_OR_HUB_ID", help=MODEL_HELP)
    add("--text", metavar="DIR_OR_HUB_ID", help="text encoder of training runs; default: where they found it")
    add("--out", default="samples", metavar="DIR", help="where the pictures go; default: %(default)s")
    add("--seed", type=int, default=0, help="of the first picture, the next has one more; default: 0")
    add("--num-images", type=int, default=1, metavar="N", help="pictures of each prompt; default: 1")
    add(
        "--best-of",
        type=int,
        default=1,
        metavar="N",
        help="make N of each picture, keep the best; default: 1",
    )
    add("--rerank", metavar="DIR_OR_HUB_ID", help="the CLIP that says which is the best one, after the first stage")
    add("--negative-prompt", metavar="TEXT", help="what guidance leads away from, in place of no text")
    add("--size", type=int, help="side to stop at in pixels, e.g. 64, 256 or 1024; default: the last stage's")
    add("--height", type=int, metavar="PX", help="of the last stage's picture, with --width; default: square")
    add("--width", type=int, metavar="PX", help="see --height")
    add("--image", metavar="FILE", help="a picture to start the super-resolution stages from")
    for name, extra in OPTIONS.items():
        add(extra.flag, dest=name, metavar=extra.metavar, help=extra.help)
    add("--preset", metavar="NAME", help="quality, balanced or fast; if, if-fast, ... for DeepFloyd IF's stages")
    for name, flag in OF_CALLS.items():
        kind = SETTINGS[name]
        add(flag, dest=name, type=_values(kind), metavar=kind.metavar, help=f"per stage: {kind.help}")
    add("--batch-size", type=int, metavar="N", help="pictures at once; default: 1 on a CPU, else 4")
    add("--device", help="cpu, cuda, cuda:1; default: cuda if there is one")
    add("--offload", action="store_true", help="hold one part of the model at a time on the GPU, others on the CPU")
    add("--lora", action="append", default=[], metavar="[STAGE=]DIR[:SCALE]", help=LORA_HELP)
    add("--dtype", choices=(*DTYPES, "auto"), default="float32", help=DTYPE_HELP)
    add("--compile", action="store_true", help="compile the networks: the first picture takes longer, others less")
    add("--grid", action="store_true", help="also write all pictures side by side as one, with captions")
    add("--save-stages", action="store_true", help="also write the pictures of the earlier stages")
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
                twice = next((key for key, _ in pairs if [name for name, _ in pairs].count(key) > 1), None)
                if twice is not None:
                    raise argparse.ArgumentTypeError(f"{text!r} gives {twice} two values; give one")
                return {int(key) if key.isdigit() else key: declared.parse(value) for key, value in pairs}
            return declared.parse(text) if len(entries) == 1 else [declared.parse(entry) for entry in entries]
        except ValueError as error:
            raise argparse.ArgumentTypeError(declared.told(text, error)) from None

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


def check_read(
    args: argparse.Namespace, prompts: Sequence[str], conditions: Mapping[str, Any], stages: Sequence[SavedStage]
) -> None:
    """Raises ValueError unless the stages read text where there is a prompt, and the conditions that are given."""
    networks = [read_json(stage.unet / "config.json") for stage in stages]
    reads_text = any(network.get("text_dim") is not None for network in networks)
    if reads_text and not prompts:
        raise ValueError('no prompt: write one in quotes (sample.py "a red circle"), or give a file with --prompts')
    if prompts and not reads_text:
        raise ValueError(f"model {args.model!r} reads no text in {stages[0].slot}: leave the prompt out")
    check_conditions(conditions, {name: kept for stage in stages for name, kept in stage.conditions.items()}, networks)


def batch_size(args: argparse.Namespace, pipe: ImagenPipeline) -> int:
    """Pictures made at once."""
    size: int = args.batch_size or (1 if pipe._execution_device.type == "cpu" else 4)
    return size


def make(
    pipe: ImagenPipeline, call: Mapping[str, Any], side: int, batch: Sequence[Picture], stage_end: Callable[..., None]
) -> Any:
    """What the pipeline makes of a batch.

    Args:
        call: what of the pipeline's arguments all batches share.
        side: of the last stage's pictures.
        stage_end: the pipeline's callback_on_stage_end.

    Raises:
        MemoryError: the batch does not fit into the device's memory.
        Stopped: numbers that are not finite.
    """
    import torch

    with_text = batch[0].prompt is not None
    try:
        return pipe(
            prompt=[str(picture.prompt) for picture in batch] if with_text else None,
            num_images_per_prompt=1 if with_text else len(batch),
            generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
            callback_on_stage_end=stage_end,
            **call,
        )
    except ValueError as error:  # numbers that are not finite
        raise Stopped(str(error)) from error
    except RuntimeError as error:  # torch.OutOfMemoryError is one; on a CPU there is only its text
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        remedy = "use a smaller --batch-size" if len(batch) > 1 else "use --dtype bfloat16 or a smaller --size"
        many = f"{len(batch)} pictures of {side} px do not fit into the memory of {pipe._execution_device}"
        raise MemoryError(f"{many}; {remedy}") from error


def read_reranker(args: argparse.Namespace, prompts: Sequence[str]) -> DualEncoder | None:
    """The CLIP of --rerank; None without --best-of. Raises: ValueError, where one is given without the other."""
    best_of = check_int("--best-of", args.best_of, 1)
    if best_of == 1:
        if args.rerank is not None:
            raise ValueError(f"--rerank {args.rerank!r} chooses among several: say how many, as --best-of 8")
        return None
    if args.rerank is None:
        raise ValueError(f"--best-of {best_of} needs --rerank, a CLIP to choose by, such as pretrained/shapes-clip")
    if not prompts:
        raise ValueError(f"--best-of {best_of} chooses by the prompt, and there is none: leave it out")
    from imagen.scores.encoders import DualEncoder

    return DualEncoder.load(args.rerank)


def sample(
    args: argparse.Namespace, pipe: ImagenPipeline, pictures: Sequence[Picture], call: Mapping[str, Any], writer: Writer
) -> None:
    """Make the pictures batch by batch, each written as soon as it is done.

    Args:
        call: what of the pipeline's arguments all batches share.

    Raises:
        MemoryError, Stopped: as :func:`make`.
    """
    size = batch_size(args, pipe)
    for start in range(0, len(pictures), size):
        batch = pictures[start : start + size]
        writer.begin(batch)
        if len(pictures) > len(batch):
            span = f"{start + 1}" if len(batch) == 1 else f"{start + 1}-{start + len(batch)}"
            pipe.set_progress_bar_config(desc=f"{span} of {len(pictures)}")
        make(pipe, call, writer.shared["size"], batch, writer.stage_end)
    if args.grid:
        from imagen.captions import captioned
        from imagen.data.shapes.sheet import arrange

        columns = args.num_images if args.num_images > 1 else math.ceil(math.sqrt(len(pictures)))
        settings = {**writer.shared, "prompts": [picture.prompt for picture in pictures], "seed": args.seed}
        settings |= {"seeds": [picture.seed for picture in pictures]} if args.best_of > 1 else {}
        shown = [captioned(image, made.prompt) for image, made in zip(writer.finished, pictures, strict=True)]
        writer.write(arrange(shown, columns, gap=4), f"grid_seed{args.seed}", settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        its exit code: 0; 2 for bad input, with one line on stderr; 1 when the machine fails; 130 after Ctrl-C.
    """
    args = parser().parse_intermixed_args(argv)
    return run_command("sample.py", partial(run, args), f"; what was finished is in {args.out}")


def run(args: argparse.Namespace) -> None:
    """Make what the arguments ask for. All that can be said before the model is loaded, is.

    Raises:
        ValueError: naming the option, its value and the remedy; before anything is sampled.
        OSError, MemoryError, Stopped: what ended the sampling.
    """
    prompts = read_prompts(args)
    check_int("--seed", args.seed, 0, 2**62)
    for name, value in (("--num-images", args.num_images), ("--batch-size", args.batch_size)):
        if value is not None:
            check_int(name, value, 1)
    settings = {name: getattr(args, name) for name in OF_CALLS}
    wish = Wish(args.size, args.height, args.width, settings)
    image = picture("--image", args.image) if args.image is not None else None
    conditions = {n: o.read(o.flag, getattr(args, n)) for n, o in OPTIONS.items() if getattr(args, n) is not None}
    model = find_model(args.model)
    if args.text is not None and model.folder is not None:
        raise ValueError(f"--text {args.text!r} is for training runs; model {args.model!r} has its own: leave it out")
    stages = {slot: stage.defaults for slot, stage in model.stages.items()}
    stages = with_preset(args.preset, stages, read_presets(model.presets, stages), wish.size)
    running = resolve(stages, wish, [] if image is None else [cropped(image.height, image.width, wish.aspect)], option)
    check_read(args, prompts, conditions, [model.stages[slot] for slot in running])
    check_files(model.stages)
    check_adapters(args.lora, model.stages)
    check_call(wish, running, model.stages)
    encoder = read_reranker(args, prompts)
    out = out_folder(args.out)

    with uncollected(keep=True):
        pipe = load(args, model, prompts)
    if pipe._execution_device.type == "cpu":
        reuse_freed_memory()
    shape = {"size": args.size, "height": args.height, "width": args.width}
    asked = {"image": image, **shape, "preset": args.preset, **settings}
    running = pipe.settings(**asked).slots
    writer = Writer(args, describe(args, pipe, running), out, running)
    wanted: Sequence[str | None] = prompts or [None]
    every = [prompt for prompt in wanted for _ in range(args.num_images)]
    pictures = [Picture(prompt, args.seed + index) for index, prompt in enumerate(every)]
    call = {"negative_prompt": args.negative_prompt, **asked, **conditions}
    if encoder is not None:
        encoder.model.to(pipe._execution_device)
        groups = candidates(pictures, args.best_of, args.seed)
        made = partial(make, pipe, call, writer.shared["size"])
        pictures = choose(pipe, encoder, groups, made, batch_size(args, pipe))
    sample(args, pipe, pictures, call, writer)


if __name__ == "__main__":
    sys.exit(main())
