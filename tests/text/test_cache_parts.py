"""The parts of the text cache by themselves: its manifest, its identity, its plan of work, and its processes."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.text.cache import build
from imagen.text.cache.build import Encoding, build_cache, identify, plan
from imagen.text.cache.store import (
    Identity,
    Manifest,
    MissingCaption,
    Shard,
    TextCache,
    caption_key,
    shard_path,
    write_shard,
)
from imagen.text.folders import Fingerprint
from tests.factories import SENTENCES, WIDTH, tiny_clip, tiny_clip_tokenizer, tiny_text_encoder, tiny_tokenizer

IDENTITY = Identity("name", Fingerprint("e", "t", 8), "float32", "bfloat16", 16)
MANIFEST = Manifest(IDENTITY, 3, True, 10, 55, 4000, 2)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert json.loads((tmp_path / "cache.json").read_text()) == {"format_version": 1, **asdict(MANIFEST)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: {**values, "format_version": 2}, "format version 2, newer than 1: update imagen"),
        (lambda values: {name: values[name] for name in values if name != "format_version"}, "is damaged"),
        (lambda values: {name: values[name] for name in values if name != "identity"}, "is damaged"),
        (lambda values: {**values, "identity": {"encoder": "e"}}, "is damaged"),
        (lambda values: {**values, "colour": 1}, "is damaged"),
        (lambda values: [values], "is damaged"),
        (lambda values: 7, "is damaged"),
    ],
)
def test_a_damaged_or_newer_manifest_is_told(tmp_path: Path, change: Any, told: str) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=told):
        Manifest.read(tmp_path)


def test_embeddings_that_may_not_stand_side_by_side_say_why() -> None:
    assert IDENTITY.differences(replace(IDENTITY, encoder="other name", width=99)) == []
    other = Identity("name", Fingerprint("x", "y", 9), "float16", "float32", 16)
    assert IDENTITY.differences(other) == [
        "the encoder's files differ", "the tokenizer's files differ", "max_length 8 there, 9 here",
        "compute dtype float32 there, float16 here", "stored dtype bfloat16 there, float32 here",
    ]  # fmt: skip


def store(folder: Path, *shards: dict[str, int], complete: bool = True) -> Manifest:
    """Shards of captions, each of so many tokens, whose numbers say whose they are."""
    for number, captions in enumerate(shards):
        keys = sorted(captions, key=caption_key)
        rows = [torch.full((captions[text], 2), float(len(text))) + torch.arange(2) / 8 for text in keys]
        write_shard(shard_path(folder, number), rows, list(map(caption_key, keys)), cut=number + 1)
    manifest = replace(build.count_shards(folder, Manifest(IDENTITY), len(shards)), complete=complete)
    manifest.write(folder)
    return manifest


FIRST, SECOND = {"a": 1, "bb": 3}, {"ccc": 2, "": 1, "dddd": 4}


def test_captions_are_found_in_whichever_shard_they_lie(tmp_path: Path) -> None:
    manifest = store(tmp_path, FIRST, SECOND)
    sizes = [shard_path(tmp_path, number).stat().st_size for number in (0, 1)]
    assert (manifest.shards, manifest.captions, manifest.tokens) == (2, 5, 11)
    assert (manifest.bytes, manifest.cut) == (sum(sizes), 3)
    cache = TextCache(tmp_path)
    for order in (["a", "bb", "ccc", "", "dddd"], ["dddd", "a"], ["bb", "bb", "ccc"], [""]):
        embeddings, mask = cache(order)
        lengths = [{**FIRST, **SECOND}[text] for text in order]
        assert mask.tolist() == [[place < length for place in range(max(lengths))] for length in lengths]
        for row, real, text in zip(embeddings, mask, order, strict=True):
            assert (row[real] == torch.tensor([len(text), len(text) + 0.125])).all()
            assert (row[~real] == 0).all()
    assert cache.missing(["a", "x", "bb", "y", "x"]) == ["x", "y", "x"]
    assert cache.missing([]) == []
    with pytest.raises(MissingCaption, match="lacks the caption 'x'"):
        cache(["a", "x", "y"])
    assert {tensor.device.type for tensor in cache(["a", "bb"], "meta")} == {"meta"}
    assert {tensor.device.type for tensor in cache(["a", "bb"])} == {"cpu"}


def test_a_cache_is_finished_or_refused(tmp_path: Path) -> None:
    store(tmp_path, FIRST, complete=False)
    with pytest.raises(ValueError, match="is not finished: give its python -m imagen.text.cache command again"):
        TextCache(tmp_path)


def wanted(*texts: str) -> dict[bytes, str]:
    return {caption_key(text): text for text in texts}


def test_a_plan_is_of_what_is_lacking_in_the_order_of_the_keys(tmp_path: Path) -> None:
    manifest = store(tmp_path, FIRST)
    texts = ["a", "bb", *"pqrst"]
    kept, tasks, planned = plan(tmp_path, manifest, wanted(*texts), 2)
    assert (kept, planned) == (manifest, 3)
    assert [task.path for task in tasks] == [shard_path(tmp_path, number) for number in (1, 2, 3)]
    assert [len(task.captions) for task in tasks] == [2, 2, 1]
    assert [text for task in tasks for text in task.captions] == sorted("pqrst", key=caption_key)
    assert plan(tmp_path, manifest, wanted("bb", "a"), 2) == (manifest, [], 0)


def test_shards_of_another_plan_become_part_of_the_cache(tmp_path: Path) -> None:
    """Behind the manifest's one shard lie, of work that was broken off, a damaged one and two whole ones."""
    manifest = store(tmp_path, FIRST, complete=True)
    for number, text in ((3, "p"), (5, "q")):
        write_shard(shard_path(tmp_path, number), [torch.ones(2, 2)], [caption_key(text)], 0)
    shard_path(tmp_path, 4).write_bytes(b"damaged")
    kept, tasks, planned = plan(tmp_path, manifest, wanted("a", "p", "q", "r"), 2)
    assert (kept.shards, kept.captions, kept.tokens, planned) == (3, 4, 8, 1)
    assert Manifest.read(tmp_path) == kept
    assert [(task.path, task.captions) for task in tasks] == [(shard_path(tmp_path, 3), ["r"])]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"captions-0000{n}.safetensors" for n in range(3)
    ]
    assert [Shard(shard_path(tmp_path, n)).key_bytes() for n in (1, 2)] == [[caption_key("p")], [caption_key("q")]]


@pytest.fixture
def t5(tmp_path: Path) -> str:
    for part in (tiny_text_encoder(), tiny_tokenizer()):
        part.save_pretrained(tmp_path / "t5")
    return str(tmp_path / "t5")


def test_what_a_run_did_is_told(t5: str, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "deep" / "cache"
    given = [*SENTENCES[:5], SENTENCES[0], SENTENCES[3]]
    result = build_cache(iter(given), out, Encoding(t5, 6, batch_size=2), 1, 2, said.append)
    assert (result.given, result.encoded) == (7, 6)
    assert said == [f"{done} of 6 captions encoded" for done in (2, 4, 6)]
    assert (result.manifest.shards, result.manifest.captions, result.manifest.complete) == (3, 6, True)
    assert result.manifest == Manifest.read(out)
    identity = result.manifest.identity
    assert (identity.encoder, identity.width) == (t5, WIDTH)
    assert (identity.compute_dtype, identity.dtype, identity.fingerprint.max_length) == ("float32", "float32", 6)
    again = build_cache([], out, Encoding(t5, 6), 1, 2, said.append)
    assert (again.given, again.encoded, again.manifest, len(said)) == (0, 0, result.manifest, 3)


def test_a_length_beyond_the_encoder_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    for part in (tiny_clip(positions=20), tiny_clip_tokenizer()):
        part.save_pretrained(tmp_path / "clip")
    encoding = Encoding(str(tmp_path / "clip"), 20, "float16", "bfloat16")
    assert identify(encoding).width == WIDTH
    assert (identify(encoding).compute_dtype, identify(encoding).dtype) == ("float16", "bfloat16")
    with pytest.raises(ValueError, match="max_length 21 is more than the 20 positions"):
        build_cache(["a"], tmp_path / "cache", replace(encoding, max_length=21))
    assert not (tmp_path / "cache").exists()


def test_an_encoder_of_the_hub_is_downloaded_once(t5: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(build, "local_folder", lambda name: Path(t5) if loaded else None)
    monkeypatch.setattr(build, "load_text_encoder", loaded.append)
    for _ in range(2):
        identity = identify(Encoding("me/t5", 6, dtype="float16"))
    assert identity == replace(identify(Encoding(t5, 6, dtype="float16")), encoder="me/t5")
    assert loaded == ["me/t5"]


@pytest.mark.parametrize(
    ("device", "places"), [("cuda", ["cuda:0", "cuda:1", "cuda:0"]), ("cpu", ["cpu"] * 3), ("meta", ["meta"] * 3)]
)
def test_processes_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch, device: str, places: list[str]) -> None:
    started, threads = torch.multiprocessing.get_context("spawn").Value("i", 0), torch.get_num_threads()
    monkeypatch.setattr(build, "Encoder", lambda encoding, place: (encoding, place))
    monkeypatch.setattr(build, "_end_with_parent", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(build, "_encoder", None)
    before, encoding, found = signal.getsignal(signal.SIGINT), Encoding("e", device=device), []
    try:
        for _ in range(3):
            build._start_worker(encoding, 1, started)
            found.append(build._encoder)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN, "Ctrl-C is the parent's"
        assert torch.get_num_threads() == 1
    finally:
        signal.signal(signal.SIGINT, before)
        torch.set_num_threads(threads)
    assert found == [(encoding, place) for place in places]
