"""Everything runs on a device that is not the CPU, and no step waits for it more often than it must.

The files ``inside_*.py`` are tests as others, but that the device (:mod:`tests.device.pretend`) stays with its process:
each runs in one of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import pretend

HERE = Path(__file__).parent


@pytest.mark.timeout(600)
@pytest.mark.skipif(pretend.missing() is not None, reason=str(pretend.missing()))
@pytest.mark.parametrize("part", ["sampling", "training"])
def test_on_a_device_that_is_not_the_cpu(part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(HERE / f"inside_{part}.py")], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
