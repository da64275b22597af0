"""The command python -m imagen.text.cache: killed, over processes, and what it tells."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import T5Config, T5EncoderModel

from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.grids import held_out
from imagen.cascade.training.inputs.source import make_source
from imagen.cli import text_cache
from imagen.cli.text_cache import data_captions, file_captions, main, report
from imagen.errors import ConfigError
from imagen.text.cache import build
from imagen.text.cache.build import Encoding, Result
from imagen.text.cache.store import Identity, Manifest, TextCache
from imagen.text.folders import Fingerprint
from imagen.text.pretrain import train_tokenizer
from tests.cascade.training.conftest import TINY, merge

SR = {"stage": {"name": "sr256", "size": 16, "lowres_size": 8}, "unet.lowres_channels": 3}
WIDTH, LENGTH = 16, 12
WORDS = [f"a {a} {b}" for a in ("red", "blue", "small green") for b in ("circle", "star", "square", "big heart")]
CAPTIONS = [f"{one} above {other}" for one in WORDS for other in WORDS[:5]]


@pytest.fixture(scope="module")
def server():
    """Starts processes in a fraction of a second: it imports the libraries once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["imagen.cli.text_cache", "imagen.text.cache.build", "imagen.training.config.parsing"]
    )
    return context


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """t5/ and captions.txt."""
    path = tmp_path_factory.mktemp("inputs")
    tokenizer = train_tokenizer(WORDS * 20)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(path / "t5")
    tokenizer.save_pretrained(path / "t5")
    (path / "captions.txt").write_text("".join(f"{caption}\n" for caption in [*CAPTIONS, *CAPTIONS[:3]]))
    return path


def command(folder: Path, out: Path, *options: str) -> list[str]:
    return [
        "--captions", str(folder / "captions.txt"), "--text.encoder", str(folder / "t5"),
        "--text.max_length", str(LENGTH), "--out", str(out), "--shard_size", "3", "--device", "cpu", *options,
    ]  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_on_the_way(server, arguments: list[str], out: Path, shards: int, delay: float) -> tuple[bool, set[int]]:
    """SIGKILL the command soon after it has so many shards: whether that came in time, and its child processes."""
    process = server.Process(target=main, args=(arguments,))
    process.start()
    while process.is_alive() and len(list(out.glob("*.safetensors"))) < shards:
        time.sleep(0.002)
    time.sleep(delay)
    workers = {pid for pid in pids() if status(pid)[1:2] == [str(process.pid)]}
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL, workers


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def status(pid: int) -> list[str]:
    """[state, parent, ...] of a process; empty where it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return []


@pytest.mark.timeout(600)
def test_killed_three_times_the_cache_is_the_same_to_the_byte(server, folder, tmp_path):
    whole, out, rng = tmp_path / "whole", tmp_path / "out", random.Random(0)
    assert main(command(folder, whole)) == 0
    landed = [kill_on_the_way(server, command(folder, out), out, n, rng.uniform(0, 0.01))[0] for n in (1, 4, 9)]
    assert any(landed)
    assert main(command(folder, out)) == 0
    assert content(out) == content(whole)


def test_what_a_killed_write_left_is_removed(folder, tmp_path):
    out = tmp_path / "out"
    assert main(command(folder, out)) == 0
    before = content(out)
    for name in (".tmpAbCdEf", "captions-00001.safetensors.77.partial"):
        (out / name).write_bytes(b"")
    assert main(command(folder, out)) == 0
    assert content(out) == before


@pytest.mark.timeout(600)
def test_two_processes_write_what_one_does(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "START", "forkserver")  # as spawn, but with the libraries loaded once
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(command(folder, tmp_path / "one")) == 0
        assert main(command(folder, tmp_path / "two", "--processes", "2")) == 0
    finally:
        torch.set_num_threads(threads)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_two_processes_work(server, folder, tmp_path):
    """Spawned for real; the workers end when the command is killed, and nothing is left locked."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(folder, whole)) == 0
    landed, workers = kill_on_the_way(server, command(folder, out, "--processes", "2"), out, 2, 0.0)
    assert landed
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while any(status(pid)[:1] not in ([], ["Z"]) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(status(pid)[:1] in ([], ["Z"]) for pid in workers), "a worker outlived the command"
    assert main(command(folder, out, "--processes", "2")) == 0
    assert content(out).keys() == content(whole).keys()
    one, two = TextCache(whole), TextCache(out)
    torch.testing.assert_close(one(CAPTIONS)[0], two(CAPTIONS)[0], atol=1e-6, rtol=1e-5)


def test_what_it_tells(folder, tmp_path, capsys):
    assert main(command(folder, tmp_path / "c", "--dtype", "bfloat16")) == 0
    told = capsys.readouterr().out
    manifest = Manifest.read(tmp_path / "c")
    unique = len(set(CAPTIONS)) + 1
    assert f"{len(CAPTIONS) + 3} captions given, {unique} encoded now, {unique} different ones in all" in told
    fixed = LENGTH * WIDTH * 4
    each = sum(path.stat().st_size for path in (tmp_path / "c").glob("*.safetensors")) / unique
    assert f"{manifest.bytes:,} in bfloat16, {each:,.0f} a caption; as float32 of fixed length" in told
    assert f"{fixed * unique:,}, {fixed:,} a caption ({fixed / each:.1f} times)" in told
    assert main(command(folder, tmp_path / "c")) == 0  # the dtype of the cache that is there
    assert capsys.readouterr().out.startswith("nothing to do: every caption is in the cache")


OPTIONS = ["--text.dtype", "bfloat16", "--dtype", "float16", "--batch_size", "5", "--processes", "3"]
OPTIONS += ["--shard_size", "7", "--device", "meta"]


@pytest.mark.parametrize(
    ("options", "out", "shards", "encoding"),
    [
        ([], "c", (1, 4096), Encoding("t5", 128, "float32", None, 64, "cpu")),
        (OPTIONS, "c", (3, 7), Encoding("t5", 128, "bfloat16", "float16", 5, "meta")),
        (["--out", "o", "--text.max_length", "9"], "o", (1, 4096), Encoding("t5", 9, "float32", None, 64, "cpu")),
    ],
)
def test_every_option_reaches_the_work(folder, capsys, monkeypatch, options, out, shards, encoding):
    def work(captions, *rest):
        assert list(captions)[: len(CAPTIONS)] == CAPTIONS
        seen.append(rest)
        raise ValueError("seen")

    seen: list[tuple] = []
    monkeypatch.setattr(text_cache, "check_device", lambda name, device: device)
    monkeypatch.setattr(build, "build_cache", work)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = ["--captions", str(folder / "captions.txt"), "--text.encoder", "t5", "--text.cache", "c", *options]
    assert main(arguments) == 2
    assert "error: seen" in capsys.readouterr().err
    assert seen == [(Path(out), encoding, *shards)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "nothing to encode: give --config TRAIN.yaml or --captions FILE"),
        (["--config", "{shapes}"], "no folder to write to: give --out DIR, or set text.cache"),
        (["--config", "{shapes}", "--out", "{out}"], "text.encoder is null: give --text.encoder"),
        (
            ["--config", "{shapes}", "--out", "{out}", "--text.encoder", "{t5}"],
            "data.kind shapes has no end: add --num N (30 for this run's steps)",
        ),
        (["--captions", "/nowhere", "--out", "{out}", "--text.encoder", "{t5}"], "cannot read --captions '/nowhere'"),
        (["--captions", "{text}", "--out", "{out}", "--text.encoder", "/nowhere"], "no text encoder at '/nowhere'"),
        (["--captions", "{text}", "--out", "{out}", "--num", "3"], "--num 3: all lines of --captions are taken"),
        (["--captions", "{text}", "--out", "{out}", "--text.max_lenght", "3"], "did you mean 'text.max_length'?"),
        (
            ["--captions", "{text}", "--out", "{out}", "--text.encoder", "/nowhere", "--device", "foo"],
            "--device 'foo' is not there: ",
        ),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, arguments, expected):
    shapes = tmp_path / "shapes.yaml"
    shapes.write_text("{run_dir: r, unet: {kind: BaseUNet}, train: {steps: 10, batch_size: 3}, grid: {every: 0}}")
    names = {"shapes": shapes, "out": tmp_path / "o", "t5": folder / "t5", "text": folder / "captions.txt"}
    assert main([word.format(**names) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("text cache: error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_line_and_nothing_is_lost(folder, tmp_path, capsys, monkeypatch):
    def write(path, *rest):
        if path.name == "captions-00002.safetensors":
            raise OSError(28, "No space left on device")
        real(path, *rest)

    real = build.write_shard
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_shard", write)
        assert main(command(folder, tmp_path / "c")) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith("text cache: error: [Errno 28] No space left on device; mend")
    )
    assert main(command(folder, tmp_path / "c")) == 0
    assert f"{len(set(CAPTIONS)) + 1 - 6} encoded now" in capsys.readouterr().out


HELD_OUT = {"every": 2, "samples": 2, "levels": 2, "data": {"kind": "shapes", "split": "heldout"}}


@pytest.mark.parametrize(
    ("changes", "held", "measured"),
    [
        ({}, 0, 0),
        ({"grid": {"every": 2, "count": 3}}, 3, 0),
        ({"grid": {"every": 2, "count": 3, "prompts": ["a red star"]}}, 0, 0),
        ({**SR, "grid": {"every": 2, "count": 3, "prompts": ["a red star"]}}, 3, 0),  # its own grid shows pictures
        ({**SR, "grid": {"every": 0, "count": 3}}, 0, 0),
        ({**SR, "grid": {"every": 2, "count": 3}, "validation": HELD_OUT}, 3, 2),
        ({"validation": {**HELD_OUT, "scores": {"features": "clip", "every": 2, "count": 5}}}, 0, 5),
    ],
)
def test_a_run_s_captions_are_those_of_its_data_its_grids_and_its_held_out_pictures(tmp_path, changes, held, measured):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(merge(TINY, {"run_dir": str(tmp_path / "run"), **changes})))
    config = parse(["--config", str(path)])
    source = make_source(config)
    shown = list(config.grid.prompts)
    shown += [sample.caption for sample in held_out(config)] if held else []
    assert len(shown) == len(config.grid.prompts) + held
    found = list(data_captions(config, 5))
    assert found[:5] == [source.scene(index)[1] for index in range(5)]
    assert found[5 : 5 + len(shown)] == shown
    assert len(found) == 5 + len(shown) + measured


@pytest.mark.parametrize(
    ("options", "gpus", "device", "processes"),
    [
        ([], 0, "cpu", 1),
        ([], 3, "cuda", 3),
        (["--processes", "2"], 3, "cuda", 2),
        (["--device", "cpu"], 3, "cpu", 1),
        (["--device", "cuda"], 0, "cuda", 1),
    ],
)
def test_by_default_every_gpu_has_a_process(folder, monkeypatch, options, gpus, device, processes):
    def work(captions, out, encoding, *rest):
        seen.append((encoding.device, rest[0]))
        raise ValueError("seen")

    seen: list[tuple] = []
    monkeypatch.setattr(build, "build_cache", work)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(text_cache, "check_device", lambda name, device: device)
    assert main(["--captions", str(folder / "captions.txt"), "--text.encoder", "t5", "--out", "c", *options]) == 2
    assert seen == [(device, processes)]


@pytest.mark.parametrize("option", ["--num", "--processes", "--batch_size", "--shard_size"])
def test_numbers_are_positive(option, capsys):
    for wrong in ("0", "-1"):
        assert main(["--captions", "c.txt", option, wrong]) == 2
        expected = f"text cache: error: {option} is {wrong}; expected an integer of at least 1\n"
        assert capsys.readouterr().err == expected
    for words in ([option, "many"], ["--dtype", "float64"]):
        with pytest.raises(SystemExit) as stopped:
            main(["--captions", "c.txt", *words])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert words[0] in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(("padding", "lowercase"), [("visible", "false"), ("masked", "true")])
def test_a_cache_keeps_captions_as_written_and_unpadded(folder, tmp_path, capsys, padding, lowercase):
    words = ["--text.padding", padding, "--text.lowercase", lowercase]
    assert main(command(folder, tmp_path / "c", *words)) == 2
    assert f"text.padding {padding} and text.lowercase {lowercase.title()}: a cache keeps" in capsys.readouterr().err


def test_lines_of_a_file_are_captions_as_they_stand(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"\xef\xbb\xbf a  cat \n\ngr\xc3\xb6\xc3\x9fer\nlast")
    assert list(file_captions(str(path))) == [" a  cat ", "", "größer", "last"]
    path.write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(ConfigError, match=r"--captions '.*captions.txt' is not UTF-8 .*: save it as UTF-8"):
        list(file_captions(str(path)))
    with pytest.raises(ConfigError, match="cannot read --captions '.*nowhere': No such file"):
        list(file_captions(str(tmp_path / "nowhere")))


def test_only_where_nothing_was_encoded_nothing_was_to_do():
    manifest = Manifest(Identity("e", Fingerprint("a", "b", 12), "float32", "float16", 16), 3, True, 10, 55, 4000, 2)
    lines = report(Result(manifest, 14, 6), "out")
    assert lines[0] == "out: 14 captions given, 6 encoded now, 10 different ones in all, in 3 files"
    assert lines[1] == "tokens: 55, 5.5 a caption; 2 captions were cut at 12"
    assert lines[2] == (
        "bytes: 4,000 in float16, 400 a caption; as float32 of fixed length 7,680, 768 a caption (1.9 times)"
    )
    lines[0] = lines[0].replace("6 encoded", "0 encoded")
    assert report(Result(manifest, 14, 0), "out") == ["nothing to do: every caption is in the cache", *lines]
