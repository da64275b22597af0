"""The mistake of a user in a configuration, and how a command ends: a line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable


class ConfigError(ValueError):
    """A configuration that cannot be run; its message is one line that names the value and the remedy."""


class Stopped(Exception):
    """What ends a command that had begun its work, by no mistake in its options; the message is one line."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def run_command(
    name: str, work: Callable[[], int | None], after: str = "", mistakes: type[ValueError] = ValueError
) -> int:
    """Do a command's work; what it raises becomes one line on stderr. All else is shown as it comes.

    Args:
        name: of the command, in front of the line.
        work: returns its exit code; None is 0.
        after: what stands behind a failure or an interruption, such as "; nothing was written".
        mistakes: what is the user's to mend.

    Returns:
        the exit code: that of the work; 2 for a mistake; 1 where the machine fails or the work is stopped; 130 after
        Ctrl-C.
    """
    try:
        return work() or 0
    except mistakes as error:
        code, told = 2, f"error: {one_line(error)}"
    except (OSError, MemoryError, Stopped) as error:
        code, told = 1, f"error: {one_line(error)}{after}"
    except KeyboardInterrupt:
        code, told = 130, f"interrupted{after}"
    print(f"{name}: {told}", file=sys.stderr)
    return code
