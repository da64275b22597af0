"""A CLIP on two real processes, beside one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from imagen.cli.clip import main
from imagen.clip.config import ContrastConfig
from imagen.training.config.parsing import to_yaml
from tests.training.regression import lines
from tests.two_processes import run_on_two


@pytest.mark.slow
def test_two_processes_equal_one(make: Callable[..., ContrastConfig], tmp_path: Path) -> None:
    train = {"dtype": "float64", "log_every": 1, "steps": 4}
    configs = [make(name, train=train, validation={"every": 2}) for name in ("one", "two")]
    for name, config in zip(("one", "two"), configs, strict=True):
        (tmp_path / f"{name}.yaml").write_text(to_yaml(config))
    assert main(["--config", str(tmp_path / "one.yaml")]) == 0
    run_on_two("-m", "imagen.cli.clip", "--config", str(tmp_path / "two.yaml"))
    for line, other in zip(*(lines(config) for config in configs), strict=True):  # type: ignore[arg-type]
        assert line.keys() == other.keys()
        for key, value in line.items():
            assert value == pytest.approx(other[key], abs=1e-10)
    states = [sorted((Path(config.run_dir) / "state").iterdir())[-1] / "clip.safetensors" for config in configs]
    a, b = (load_file(state) for state in states)
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-10
