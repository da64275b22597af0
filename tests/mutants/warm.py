"""A process that has the heavy libraries loaded and forks once for every pytest run asked of it.

Loading torch, diffusers and transformers takes longer than most of the tests; forked children start with them loaded,
while the project's own modules, which a mutation changes, are loaded anew in every child.

Started in the tree to test, it reads one JSON list of pytest arguments a line from standard input and answers with one
line, {"status": ..., "output": ...}. Status 124 stands for a run that had to be ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TIMEOUT = float(os.environ.get("MUTANT_TIMEOUT", 900))  # seconds for one run
LIBRARIES = (
    "numpy pytest yaml scipy.ndimage PIL.Image torch torch.nn.functional accelerate jsonargparse safetensors.torch "
    "diffusers.models.modeling_utils diffusers.models.unets.unet_2d_condition diffusers.schedulers "
    "diffusers.pipelines.pipeline_utils transformers.models.t5.modeling_t5 transformers.models.t5.tokenization_t5"
)


class Warm:
    """The client's side: `run(arguments)` runs pytest in `tree` and returns its exit status and what it printed."""

    def __init__(self, tree: Path, libraries: str = LIBRARIES) -> None:
        # No bytecode: a .pyc is chosen by time stamp and size, and a mutation may leave both as they were.
        env = dict(os.environ, PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
        command = [sys.executable, "-P", str(Path(__file__).resolve()), *libraries.split()]
        self.process = subprocess.Popen(
            command, cwd=tree, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._requests, self._answers = self.process.stdin, self.process.stdout

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Run pytest with `arguments`; returns (exit status, output)."""
        assert self._requests
        assert self._answers
        self._requests.write(json.dumps(list(arguments)) + "\n")
        self._requests.flush()
        answer = json.loads(self._answers.readline() or '{"status": 3, "output": "the test process died"}')
        return answer["status"], answer["output"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def child(arguments: list[str], log: int) -> None:
    """In the forked process: run pytest into the file `log` and leave with its status."""
    status = 3
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        import pytest

        status = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of `pid`; past the time limit it and what it started are killed."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


def serve() -> None:
    """Load the modules named on the command line, then answer requests until standard input ends."""
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), log.fileno())
            status = wait(pid)
            log.seek(0)
            print(json.dumps({"status": status, "output": log.read()}), flush=True)


if __name__ == "__main__":
    serve()
