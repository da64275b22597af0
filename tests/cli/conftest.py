"""sample.py with a tiny model."""

from __future__ import annotations

import pytest

from imagen.cli.sample import main
from tests.factories import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(model, tmp_path):
    """Run the command with the tiny model, writing to tmp_path/out; returns the exit code."""

    def call(*argv: str, model: str | None = model) -> int:
        rest = ["--model", model] if model else []
        try:
            return main([*argv, *rest, *(() if "--out" in argv else ("--out", str(tmp_path / "out")))])
        except SystemExit as error:
            return int(error.code or 0)

    call.out = tmp_path / "out"
    return call
