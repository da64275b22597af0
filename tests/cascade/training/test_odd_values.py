"""Odd values of every key: taken as the key means them, or refused in one line that names it, before training.

The sections of the network and of the trainer are built, so that what a constructor says of a value is heard, too.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.training.config.parsing import known_keys
from imagen.training.config.values import alternatives
from tests.cascade.training.conftest import TINY, merge

VALUES: tuple[Any, ...] = (None, "", "x", -1, 0, 1e400, math.nan, True, [], {}, "1", 1.5, [1], {"a": 1})
KEYS = known_keys(RunConfig)
NEVER_TOLD = ("NoneType", "<class", "instance", "positional", "not supported", "Parser", "unhashable", "\n", "Literal")
LEFT_OUT = ("optim.", "ema.", "grid.")


def outcome(tmp_path: Path, key: str, value: Any) -> str | RunConfig:
    """What is said of a run with this key, or its configuration."""
    tree = {"run_dir": str(tmp_path / "run"), **TINY}
    if key.startswith("validation."):
        tree = merge(tree, {"validation.data.split": "heldout"})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(merge(tree, {key: value})))
    try:
        config = parse(["--config", str(tmp_path / "c.yaml")])
        StageTask(config)
    except ConfigError as error:
        return str(error)
    return config


def fits(key: str, value: Any, taken: Any) -> bool:
    """Whether a value that was taken is one of the key's kinds, and not 1 for true or an endless number."""
    kinds = alternatives(KEYS[key])
    if isinstance(taken, bool):
        return bool in kinds and value is True
    if isinstance(taken, float):
        return float in kinds and math.isfinite(taken)
    return taken != "" and (taken is not None or type(None) in kinds)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "shifts", [(0,), pytest.param((1, 2, 3, 4, 5), marks=SLOW), pytest.param(range(6, 14), marks=SLOW)]
)
def test_every_key(tmp_path: Path, shifts: Sequence[int]) -> None:
    left_out = (*LEFT_OUT, "validation.data.") if len(shifts) == 1 else LEFT_OUT  # its keys are those of data
    keys = [key for key in KEYS if not key.startswith(left_out)]
    assert len(keys) > 65
    taken = 0
    for number, key in enumerate(keys):
        for value in (VALUES[(number + shift) % len(VALUES)] for shift in shifts):
            told = outcome(tmp_path, key, value)
            if isinstance(told, str):
                assert key.rpartition(".")[2] in told, (key, value, told)
                assert not [word for word in NEVER_TOLD if word in told], (key, value, told)
            else:
                taken += 1
                found: Any = told
                for part in key.split("."):
                    found = getattr(found, part)
                assert fits(key, value, found), (key, value, found)
    assert taken


@pytest.mark.parametrize(("key", "value", "told"), [
    ("validation.data.crop", "", "wrong value for 'validation.data.crop': nothing; expected a whole number or null"),
    ("validation.data.kind", "x", "wrong value for 'validation.data.kind': x; expected one of shapes, folder"),
    ("validation.data.fields", {"a": 1}, "wrong value for 'validation.data.fields"),
    ("conditions.label.names", [1], "wrong value for 'conditions.label.names': 1; expected a list of texts"),
    ("conditions.mask.source", 0, "wrong value for 'conditions.mask.source': 0; expected one of drawn, stored"),
    ("unet.kind", [1], r"unet.kind \[1\] is unknown; expected BaseUNet or"),
    ("unet.kind", {"a": 1}, "unet.kind {'a': 1} is unknown; expected BaseUNet or"),
    ("train.time_limit", math.inf, "train.time_limit inf must be positive minutes, or null for no limit"),
    ("data.path", "x", "data.path 'x' is of kind folder or table or hub or shards, and data.kind is shapes"),
    ("data.path", "", r"data.path is empty \(''\); write what it is to be, or null for none"),
    ("data.split", "", r"data.split is empty \(''\); write what it is to be$"),
    ("data.rules", True, "data.rules is True; expected one of 1, 2 or null"),
    ("text.encoder", "", "text.encoder is empty"),
    ("text.cache", "", "text.cache is empty"),
    ("train.init_from", "", "train.init_from is empty"),
    ("lora", {"rank": 2, "targets": [""]}, r"lora.targets \[''\] names nothing"),
])  # fmt: skip
def test_the_key_is_named_with_what_it_takes(tmp_path: Path, key: str, value: Any, told: str) -> None:
    said = outcome(tmp_path, key, value)
    assert isinstance(said, str)
    assert re.match(told, said), said


def test_optional_texts_of_the_data_are_never_empty(tmp_path: Path) -> None:
    hints = typing.get_type_hints(DataConfig)
    texts = [item.name for item in dataclasses.fields(DataConfig) if str in alternatives(hints[item.name])]
    assert len(texts) >= 8
    for name in texts:
        said = outcome(tmp_path, f"data.{name}", "")
        assert isinstance(said, str)
        assert said.startswith(f"data.{name} is empty"), said
