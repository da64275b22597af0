"""Sampling does not drop anything out, whatever mode networks and encoder were left in, and leaves the modes alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from imagen.modes import evaluating
from tests.factories import sample, tiny_base, tiny_pipeline, tiny_sr, tiny_tokenizer


def modes(*networks: nn.Module) -> list[bool]:
    return [part.training for network in networks for part in network.modules()]


def test_modes_are_restored_part_by_part_whatever_happens() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    network[1].eval()  # frozen by its owner
    before = modes(network)
    assert any(before)
    assert not all(before)
    with evaluating(network, None):
        assert not any(modes(network))
    assert modes(network) == before
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert modes(network) == before


def test_pictures_are_those_of_eval_mode() -> None:
    config = T5Config(
        vocab_size=len(tiny_tokenizer()), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.5
    )
    parts = {
        "base_unet": tiny_base(dropout=0.5),
        "base_weak_unet": tiny_base(seed=9, dropout=0.5),
        "sr256_unet": tiny_sr(),
        "text_encoder": T5EncoderModel(config),
    }
    networks = list(parts.values())
    pipe = tiny_pipeline(**parts)
    pipe.set_stage_defaults("base", guidance="auto")
    for network in networks:
        network.eval()
    expected = sample(pipe, "a red star", size=32).images
    for network in networks:
        network.train()
    parts["base_unet"].conv_in.eval()
    before = modes(*networks)
    assert torch.equal(sample(pipe, "a red star", size=32).images, expected)
    assert modes(*networks) == before
