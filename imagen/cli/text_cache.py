"""The command ``python -m imagen.text.cache``: encode the captions of a training configuration, or of a file, once.

Give the same command again after an interruption: it goes on from the shards that are finished. Exit codes: 0 done,
1 the disk or the memory did not suffice, 2 a request that cannot be served, 130 interrupted.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.cascade.training.config.run import RunConfig
from imagen.checks import check_device, check_int
from imagen.errors import ConfigError, Parser, Stopped, one_line, run_command

if TYPE_CHECKING:
    from imagen.text.cache.build import Result

NO_STAGE = ("--run_dir=-", "--unet.kind=BaseUNet")  # what a configuration must say, and this command does not read


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m imagen.text.cache",
        description="Encode captions once, so that training with text.cache loads no text encoder.",
        epilog="The options of train.py are understood, too, with --config or without: --text.encoder DIR_OR_HUB_ID, "
        "--text.max_length N, --text.dtype DTYPE, --data.path DIR and so on.",
    )
    add = parser.add_argument
    add("--config", help="a training configuration: its text section, and the captions of its data and its grids")
    add("--captions", metavar="FILE", help="encode the lines of this UTF-8 file instead of the data's captions")
    add("--out", metavar="DIR", help="the cache; default: the configuration's text.cache")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="stored dtype; default: text.dtype, without loss")
    add("--processes", type=int, help="encoders at work at once; default: the number of GPUs, or 1")
    add("--batch_size", type=int, default=64, help="captions encoded at once by a process (default 64)")
    add("--shard_size", type=int, default=4096, help="captions a file, the most a kill costs (default 4096)")
    add("--device", help="cpu, cuda (shared out over the GPUs) or another torch device; default: cuda if there is one")
    add("--num", type=int, help="how many samples of a source without end, such as the shapes world")
    return parser


def data_captions(config: RunConfig, num: int | None) -> Iterator[str]:
    """The captions that a run of ``config`` asks for: its data's, its grids' and its held-out pictures'.

    Raises:
        ConfigError: a source without end and no ``num``, or ``num`` for one that has an end.
    """
    from imagen.cascade.training.grids import held_out
    from imagen.cascade.training.inputs.source import make_source
    from imagen.cascade.training.validation import validation_source
    from imagen.data import ShapesDataset

    source, train = make_source(config), config.train
    if isinstance(source, ShapesDataset):
        if num is None:
            needed = train.steps * train.batch_size
            raise ConfigError(f"data.kind {config.data.kind} has no end: add --num N ({needed} for this run's steps)")
        yield from (source.scene(index)[1] for index in range(num))
    elif num is not None:
        raise ConfigError(f"--num {num}: data.kind {config.data.kind} has an end, all of it is taken: leave --num out")
    else:
        yield from chain.from_iterable(source.captions())
    yield from config.grid.prompts
    if config.grid.every and (not config.grid.prompts or config.stage.lowres_size is not None):
        yield from (sample.caption for sample in held_out(config))
    if config.validation.every:
        source = validation_source(config)
        yield from (source[index].caption for index in range(max(config.validation.needs.values())))


def file_captions(path: str) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        ConfigError: no such file, or one that is not UTF-8.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as lines:
            for line in lines:
                yield line.rstrip("\n")
    except OSError as error:
        raise ConfigError(f"cannot read --captions {path!r}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--captions {path!r} is not UTF-8 ({error}): save it as UTF-8") from None


def run(args: argparse.Namespace, others: Sequence[str]) -> None:
    """Do what the command line asks for.

    Raises:
        ValueError, Stopped: with one line for the user.
    """
    from imagen.cascade.training.config.parsing import parse

    for name in ("processes", "batch_size", "shard_size", "num"):
        if getattr(args, name) is not None:
            check_int(f"--{name}", getattr(args, name), 1)
    if args.config is None and args.captions is None:
        raise ConfigError("nothing to encode: give --config TRAIN.yaml or --captions FILE")
    if args.captions is not None and args.num is not None:
        raise ConfigError(f"--num {args.num}: all lines of --captions are taken: leave it out")
    start = NO_STAGE if args.config is None else (f"--config={args.config}",)
    config = parse([*start, *others])
    text, out = config.text, args.out or config.text.cache
    if out is None:
        raise ConfigError("no folder to write to: give --out DIR, or set text.cache in the configuration")
    if text.encoder is None:
        raise ConfigError("text.encoder is null: give --text.encoder with the folder or Hub id of a T5 or CLIP")
    if text.padding != "masked" or text.lowercase:
        raise ConfigError(
            f"text.padding {text.padding} and text.lowercase {text.lowercase}: a cache keeps captions as written and "
            "without padding; train such a stage with text.encoder alone"
        )
    if args.device is not None:
        check_device("--device", args.device)
    captions = data_captions(config, args.num) if args.captions is None else file_captions(args.captions)

    import torch
    from safetensors import SafetensorError

    from imagen.text.cache.build import Encoding, build_cache

    gpus = torch.cuda.device_count()
    device = args.device or ("cuda" if gpus else "cpu")
    processes = args.processes or (max(1, gpus) if device == "cuda" else 1)
    encoding = Encoding(text.encoder, text.max_length, text.dtype, args.dtype, args.batch_size, device)
    try:
        result = build_cache(captions, Path(out), encoding, processes, args.shard_size)
    except (BrokenProcessPool, OSError, SafetensorError, torch.OutOfMemoryError) as error:
        hint = "mend that, perhaps with more memory, fewer --processes or a smaller --batch_size"
        raise Stopped(f"{one_line(error)}; {hint}") from error
    print("\n".join(report(result, out)))


def report(result: Result, out: str) -> list[str]:
    """What the cache holds, beside an array (captions, max_length, width) of float32."""
    manifest, identity = result.manifest, result.manifest.identity
    fixed = 4 * identity.fingerprint.max_length * identity.width
    each = manifest.bytes / manifest.captions
    lines = [
        f"{out}: {result.given:,} captions given, {result.encoded:,} encoded now, {manifest.captions:,} different ones "
        f"in all, in {manifest.shards} files",
        f"tokens: {manifest.tokens:,}, {manifest.tokens / manifest.captions:.1f} a caption; "
        f"{manifest.cut:,} captions were cut at {identity.fingerprint.max_length}",
        f"bytes: {manifest.bytes:,} in {identity.dtype}, {each:,.0f} a caption; "
        f"as float32 of fixed length {fixed * manifest.captions:,}, {fixed:,} a caption ({fixed / each:.1f} times)",
    ]
    return lines if result.encoded else ["nothing to do: every caption is in the cache", *lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    work = partial(run, *build_parser().parse_known_args(arguments))
    return run_command("text cache", work, "; the same command goes on from the finished shards")
