"""CLIP's text tower as the encoder: what transformers itself computes, whatever stands beside a prompt in its batch."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from imagen.text.encoder import encode, load_text_encoder
from imagen.text.kinds import encoder_class, encoder_config, longest_text, read_encoder, text_width
from tests.factories import WIDTH, tiny_clip, tiny_clip_tokenizer, tiny_text_encoder, tiny_tokenizer, tiny_whole_clip

POSITIONS = 20
PROMPTS = ["A small RED circle", "two  blue star", ""]


def keep(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    """Save both; the tokenizer is the tiny CLIP's unless told otherwise."""
    model.save_pretrained(folder)
    (tokenizer or tiny_clip_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return keep(tmp_path_factory.mktemp("clip"), tiny_clip())


@pytest.mark.parametrize("layout", ["tower", "older names", "projection", "whole", "pipeline"])
def test_the_states_are_those_of_the_last_layer_behind_its_norm(folder: Path, tmp_path: Path, layout: str) -> None:
    """One prompt, which needs no padding and no mask, through the layers by hand."""
    own = tiny_clip()
    if layout == "whole":
        keep(tmp_path, tiny_whole_clip())
    elif layout == "projection":
        model = CLIPTextModelWithProjection(own.config)
        model.text_model.load_state_dict(own.state_dict())
        keep(tmp_path, model)
    elif layout == "pipeline":
        own.save_pretrained(tmp_path / "text_encoder")
        tiny_clip_tokenizer().save_pretrained(tmp_path / "tokenizer")
    else:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    if layout == "older names":  # as transformers 4 wrote them
        weights = load_file(tmp_path / "model.safetensors")
        renamed = {f"text_model.{name}": value for name, value in weights.items()}
        save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer, encoder = load_text_encoder(tmp_path)
    assert type(encoder) is CLIPTextModel
    assert type(tokenizer) is CLIPTokenizer
    hidden, mask = encode(tokenizer, encoder, PROMPTS[:1], max_length=POSITIONS)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(
        ["a</w>", "small</w>", "red</w>", "circle</w>"]), tokenizer.eos_token_id]])  # fmt: skip
    x = own.embeddings(ids)
    causal = torch.full((6, 6), -torch.inf).triu(1)[None, None]
    for layer in own.encoder.layers:
        x = layer(x, causal)
    torch.testing.assert_close(hidden, own.final_layer_norm(x), atol=1e-5, rtol=1e-5)
    assert hidden.shape == (1, 6, WIDTH)
    assert mask.tolist() == [[True] * 6]
    assert hidden.dtype == torch.float32
    assert not encoder.training
    assert not any(weight.requires_grad for weight in encoder.parameters())


def test_beside_others_the_states_are_what_transformers_gives(folder: Path) -> None:
    tokenizer, encoder = load_text_encoder(folder)
    tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    expected = tiny_clip()(**tokens).last_hidden_state
    hidden, mask = encode(tokenizer, encoder, PROMPTS, max_length=POSITIONS)
    assert mask.sum(dim=1).tolist() == [6, 5, 2]
    assert torch.equal(hidden[mask], expected[mask])
    assert hidden[~mask].abs().max() == 0


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!", "<|startoftext|>"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing_whatever_it_is_made_of(folder: Path, pad: str, side: str) -> None:
    """SD 1 pads with the end token, SD 2 with "!": the mask is the tokenizer's, and positions count from the left."""
    tokenizer, encoder = load_text_encoder(folder)
    alone = [encode(tokenizer, encoder, [prompt], POSITIONS) for prompt in PROMPTS]
    tokenizer.pad_token, tokenizer.padding_side = pad, side
    for padding, length in (("masked", 6), ("visible", POSITIONS)):
        hidden, mask = encode(tokenizer, encoder, PROMPTS, POSITIONS, padding)
        assert hidden.shape == (3, length, WIDTH)
        for row, real, (one, _) in zip(hidden, mask, alone, strict=True):
            torch.testing.assert_close(row[: one.shape[1]], one[0], atol=1e-5, rtol=1e-5)
            if padding == "masked":
                assert real.tolist() == [i < one.shape[1] for i in range(len(real))]
                assert row[one.shape[1] :].abs().sum() == 0
            else:
                assert real.all()
                assert (row.abs().sum(dim=-1) > 0).all()


def test_long_prompts_are_cut_and_keep_their_end(folder: Path) -> None:
    tokenizer, encoder = load_text_encoder(folder)
    hidden, _ = encode(tokenizer, encoder, ["a red circle " * 9], max_length=5)
    whole, _ = encode(tokenizer, encoder, ["a red circle"], max_length=5)
    assert torch.equal(hidden, whole)


def test_a_length_beyond_the_positions_is_refused(folder: Path) -> None:
    tokenizer, encoder = load_text_encoder(folder)
    with pytest.raises(ValueError, match=r"^max_length 21 is more than the 20 positions of the text encoder") as no:
        encode(tokenizer, encoder, PROMPTS, POSITIONS + 1)
    assert "\n" not in str(no.value)
    assert encode(tokenizer, encoder, ["a red circle " * 20], POSITIONS)[0].shape[1] == POSITIONS
    assert encode(tiny_tokenizer(), tiny_text_encoder(), ["red " * 999], 1000)[0].shape[1] > 900, "a T5 has no limit"


def test_what_a_folder_holds_is_known_without_its_weights(folder: Path, tmp_path: Path) -> None:
    whole = keep(tmp_path / "whole", tiny_whole_clip())
    t5 = keep(tmp_path / "t5", tiny_text_encoder(), tiny_tokenizer())
    for place, longest in ((folder, POSITIONS), (whole, POSITIONS), (t5, None)):
        (place / "model.safetensors").replace(tmp_path / "elsewhere")
        config = encoder_config(place)
        assert (text_width(config), longest_text(config)) == (WIDTH, longest)
        assert encoder_class(place).config_class is type(config)
        (tmp_path / "elsewhere").replace(place / "model.safetensors")
    assert longest_text(None) is None


def test_bfloat16(folder: Path) -> None:
    tokenizer, encoder = load_text_encoder(folder, torch.bfloat16)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    hidden, _ = encode(tokenizer, encoder, PROMPTS, POSITIONS)
    exact, _ = encode(*load_text_encoder(folder), PROMPTS, POSITIONS)
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden, exact, atol=0.15, rtol=0.1)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "missing",
    ["final_layer_norm.weight", "embeddings.position_embedding.weight", "encoder.layers.1.self_attn.q_proj.weight"],
)
def test_a_checkpoint_that_leaves_weights_unset_is_refused(tmp_path: Path, missing: str, whole: bool) -> None:
    keep(tmp_path, tiny_whole_clip() if whole else tiny_clip())
    weights = load_file(tmp_path / "model.safetensors")
    del weights[f"text_model.{missing}" if whole else missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks {missing} \(1 in all\)"):
        load_text_encoder(tmp_path)


def test_a_whole_clip_is_loaded_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would list all weights of the other tower as unexpected."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    keep(tmp_path, tiny_whole_clip())
    load_text_encoder(tmp_path)
    assert not [record.message for record in caplog.records if "vision_model" in record.message]
    CLIPTextModel.from_pretrained(tmp_path)
    assert any("vision_model" in record.message for record in caplog.records), "it does so by itself"


def test_a_t5_is_loaded_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would list the layers that are not sharded over several devices, where its report is asked for."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tiny_text_encoder().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_text_encoder(tmp_path)
    assert not [record.message for record in caplog.records]


def test_the_missing_vision_tower_is_nobody_s_loss(tmp_path: Path) -> None:
    keep(tmp_path, tiny_whole_clip())
    weights = load_file(tmp_path / "model.safetensors")
    text = {name: value for name, value in weights.items() if name.startswith("text_model.")}
    save_file(text, tmp_path / "model.safetensors", metadata={"format": "pt"})
    hidden, _ = encode(*load_text_encoder(tmp_path), PROMPTS, POSITIONS)
    assert torch.equal(hidden, encode(tiny_clip_tokenizer(), tiny_clip(), PROMPTS, POSITIONS)[0])


@pytest.mark.parametrize(
    ("table", "value", "named"),
    [("token_embedding", 0.0, "embedding"), ("position_embedding", 0.5, "position"),
     ("token_embedding", torch.nan, "embedding")],
)  # fmt: skip
def test_a_table_that_says_nothing_is_refused(tmp_path: Path, table: str, value: float, named: str) -> None:
    encoder = tiny_clip()
    getattr(encoder.embeddings, table).weight.fill_(value)
    with pytest.raises(ValueError, match=f"the {named} table is constant or not finite"):
        load_text_encoder(keep(tmp_path, encoder))


def test_an_encoder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    keep(tmp_path, tiny_clip())
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no words, only special tokens: .* vocab\.json and merges\.txt"):
        load_text_encoder(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no text encoder at"):
        load_text_encoder(tmp_path)


def test_the_tokenizer_of_older_folders_is_read_whole_or_refused(tmp_path: Path) -> None:
    """Two files, vocab.json and merges.txt: without the second, every word would fall into letters."""
    keep(tmp_path, tiny_clip())
    tiny_clip_tokenizer().backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    hidden, _ = encode(*load_text_encoder(tmp_path), PROMPTS, POSITIONS)
    assert torch.equal(hidden, encode(tiny_clip_tokenizer(), tiny_clip(), PROMPTS, POSITIONS)[0])
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match="no text encoder at .*merges"):
        load_text_encoder(tmp_path)


def test_another_encoder_s_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has ids up to \d+, its encoder \d+ embeddings: save the two together"):
        load_text_encoder(keep(tmp_path, tiny_text_encoder()))


@pytest.mark.parametrize(("revision", "kind"), [("main", "T5EncoderModel"), ("older", "CLIPTextModel")])
def test_the_kind_is_that_of_the_revision_that_is_loaded(
    folder: Path, tmp_path: Path, revision: str, kind: str
) -> None:
    """A cache of the Hub in which one repository holds a T5 today and held a CLIP before."""
    cached = tmp_path / "models--owner--encoder"
    for name, commit in (("main", "a" * 40), ("older", "b" * 40)):
        place = cached / "snapshots" / commit
        (cached / "refs").mkdir(parents=True, exist_ok=True)
        (cached / "refs" / name).write_text(commit)
        if name == "older":
            shutil.copytree(folder, place)
        else:
            tiny_text_encoder().save_pretrained(place)
    here: dict[str, Any] = {"revision": revision, "cache_dir": tmp_path, "local_files_only": True}
    encoder, _ = read_encoder("owner/encoder", **here)
    assert type(encoder).__name__ == kind
