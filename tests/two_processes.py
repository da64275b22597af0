"""A command on two processes, as accelerate launch starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tests.source import ROOT


def run_on_two(*command: str) -> None:
    """Run ``python COMMAND`` as both processes of a launch; both must succeed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait() for process in ranks] == [0, 0]
