"""A T5's folder goes on with what it was begun with, and is given nothing else."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from imagen.text.encoder import load_text_encoder
from imagen.text.folders import component_folders
from imagen.text.pretrain import PretrainConfig, pretrain, train_tokenizer

TEXTS = ["a red circle above a blue square", "three green stars"]
TINY = PretrainConfig(d_model=8, d_ff=32, num_layers=1, num_heads=2, d_kv=8, steps=2, batch_size=2, warmup=1)


def document(index: int) -> str:
    return TEXTS[index % 2]


@cache
def tokenizer():
    return train_tokenizer(TEXTS * 20)


@pytest.mark.parametrize(
    ("changes", "texts", "told"),
    [
        ({"seed": 1}, "a", "seed 0, not 1"),
        ({"d_ff": 16}, "a", "d_ff 32, not 16"),
        ({}, "b", "other texts"),
        ({"steps": 5, "checkpoint_every": 1}, "a", None),
    ],
)
def test_a_folder_goes_on_with_what_it_was_begun_with_alone(tmp_path, changes, texts, told):
    out = pretrain(document, tokenizer(), TINY, tmp_path / "t5", "a")
    before = (out / "state.pt").read_bytes()
    if told is None:
        pretrain(document, tokenizer(), replace(TINY, **changes), out, texts)
        assert torch.load(out / "state.pt", weights_only=True)["step"] == 5
        return
    with pytest.raises(ValueError, match=f"t5' was begun with {told}: give another --out"):
        pretrain(document, tokenizer(), replace(TINY, **changes), out, texts)
    assert (out / "state.pt").read_bytes() == before


def test_a_folder_whose_training_has_not_ended_is_told_as_one(tmp_path):
    """Its state is kept every few steps, and what it makes is written at the end."""

    def interrupted(index):
        if index > 3 * TINY.batch_size:
            raise KeyboardInterrupt
        return document(index)

    out = tmp_path / "t5"
    with pytest.raises(KeyboardInterrupt):
        pretrain(interrupted, tokenizer(), replace(TINY, steps=9, checkpoint_every=1), out, "a")
    with pytest.raises(ValueError, match="^the text encoder in .*t5' is not finished: give the same pretrain_text"):
        load_text_encoder(out)
    pretrain(document, tokenizer(), replace(TINY, steps=9), out, "a")
    assert component_folders(out) == (str(out / "tokenizer"), str(out / "text_encoder"))
    load_text_encoder(out)
