"""The encoder: padding changes nothing, and a checkpoint that would condition on noise is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from imagen.text.encoder import check_tokenizer, encode, load_text_encoder
from imagen.text.pretrain import train_tokenizer

SHIPPED = Path(__file__).resolve().parents[2] / "pretrained" / "shapes" / "tokenizer"

PROMPTS = ["a red circle", "a small blue square to the left of a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer(PROMPTS * 20)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_padding_changes_nothing(folder):
    tokenizer, encoder = load_text_encoder(folder)
    both, mask = encode(tokenizer, encoder, PROMPTS)
    alone, alone_mask = encode(tokenizer, encoder, PROMPTS[:1])
    length = int(mask[0].sum())
    assert alone.shape[1] == length
    assert alone_mask.all()
    torch.testing.assert_close(both[0, :length], alone[0], atol=1e-6, rtol=1e-5)
    assert both[0, length:].abs().max() == 0


def test_no_more_tokens_than_asked_for(folder):
    tokenizer, encoder = load_text_encoder(folder)
    assert encode(tokenizer, encoder, PROMPTS, max_length=6)[0].shape[1] == 6


def test_dtype_is_what_was_asked_for_and_nothing_trains(folder):
    encoder = load_text_encoder(folder, dtype=torch.bfloat16)[1]
    assert {weight.dtype for weight in encoder.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert not encoder.training


@pytest.mark.parametrize("missing", ["shared.weight", "encoder.block.1.layer.0.SelfAttention.q.weight"])
def test_a_checkpoint_that_leaves_weights_unset_is_refused(folder, tmp_path, missing):
    load_text_encoder(folder)[1].save_pretrained(tmp_path)
    load_text_encoder(folder)[0].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks"):
        load_text_encoder(tmp_path)


def test_a_constant_embedding_is_refused(folder, tmp_path):
    tokenizer, encoder = load_text_encoder(folder)
    encoder.shared.weight.data.zero_()
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="constant"):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize("there", [(), ("tokenizer_config.json",)])
def test_an_encoder_without_its_tokenizer_is_refused(folder, tmp_path, there):
    """transformers makes a tokenizer of special tokens alone there, to which all words are <unk>."""
    tokenizer, encoder = load_text_encoder(folder)
    tokenizer.save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        if file.name not in there:
            file.unlink()
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no words, only special tokens: save its tokenizer\.json"):
        load_text_encoder(tmp_path)


def test_a_small_language_is_a_vocabulary():
    """The demo knows the words of its own language alone, and that is enough."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    check_tokenizer(tokenizer, str(SHIPPED), len(tokenizer))
    with pytest.raises(ValueError, match=rf"ids up to {len(tokenizer) - 1}, its encoder 99 embeddings"):
        check_tokenizer(tokenizer, str(SHIPPED), 99)


@pytest.mark.parametrize("prompts", [[], "a red circle", [None]])
def test_bad_prompts_are_named(folder, prompts):
    tokenizer, encoder = load_text_encoder(folder)
    with pytest.raises(ValueError, match="expected a non-empty list of strings"):
        encode(tokenizer, encoder, prompts)


def test_nothing_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no text encoder at"):
        load_text_encoder(tmp_path / "absent")
