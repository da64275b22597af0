"""Every command there is, declared once: ``python -m imagen`` lists them and starts one, setup.cfg installs each.

The installed command ``imagen-NAME``, ``python -m imagen NAME`` and ``python -m MODULE`` are one and the same.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imagen.errors import run_command


class Command(NamedTuple):
    """A command: its module as ``python -m`` takes it, the function that starts it, and what it does, in a line.

    Attributes:
        module: the one named behind ``python -m``.
        target: module and function, as an entry point names them; it reads ``sys.argv`` and returns an exit code.
        told: what it does.
    """

    module: str
    target: str
    told: str


COMMANDS = {
    "sample": Command("imagen.cli.sample", "imagen.cli.sample:main", "pictures from prompts"),
    "train": Command("imagen.cli.train", "imagen.cli.train:main", "train one stage of the cascade"),
    "train-clip": Command("imagen.cli.clip", "imagen.cli.clip:main", "train a CLIP on pictures and their captions"),
    "check-data": Command(
        "imagen.cli.check_data", "imagen.cli.check_data:main", "read every picture and caption before any training"
    ),
    "compose": Command("imagen.training.compose", "imagen.cli.compose:main", "one model of several trained stages"),
    "pretrain-text": Command(
        "imagen.cli.pretrain_text", "imagen.cli.pretrain_text:main", "train a small T5 where there is no Hub"
    ),
    "text-cache": Command("imagen.text.cache", "imagen.cli.text_cache:main", "encode the captions once, for training"),
    "convert": Command("imagen.convert", "imagen.convert.__main__:program", "DeepFloyd IF checkpoints in and out"),
    "evaluate": Command(
        "imagen.evaluation", "imagen.evaluation.__main__:main", "judge pictures, choose settings, plot"
    ),
    "count": Command("unets.count", "unets.count:main", "count the parameters of a configuration's network"),
}


def typed(name: str) -> str:
    """How the commands ``sample`` and ``train`` are typed here: by their files in a checkout, else as installed."""
    script = f"{name}.py"
    return f"python {script}" if (Path(__file__).resolve().parents[2] / script).is_file() else f"imagen-{name}"


def listing() -> str:
    """A line for each command: its name as installed, its module, what it does."""
    names, modules = ([f"imagen-{name}" for name in COMMANDS], [f"python -m {c.module}" for c in COMMANDS.values()])
    wide, wider = (max(map(len, column)) for column in (names, modules))
    rows = zip(names, modules, COMMANDS.values(), strict=True)
    return "\n".join(f"{name:{wide}}  {module:{wider}}  {command.told}" for name, module, command in rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Start the command that the first word names; without one, or for ``--help``, list all. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        return run_command("imagen", lambda: print(listing()))
    name = words[0].removeprefix("imagen-").replace("_", "-")
    if name not in COMMANDS:
        return run_command("imagen", partial(refuse, words[0]))
    module, _, function = COMMANDS[name].target.partition(":")
    sys.argv = [f"imagen-{name}", *words[1:]]
    code: int = getattr(importlib.import_module(module), function)()
    return code


def refuse(name: str) -> None:
    """Raises ValueError: there is no such command."""
    raise ValueError(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}")
