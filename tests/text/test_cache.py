"""The text cache: what comes out is what the encoder gives, whatever happened while it was written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import T5Config, T5EncoderModel

from imagen.disk import occupied
from imagen.text.cache import build, store
from imagen.text.cache.build import Encoding, build_cache
from imagen.text.cache.store import MissingCaption, TextCache, caption_key, shard_path
from imagen.text.encoder import encode, load_text_encoder
from imagen.text.folders import fingerprint, local_folder
from imagen.text.pretrain import train_tokenizer

WIDTH, LENGTH = 16, 8
CAPTIONS = [f"a {size}{color} {shape}{more}"
            for size in ("", "small ") for color in ("red", "blue") for shape in ("circle", "star")
            for more in ("", " above a small blue square")]  # fmt: skip


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer(CAPTIONS * 20)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def fill(folder: Path, t5: Path, captions: Sequence[str] = CAPTIONS, shard_size: int = 3, processes: int = 1, **how):
    encoding = Encoding(str(t5), **{"max_length": LENGTH, "batch_size": 2, **how})
    return build_cache(captions, folder, encoding, processes, shard_size, say=lambda line: None)


def direct(t5: Path, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return encode(*load_text_encoder(t5), captions, LENGTH)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_comes_out_is_what_the_encoder_gives(t5, tmp_path):
    fill(tmp_path, t5, batch_size=1)
    cache = TextCache(tmp_path)
    for caption in [*CAPTIONS, ""]:
        embeddings, mask = cache([caption])
        expected, expected_mask = direct(t5, [caption])
        assert torch.equal(embeddings, expected)  # alone, as it was encoded: the same bits
        assert torch.equal(mask, expected_mask)
    mixed = [CAPTIONS[5], "", CAPTIONS[0], CAPTIONS[5]]
    embeddings, mask = cache(mixed)
    expected, expected_mask = direct(t5, mixed)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, expected, atol=1e-6, rtol=1e-5)  # beside others: to rounding
    assert torch.equal(mask, expected_mask)
    assert embeddings[~mask].abs().max() == 0


def test_nothing_is_stored_but_real_tokens_of_different_captions(t5, tmp_path):
    manifest = fill(tmp_path, t5, [*CAPTIONS, *CAPTIONS[:5]]).manifest
    ids = load_text_encoder(t5)[0](["", *CAPTIONS]).input_ids
    assert manifest.captions == len(CAPTIONS) + 1
    assert manifest.tokens == sum(min(len(row), LENGTH) for row in ids)
    assert manifest.cut == sum(len(row) > LENGTH for row in ids) > 0
    stored = [load_file(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert sum(len(shard["embeddings"]) for shard in stored) == manifest.tokens
    assert manifest.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_stored_dtype(t5, tmp_path, name):
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    fill(tmp_path / "half", t5, dtype=name, batch_size=1)
    assert load_file(shard_path(tmp_path / "half", 0))["embeddings"].dtype == dtype
    embeddings, _ = TextCache(tmp_path / "half")([CAPTIONS[3]])
    assert torch.equal(embeddings, direct(t5, [CAPTIONS[3]])[0].to(dtype).float())


def test_by_default_bfloat16_embeddings_are_stored_without_loss(t5, tmp_path):
    fill(tmp_path, t5, compute_dtype="bfloat16", batch_size=1)
    expected, _ = encode(*load_text_encoder(t5, torch.bfloat16), [CAPTIONS[3]], LENGTH)
    assert load_file(shard_path(tmp_path, 0))["embeddings"].dtype == torch.bfloat16
    assert torch.equal(TextCache(tmp_path)([CAPTIONS[3]])[0], expected)


def test_what_a_dtype_cannot_hold_is_refused(t5, tmp_path):
    tokenizer, encoder = load_text_encoder(t5)
    encoder.encoder.final_layer_norm.weight.data.fill_(1e6)
    for part in (tokenizer, encoder):
        part.save_pretrained(tmp_path / "loud")
    with pytest.raises(ValueError, match="is not finite in torch.float16: use bfloat16"):
        fill(tmp_path / "cache", tmp_path / "loud", dtype="float16")
    fill(tmp_path / "cache2", tmp_path / "loud", dtype="bfloat16")


def test_a_second_time_nothing_is_done_and_new_captions_are_added(t5, tmp_path, monkeypatch):
    assert fill(tmp_path, t5, CAPTIONS[:7]).encoded == 8  # and the empty caption
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(build, "Encoder", None)  # not even loaded
        assert fill(tmp_path, t5, CAPTIONS[:7]).encoded == 0
    assert content(tmp_path) == before
    assert fill(tmp_path, t5).encoded == len(CAPTIONS) - 7
    after = content(tmp_path)
    assert {name: after[name] for name in before if name != "cache.json"} == {
        name: before[name] for name in before if name != "cache.json"
    }
    assert not TextCache(tmp_path).missing([*CAPTIONS, ""])


@contextlib.contextmanager
def interrupted_after(monkeypatch, shards: int) -> Iterator[None]:
    """What is run inside ends as if it were interrupted when it has written so many shards."""
    written, real = [], build.write_shard

    def write(path, *rest):
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(path)
        real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_shard", write)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("shards", [0, 1, 4])
def test_an_interrupted_run_goes_on_to_the_same_bytes(t5, tmp_path, monkeypatch, shards):
    fill(tmp_path / "whole", t5)
    with interrupted_after(monkeypatch, shards):
        fill(tmp_path / "parts", t5)
    with pytest.raises(ValueError, match="is not finished: give its python -m imagen.text.cache command again"):
        TextCache(tmp_path / "parts")
    (tmp_path / "parts" / "captions-00009.safetensors.1.partial").write_bytes(b"half a sha")
    assert fill(tmp_path / "parts", t5).encoded == len(CAPTIONS) + 1 - 3 * shards
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_half_a_shard_never_has_the_name_of_a_whole_one(t5, tmp_path, monkeypatch):
    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half a shard")
        assert not list(tmp_path.glob("*.safetensors")), "a process that is killed here removes nothing"
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        fill(tmp_path, t5)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("change", ["captions", "shard_size"])
def test_what_an_interrupted_run_did_is_kept_when_the_next_one_asks_for_something_else(
    t5, tmp_path, monkeypatch, change
):
    with interrupted_after(monkeypatch, 2):
        fill(tmp_path, t5, CAPTIONS)
    shard_path(tmp_path, 0).rename(shard_path(tmp_path, 4))  # as if another process had been slower
    captions = ["a red square", *CAPTIONS] if change == "captions" else CAPTIONS
    result = fill(tmp_path, t5, captions, shard_size=4 if change == "shard_size" else 3)
    assert result.encoded == len(captions) + 1 - 6
    cache = TextCache(tmp_path)
    assert cache.manifest.captions == len(captions) + 1
    torch.testing.assert_close(cache(captions)[0], direct(t5, captions)[0], atol=1e-6, rtol=1e-5)


def test_an_interrupted_addition_leaves_the_cache_usable(t5, tmp_path, monkeypatch):
    fill(tmp_path, t5, CAPTIONS[:6])
    with interrupted_after(monkeypatch, 1):
        fill(tmp_path, t5)
    assert TextCache(tmp_path).missing(CAPTIONS) == CAPTIONS[6:]


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_shard_is_noticed_and_encoded_again(t5, tmp_path, damage):
    fill(tmp_path, t5)
    before = content(tmp_path)
    path = shard_path(tmp_path, 2)
    path.unlink() if damage == "remove" else path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="captions-00002.safetensors is missing or damaged .*command again"):
        TextCache(tmp_path)
    assert fill(tmp_path, t5).encoded == 3
    assert content(tmp_path) == before


def test_a_missing_caption_is_named(t5, tmp_path):
    fill(tmp_path, t5)
    cache = TextCache(tmp_path)
    assert cache.missing([CAPTIONS[0], CAPTIONS[0] + " "]) == [CAPTIONS[0] + " "]
    with pytest.raises(MissingCaption, match="lacks the caption 'a green circle'"):
        cache([CAPTIONS[0], "a green circle"])
    with pytest.raises(ValueError, match="captions is empty"):
        cache([])


def test_keys_that_end_in_zeros_are_found(t5, tmp_path):
    """numpy strips zeros off the end of byte strings."""
    text = next(text for text in map(str, range(10_000)) if caption_key(text)[-1] == 0)
    assert fill(tmp_path, t5, [text, *CAPTIONS]).encoded == len(CAPTIONS) + 2
    assert not TextCache(tmp_path).missing([text])
    assert fill(tmp_path, t5, [text]).encoded == 0


class Read(torch.utils.data.Dataset):
    def __init__(self, cache: TextCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(CAPTIONS)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.cache([CAPTIONS[index]])[0]


def test_forked_processes_read_it(t5, tmp_path):
    fill(tmp_path, t5, batch_size=1)
    cache = TextCache(tmp_path)
    cache([CAPTIONS[0]])
    read = DataLoader(Read(cache), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for caption, embeddings in zip(CAPTIONS, read, strict=True):
        assert torch.equal(embeddings, cache([caption])[0])


def copy(t5: Path, folder: Path) -> Path:
    shutil.copytree(t5, folder)
    return folder


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.final_layer_norm.weight"][0] += 1e-6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_config(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "layer_norm_epsilon": 1e-5}))


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_weights, "the encoder's files differ"),
        (other_config, "the encoder's files differ"),
        (other_tokenizer, "the tokenizer's files differ"),
        ({"max_length": 5}, "max_length 8 there, 5 here"),
        ({"compute_dtype": "bfloat16"}, "compute dtype float32 there, bfloat16 here"),
        ({"dtype": "float16"}, "stored dtype float32 there, float16 here"),
    ],
)
def test_another_encoding_is_not_mixed_in(t5, tmp_path, change, told):
    encoder = copy(t5, tmp_path / "encoder")
    fill(tmp_path / "cache", encoder, CAPTIONS[:2])
    before = content(tmp_path / "cache")
    options = change if isinstance(change, dict) else {}
    if callable(change):
        change(encoder)
    with pytest.raises(ValueError, match=f"holds another cache .*{told}.*use another --out"):
        fill(tmp_path / "cache", encoder, **options)
    assert content(tmp_path / "cache") == before


def test_the_fingerprint_does_not_depend_on_where_the_encoder_lies(t5, tmp_path, monkeypatch):
    flat = fingerprint(copy(t5, tmp_path / "elsewhere"), LENGTH)
    assert flat == fingerprint(t5, LENGTH)
    tokenizer, encoder = load_text_encoder(t5)
    tokenizer.save_pretrained(tmp_path / "pipeline" / "tokenizer")
    encoder.save_pretrained(tmp_path / "pipeline" / "text_encoder")
    assert fingerprint(tmp_path / "pipeline", LENGTH) == flat
    hub = tmp_path / "hub" / "models--me--t5"
    copy(t5, hub / "snapshots" / "0123")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert local_folder("me/t5") == hub / "snapshots" / "0123"
    assert local_folder("me/other") is None


def test_a_folder_without_weights_has_no_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no text encoder with its tokenizer in"):
        fingerprint(tmp_path, LENGTH)


def test_two_commands_do_not_write_one_cache(t5, tmp_path):
    with occupied(tmp_path), pytest.raises(ValueError, match=f"written to by process {os.getpid()}"):
        fill(tmp_path, t5)
    fill(tmp_path, t5)


def test_a_newer_or_broken_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no text cache in"):
        TextCache(tmp_path)
    (tmp_path / "cache.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="format version 99, newer than 1"):
        TextCache(tmp_path)
    (tmp_path / "cache.json").write_text('{"format_version": 1')
    with pytest.raises(ValueError, match="is damaged"):
        TextCache(tmp_path)
