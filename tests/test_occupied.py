"""A folder that a command fills belongs to one process at a time, and never to a dead one."""

from __future__ import annotations

import os
import platform
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imagen.cascade.training.compose import save
from imagen.cli import train
from imagen.disk import LOCK, occupied
from imagen.errors import ConfigError
from tests.factories import tiny_pipeline

HOLD = "import sys, time; from pathlib import Path; from imagen.disk import occupied\n"
HOLD += "with occupied(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


def test_one_at_a_time_and_the_other_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with occupied(folder):
        with (
            pytest.raises(ValueError, match=f"run' is being written to by process {os.getpid()} on "),
            occupied(folder),
        ):
            pass
        assert (folder / LOCK).exists()
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with occupied(folder):
        pass


def test_what_was_left_empty_is_removed_whatever_happened(tmp_path: Path) -> None:
    with pytest.raises(KeyError), occupied(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_before_anything_is_written_keeps_no_lock(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"), occupied(tmp_path / "out"):
            pytest.fail("nothing can be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    with occupied(tmp_path / "out"):
        pass


def test_another_command_is_refused_in_one_line_until_its_owner_is_dead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    assert owner.stdout.readline() == "held\n"
    words = ["--config", "configs/shapes/base64.yaml", "--run_dir", str(tmp_path / "run")]
    assert train.main(words) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("train.py: error: run_dir ")
    assert f"by process {owner.pid} on" in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (tmp_path / "run" / LOCK).exists()  # what it left behind
    with occupied(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).read_text() == f"process {os.getpid()} on {platform.node()}"
    assert not (tmp_path / "run").exists()


def test_a_child_that_outlives_its_owner_keeps_nothing(tmp_path: Path) -> None:
    """As a process that loads pictures, which was forked."""
    fork = HOLD.replace("print('held', flush=True); time.sleep(60)", "child = os.fork(); time.sleep(60 * (not child))")
    end = "; print(child, flush=True); os.kill(os.getpid(), 9)"
    owner = subprocess.Popen(
        [sys.executable, "-c", f"import os, {fork.removeprefix('import ')}{end}", str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    child = int(owner.stdout.readline())
    owner.wait()
    try:
        with occupied(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_where_nothing_can_be_locked_the_owner_is_warned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.warns(UserWarning, match="cannot be locked.*no other process"), occupied(tmp_path / "run"):
        pass


def test_a_composed_model_waits_for_whoever_writes_there(tmp_path: Path) -> None:
    with occupied(tmp_path / "model"), pytest.raises(ConfigError, match=f"--out .*model' is being .* {os.getpid()} on"):
        save(tiny_pipeline(), tmp_path / "model")
