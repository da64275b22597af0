"""Pictures for a suite, from a pipeline: one a prompt, from the prompt's own seed."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, get_args

import torch
from PIL import Image
from tqdm import tqdm

from imagen.checks import check_device
from imagen.evaluation.suites import SuiteName
from imagen.stages.spec import OF_CALLS, SETTINGS, Setting

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline


class Asked(Protocol):
    """What a picture is sampled from, a prompt of a suite for example."""

    @property
    def text(self) -> str: ...

    @property
    def seed(self) -> int: ...


def add_sampling_arguments(
    parser: argparse.ArgumentParser, num: int, split: SuiteName | None = None, more: Sequence[str] = ()
) -> None:
    """The options of every command that samples a suite.

    Args:
        num: prompts where ``--num`` says nothing.
        split: the suite where ``--split`` says nothing; None: the command has suites of its own.
        more: settings of the stages that the command lets change, beside steps and guidance scale.
    """
    add_model_arguments(parser, more)
    add = parser.add_argument
    if split is not None:
        add("--split", choices=get_args(SuiteName), default=split, help="which prompts (default %(default)s)")
    add("--num", type=int, default=num, help="prompts, spread evenly over the categories (default %(default)s)")


def add_model_arguments(parser: argparse.ArgumentParser, more: Sequence[str] = (), required: bool = True) -> None:
    """The options that say which model samples, and how.

    Args:
        more: settings of the stages that the command lets change, beside steps and guidance scale.
        required: whether there is nothing to do without ``--model``.
    """
    add = parser.add_argument
    add(
        "--model",
        required=required,
        help="a model, a Hub id, or run folders, as of sample.py; a base stage alone will do at 64 px",
    )
    add("--seed", type=int, default=0, help="seed of the first prompt; the others count up (default 0)")
    add("--batch-size", type=int, default=8, help="prompts sampled at once (default 8)")
    for name in ("num_inference_steps", "guidance_scale", "sampler", *more):
        told = f"{SETTINGS[name].help}; one value, or one a stage; default: the stages' own"
        add(OF_CALLS[name], type=_reader(SETTINGS[name]), nargs="+", metavar=SETTINGS[name].metavar, help=told)
    add("--device", help="where to sample, such as cpu or cuda:1; default: a GPU if there is one")


def _reader(declared: Setting) -> Callable[[str], Any]:
    """argparse type of a setting; what it says itself of a word that it cannot read is told."""

    def read(text: str) -> Any:
        try:
            return declared.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(declared.told(text, error)) from None

    return read


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of the stages' settings, as the pipeline takes it: one value for all stages, or one each."""
    options = {name: getattr(args, flag.lstrip("-").replace("-", "_"), None) for name, flag in OF_CALLS.items()}
    return {name: v[0] if len(v) == 1 else v for name, v in options.items() if v is not None}


def _number() -> list[str]:
    """Of this process on its machine, where a launcher (torchrun, accelerate) started several: it takes that GPU."""
    found = os.environ.get("LOCAL_RANK")
    return [] if found is None else [found]


def load(args: argparse.Namespace) -> ImagenPipeline:
    """The pipeline that the options name, on its device, without its own progress bars.

    Raises:
        ValueError: no such model, or an unusable device.
    """
    from imagen.pipeline import ImagenPipeline

    own = ":".join(["cuda", *_number()]) if torch.cuda.is_available() else "cpu"
    device = check_device("--device", args.device or own)
    pipe = ImagenPipeline.from_pretrained(args.model)
    pipe.to(torch.device(device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fingerprint(network: Any) -> str:
    """What tells a network's weights from any other's, in whatever dtype they are."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # NumPy has no bfloat16
        digest.update(name.encode() + numbers.numpy().tobytes())
    return digest.hexdigest()[:16]


def check_calls(pipe: ImagenPipeline, calls: Iterable[tuple[int, Mapping[str, Any]]], batch_size: int) -> None:
    """Look at every call that a command is going to make, size and settings, before the first: sampling takes long.

    Raises:
        ValueError: what the pipeline would refuse, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}; expected at least 1")
    for size, settings in calls:
        pipe.settings(size=size, **settings)


def sample(
    pipe: ImagenPipeline,
    prompts: Sequence[Asked],
    size: int,
    settings: Mapping[str, Any],
    batch_size: int = 8,
    images: Sequence[Image.Image] | None = None,
    label: str | None = None,
) -> dict[int, list[Image.Image]]:
    """One picture a prompt at every stage up to ``size``: side in pixels -> pictures in the prompts' order.

    Args:
        settings: arguments of the pipeline's call that are the same for all (steps, guidance, ...).
        images: pictures to start from, one a prompt; None starts from text alone.
        label: of the progress bar on stderr; None shows none.

    Raises:
        ValueError: a batch size below 1, or what the pipeline refuses.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    made: dict[int, list[Image.Image]] = defaultdict(list)
    with tqdm(total=len(prompts), desc=label, unit=" pictures", disable=not (label and prompts)) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            generators = [torch.Generator().manual_seed(prompt.seed) for prompt in batch]
            image = None if images is None else list(images[start : start + batch_size])
            out: Any = pipe([p.text for p in batch], generator=generators, size=size, image=image, **settings)
            for side, pictures in out.stages.items():
                made[side] += pictures
            bar.update(len(batch))
    return dict(made)
