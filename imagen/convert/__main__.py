"""``python -m imagen.convert COMMAND``: DeepFloyd IF checkpoints into an ImagenPipeline folder, and back."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from imagen.convert.folder import check_new
from imagen.errors import Parser, run_command
from imagen.stages.spec import SAFETY


def build_parser() -> Parser:
    """The parser with one subcommand for each direction."""
    parser = Parser(prog="python -m imagen.convert", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "deepfloyd-if SRC [SRC2] DST: stage I, stage II or both -> one folder for ImagenPipeline and sample.py"
    into = commands.add_parser("deepfloyd-if", help=text, description=text)
    into.set_defaults(run=_into)
    into.add_argument("folders", nargs="+", metavar="SRC ... DST", help="one or two folders or Hub ids; the new folder")
    into.add_argument("--variant", help="of the weights to take, as fp16; default: plain ones, or the only ones there")
    into.add_argument("--without", action="append", default=[], choices=SAFETY, help="leave this part behind (repeat)")
    text = "export-deepfloyd-if SRC DST: back again, DST/IF-I for IFPipeline, DST/IF-II for IFSuperResolutionPipeline"
    back = commands.add_parser("export-deepfloyd-if", help=text, description=text)
    back.set_defaults(run=_back)
    back.add_argument("source", metavar="SRC", help="a folder of ImagenPipeline")
    back.add_argument("target", metavar="DST", help="the new folder")
    return parser


def check_target(name: str) -> Path:
    """The new folder that DST names. Raises: ValueError where none can be made there."""
    if not name:
        raise ValueError("DST is empty (''); give a new folder")
    target = Path(name)
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "is a file" if not there.is_dir() else "cannot be written to"
        raise ValueError(f"DST {name!r} cannot be made: {str(there)!r} {reason}; give another folder")
    check_new(target)
    return target


def _into(args: argparse.Namespace) -> None:
    *names, target = args.folders
    if len(names) not in (1, 2):
        raise ValueError(f"{len(names)} checkpoints given; expected SRC [SRC2] DST, one or two and the new folder")
    check_target(target)
    from imagen.convert.deepfloyd_if import convert

    pipe, licences = convert(names, Path(target), args.variant, args.without)
    parts = [name for name, part in pipe.components.items() if part is not None]
    print(f"{target}: {', '.join(parts)}")
    if pipe.components["text_encoder"] is None:
        print(f"{target} has no text encoder, as {' and '.join(names)} had none: it takes prompt_embeds only")
    where = f"in {', '.join(licences)}" if licences else "where you got them; no licence file lay beside them"
    print(f"the weights' licence stands {where}")


def _back(args: argparse.Namespace) -> None:
    if not args.source:
        raise ValueError("SRC is empty (''); give a folder of ImagenPipeline")
    target = check_target(args.target)
    from imagen.convert.export import export

    names = export(Path(args.source), target)
    print("\n".join(f"{target / name}" for name in names))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        its exit code: 0; 2 for wrong input, with one line on stderr; 1 when the machine fails; 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    return run_command("imagen.convert", lambda: args.run(args), after="; nothing was written")


def program() -> int:
    """:func:`main` as a process of its own: SIGTERM is as Ctrl-C, so that a half-written folder is removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(program())
