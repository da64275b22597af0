"""The options of a command that are the arguments of a function, with mistakes told in one line."""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Callable, Sequence
from itertools import pairwise

from jsonargparse import ArgumentParser, set_parsing_settings

from imagen.errors import ConfigError
from imagen.training.config.parsing import known_keys, told_of
from imagen.training.config.values import section


def call(command: Callable[..., None], name: str, arguments: Sequence[str] | None) -> None:
    """Call a function with what the words of a command line (None: this process's) say.

    Args:
        command: all of its arguments are options; its docstring is the help.
        name: of the command, for its help.

    Raises:
        ConfigError: an option that there is not, one that is missing, or a value that it does not take.
        SystemExit: after --help.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for option, word in pairwise(["", *words]):
        if word.startswith("--") and word.endswith("="):
            option, word = word[:-1], ""
        if not word and option.startswith("--"):
            raise ConfigError(f"{option} is empty (''): give a value, or leave it out")
    known = {f: hint for f, hint in typing.get_type_hints(command).items() if f != "return"}
    for option, hint in list(known.items()):
        below = section(hint)
        known |= {} if below is None else known_keys(below, f"{option}.")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=name, description=(command.__doc__ or "").split("\n\n")[0], exit_on_error=False)
    parser.add_argument("--config", action="config", help="a YAML file with these options")
    parser.add_function_arguments(command, as_group=False)
    try:
        parsed = parser.parse_args(words)
        given = parser.instantiate(parsed)
    except Exception as error:  # argparse, jsonargparse and yaml each have their own families
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        told = re.sub(r"^the following arguments are required: (\w+)", r"--\1 is missing", told_of(error, known))
        raise ConfigError(str(cause) if cause else re.sub(r"^wrong value for '", "wrong value for '--", told)) from None
    command(**{option: getattr(given, option) for option in known if "." not in option})
