"""``python -m imagen.evaluation COMMAND``: judge pictures, choose settings, check the super-resolution stages, plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from imagen.disk import out_folder
from imagen.errors import Parser, run_command
from imagen.evaluation import (
    alignment,
    curves,
    guidances,
    rerank,
    retrieval,
    samplers,
    scores,
    superres,
    sweep,
    tradeoff,
    zeroshot,
)
from imagen.evaluation.launch import Launch

_COMMANDS = {
    "alignment": (alignment, "do pictures show what the prompts say?"),
    "sweep": (sweep, "alignment over guidance scales and step counts of one stage"),
    "guidances": (guidances, "guidances of the base stage, paired: alignment, colours, network evaluations"),
    "samplers": (samplers, "samplers of the base stage and their options, paired, at equal evaluations"),
    "tradeoff": (tradeoff, "ways to sample the base stage, paired: network evaluations against quality"),
    "superres": (superres, "do the super-resolution stages keep to their input, and to the caption?"),
    "scores": (scores, "sets of pictures beside others, or beside captions, as papers report them"),
    "zeroshot": (zeroshot, "what does a CLIP see: classes by their names, or the facts of the shapes world?"),
    "retrieval": (retrieval, "which pictures does a CLIP find for a text, and which text for a picture?"),
    "rerank": (rerank, "best of several, chosen by a CLIP, beside a random one and the best there is"),
    "curves": (curves, "plot losses of training runs and alignment over training"),
}
_SHARED = ("scores", "rerank")  # whose sampling several processes share


def _folder(name: str) -> Path:
    if not name:
        raise argparse.ArgumentTypeError("it is empty (''); give a folder to write to")
    return Path(name)


def build_parser() -> Parser:
    """The parser with one subcommand each."""
    parser = Parser(prog="python -m imagen.evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=(module.__doc__ or text).strip())
        module.add_arguments(command)
        told = "folder of what is written (default %(default)s)"
        command.add_argument("--out", type=_folder, default=Path("results") / name, help=told)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (:func:`imagen.errors.run_command`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)

    def work() -> None:
        launch = Launch.of_environment()
        if launch.world > 1 and args.command not in _SHARED:
            raise ValueError(f"{args.command} runs on one process, and {launch.world} were started: leave torchrun out")
        with launch.keeping(out_folder(args.out)):  # before anything is sampled for it
            _COMMANDS[args.command][0].run(args, words)

    return run_command(f"imagen.evaluation {args.command}", work)


if __name__ == "__main__":
    sys.exit(main())
