"""One checkpoint of two stages, and what it is converted to, for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.convert.deepfloyd_if import convert
from tests.convert import released


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with I and II, as diffusers saves them; stage I with safety checker and watermark."""
    folder = tmp_path_factory.mktemp("released")
    released.save(released.stage_1(**{**released.safety_parts(), "requires_safety_checker": True}), folder / "I")
    released.save(released.stage_2(), folder / "II")
    return folder


@pytest.fixture(scope="session")
def converted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ImagenPipeline folder of both stages."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert([str(checkpoint / "I"), str(checkpoint / "II")], folder)
    return folder
