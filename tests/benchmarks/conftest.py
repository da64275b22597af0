"""What every test of the benchmarks leaves behind: nothing that a training in the same process would meet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """accelerate keeps the arithmetic of its first use for the whole process, and a benchmark trains in several."""
    yield
    AcceleratorState._reset_state(True)
