"""Reading a run's configuration: YAML, `--a.b value` overrides, one-line errors that name the nearest known key."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from imagen.cascade.training.config.run import RunConfig
from imagen.errors import ConfigError
from imagen.stages.spec import SETTINGS
from unets import NETWORKS

TRAIN = (
    "Train one stage of the cascade. Launch with `python` or `accelerate launch`; the same command goes on where an "
    "earlier run in run_dir stopped."
)


def unknown_key(key: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does."""
    known = sorted(known)
    leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    near = near or [leaf[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaf, n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return ConfigError(f"unknown key {key!r} in {where}; {hint}")


def known_keys(cls: type, prefix: str = "") -> dict[str, bool]:
    """Every key of a configuration dataclass, dotted; True where the key takes a mapping of free keys."""
    keys: dict[str, bool] = {}
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint, name = hints[item.name], prefix + item.name
        keys[name] = typing.get_origin(hint) is dict
        for kind in (hint, *typing.get_args(hint)):  # the second for a section that may be null
            if dataclasses.is_dataclass(kind):
                keys.update(known_keys(typing.cast(type, kind), name + "."))
    return keys


def _check_key(key: str, known: Mapping[str, bool], where: str) -> None:
    parents = [".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 1)]
    if key not in known and not any(known.get(parent, False) for parent in parents):
        raise unknown_key(key, known, where)


def _check_mapping(tree: Mapping[str, Any], known: Mapping[str, bool], where: str, prefix: str = "") -> None:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        _check_key(name, known, where)
        if not known.get(name, True) and isinstance(value, Mapping):
            _check_mapping(value, known, where, name + ".")


def _check_file(path: str, known: Mapping[str, bool]) -> None:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read --config {path!r}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path} holds {type(tree).__name__}, expected a mapping of sections such as stage and unet")
    _check_mapping(tree, known, path)


def _check_arguments(arguments: Sequence[str]) -> None:
    known = known_keys(RunConfig)
    options = {**known, "config": False, "help": False, "print_config": True}
    for position, word in enumerate(arguments):
        if not word.startswith("--"):
            continue
        key, _, value = word[2:].partition("=")
        _check_key(key, options, "the command line")
        if key == "config":
            path = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            _check_file(path, known)


def build_parser(prog: str = "train.py", description: str = TRAIN) -> ArgumentParser:
    """The command line of train.py, and of commands that read a run's configuration.

    Args:
        prog, description: of the command, in its help.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the keys' meanings, which stand below them
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_class_arguments(RunConfig)
    for name, declared in SETTINGS.items():  # their one declaration holds their help
        parser._option_string_actions[f"--sampling.{name}"].help = declared.help
    return parser


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("Subtypes:", "Errors:", "Given value type"))]
    text = " ".join(useful).replace("Parser key", "wrong value for")
    for name in ("run_dir", "unet"):
        if "are required" in text and name in text:
            return f"{name} is missing: add it to the YAML file or pass it on the command line"
    return text


def parse(arguments: Sequence[str] | None = None, prog: str = "train.py", description: str = TRAIN) -> RunConfig:
    """The configuration that `arguments` (default: the command line) describe.

    Args:
        prog, description: of the command, in its help.

    Raises:
        ConfigError: unknown key, wrong type or impossible value, in one line.
        SystemExit: after --help or --print_config.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _check_arguments(words)
    parser = build_parser(prog, description)
    try:
        settings = parser.instantiate(parser.parse_args(words))
    except ConfigError:
        raise
    except Exception as error:  # argparse, jsonargparse and yaml each have their own families
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        raise (cause if isinstance(cause, ConfigError) else ConfigError(_one_line(error))) from None
    values = {item.name: getattr(settings, item.name) for item in dataclasses.fields(RunConfig)}
    if values["unet"]:  # left out, it is that of train.init_from
        check_unet_kind(values["unet"])
    return RunConfig(**values)


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `parse` reads back equal."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return yaml.safe_dump(plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def check_unet_kind(section: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the unet section names a known kind."""
    kind = section.get("kind")
    if kind not in NETWORKS:
        near = difflib.get_close_matches(str(kind), NETWORKS, n=1)
        raise ConfigError(f"unet.kind {kind!r} is unknown; expected {near[0] if near else ' or '.join(NETWORKS)}")


def check_unet_arguments(section: Mapping[str, Any], constructor: Any) -> None:
    """Check the unet section's keys against the constructor's signature.

    Raises:
        ConfigError: a key that the constructor lacks, or a missing one that it requires.
    """
    parameters = {n: p for n, p in inspect.signature(constructor).parameters.items() if n not in ("self", "kwargs")}
    known = {f"unet.{name}" for name in parameters} | {"unet.kind"}
    for key in section:
        if f"unet.{key}" not in known:
            raise unknown_key(f"unet.{key}", known, f"the arguments of {section['kind']}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in section:
            raise ConfigError(f"unet.{name} is missing: {section['kind']} requires it")
    parser = ArgumentParser(exit_on_error=False)
    for name, parameter in parameters.items():
        parser.add_argument(f"--unet.{name}", type=parameter.annotation, default=parameter.default)
    try:
        parser.parse_object({"unet": {key: value for key, value in section.items() if key != "kind"}})
    except Exception as error:  # argparse and jsonargparse have their own families
        raise ConfigError(_one_line(error)) from None
