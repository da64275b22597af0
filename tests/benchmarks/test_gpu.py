"""The whole program: a rehearsal with tiny networks writes both files with all that they promise."""

from __future__ import annotations

import importlib.util
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.speed import caches, peers
from benchmarks.speed.clock import Clock
from benchmarks.speed.contest import calls, compare, contest
from benchmarks.speed.listed import SECTIONS
from benchmarks.speed.report import COLUMNS, PACKAGES
from benchmarks.speed.sections import Bench
from benchmarks.speed.sizes import QUICK
from tests.factories import seeded

HERE = {"cuda": torch.cuda.is_available(), "imagen-pytorch": importlib.util.find_spec("imagen_pytorch") is not None}


def rehearse(out: Path, *options: str) -> dict[str, Any]:
    assert gpu.main(["--quick", "--device", "cpu", "--out", str(out), *options]) == 0
    told: dict[str, Any] = json.loads((out / "speed.json").read_text())
    return told


def test_two_sections_write_what_it_takes_to_repeat_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = rehearse(tmp_path, "--only", "memory-1024,second-stage", "--commit", "abc123")
    assert told["command"].startswith("python benchmarks/gpu.py --quick --device cpu")
    assert {"commit", "python", "card", "processor", "threads"} <= told.keys()
    assert {*PACKAGES} == told["versions"].keys()
    assert told["card"] == "none"
    assert told["commit"] == "abc123", "git has not travelled to a bare machine"
    assert {*told["ceilings"]["products"]} == {"float32", "bfloat16"}
    assert [section["name"] for section in told["sections"]] == ["ceilings", "memory-1024", "second-stage"]
    for row in told["sections"][2]["rows"]:
        assert row["evaluations"] == QUICK.steps
        assert row["ratio"] > 0
        assert row["bound"] in ("FLOPs", "bytes")
        assert row["peak"] is None
        assert row["agreement"]["ours"] < row["agreement"]["limit"]
        assert row["objections"] == []
        assert row["work"]["flops"] == pytest.approx(row["peer_work"]["flops"], rel=0.1)
    page = (tmp_path / "speed.md").read_text()
    assert "| " + " | ".join(COLUMNS) + " |" in page
    assert "not measured" in page
    assert page in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rehearsal_runs_every_section(tmp_path: Path) -> None:
    told = rehearse(tmp_path, "--seconds", "800")
    states = {section["name"]: section["state"] for section in told["sections"]}
    absent = set() if HERE["imagen-pytorch"] else {"imagen-pytorch"}
    assert {name for name, state in states.items() if state != "done"} == absent
    assert [*states] == ["ceilings", *(section.name for section in SECTIONS)]
    aims = {aim["what"] for section in told["sections"] for row in section["rows"] for aim in row["aims"]}
    assert {"share of the product rate", "steps a second over ADM's", "GB"} <= aims


def test_a_section_that_failed_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.speed.sampling.EfficientUNet", lambda **_: 1 / 0)
    assert gpu.main(["--quick", "--device", "cpu", "--out", str(tmp_path), "--only", "memory-1024"]) == 1
    (_, told) = json.loads((tmp_path / "speed.json").read_text())["sections"]
    assert (told["state"], told["why"]) == ("failed", "ZeroDivisionError: division by zero")


def test_sections_are_listed_and_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in SECTIONS]
    for wrong, message in (
        (["--only", "speed"], "--only 'speed' is no section; expected some of sampling, "),
        (["--only", ""], "--only is empty; leave it out for all sections"),
        (["--seconds", "0"], "--seconds 0 must be positive"),
        (["--seconds", "nan"], "--seconds nan must be positive"),
        (["--out", __file__], f"--out {__file__!r} is a file; give a folder"),
        (["--caches", __file__], f"--caches {__file__!r} is a file; give a folder"),
        *([] if HERE["cuda"] else [(["--device", "cuda"], "torch finds no card here")]),
    ):
        with pytest.raises(SystemExit) as stopped:
            gpu.main(wrong)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_compile_caches_are_written_in_parts_and_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, read = torch.randint(256, (200,), dtype=torch.uint8, generator=seeded()).numpy().tobytes(), []
    packed = len(zlib.compress(content))
    monkeypatch.setattr(caches, "PART", 64)
    monkeypatch.setitem(sys.modules, "torch._dynamo", sys)  # something was compiled
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (content, None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", read.append)
    (tmp_path / "compiled-9.bin").write_bytes(b"of an earlier run")
    assert "written to" in caches.save(tmp_path)
    assert [len(path.read_bytes()) for path in sorted(tmp_path.iterdir())] == [64, 64, 64, packed - 192]
    assert "4 files read" in caches.load(tmp_path)
    assert read == [content]
    monkeypatch.setattr(caches, "PART", 32)
    assert "too many to keep" in caches.save(tmp_path)
    assert caches.save(None) == caches.load(None) == caches.load(tmp_path / "nowhere") == ""
    assert len(read) == 1


def test_the_sampler_is_compiled_by_the_pipeline_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, dict[str, Any]]] = []
    unet: Any = type("Unet", (), {"compile": lambda self, **how: called.append(("unet", how))})()
    plain: Any = type("Plain", (), {})()
    able: Any = type("Able", (), {"compile": lambda self, **how: called.append(("pipe", how))})()
    assert peers.compiled(plain, unet, False, {"fullgraph": True}) == "unet.compile(fullgraph=True)"
    assert peers.compiled(able, unet, False, {"mode": "default"}) == "pipe.compile(mode='default')"
    peers.compiled(able, unet, True, {})
    assert called == [("unet", {"fullgraph": True}), ("pipe", {"mode": "default"}), ("unet", {})]


def test_without_imagen_pytorch_its_section_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imagen_pytorch" else find(name))
    with pytest.raises(peers.NotHere, match="imagen-pytorch is not installed; benchmarks/README.md says how"):
        peers.imagen_pytorch()


@pytest.mark.slow
@pytest.mark.parametrize("config", [QUICK.one, QUICK.two], ids=["stage I", "stage II"])
def test_asking_compiled_networks_whether_they_agree_compiles_nothing_more(config: dict[str, Any]) -> None:
    """On a card that would cost minutes: they are asked in the shapes and dtypes that the pipelines call them in."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    bench = Bench(Clock(torch.device("cpu")), QUICK)
    fight = contest(bench, config, torch.bfloat16)
    for network in (fight.ours, fight.peer):
        network.compile(backend="eager", fullgraph=True)
    torch._dynamo.reset()
    counters.clear()
    for call in calls(bench, fight, 1):
        call()
    made = counters["stats"]["unique_graphs"]
    assert made == 3, "our text, our network, the peer's"
    compare(fight.ours, fight.peer, config, bench)
    assert counters["stats"]["unique_graphs"] == made


@pytest.mark.slow
@pytest.mark.skipif(not HERE["imagen-pytorch"], reason="imagen-pytorch is not installed")
def test_our_network_is_matched_to_imagen_pytorchs() -> None:
    from benchmarks.speed.sizes import CARD, CPU
    from benchmarks.speed.training import forward_work, peer_forward_work
    from unets import BaseUNet

    for sizes in (CARD, CPU):
        peer = peer_forward_work(sizes.theirs, sizes.tokens)
        ours = forward_work(lambda sizes=sizes: BaseUNet(**sizes.matched), sizes.theirs.size, sizes.tokens)
        assert ours.one.flops == pytest.approx(peer.one.flops, rel=0.1)
        levels = [level for level, attends in enumerate(sizes.theirs.arguments["layer_attns"]) if attends]
        assert levels == list(sizes.matched["attention_levels"])
        assert sizes.theirs.arguments["dim_mults"] == sizes.matched["channel_mult"]
