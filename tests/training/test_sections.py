"""The sections that any training has: both sides of each bound, and what a configuration that says nothing means."""

from __future__ import annotations

from dataclasses import asdict
from math import inf, nan
from typing import Any

import pytest

from imagen.data.config import DataConfig
from imagen.errors import ConfigError
from imagen.training.config.sections import (
    EmaConfig,
    GridConfig,
    OptimConfig,
    RunSettings,
    TrainConfig,
    ValidationConfig,
)

FOLDER = DataConfig("folder", "pictures")
BOUNDS: list[tuple[type, str, list[Any], list[Any]]] = [  # section, field, values at the edge, values behind it
    (OptimConfig, "lr", [0.0, 3.0], [-1e-9, inf, nan]),
    (OptimConfig, "muon_lr", [None, 1e-9, 1e9], [0.0, -1.0, inf, nan]),
    (OptimConfig, "eps", [1e-30, 1e9], [0.0, -1e-8, inf, nan]),
    (OptimConfig, "betas", [(0.0, 0.0), (0.999, 0.999)], [(1.0, 0.9), (0.9, 1.0), (-1e-9, 0.9), (0.9, -1e-9)]),
    (OptimConfig, "weight_decay", [0.0], [-1e-9]),
    (OptimConfig, "warmup", [0], [-1]),
    (OptimConfig, "hold", [0], [-1]),
    (OptimConfig, "clip_norm", [None, 1e-9, inf], [0.0, -1.0]),
    (EmaConfig, "decay", [0.0, 0.999999], [-1e-9, 1.0]),
    (TrainConfig, "steps", [1], [0]),
    (TrainConfig, "batch_size", [1], [0]),
    (TrainConfig, "accumulation", [1, 64], [0, 3, 128]),
    (TrainConfig, "checkpoint_every", [1], [0]),
    (TrainConfig, "keep_last", [1], [0]),
    (TrainConfig, "log_every", [1], [0]),
    (TrainConfig, "num_workers", [0], [-1]),
    (TrainConfig, "max_skipped", [0], [-1]),
    (TrainConfig, "max_skipped_in_a_row", [0], [-1]),
    (TrainConfig, "seed", [0], [-1]),
    (TrainConfig, "time_limit", [None, 1e-9], [0.0, -1.0]),
    (ValidationConfig, "samples", [1], [0]),
    (ValidationConfig, "batch_size", [1], [0]),
    (ValidationConfig, "every", [0], [-1, 1]),
    (ValidationConfig, "seed", [0], [-1]),
    (GridConfig, "every", [0], [-1]),
]


@pytest.mark.parametrize(
    ("section", "field", "good", "bad"), BOUNDS, ids=lambda part: part if type(part) is str else ""
)
def test_a_value_at_the_bound_is_taken_and_one_behind_it_named(
    section: type, field: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        assert getattr(section(**{field: value}), field) == value
    for value in bad:
        with pytest.raises(ConfigError, match=rf"\.{field} ") as told:
            section(**{field: value})
        assert str(value) in str(told.value)


def test_adafactor_s_momentum_is_a_decay() -> None:
    for value in (None, 0.0, 0.999):
        assert OptimConfig("adafactor", momentum=value).momentum == value
    for value in (1.0, -1e-9):
        with pytest.raises(ConfigError, match=rf"optim.momentum {value} must lie in \[0, 1\), or be null"):
            OptimConfig("adafactor", momentum=value)


def test_double_weights_and_bfloat16_arithmetic_exclude_each_other_and_only_they() -> None:
    for dtype, mixed in (("float32", "no"), ("float32", "bf16"), ("float64", "no")):
        TrainConfig(dtype=dtype, mixed_precision=mixed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="float64 and train.mixed_precision bf16 exclude each other"):
        TrainConfig(dtype="float64", mixed_precision="bf16")


def test_what_is_measured_needs_pictures_and_pictures_need_not_be_measured() -> None:
    assert ValidationConfig(every=1, data=FOLDER).data == FOLDER
    assert ValidationConfig(every=0, data=FOLDER).every == 0
    with pytest.raises(ConfigError, match="validation.every 1, but no validation.data"):
        ValidationConfig(every=1)


def test_a_configuration_that_says_nothing_means_the_same_in_every_version() -> None:
    """Configurations that people keep leave most keys out, and a run that goes on is compared with these values."""
    assert asdict(RunSettings("run")) == {
        "run_dir": "run",
        "data": asdict(DataConfig()),
        "optim": {
            **{"kind": "adamw", "lr": 1e-4, "muon_lr": None, "betas": (0.9, 0.99), "momentum": None, "eps": 1e-8},
            **{"weight_decay": 0.0, "warmup": 1000, "schedule": "constant", "hold": 0, "clip_norm": 1.0},
        },
        "ema": {"decay": 0.9999, "warmup": True},
        "train": {
            **{"steps": 100_000, "batch_size": 64, "accumulation": 1, "mixed_precision": "no", "dtype": "float32"},
            **{
                "seed": 0,
                "num_workers": 1,
                "compile": False,
                "channels_last": False,
                "checkpoint_every": 1000,
                "keep_last": 2,
            },
            **{"log_every": 10, "time_limit": None, "max_skipped": 100, "max_skipped_in_a_row": 10},
            "trackers": (),
        },
        "validation": {"every": 0, "data": None, "samples": 128, "batch_size": 32, "seed": 0},
        "grid": {"every": 1000},
    }


@pytest.mark.parametrize("section", [TrainConfig, ValidationConfig])
def test_a_seed_that_no_generator_takes_is_a_line(section: Any) -> None:
    assert section(seed=2**62 - 1).seed
    with pytest.raises(ConfigError, match=rf"\.seed {2**62} must be below {2**62}$"):
        section(seed=2**62)
