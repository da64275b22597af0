"""The mistake of a user in a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class ConfigError(ValueError):
    """A configuration that cannot be run; its message is one line that names the value and the remedy."""


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
            f"{section}.{name} {value!r} is of kind {' or '.join(kinds)}, and {section}.kind is {kind}: leave it out",
        )
