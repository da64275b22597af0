"""The mistake of a user in a configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ConfigError(ValueError):
    """A configuration that cannot be run; its message is one line that names the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@contextmanager
def config_errors(where: str, also: type[Exception] = ValueError) -> Iterator[None]:
    """Within it a ValueError, and `also`, is a `ConfigError` of one line, with `where` in front of what it says."""
    try:
        yield
    except (ValueError, also) as error:
        raise ConfigError(where + " ".join(line.strip() for line in str(error).splitlines())) from error
