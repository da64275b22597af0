"""Mistakes of users, and what commands make of them: a line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn


class ConfigError(ValueError):
    """A configuration that cannot be run; its message is one line that names the value and the remedy."""


class Stopped(Exception):
    """What ends a command that had begun its work, by no mistake in its options; the message is one line."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, with the option that was perhaps meant."""

    def error(self, message: str) -> NoReturn:
        start, _, words = message.partition("unrecognized arguments: ")
        unknown = [] if start else words.split()[:1]
        near = [option for word in unknown for option in difflib.get_close_matches(word, self._option_string_actions)]
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_reader(section: str, config: object, kind: str, readers: Mapping[str, Sequence[str]]) -> None:
    """Refuse an option of another kind, which is a mistake and nothing to pass over.

    Args:
        config: a dataclass; what equals its default was not given.
        kind: which it is.
        readers: option -> the kinds that read it.

    Raises:
        ConfigError: naming the first.
    """
    for name, kinds in readers.items():
        value = getattr(config, name)
        require(
            value == getattr(type(config), name) or kind in kinds,
            f"{section}.{name} {value!r} is of kind {' or '.join(kinds)}, and {section}.kind is {kind}: leave it out "
            "or change the kind",
        )


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def escape_unwritable() -> None:
    """Let what standard output has no letters for (a prompt, a file's name) be escaped there, and the work go on."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def warned_in_a_line(name: str) -> Iterator[None]:
    """Within it a `UserWarning` is shown as ``NAME: warning: ...``, without the source line that Python adds."""

    def told(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning):
            return f"{name}: warning: {' '.join(str(message).split())}\n"
        return usual(message, category, filename, lineno, line)

    usual = warnings.formatwarning
    warnings.formatwarning = told
    try:
        yield
    finally:
        warnings.formatwarning = usual


def close_output() -> None:
    """Let what standard output still holds go nowhere: its reader has gone, and Python would say so once more."""
    with suppress(OSError, ValueError):  # no file: a test's, or closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run_command(
    name: str,
    work: Callable[[], int | None],
    after: str | Callable[[], str] = "",
    mistakes: type[ValueError] = ValueError,
) -> int:
    """Do a command's work; what it raises, and what it warns of, becomes one line on stderr. All else is shown as it
    comes.

    Args:
        name: of the command, in front of the line.
        work: returns its exit code; None is 0.
        after: what stands behind a failure or an interruption, such as "; nothing was written", or what says it then.
        mistakes: what is the user's to mend.

    Returns:
        the exit code: that of the work; 2 for a mistake; 1 where the machine fails or the work is stopped; 130 after
        Ctrl-C.
    """
    escape_unwritable()
    try:
        with warned_in_a_line(name):
            code = work() or 0
        if sys.stdout is not None:  # where it was closed there is none
            sys.stdout.flush()  # a reader that has gone is met here, and not when Python ends
        return code
    except mistakes as error:
        code, told = 2, f"error: {one_line(error)}"
    except (OSError, MemoryError, Stopped) as error:
        code, told = 1, f"error: {one_line(error)}"
        if isinstance(error, BrokenPipeError):
            close_output()
    except KeyboardInterrupt:
        code, told = 130, "interrupted"
    if code != 2:
        told += after if isinstance(after, str) else after()
    print(f"{name}: {told}", file=sys.stderr)
    return code


@contextmanager
def config_errors(where: str, also: type[Exception] = ValueError) -> Iterator[None]:
    """Within it a ValueError, and `also`, is a `ConfigError` of one line, with `where` in front of what it says."""
    try:
        yield
    except (ValueError, also) as error:
        raise ConfigError(where + " ".join(line.strip() for line in str(error).splitlines())) from error
