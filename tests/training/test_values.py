"""A value that a key does not take is one line, in words, that names the key: from YAML as from the command line."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import Namespace

from imagen.errors import ConfigError
from imagen.training.config.parsing import known_keys, parse
from imagen.training.config.sections import OptimConfig, RunSettings
from imagen.training.config.values import check_values, in_words


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sides: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings(RunSettings):
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None
    free: dict[str, int] = field(default_factory=dict)
    many: bool | tuple[int, ...] = False
    anything: Any = None


def read(tmp_path: Path, tree: dict[str, Any]) -> Settings:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"run_dir": "r", **tree}))
    return parse(Settings, ["--config", str(tmp_path / "c.yaml")], "x", "x")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a"] | None, "a or null"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[int, ...], "a list of whole numbers"),
        (bool | list[str], "true or false or a list of texts"),
        (dict[str, int], "keys below it (or leave it out)"),
        (Inner | None, "keys below it (or leave it out) or null"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert in_words(hint) == words


SECTIONS = ("data", "optim", "ema", "train", "validation", "grid", "inner")


@pytest.mark.parametrize(
    ("key", "value"),
    [*((key, None) for key in SECTIONS), *(("inner", value) for value in ([], [1], 3, True, math.nan, "x", ""))],
)
def test_a_section_that_holds_no_keys(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*expected keys below it") as told:
        read(tmp_path, {key: value})
    assert not any(word in str(told.value) for word in ("NoneType", "functools", "class", "Parser", "\n"))


def test_what_may_be_null_or_empty_may_be(tmp_path: Path) -> None:
    given = {"perhaps": None, "inner": {}, "optim": {"muon_lr": None}, "anything": None, "free": {"a": 1}}
    assert read(tmp_path, given) == Settings(run_dir="r", free={"a": 1})
    assert read(tmp_path, {"perhaps": {"rate": 2}}).perhaps == Inner(2.0)


@pytest.mark.parametrize("key", ["optim.lr", "train.dtype", "validation.samples"])
def test_null_where_it_means_nothing(tmp_path: Path, key: str) -> None:
    name, leaf = key.split(".")
    with pytest.raises(ConfigError, match=f"{key} is null; expected"):
        read(tmp_path, {name: {leaf: None}})
    with pytest.raises(ConfigError, match=f"{key}.*expected"):
        parse(Settings, ["--run_dir", "r", f"--{key}", "null"], "x", "")


def test_so_it_is_of_every_key() -> None:
    known = known_keys(RunSettings)
    never = [key for key, hint in known.items() if type(None) not in typing.get_args(hint)]
    assert len(never) > 40
    for key, hint in known.items():
        settings = Namespace(**{key: None})
        if key in never:
            with pytest.raises(ConfigError, match=f"^{key} is null; expected"):
                check_values(settings, {key: hint})
        else:
            check_values(settings, {key: hint})


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"optim": {"lr": "fast"}}, "wrong value for 'optim.lr': fast; expected a number"),
        ({"optim": {"lr": True}}, "wrong value for 'optim.lr': True; expected a number"),
        ({"optim": {"muon_lr": []}}, r"'optim.muon_lr': \[\]; expected a number or null"),
        ({"optim": {"kind": "sgd"}}, "'optim.kind': sgd; expected one of adamw, adafactor, adam8bit"),
        ({"optim": {"betas": 0.9}}, "'optim.betas': 0.9; expected a list of 2 numbers"),
        ({"optim": {"betas": [None, 0.9]}}, "expected a list of 2 numbers"),
        ({"train": {"steps": 1.5}}, "'train.steps': 1.5; expected a whole number"),
        ({"many": "x"}, "'many': x; expected true or false or a list of whole numbers"),
        ({"free": {"a": "x"}}, "'free.*expected keys below it"),
        ({"free": {"a": None}}, "free.*expected"),
    ],
)
def test_a_value_of_another_kind(tmp_path: Path, tree: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, tree)


@pytest.mark.parametrize("name", ["weight_decay", "lr", "eps"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_that_no_optimizer_can_use(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"optim.{name}"):
        OptimConfig(**{name: value})
