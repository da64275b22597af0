"""Reading any training's configuration: YAML, `--a.b value`, one-line errors that name the nearest known key."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import typing
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from imagen.errors import ConfigError
from imagen.training.config.sections import RunSettings
from imagen.training.config.values import Hint, check_values, is_free, mistaken, section

ConfigT = TypeVar("ConfigT", bound=RunSettings)
GONE = {"train.tensorboard": "write train.trackers: [tensorboard] in place of true, and nothing in place of false"}


def unknown_key(key: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a key that does not exist, with the nearest one that does, or all that stand where it does."""
    if key in GONE:
        return ConfigError(f"{key} in {where} is called otherwise now: {GONE[key]}")
    known = sorted(known)
    leaf = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known)
    near = near or [leaf[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], leaf)]
    beside = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    beside = beside or [name for name in known if "." not in name] or known
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(beside)}"
    return ConfigError(f"unknown key {key!r} in {where}; {hint}")


def known_keys(cls: type, prefix: str = "") -> dict[str, Hint]:
    """Every key of a configuration dataclass, dotted, and its type; a section stands before its keys."""
    keys: dict[str, Hint] = {}
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        hint, name = hints[item.name], prefix + item.name
        keys[name] = hint
        below = section(hint)
        keys.update({} if below is None else known_keys(below, name + "."))
    return keys


def _check_key(key: str, known: Mapping[str, Hint], where: str) -> None:
    parents = [".".join(key.split(".")[:n]) for n in range(1, key.count(".") + 1)]
    if key not in known and not any(is_free(known.get(parent)) for parent in parents):
        raise unknown_key(key, known, where)


def _check_mapping(tree: Mapping[str, Any], known: Mapping[str, Hint], where: str, prefix: str = "") -> None:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        _check_key(name, known, where)
        if isinstance(value, Mapping):
            _check_mapping(value, known, where, name + ".")


class _EachKeyOnce(yaml.SafeLoader):
    """YAML in which a key that stands twice in one place is a mistake; PyYAML takes the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        first = {key.value: key for key in reversed(keys)}
        twice = next((key for key in keys if key is not first[key.value]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice.value!r} is there twice", twice.start_mark)
        return super().construct_mapping(node, deep)


def _check_file(path: str, known: Mapping[str, Hint]) -> None:
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _EachKeyOnce)
    except OSError as error:
        raise ConfigError(f"cannot read --config {path!r}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep to be a configuration") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path} holds {type(tree).__name__}, expected a mapping of sections such as data and train")
    _check_mapping(tree, known, path)


def _check_arguments(known: Mapping[str, Hint], arguments: Sequence[str]) -> None:
    options = {**known, "config": str, "help": None, "print_config": dict[str, str]}
    for position, word in enumerate(arguments):
        if not word.startswith("--"):
            continue
        key, _, value = word[2:].partition("=")
        _check_key(key, options, "the command line")
        if key == "config":
            path = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            _check_file(path, known)


def told_of(error: Exception, known: Mapping[str, Hint]) -> str:
    """What argparse, jsonargparse or a constructor says, as one line for the user; ``known``: the type of each key."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not line.startswith(("Subtypes:", "Errors:", "Given value type"))]
    text = mistaken(" ".join(useful), known)
    if "are required" in text and "run_dir" in text:
        return "run_dir is missing: add it to the YAML file or pass --run_dir DIR"
    return text


@cache  # making it takes longer than reading a configuration
def _parser(cls: Any, prog: str, description: str, helps: tuple[tuple[str, str], ...]) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the keys' meanings, which stand below them
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with the sections below")
    parser.add_class_arguments(cls)
    for key, meaning in helps:
        parser._option_string_actions[f"--{key}"].help = meaning
    return parser


def parse(
    cls: type[ConfigT],
    arguments: Sequence[str] | None,
    prog: str,
    description: str,
    helps: Mapping[str, str] | None = None,
) -> ConfigT:
    """The configuration that `arguments` (None: the command line) describe.

    Args:
        cls: its dataclass.
        prog, description: of the command, in its help.
        helps: key -> help, of keys whose meaning does not stand below them.

    Raises:
        ConfigError: unknown key, wrong type or impossible value, in one line.
        SystemExit: after --help or --print_config.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = known_keys(cls)
    _check_arguments(known, words)
    parser = _parser(cast("Hashable", cls), prog, description, tuple((helps or {}).items()))
    try:
        parsed = parser.parse_args(words)
        check_values(parsed, known)
        settings = parser.instantiate(parsed)
        return cls(**{name: getattr(settings, name) for name in cls.__dataclass_fields__})
    except Exception as error:  # argparse, jsonargparse and yaml each have their own families
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__ or cause.__context__
        raise (cause or ConfigError(told_of(error, known))) from None


def to_yaml(config: RunSettings) -> str:
    """A resolved configuration, a dataclass, as YAML that `parse` reads back equal."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
