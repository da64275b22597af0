"""SIGKILL from outside, at random moments, mid-write included: the finished run equals one that was left alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from imagen.cli.train import main

ROOT = Path(__file__).resolve().parents[3]
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def server():
    """Starts training processes in a fraction of a second: it imports the libraries once, and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["imagen.cascade.training.task", "imagen.training.trainer", "unets", "imagen.cli.train"]
    )
    return context


def content(run: Path, read_metrics: Callable[..., object]) -> dict[str, object]:
    """What must not depend on being killed."""
    newest = sorted((run / "state").glob("step-*"))[-1]
    files = {name: (newest / name).read_bytes() for name in ("unet.safetensors", "ema.safetensors", "optimizer.pt")}
    return {**files, "export": (run / WEIGHTS).read_bytes(), "metrics": read_metrics(run), "step": newest.name}


def train_with_kills(server, arguments: list[str], run: Path, steps: int, kills: int, seed: int) -> int:
    """Run to the end, killed `kills` times on the way, soon after random steps; returns how many kills came in time."""
    rng = random.Random(seed)
    landed, workers = 0, set()
    for target in sorted(rng.randrange(steps) for _ in range(kills)):
        process = server.Process(target=main, args=(arguments,))
        process.start()
        while process.is_alive() and not any(int(p.name[5:]) >= target for p in (run / "state").glob("step-*")):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        workers |= children(process.pid)
        process.kill()
        process.join()
        landed += process.exitcode == -signal.SIGKILL
    process = server.Process(target=main, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == 0
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(is_running(pid) for pid in workers), "a killed run left its loading workers behind"
    return landed


def children(pid: int) -> set[int]:
    """The child processes of a process, where the system tells."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.add(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def assert_like_an_undisturbed_run(server, write_config, read_metrics, tmp_path, steps, kills, seed, **changes) -> None:
    changes = {
        "train.steps": steps,
        "train.num_workers": 1,
        "train.log_every": 3,
        "train.checkpoint_every": 1,
        **changes,
    }
    path = write_config(**changes)
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_with_kills(server, ["--config", str(path), "--run_dir", str(whole)], whole, steps, 0, seed)
    landed = train_with_kills(server, ["--config", str(path), "--run_dir", str(run)], run, steps, kills, seed)
    assert landed >= kills // 2  # the moments did fall into the run
    assert content(run, read_metrics) == content(whole, read_metrics)


@pytest.mark.timeout(900)
def test_three_kills(server, write_config, read_metrics, tmp_path):
    assert_like_an_undisturbed_run(server, write_config, read_metrics, tmp_path, 12, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills(server, write_config, read_metrics, tmp_path):
    changes = {"train.accumulation": 2, "optim.schedule": "cosine"}
    assert_like_an_undisturbed_run(server, write_config, read_metrics, tmp_path, 60, 50, seed=2, **changes)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_processes_equal_one(write_config, on_two_processes, read_metrics, tmp_path):
    path = write_config(**{"train.steps": 10, "train.batch_size": 8, "train.dtype": "float64", "train.log_every": 1})
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(["--config", str(path), "--run_dir", str(one)]) == 0
    on_two_processes("--config", str(path), "--run_dir", str(two))
    for line, other in zip(read_metrics(one), read_metrics(two), strict=True):
        assert line.keys() == other.keys()
        for key in ("loss", "loss_t0", "loss_t3", "grad_norm", "lr", "step"):
            assert line[key] == pytest.approx(other[key], abs=1e-8)
    a, b = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
    assert max((a[key] - b[key]).abs().max().item() for key in a) < 1e-6
    assert yaml.safe_load((two / "config.yaml").read_text())["train"]["batch_size"] == 8
