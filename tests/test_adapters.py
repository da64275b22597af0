"""Adapters of networks that hold more than weights, and headers that say what is not supported."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagen import ImagenPipeline
from imagen.cascade.adapter_files import METADATA, read_adapter, save_adapter
from imagen.cascade.adapters import attach, check_targets, load_adapter
from imagen.stages.folder import ADAPTER as WEIGHTS
from imagen.stages.folder import find_adapter
from imagen.training.state.ema import EMA
from tests.factories import sample, save_adapters, seeded, tiny_base, tiny_pipeline
from unets.adapters import Adaptable


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
    load_adapter(other, tmp_path, "default")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in unet.state_dict().items())


@pytest.mark.parametrize("metadata", [None, {METADATA: '{"unet.r": 2}'}], ids=["no header", "rank alone"])
def test_an_adapter_that_says_no_alpha_acts_as_its_matrices_are(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    """As diffusers reads it: alpha is the rank. With the alpha of its header it is as many times as strong."""
    unet, path = tiny_base(), tmp_path / WEIGHTS
    attach(unet, 2, 6.0, ["to_q"])
    save_adapter(path, EMA(unet).average, 2, 6.0, ["to_q"])
    assert [read_adapter(path).config[name] for name in ("r", "lora_alpha")] == [2, 6.0]
    save_file(load_file(path), path, metadata)
    assert [read_adapter(path).config[name] for name in ("r", "lora_alpha")] == [2, 2.0]


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


class Net(Adaptable, nn.Module):
    """A linear layer, a convolution, one in a list, and what cannot be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(4, 3)
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.to_out = nn.ModuleList([nn.Linear(3, 4), nn.Dropout(0.0)])
        self.norm = nn.GroupNorm(1, 4)


@pytest.mark.parametrize("targets", [["to_q"], ["conv"], ["to_out.0"], ["0", "conv", "to_q"]])
def test_a_layer_is_named_whole_or_from_a_dot_to_the_end(targets: list[str]) -> None:
    check_targets(Net(), targets)


@pytest.mark.parametrize("wrong", ["q", "to_k", "norm", "to_out", "to_out.1", ""])
def test_a_target_that_is_no_layer_is_told_with_those_there_are(wrong: str) -> None:
    message = f"no linear layer or convolution is called {wrong!r}; there are conv, to_out.0, to_q"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        attach(Net(), 2, 4.0, ["conv", "to_q", wrong])


def adapted(rank: int, alpha: float) -> Net:
    """A network whose convolution and first linear layer hold an adapter of random matrices."""
    torch.manual_seed(0)
    net = Net()
    attach(net, rank, alpha, ["to_q", "conv"])
    for name, parameter in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return net


def outputs(net: Net) -> list[Tensor]:
    x, picture = torch.randn(2, 4, generator=seeded(1)), torch.randn(2, 2, 6, 6, generator=seeded(2))
    return [net.to_q(x), net.conv(picture)]


@torch.no_grad()
def test_an_adapter_adds_alpha_over_rank_times_the_product_of_its_matrices() -> None:
    torch.manual_seed(0)
    plain, net = outputs(Net()), adapted(2, 6.0)
    x, picture = torch.randn(2, 4, generator=seeded(1)), torch.randn(2, 2, 6, 6, generator=seeded(2))
    parts = dict(net.named_parameters())
    a, b = (parts[f"to_q.lora_{one}.default.weight"] for one in "AB")
    linear, convolved = outputs(net)
    torch.testing.assert_close(linear, plain[0] + 3.0 * x @ a.T @ b.T, atol=1e-5, rtol=0)
    a, b = (parts[f"conv.lora_{one}.default.weight"] for one in "AB")
    narrow = nn.functional.conv2d(picture, a, padding=1)
    torch.testing.assert_close(convolved, plain[1] + 3.0 * nn.functional.conv2d(narrow, b), atol=1e-4, rtol=0)
    assert {name for name, parameter in parts.items() if parameter.requires_grad} == {
        f"{layer}.lora_{one}.default.weight" for layer in ("to_q", "conv") for one in "AB"
    }, "all else is frozen"


def test_a_new_adapter_changes_nothing_until_it_is_trained() -> None:
    torch.manual_seed(0)
    net = Net()
    before = outputs(net)
    attach(net, 2, 4.0, ["to_q", "conv"])
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(net), strict=True))


def test_a_stored_adapter_does_in_another_network_of_those_weights_what_it_did_in_its_own(tmp_path: Path) -> None:
    net = adapted(2, 6.0)
    strided = {
        name: value.transpose(0, 1).contiguous().transpose(0, 1)
        for name, value in net.named_parameters()
        if value.ndim > 1
    }
    save_adapter(tmp_path / WEIGHTS, strided, 2, 6.0, ["to_q", "conv"])
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == {f"unet.{layer}.lora_{one}.weight" for layer in ("to_q", "conv") for one in "AB"}
        facts = json.loads(file.metadata()[METADATA])
    assert facts == {"unet.r": 2, "unet.lora_alpha": 6.0, "unet.target_modules": ["conv", "to_q"]}
    torch.manual_seed(0)
    other = Net()
    load_adapter(other, tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(outputs(net), outputs(other), strict=True))


def test_an_adapter_is_found_as_a_file_in_its_folder_and_in_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    inner = run / "model" / WEIGHTS
    inner.touch()
    assert find_adapter(run) == find_adapter(str(run / "model")) == find_adapter(inner) == inner
    (run / WEIGHTS).touch()
    assert find_adapter(run) == run / WEIGHTS, "the folder's own first"
    with pytest.raises(ValueError, match=f"nowhere' holds no adapter; give a {WEIGHTS}, its folder, or the run_dir"):
        find_adapter(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet.x.lora_B.bias": torch.zeros(1)}, "holds one of 'x''s two matrices"),
        ({"unet.x.lokr_w1": torch.zeros(1)}, r"holds 'unet.x.lokr_w1'; expected LoRA matrices named unet.LAYER"),
        ({"to_v.lora_A.weight": torch.zeros(2, 4)}, "holds 'to_v.lora_A.weight'; expected LoRA matrices named unet"),
        ({"text_encoder.x.lora_A.weight": torch.zeros(2, 3)}, "holds 'text_encoder.x.lora_A.weight'; expected LoRA"),
        ({"unet.to_q.lora_A.weight": None, "unet.to_q.lora_B.weight": None}, "is empty; expected LoRA matrices"),
        ({"unet.to_q.lora_B.weight": None}, "holds one of 'to_q''s two matrices"),
        ({"unet.to_q.lora_A.weight": None}, "holds one of 'to_q'"),
        ({"unet.v.lora_A.weight": torch.zeros(2, 4), "unet.v.lora_B.weight": torch.zeros(3, 2)}, None),
    ],
)
def test_what_is_no_adapter_of_one_network_is_refused(
    tmp_path: Path, changes: dict[str, Tensor | None], message: str | None
) -> None:
    whole = {"unet.to_q.lora_A.weight": torch.zeros(2, 4), "unet.to_q.lora_B.weight": torch.zeros(3, 2)}
    tensors = {name: value for name, value in {**whole, **changes}.items() if value is not None}
    save_file(tensors, tmp_path / WEIGHTS)
    if message is None:
        assert read_adapter(tmp_path).layers == ["to_q", "v"]
        return
    with pytest.raises(ValueError, match=message):
        read_adapter(tmp_path)


def test_a_damaged_adapter_is_one_line(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is no whole safetensors file"):
        read_adapter(tmp_path)
    layers = {"unet.to_q.lora_A.weight": torch.zeros(2, 4), "unet.to_q.lora_B.weight": torch.zeros(3, 2)}
    save_file(layers, tmp_path / WEIGHTS, {METADATA: "{"})
    with pytest.raises(ValueError, match=f"{WEIGHTS} is no whole safetensors file"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("to_q.lora_A.weight", (2, 5), r"to_q.lora_A.weight has shape \(2, 5\), this network needs \(2, 4\)"),
        ("to_q.lora_B.weight", (4, 2), r"to_q.lora_B.weight has shape \(4, 2\), this network needs \(3, 2\)"),
        ("conv.lora_A.weight", (2, 2, 1, 1), r"\(2, 2, 1, 1\), this network needs \(2, 2, 3, 3\)"),
        ("conv.lora_B.weight", (5, 2, 3, 3), r"\(5, 2, 3, 3\), this network needs \(5, 2, 1, 1\)"),
        ("norm", (), "it adapts 'norm', which this network lacks; load the network it was trained on"),
    ],
)
def test_an_adapter_of_another_network_is_refused_and_leaves_it_as_it_was(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    tensors = {
        "to_q.lora_A.weight": torch.zeros(2, 4),
        "to_q.lora_B.weight": torch.zeros(3, 2),
        "conv.lora_A.weight": torch.zeros(2, 2, 3, 3),
        "conv.lora_B.weight": torch.zeros(5, 2, 1, 1),
    }
    if shape:
        tensors[name] = torch.zeros(shape)
    else:
        tensors |= {f"{name}.lora_A.weight": torch.zeros(2, 4), f"{name}.lora_B.weight": torch.zeros(3, 2)}
    save_file({f"unet.{key}": value for key, value in tensors.items()}, tmp_path / WEIGHTS)
    net = Net()
    keys = set(net.state_dict())
    with pytest.raises(ValueError, match=message):
        load_adapter(net, tmp_path)
    assert set(net.state_dict()) == keys


def test_adapters_of_several_stages_are_taken_out_or_merged_and_then_saved(tmp_path: Path) -> None:
    save_adapters(tmp_path)
    pipe = tiny_pipeline(sr1024_unet=None, sr1024_scheduler=None)
    plain = {slot: getattr(pipe, f"{slot}_unet").state_dict() for slot in ("base", "sr256")}
    plain = {slot: {name: value.clone() for name, value in state.items()} for slot, state in plain.items()}
    with pytest.raises(ValueError, match="stage 'sr1024' is not in this pipeline, which the adapter '.*base' is for"):
        pipe.load_lora_weights(tmp_path / "base", "sr1024")
    for act in ("unload_lora_weights", "merge_lora_weights"):
        for slot in ("base", "sr256"):
            pipe.load_lora_weights(tmp_path / slot, slot)
        with pytest.raises(ValueError, match="^base, sr256 holds an adapter: call merge_lora_weights or unload"):
            pipe.save_pretrained(tmp_path / "saved")
        with pytest.raises(ValueError, match="stage is 'sr64'; expected one of base, sr256, sr1024"):
            pipe.unload_lora_weights("sr64")
        getattr(pipe, act)()  # of every stage
        for slot, state in plain.items():
            now = getattr(pipe, f"{slot}_unet").state_dict()
            assert now.keys() == state.keys()
            changed = {name for name in state if not torch.equal(state[name], now[name])}
            assert bool(changed) is (act == "merge_lora_weights")
            assert all("to_q" in name for name in changed)
        with pytest.raises(ValueError, match="stage 'base' holds no adapter; load one with load_lora_weights"):
            pipe.merge_lora_weights("base")


def test_an_adapter_that_is_not_finite_is_not_merged(tmp_path: Path) -> None:
    save_adapters(tmp_path)
    pipe = tiny_pipeline()
    pipe.load_lora_weights(tmp_path / "base")
    for name, parameter in pipe.base_unet.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, torch.inf)
    with pytest.raises(ValueError, match="NaNs"):
        pipe.merge_lora_weights()


def test_without_peft_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="LoRA needs the package peft: pip install peft"):
        attach(Net(), 2, 4.0, ["to_q"])
