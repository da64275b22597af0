"""Sampling and training side by side with others', on a card or on CPU cores; see benchmarks/README.md.

python benchmarks/gpu.py [--device cpu] [--only NAME,...] [--seconds 330] [--quick] [--out DIR]
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started by its path, nothing of ours need be installed


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a card")
    parser.add_argument("--only", help="names of sections, with commas; --list tells them")
    parser.add_argument(
        "--seconds", type=float, default=330.0, help="in all; what does not fit is left out, and said so"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny networks, seconds: a rehearsal, its times say nothing"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "speed", help="folder of speed.json and speed.md")
    parser.add_argument("--caches", type=Path, help="folder of compile caches, read before and written after")
    parser.add_argument("--commit", help="of this tree, where it has travelled without git; default: as git tells it")
    parser.add_argument("--list", action="store_true", help="the sections, in their order")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; 0 when none failed, 1 where one did, 2 for options that cannot be."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    args = parser.parse_args(arguments)
    wanted = None if args.only is None else [name for name in args.only.split(",") if name]
    if wanted == []:
        parser.error("--only is empty; leave it out for all sections, or name some (--list)")
    if not args.seconds > 0:
        parser.error(f"--seconds {args.seconds:g} must be positive")
    for option, folder in (("--out", args.out), ("--caches", args.caches)):
        if folder is not None and folder.exists() and not folder.is_dir():
            parser.error(f"{option} {str(folder)!r} is a file; give a folder")
    import torch
    from diffusers.utils import logging

    from benchmarks.speed import caches
    from benchmarks.speed.clock import Clock
    from benchmarks.speed.listed import SECTIONS
    from benchmarks.speed.report import Book, head
    from benchmarks.speed.sections import Bench, run_sections
    from benchmarks.speed.sizes import CARD, CPU, QUICK

    if args.list:
        print("\n".join(f"{section.name:18} {section.title} ({section.box:.0f} s)" for section in SECTIONS))
        return 0
    unknown = sorted({*(wanted or ())} - {section.name for section in SECTIONS})
    if unknown:
        parser.error(f"--only {unknown[0]!r} is no section; expected some of {', '.join(s.name for s in SECTIONS)}")
    logging.set_verbosity_error()
    card = torch.cuda.is_available()
    if args.device == "cuda" and not card:
        parser.error("--device cuda: torch finds no card here; --device cpu measures on the processor")
    device = torch.device(args.device or ("cuda" if card else "cpu"))
    bench = Bench(Clock(device), QUICK if args.quick else CARD if device.type == "cuda" else CPU)
    book = Book(args.out, head(shlex.join(["python", "benchmarks/gpu.py", *arguments]), device, args.commit))
    print(caches.load(args.caches), flush=True)
    chosen = [section for section in SECTIONS if wanted is None or section.name in wanted]
    run_sections(chosen, bench, book, args.seconds, after=lambda: print(caches.save(args.caches), flush=True))
    print((args.out / "speed.md").read_text(encoding="utf-8"))
    return int(any(section["state"] == "failed" for section in book.content["sections"]))


if __name__ == "__main__":
    sys.exit(main())
