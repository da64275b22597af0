"""Processes that wait for each other, and notice one that is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imagen.disk import LOCK
from imagen.errors import Stopped
from imagen.evaluation.launch import Launch
from tests.source import ROOT

MEET = """
import os
from imagen.errors import run_command
from imagen.evaluation.launch import Launch

def work():
    launch = Launch.of_environment()
    launch.wait()
    print("met", flush=True)
    if not launch.first:
        os._exit(9)  # as one that is killed
    launch.wait()
    print("met again")

raise SystemExit(run_command("meet", work))
"""


def test_one_that_dies_ends_the_others_with_a_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", MEET],
            cwd=ROOT,
            env={**shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    told, error = first.communicate()
    assert (told, second.communicate()[0]) == ("met\n", "met\n")
    assert (first.returncode, second.returncode) == (1, 9)
    last = error.splitlines()[-1]
    assert last.startswith("meet: error: another of the 2 processes ended before its work was done (")
    assert last.endswith("what is finished is kept, the same command goes on behind it")


def test_the_launcher_s_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert Launch.of_environment() == Launch(0, 1)
    Launch(0, 1).wait()  # for nobody
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Launch.of_environment() == Launch(1, 3)
    assert not Launch(1, 3).first
    with pytest.raises((ValueError, Stopped), match="MASTER_ADDR"):
        Launch(1, 3).wait()


def test_the_first_process_keeps_the_folder(tmp_path: Path) -> None:
    with Launch(0, 2).keeping(tmp_path):
        assert (tmp_path / LOCK).exists()
        with Launch(1, 2).keeping(tmp_path):
            pass
        with pytest.raises(ValueError, match="is being written to by"), Launch(0, 1).keeping(tmp_path):
            pass
