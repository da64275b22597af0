"""Samples in shards: the same pictures however often the work is interrupted, and on however many processes."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imagen.data.tar import ShardRecords
from imagen.evaluation import sampling
from imagen.evaluation.launch import Launch
from imagen.evaluation.sampling import MANIFEST, Samples, finished, make_samples, prompts_and_seeds
from tests.evaluation.shards import WANTED
from tests.evaluation.shards import main as make_wanted
from tests.factories import SENTENCES, tiny_base, tiny_pipeline
from tests.source import ROOT

FEW = Samples(SENTENCES[:3], seed=4, size=16, shard_size=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def start(folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.evaluation.shards", str(folder)]
    one = {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **one}, stderr=subprocess.PIPE)


def start_two(folder: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(folder, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WANTED, made in one go by one process."""
    folder = tmp_path_factory.mktemp("whole")
    make_wanted(str(folder))
    return folder


def test_a_picture_is_the_pipelines_own_for_its_prompt_and_seed(whole: Path) -> None:
    told, paths = finished(whole)
    assert [path.name for path in paths] == [f"samples-{number:05d}.tar" for number in range(4)]
    assert (told["pictures"], told["size"], told["prompts"]["count"]) == (10, 16, 5)
    pipe, found = tiny_pipeline(), list(prompts_and_seeds(paths))
    assert [(one.number, one.text, one.seed) for one in found] == [
        (number, SENTENCES[number // 2], 7 + number) for number in range(10)
    ]
    records = ShardRecords([str(path) for path in paths])
    assert len(records) == 10
    for number in (0, 3, 9):
        record = records.record(number)
        assert record.captions == (SENTENCES[number // 2],)
        generator = torch.Generator().manual_seed(7 + number)
        alone = pipe(SENTENCES[number // 2], generator=[generator], size=16, **WANTED.settings).images[0]
        assert isinstance(record.image, bytes)
        assert Image.open(io.BytesIO(record.image)).tobytes() == alone.tobytes()


def test_a_run_that_was_killed_goes_on_to_the_same_shards(whole: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    first, deadline = tmp_path / "samples-00000.tar", time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was killed, and had not come to its end"
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    assert 1 <= len(before) < 4
    with pytest.raises(ValueError, match=f"lacks {4 - len(before)} of 4 shards: let the command"):
        finished(tmp_path)
    make_wanted(str(tmp_path))
    assert contents(tmp_path) == contents(whole)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before, "what was there was kept"


def test_two_processes_make_what_one_makes(whole: Path, tmp_path: Path) -> None:
    told = [process.communicate() and process.returncode for process in start_two(tmp_path)]
    assert told == [0, 0]
    assert contents(tmp_path) == contents(whole)


def test_shards_are_dealt_out_among_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launch, "wait", lambda self: None)
    wanted, pipe = replace(FEW, prompts=SENTENCES[:5], shard_size=1), tiny_pipeline()

    def made(rank: int) -> list[int]:
        before = {path.name for path in tmp_path.glob("*.tar")}
        make_samples(pipe, wanted, tmp_path, launch=Launch(rank, 2))
        return [int(path.stem[-5:]) for path in sorted(tmp_path.glob("*.tar")) if path.name not in before]

    assert made(0) == [0, 2, 4]
    assert made(0) == [1], "of those that are left"
    assert made(1) == []
    assert made(0) == [3]


@pytest.mark.parametrize(("change", "what"), [
    ({"seed": 5}, "seed"), ({"per_prompt": 2}, "per_prompt and another pictures"), ({"size": 32}, "size and another"),
    ({"prompts": SENTENCES[1:4]}, "prompts"), ({"prompts": SENTENCES[:4]}, "pictures and another prompts"),
    ({"settings": {"guidance_scale": 2.0}}, "stages"), ({"shard_size": 3}, "shard_size"),
])  # fmt: skip
def test_other_samples_are_refused(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    make_samples(tiny_pipeline(), FEW, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds samples of another .*{what}.*: give another folder"):
        make_samples(tiny_pipeline(), replace(FEW, **change), tmp_path)
    assert contents(tmp_path) == before


def test_other_weights_schedules_and_texts_are_refused_and_an_empty_folder_is_nobodys(tmp_path: Path) -> None:
    make_samples(tiny_pipeline(), FEW, tmp_path)
    changed = tiny_pipeline()
    changed.base_scheduler.register_to_config(prediction_type="sample")
    for pipe, what in (
        (tiny_pipeline(base_unet=tiny_base(seed=7)), "model"), (changed, "model"),
        (tiny_pipeline(max_length=5), "reading"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"holds samples of another {what}: give another"):
            make_samples(pipe, FEW, tmp_path)
    make_samples(tiny_pipeline(sr256_unet=None, sr256_scheduler=None), FEW, tmp_path)  # of a stage that does not run
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ValueError, match="holds shards, but not what made them"):
        make_samples(tiny_pipeline(), FEW, tmp_path)
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    make_samples(tiny_pipeline(), FEW, tmp_path)
    other = replace(FEW, seed=1)
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    make_samples(tiny_pipeline(), other, tmp_path)
    assert finished(tmp_path)[0]["seed"] == 1


def test_samples_of_another_weaker_network_are_refused(tmp_path: Path) -> None:
    led = replace(FEW, settings={"guidance": "auto"})
    make_samples(tiny_pipeline(base_weak_unet=tiny_base(seed=9)), led, tmp_path)
    make_samples(tiny_pipeline(base_weak_unet=tiny_base(seed=9)), led, tmp_path)
    with pytest.raises(ValueError, match="holds samples of another model: give another"):
        make_samples(tiny_pipeline(base_weak_unet=tiny_base(seed=8)), led, tmp_path)


def test_the_batch_size_changes_no_picture(tmp_path: Path) -> None:
    made = []
    for size in (1, 3):
        make_samples(tiny_pipeline(), FEW, tmp_path / str(size), batch_size=size)
        made.append(contents(tmp_path / str(size)))
    assert made[0] == made[1]


def test_a_prompt_of_several_lines_is_one_caption_and_is_kept_as_it_was(tmp_path: Path) -> None:
    paths = make_samples(tiny_pipeline(), Samples(["a red\n circle", ""], size=16), tmp_path)
    assert [one.text for one in prompts_and_seeds(paths)] == ["a red\n circle", ""]
    records = ShardRecords([str(path) for path in paths])
    assert [records.captions(number) for number in range(2)] == [("a red circle",), ("",)]
    with tarfile.open(paths[0]) as archive:
        assert {(member.mtime, member.uid, member.uname) for member in archive} == {(0, 0, "")}


@pytest.mark.parametrize(("change", "told"), [
    ({"prompts": []}, "there are no prompts"), ({"per_prompt": 0}, "per_prompt is 0"), ({"seed": -1}, "seed is -1"),
    ({"shard_size": 0}, "shard_size is 0"),
])  # fmt: skip
def test_numbers_have_ranges(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(FEW, **change)


def test_what_cannot_be_sampled_is_told_before_anything_is(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    with pytest.raises(ValueError, match="--batch-size is 0"):
        make_samples(tiny_pipeline(), FEW, folder, batch_size=0)
    with pytest.raises(ValueError, match="size=17: this model makes 16, 32, 64 px"):
        make_samples(tiny_pipeline(), replace(FEW, size=17), folder)
    with pytest.raises(ValueError, match="has .* tokens and this model reads 32"):
        make_samples(tiny_pipeline(), replace(FEW, prompts=[*FEW.prompts, "a red circle " * 20]), folder)
    assert not folder.exists()


def test_a_damaged_record_of_what_was_sampled_is_named(tmp_path: Path) -> None:
    make_samples(tiny_pipeline(), FEW, tmp_path)
    for text in ("{", "3", json.dumps({"pictures": "many", "shard_size": 2}), '{"pictures": 3, "shard_size": 0}'):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match=MANIFEST):
            finished(tmp_path)


def test_the_options_say_what_is_sampled(tmp_path: Path) -> None:
    parser = ArgumentParser()
    sampling.add_arguments(parser)
    tiny_pipeline(max_length=99).save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--prompts", "heldout:3", "--device", "cpu", "--size", "32"]
    words += ["--per-prompt", "2", "--seed", "5", "--steps", "1", "2", "--guidance", "1.5", "--batch-size", "4"]
    args = parser.parse_args(words)
    wanted = sampling.asked(args)
    assert wanted.settings == {"num_inference_steps": [1, 2], "guidance_scale": 1.5}
    assert (len(wanted), wanted.seed, wanted.size) == (6, 5, 32)
    _, paths = sampling.sample_model(args, tmp_path / "samples")
    stages = finished(tmp_path / "samples")[0]["stages"]
    assert [stages[slot]["num_inference_steps"] for slot in ("base", "sr256")] == [1, 2]
    assert [one.text for one in prompts_and_seeds(paths)] == [text for text in wanted.prompts for _ in range(2)]
    assert sampling.asked(parser.parse_args(["--prompts", "tune:1", "--preset", "fast"])).settings == {"preset": "fast"}
