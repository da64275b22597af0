"""A step that is not finite leaves no trace: with any optimizer the run equals one without its update, bit for bit."""

from __future__ import annotations

import importlib.machinery
import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imagen.training import trainer as loop
from imagen.training.loader import batches_of, make_loader
from tests.training import regression
from tests.training.conftest import write_pictures
from tests.training.regression import RegressionConfig, RegressionTask, lines, stop_after
from tests.training.skipping import INFINITE, KINDS, NAN, STEPS, broken, settings, state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of other tests, afterwards; and a stand-in for bitsandbytes, which needs a GPU."""
    monkeypatch.setattr(regression, "Linear", regression.Linear)
    package, optim = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    package.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    optim.AdamW8bit = torch.optim.AdamW  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    monkeypatch.setattr(loop, "check_optimizer", lambda _: None)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    return str(write_pictures(tmp_path / "pictures", 0))


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """To the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        assert same, name


def rate(step: int) -> float:
    """The learning rate over its peak: two steps of warm-up, a line to 0 at the end. Skipped steps count."""
    return step / 2 if step < 2 else 1 - (step - 2) / (STEPS - 2)


def optimizers(kind: str, module: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """torch's own over the same parameters, matrices first; Adafactor is ours, which has tests of its own."""
    optim = KINDS[kind]
    matrices, vectors = ([p for p in module.parameters() if (p.ndim > 1) == many] for many in (True, False))
    decays = [(matrices, optim.weight_decay), (vectors, 0.0)]
    if optim.kind == "adafactor":
        return [loop.make_optimizer(module, optim)]
    if optim.muon_lr is None:
        groups = [{"params": params, "weight_decay": decay} for params, decay in decays]
        fused = optim.kind == "adamw"
        return [torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, fused=fused)]
    return [
        torch.optim.Muon(matrices, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(vectors, betas=optim.betas, eps=optim.eps, weight_decay=0.0, fused=True),
    ]


def by_hand(config: RegressionConfig, kind: str) -> dict[str, Any]:
    """The run without a trainer, and without the updates of the steps that are not finite."""
    task = RegressionTask(config)
    module, source, *_ = task.load(torch.device("cpu"), None, None)  # type: ignore[arg-type]
    made = optimizers(kind, module)
    peaks = [KINDS[kind].muon_lr, KINDS[kind].lr] if len(made) > 1 else [KINDS[kind].lr]
    average = {name: value.clone() for name, value in module.state_dict().items()}
    updates = 0
    with batches_of(make_loader(config, source, 0, 0, 1)) as batches:
        for step in range(STEPS):
            loss = task.losses(module, task.batch(next(batches), step, range(6))).mean()
            if step in (NAN, INFINITE):
                continue
            module.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            for optimizer, peak in zip(made, peaks, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * rate(step)
                optimizer.step()
            decay = min(0.9, (1 + updates) / (10 + updates))
            for name, value in module.state_dict().items():
                average[name] = average[name].lerp(value, 1 - decay) if value.is_floating_point() else value.clone()
            updates += 1
    named = {p: name for name, p in module.named_parameters()}
    kept = {p: moments for optimizer in made for p, moments in optimizer.state.items()}
    moments = {f"{named[p]} {key}": value for p, items in kept.items() for key, value in items.items()}
    counts = {"step": STEPS, "skipped": 2, "updates": updates}
    return {**module.state_dict(), **moments, **{f"average {k}": v for k, v in average.items()}, **counts}


@pytest.mark.parametrize("kind", KINDS)
def test_the_run_is_the_one_without_their_updates(tmp_path: Path, pictures: str, kind: str) -> None:
    """Weights, average, every state of the optimizer; the learning rate goes by steps, the average by updates."""
    config = settings(tmp_path / "run", pictures, kind)
    trainer = broken(config)
    assert trainer.fit()
    assert_same(state(trainer), by_hand(config, kind))
    assert [line["skipped"] for line in lines(config)] == [0, 1, 2, 2]


@pytest.mark.parametrize("stop", [NAN, NAN + 1, INFINITE + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumed_before_between_or_behind_them_is_the_whole_one(
    tmp_path: Path, pictures: str, kind: str, stop: int
) -> None:
    whole, parts = (settings(tmp_path / name, pictures, kind) for name in ("whole", "parts"))
    first = broken(whole)
    assert first.fit()
    assert not stop_after(broken(parts), stop).fit()
    second = broken(parts)
    assert second.step == stop
    assert second.fit()
    assert_same(state(first), state(second))
    assert lines(whole) == lines(parts)


def on_two_processes(*arguments: str) -> None:
    """The program beside this file, as accelerate launch starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "tests.training.skipping", *arguments]
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait() for process in ranks] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor with momentum"])
def test_two_processes_skip_together_what_one_of_them_meets(tmp_path: Path, pictures: str, kind: str) -> None:
    """Both have the same weights to the bit, also resumed between the two steps, and those of one process."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    on_two_processes(str(whole), pictures, kind, str(STEPS))
    for stop in (NAN + 1, STEPS):
        on_two_processes(str(parts), pictures, kind, str(stop))
    found = {
        (run.name, rank): torch.load(run / f"rank{rank}.pt", weights_only=True)
        for run in (whole, parts)
        for rank in range(2)
    }
    for run in ("whole", "parts"):
        first, second = found[run, 0], found[run, 1]
        assert (first["step"], first["skipped"], first["updates"]) == (STEPS, 2, STEPS - 2)
        assert_same(*({k: v for k, v in one.items() if "shown" not in k} for one in (first, second)))
    assert_same(found["whole", 0], found["parts", 0])
    alone = broken(settings(tmp_path / "alone", pictures, kind))
    assert alone.fit()
    for name, value in state(alone).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            torch.testing.assert_close(found["whole", 0][name], value, msg=name, rtol=1e-2, atol=1e-3)
