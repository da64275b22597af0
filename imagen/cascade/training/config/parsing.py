"""Reading the configuration of a stage's training, and the keys of its network."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from imagen.cascade.training.config.run import RunConfig
from imagen.errors import ConfigError, require
from imagen.stages.spec import SETTINGS
from imagen.training.config import parsing
from imagen.training.config.parsing import told_of, unknown_key
from imagen.training.config.values import check_values
from unets import NETWORKS

TRAIN = (
    "Train one stage of the cascade. Launch with `python` or `accelerate launch`; the same command goes on where an "
    "earlier run in run_dir stopped."
)


def parse(arguments: Sequence[str] | None = None, prog: str = "train.py", description: str = TRAIN) -> RunConfig:
    """The configuration that `arguments` (default: the command line) describe.

    Args:
        prog, description: of the command, in its help.

    Raises:
        ConfigError: unknown key, wrong type or impossible value, in one line.
        SystemExit: after --help or --print_config.
    """
    helps = {f"sampling.{name}": declared.help for name, declared in SETTINGS.items()}  # in their one declaration
    config = parsing.parse(RunConfig, arguments, prog, description, helps)
    kind = config.unet.get("kind")
    known = kind in list(NETWORKS) or not config.unet  # left out, it is that of train.init_from
    require(known, f"unet.kind {kind!r} is unknown; expected {' or '.join(NETWORKS)}")
    return config


def check_unet_arguments(section: Mapping[str, Any], constructor: Any) -> None:
    """Check the unet section's keys against the constructor's signature.

    Raises:
        ConfigError: a key that the constructor lacks, or a value of another type.
    """
    parameters = {n: p for n, p in inspect.signature(constructor).parameters.items() if n not in ("self", "kwargs")}
    known = {f"unet.{name}" for name in parameters} | {"unet.kind"}
    for key in section:
        if f"unet.{key}" not in known:
            raise unknown_key(f"unet.{key}", known, f"the arguments of {section['kind']}")
    parser, hints = ArgumentParser(exit_on_error=False), typing.get_type_hints(constructor)
    for name, parameter in parameters.items():
        parser.add_argument(f"--unet.{name}", type=parameter.annotation, default=parameter.default)
    types = {f"unet.{name}": hints[name] for name in section if name != "kind"}
    try:
        check_values(
            parser.parse_object({"unet": {key: value for key, value in section.items() if key != "kind"}}), types
        )
    except ConfigError:
        raise
    except Exception as error:  # argparse and jsonargparse have their own families
        raise ConfigError(told_of(error, types)) from None
