"""The mistake of a user in a configuration."""


class ConfigError(ValueError):
    """A configuration that cannot be run; its message is one line that names the value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
