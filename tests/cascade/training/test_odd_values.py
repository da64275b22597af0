"""Odd values of every key: taken as the key means them, or refused in one line that names it, before training.

The sections of the network and of the trainer are built, so that what a constructor says of a value is heard, too.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import unets
from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.task import StageTask
from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.training.config.parsing import known_keys
from imagen.training.config.values import Hint, alternatives
from tests.cascade.training.conftest import TINY, merge
from unets import NETWORKS

VALUES: tuple[Any, ...] = (None, "", "x", -1, 0, 1e400, math.nan, True, [], {}, "1", 1.5, [1], {"a": 1})
KEYS = known_keys(RunConfig)
NEVER_TOLD = ("NoneType", "<class", "instance", "positional", "not supported", "Parser", "unhashable", "\n", "Literal")
LEFT_OUT = ("optim.", "ema.", "grid.", "validation.scores.")  # the last are wrong one by one: features, every


def outcome(tmp_path: Path, key: str, value: Any, base: Mapping[str, Any] = TINY) -> str | RunConfig:
    """What is said of a run with this key, or its configuration."""
    tree = {"run_dir": str(tmp_path / "run"), **base}
    if key.startswith("validation."):
        tree = merge(tree, {"validation.data.split": "heldout"})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(merge(tree, {key: value})))
    try:
        config = parse(["--config", str(tmp_path / "c.yaml")])
        StageTask(config)
    except ConfigError as error:
        return str(error)
    return config


def fits(hint: Hint, value: Any, taken: Any) -> bool:
    """Whether a value that was taken is one of the key's kinds, and not 1 for true or an endless number."""
    kinds = alternatives(hint)
    if isinstance(taken, bool):
        return bool in kinds and value is True
    if isinstance(taken, float):
        return float in kinds and math.isfinite(taken)
    return taken != "" and (taken is not None or type(None) in kinds)


def check_told(key: str, value: Any, told: str) -> None:
    """It names the key, in words for users."""
    assert key.rpartition(".")[2] in told, (key, value, told)
    assert not [word for word in NEVER_TOLD if word in told], (key, value, told)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "shifts",
    [(0,), pytest.param((1, 2, 3, 4, 5), marks=SLOW), pytest.param(range(6, 14), marks=SLOW)],
    ids=["some", "more", "rest"],
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
                check_told(key, value, told)
            else:
                taken += 1
                found: Any = told
                for part in key.split("."):
                    found = getattr(found, part)
                assert fits(KEYS[key], value, found), (key, value, found)
    assert taken


SHARED = {"attention_levels": [1], "norm_groups": 4}
SMALL: dict[str, dict[str, Any]] = {
    "BaseUNet": {**SHARED, "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "head_dim": 8},
    "EfficientUNet": {**SHARED, "channels": [8, 16], "num_res_blocks": [1, 1], "strides": [1, 2], "heads": 2},
    "DiT": {"patch_size": 2, "width": 16, "depth": 2, "head_dim": 8, "mlp_ratio": 2},
}
OTHERS = {"channel_mult": "attention_levels", "model_channels": "norm_groups"}  # told by the name of what does not fit


@pytest.mark.parametrize(
    "shifts", [(0, 5), pytest.param(sorted({*range(14)} - {0, 5}), marks=SLOW)], ids=["some", "rest"]
)
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_key_of_a_network(tmp_path: Path, kind: str, shifts: Sequence[int]) -> None:
    hints = typing.get_type_hints(getattr(unets, kind).__init__)
    keys = {name: hint for name, hint in hints.items() if name not in ("return", "kwargs")}
    assert len(keys) > 18
    base = {**TINY, "unet": {"kind": kind, "text_dim": None, "lowres_channels": 0, **SMALL[kind]}}
    taken = 0
    for number, (key, hint) in enumerate(keys.items()):
        for value in (VALUES[(number + shift) % len(VALUES)] for shift in shifts):
            told = outcome(tmp_path, f"unet.{key}", value, base)
            if isinstance(told, str):
                named = OTHERS.get(key, key)
                check_told(named if named in told else key, value, told)
            else:
                taken += 1
                assert fits(hint, value, told.unet[key]), (key, value, told.unet[key])
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
