"""A run small enough to train in a second: 8 x 8 pictures of the shapes world, a network of a few thousand weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from tests.factories import tiny_text_encoder, tiny_tokenizer
from tests.two_processes import run_on_two

TINY: dict[str, Any] = {
    "stage": {"size": 8, "prediction_type": "sample", "loss": {"kind": "clamped_snr", "gamma": 5.0, "low": 0.05}},
    "unet": {
        "kind": "BaseUNet",
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_levels": [1],
        "head_dim": 8,
        "norm_groups": 4,
        "text_dim": None,
    },
    "optim": {"lr": 1e-3, "warmup": 2},
    "train": {"steps": 6, "batch_size": 4, "num_workers": 0, "checkpoint_every": 2, "log_every": 2},
    "grid": {"every": 0},
}


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the dotted keys of `changes` set."""
    tree = copy.deepcopy(base)
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = copy.deepcopy(value)
    return tree


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """write_config(**{"train.steps": 3}) -> a YAML file of the tiny run with these keys changed."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(merge({"run_dir": str(tmp_path / "run"), **TINY}, changes)))
        return path

    return write


@pytest.fixture
def config(write_config: Callable[..., Path]) -> Callable[..., RunConfig]:
    """config(**{"train.steps": 3}) -> the tiny run's configuration with these keys changed."""

    def make(**changes: Any) -> RunConfig:
        return parse(["--config", str(write_config(**changes))])

    return make


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random T5 encoder of width `tests.factories.WIDTH` and its tokenizer."""
    path = tmp_path_factory.mktemp("t5")
    tiny_text_encoder().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def read_metrics() -> Callable[[Path | str], list[dict[str, Any]]]:
    """The lines of a run's metrics.jsonl without their clock."""

    def read(run: Path | str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "clock"} for line in lines]

    return read


@pytest.fixture
def on_two_processes() -> Callable[..., None]:
    """on_two_processes("--config", ...) runs train.py on two processes, as accelerate launch starts them."""

    def launch(*arguments: str) -> None:
        run_on_two("train.py", *arguments)

    return launch
