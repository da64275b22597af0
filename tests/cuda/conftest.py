"""Everything in this folder needs a card, and skips without one; ``pytest -m cuda`` runs it where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from tests.cascade.training.conftest import TINY, merge


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, and skip them where torch finds no card."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cuda)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture
def run_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """run_config("name", **{"train.steps": 3}) -> the tiny run with these keys changed, in a folder of its own."""

    def make(name: str = "run", **changes: Any) -> RunConfig:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merge({"run_dir": str(tmp_path / name), **TINY}, changes)))
        return parse(["--config", str(path)])

    return make


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card's fastest kernels round float32 to TF32 and may add in another order at every call; here they must not."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
