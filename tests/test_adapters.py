"""Adapters of networks that hold more than weights, and headers that say what is not supported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagen import ImagenPipeline
from imagen.cascade.adapters import METADATA, WEIGHTS, attach, load_adapter, read_adapter, save_adapter
from imagen.training.state.ema import EMA
from tests.factories import sample, save_adapters, tiny_base, tiny_pipeline


def test_an_adapter_holds_its_matrices_alone_and_not_the_network_s_buffers(tmp_path: Path) -> None:
    unet = tiny_base(text_whitening=True)
    buffers = {name: value.clone() for name, value in unet.named_buffers()}
    assert any("whitening" in name for name in buffers)
    attach(unet, 2, 4.0, ["to_q"])
    torch.nn.init.normal_(next(p for name, p in unet.named_parameters() if "lora_B" in name))
    save_adapter(tmp_path / WEIGHTS, EMA(unet).average, 2, 4.0, ["to_q"])
    stored = read_adapter(tmp_path).tensors
    trained = {name.replace(".default.", "."): p for name, p in unet.named_parameters() if p.requires_grad}
    assert stored.keys() == trained.keys()
    assert all(torch.equal(stored[name], value) for name, value in trained.items())
    other = tiny_base(text_whitening=True)
    load_adapter(other, tmp_path)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in unet.state_dict().items())


@pytest.mark.parametrize(
    ("entry", "value"),
    [("use_rslora", True), ("use_dora", True), ("alpha_pattern", {"to_q": 8}), ("rank_pattern", {"to_q": 2})],
)
def test_another_kind_of_adapter_is_refused_and_not_loaded_at_a_wrong_strength(
    tmp_path: Path, entry: str, value: object
) -> None:
    unet = tiny_base()
    attach(unet, 2, 4.0, ["to_q"])
    path = tmp_path / WEIGHTS
    save_adapter(path, EMA(unet).average, 2, 4.0, ["to_q"])
    facts = {"unet.r": 2, "unet.lora_alpha": 4.0, f"unet.{entry}": value}
    save_file(load_file(path), path, {METADATA: json.dumps(facts)})
    with pytest.raises(ValueError, match=f"was trained with {entry}, which is not supported"):
        read_adapter(path)


@pytest.mark.parametrize("metadata", [None, {METADATA: '{"unet.r": 2}'}], ids=["no header", "rank alone"])
def test_an_adapter_that_says_no_alpha_acts_as_its_matrices_are(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    """As diffusers reads it: alpha is the rank. With the alpha of its header it is as many times as strong."""
    unet, path = tiny_base(), tmp_path / WEIGHTS
    attach(unet, 2, 6.0, ["to_q"])
    save_adapter(path, EMA(unet).average, 2, 6.0, ["to_q"])
    assert (read_adapter(path).rank, read_adapter(path).alpha) == (2, 6.0)
    save_file(load_file(path), path, metadata)
    assert (read_adapter(path).rank, read_adapter(path).alpha) == (2, 2.0)


def test_pipelines_that_share_a_network_share_its_adapter(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    plain = sample(pipe, "a red circle", size=16).images
    trained = tiny_base()
    attach(trained, 2, 4.0, ["to_q"])
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(tmp_path / WEIGHTS, EMA(trained).average, 2, 4.0, ["to_q"])
    pipe.load_lora_weights(tmp_path)
    other = ImagenPipeline.from_pipe(pipe)
    assert not torch.equal(sample(other, "a red circle", size=16).images, plain)
    with pytest.raises(ValueError, match="base holds an adapter"):
        other.save_pretrained(tmp_path / "saved")
    other.unload_lora_weights("base")
    for either in (pipe, other):
        assert torch.equal(sample(either, "a red circle", size=16).images, plain)
        either.save_pretrained(tmp_path / "saved")
    pipe.load_lora_weights(tmp_path)
    pipe.base_unet = tiny_base()
    pipe.save_pretrained(tmp_path / "saved")  # the network that holds it has gone


def test_the_adapter_of_one_stage_is_taken_out_or_merged_and_that_of_another_stays(tmp_path: Path) -> None:
    save_adapters(tmp_path)
    pipe = tiny_pipeline()

    def made() -> dict[str, torch.Tensor]:
        return sample(pipe, "a red circle", image=torch.full((3, 16, 16), 0.5), size=32).stages.slots | {
            "base": sample(pipe, "a red circle", size=16).images
        }

    plain = made()
    pipe.load_lora_weights(tmp_path / "base")
    pipe.load_lora_weights(tmp_path / "sr256", "sr256")
    adapted = made()
    assert not any(torch.equal(adapted[slot], plain[slot]) for slot in plain)
    pipe.unload_lora_weights("base")
    left = made()
    assert torch.equal(left["base"], plain["base"])
    assert torch.equal(left["sr256"], adapted["sr256"])
    pipe.load_lora_weights(tmp_path / "base")
    pipe.merge_lora_weights("sr256")
    with pytest.raises(ValueError, match="base holds an adapter"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.unload_lora_weights("base")
    merged = made()
    assert torch.equal(merged["base"], plain["base"])
    torch.testing.assert_close(merged["sr256"], adapted["sr256"], atol=1e-4, rtol=0)
