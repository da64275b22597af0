"""How a prompt is read: the part of a model that says so, and what a folder of an encoder must hold."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.text.encoder import as_read, check_loaded, check_tokenizer, encode, load_text_encoder, token_count
from imagen.text.folders import TOKENIZER_FILES, component_folders, fingerprint, local_folder
from imagen.text.kinds import check_max_length, read_encoder
from imagen.text.reading import TextDefaults
from tests.factories import tiny_clip, tiny_clip_tokenizer, tiny_text_encoder, tiny_tokenizer

OTHER = TextDefaults("visible", "empty", True)


def test_what_is_stored_is_read_back_and_what_is_missing_is_ours() -> None:
    assert OTHER.to_dict() == {"padding": "visible", "null": "empty", "lowercase": True}
    assert TextDefaults.from_dict(OTHER.to_dict()) == OTHER
    assert TextDefaults.from_dict(None) == TextDefaults.from_dict({}) == TextDefaults("masked", "zero", False)
    for name, value in OTHER.to_dict().items():
        assert TextDefaults.from_dict({name: value}) == replace(TextDefaults(), **{name: value})


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"padding": "left"}, "^text: padding is 'left'; expected one of masked, visible"),
        ({"null": "none"}, "^text: null is 'none'; expected one of zero, empty"),
        ({"lowercase": 1}, "^text: lowercase is 1; expected true or false"),
        ({"paddin": "masked"}, "^text: unknown key 'paddin'; did you mean 'padding'"),
        (["masked"], r"^text is \['masked'\]; expected an object with the keys of TextDefaults"),
    ],
)
def test_what_cannot_be_is_named(stored: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TextDefaults.from_dict(stored)


def test_prompts_are_read_as_written_or_stripped_and_lowered() -> None:
    assert as_read(" A Cat ", lowercase=False) == " A Cat "
    assert as_read(" A Cat ", lowercase=True) == "a cat"


def test_tokens_are_counted_with_the_end_and_without_a_limit() -> None:
    assert token_count(tiny_tokenizer(), "a red circle") == 4
    assert token_count(tiny_tokenizer(), "red " * 700) == 701
    assert token_count(tiny_clip_tokenizer(), "a red circle") == 5, "and CLIP's start"


@pytest.mark.parametrize(
    ("length", "fits"), [(1, True), (20, True), (0, False), (21, False), (-1, False), (2.5, False)]
)
def test_a_text_is_as_long_as_its_encoder_reads(length: Any, fits: bool) -> None:
    config = tiny_clip(positions=20).config
    if fits:
        assert check_max_length(length, config) == length
    else:
        with pytest.raises(ValueError, match=f"max_length (is )?{length}"):
            check_max_length(length, config)
    for unlimited in (None, tiny_text_encoder().config):
        assert check_max_length(10_000, unlimited) == 10_000
        with pytest.raises(ValueError, match="max_length is 0"):
            check_max_length(0, unlimited)


def test_a_tokenizer_has_ids_for_its_encoder_and_words() -> None:
    tokenizer = tiny_tokenizer()
    most = max(tokenizer.get_vocab().values())
    check_tokenizer(tokenizer, "here", most + 1)
    with pytest.raises(ValueError, match=f"of 'here' has ids up to {most}, its encoder {most} embeddings"):
        check_tokenizer(tokenizer, "here", most)

    class Words:
        all_special_ids = (0, 1)

        def __init__(self, *pieces: str) -> None:
            self.pieces = pieces

        def get_vocab(self) -> dict[str, int]:
            return {piece: number for number, piece in enumerate(("<pad>", "</s>", "\u2581", " ", *self.pieces))}

    check_tokenizer(Words("a", "b"), "here", 99)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no words, only special tokens"):
        check_tokenizer(Words("a"), "here", 99)  # type: ignore[arg-type]


def test_weights_that_a_file_did_not_set_are_named() -> None:
    encoder = tiny_text_encoder()
    check_loaded(encoder, {"missing_keys": []}, "here")
    check_loaded(encoder, {"missing_keys": set(), "mismatched_keys": set()}, "here")
    for info, told in (
        ({"missing_keys": {"b", "a"}}, r"'here' lacks a, b \(2 in all\)"),
        ({"missing_keys": ["d", "c", "b", "a"]}, r"lacks a, b, c \(4 in all\)"),
        ({"missing_keys": ["a"], "mismatched_keys": [("b", 1, 2)]}, r"lacks a, \('b', 1, 2\) \(2 in all\)"),
        ({"missing_keys": [], "mismatched_keys": ["b"]}, r"lacks b \(1 in all\)"),
    ):
        with pytest.raises(ValueError, match=told):
            check_loaded(encoder, info, "here")


def test_a_table_is_tied_finite_and_no_constant() -> None:
    encoder = tiny_text_encoder()
    encoder.encoder.embed_tokens = torch.nn.Embedding(3, 16)
    with pytest.raises(ValueError, match="embed_tokens is not tied to shared.weight"):
        check_loaded(encoder, {"missing_keys": []}, "here")
    for value in (torch.nan, torch.inf):
        encoder = tiny_text_encoder()
        encoder.shared.weight[3, 2] = value
        with pytest.raises(ValueError, match="the embedding table is constant or not finite"):
            check_loaded(encoder, {"missing_keys": []}, "here")


def test_bad_prompts_are_refused_wherever_they_stand() -> None:
    for prompts in ([], "a red circle", ["a red circle", None], [1]):
        with pytest.raises(ValueError, match="expected a non-empty list of strings"):
            encode(tiny_tokenizer(), tiny_text_encoder(), prompts)  # type: ignore[arg-type]


def test_a_pipeline_s_folder_has_a_folder_of_each(tmp_path: Path) -> None:
    assert component_folders(tmp_path) == (str(tmp_path), str(tmp_path))
    assert component_folders("owner/name") == ("owner/name", "owner/name")
    (tmp_path / "text_encoder").write_text("")
    assert component_folders(tmp_path) == (str(tmp_path), str(tmp_path)), "a file is no folder"
    (tmp_path / "text_encoder").unlink()
    (tmp_path / "text_encoder").mkdir()
    assert component_folders(tmp_path) == (str(tmp_path / "tokenizer"), str(tmp_path / "text_encoder"))


FILES = ("config.json", "tokenizer.json", "model.safetensors")


def folder(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for name in names:
        (root / name).write_text(name)
    return root


def test_every_file_that_decides_an_embedding_counts_and_no_other(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", *FILES)
    first = fingerprint(root, 8)
    assert first.max_length == 8
    assert fingerprint(root, 9) == replace(first, max_length=9)
    for name in ("README.md", "pytorch_model.bin", "pytorch_model-1.bin", "model.safetensors.index.json"):
        assert fingerprint(folder(root, name), 8) == first, f"{name}: beside safetensors nobody reads it"
    for name in ("model-00002-of-00002.safetensors", "config.json", "model.safetensors"):
        folder(root, name)
        (root / name).write_text("other")
        found = fingerprint(root, 8)
        assert (found.encoder == first.encoder, found.tokenizer) == (False, first.tokenizer)
        first = found
    for name in TOKENIZER_FILES:
        folder(root, name)
        (root / name).write_text("other")
        found = fingerprint(root, 8)
        assert (found.encoder, found.tokenizer == first.tokenizer) == (first.encoder, False)
        first = found


def test_names_of_files_count_as_well_as_what_they_hold(tmp_path: Path) -> None:
    one = fingerprint(folder(tmp_path / "a", "config.json", "vocab.json", "pytorch_model.bin"), 8)
    (folder(tmp_path / "b", "config.json", "pytorch_model.bin") / "merges.txt").write_text("vocab.json")
    other = fingerprint(tmp_path / "b", 8)
    assert (one.encoder, one.tokenizer != other.tokenizer) == (other.encoder, True)


@pytest.mark.parametrize("missing", FILES)
def test_weights_configuration_and_tokenizer_are_all_needed(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ValueError, match="no text encoder with its tokenizer in"):
        fingerprint(folder(tmp_path, *(name for name in FILES if name != missing)), 8)


@pytest.mark.parametrize("silent", [False, True])
def test_the_report_of_transformers_is_as_loud_afterwards_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    told = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(told, "disabled", silent)
    with pytest.raises(OSError, match="nowhere"):
        read_encoder(tmp_path / "nowhere")
    assert told.disabled == silent
    tiny_text_encoder().save_pretrained(tmp_path)
    encoder, info = read_encoder(tmp_path, dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert told.disabled == silent


def test_a_name_that_the_hub_cannot_have_is_nowhere_on_this_machine(tmp_path: Path) -> None:
    for name in ("a/b/c", "owner/nobody-has-this", str(tmp_path / "nowhere")):
        assert local_folder(name) is None
    assert local_folder(tmp_path) == local_folder(str(tmp_path)) == tmp_path


def test_tokenizer_and_encoder_are_of_the_revision_asked_for(tmp_path: Path) -> None:
    """A cache of the Hub in which one repository holds another CLIP than before."""
    cached = tmp_path / "models--owner--encoder"
    (cached / "refs").mkdir(parents=True)
    for name, commit, seed in (("main", "a" * 40, 0), ("older", "b" * 40, 1)):
        (cached / "refs" / name).write_text(commit)
        tiny_clip(seed).save_pretrained(cached / "snapshots" / commit)
        tokenizer = deepcopy(tiny_clip_tokenizer())
        if name == "older":
            tokenizer.add_tokens("purple")
        tokenizer.save_pretrained(cached / "snapshots" / commit)
    here: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    tokenizer, encoder = load_text_encoder("owner/encoder", revision="main", **here)
    assert "purple" not in tokenizer.get_vocab()
    expected = tiny_clip(0).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match=r"of 'owner/encoder' has ids up to (\d+), its encoder \1 embeddings"):
        load_text_encoder("owner/encoder", revision="older", **here)
