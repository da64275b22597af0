"""Files of adapters, in every form that they are written in, and what each layer then adds: scale * B A."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imagen.cascade.adapter_files import read_adapter
from imagen.cascade.adapters import load_adapter
from imagen.stages.folder import ADAPTER as WEIGHTS
from tests.factories import seeded
from unets.adapters import Adaptable, holds_adapter

A, B = ".lora_A.weight", ".lora_B.weight"


class Net(Adaptable, nn.Module):
    """A linear layer, a convolution of stride 2, and what is called as in a network of IF's family."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_q = nn.Linear(4, 3)
        self.add_k_proj = nn.Linear(4, 3)
        self.to_out = nn.ModuleList([nn.Linear(4, 3)])
        self.conv = nn.Conv2d(2, 5, 3, padding=1, stride=2)

    def weights(self) -> dict[str, Tensor]:
        """What each layer multiplies by, adapters included, seen from outside: its answers to unit vectors."""
        found = {}
        for name, layer in (("to_q", self.to_q), ("add_k_proj", self.add_k_proj), ("to_out.0", self.to_out[0])):
            found[name] = (layer(torch.eye(4)) - layer(torch.zeros(4))).T
        units = torch.eye(2 * 9).view(-1, 2, 3, 3)
        answers = self.conv(units)[:, :, :, :] - self.conv(torch.zeros(1, 2, 3, 3))
        found["conv"] = answers.reshape(18, -1).T
        return {name: weight.detach() for name, weight in found.items()}


def drawn(ranks: dict[str, int], seed: int = 1) -> dict[str, Tensor]:
    """Matrices of an adapter of these layers, by peft's names."""
    generator, tensors = seeded(seed), {}
    for name, rank in ranks.items():
        ins, outs = ((2, 3, 3), (5, rank, 1, 1)) if name == "conv" else ((4,), (3, rank))
        tensors[name + A] = torch.randn(rank, *ins, generator=generator)
        tensors[name + B] = torch.randn(*outs, generator=generator)
    return tensors


def product(tensors: dict[str, Tensor], name: str) -> Tensor:
    """B A, of a linear layer."""
    return tensors[name + B] @ tensors[name + A]


def assert_adds(net: Net, expected: dict[str, Tensor]) -> None:
    """Linear layers have these sums added to their weights, the others nothing."""
    plain, now = Net().weights(), net.weights()
    for name in ("to_q", "add_k_proj", "to_out.0"):
        torch.testing.assert_close(now[name] - plain[name], expected.get(name, torch.zeros(3, 4)), atol=1e-5, rtol=1e-4)


def test_peft_s_own_folder_is_read_with_its_settings(tmp_path: Path) -> None:
    net = Net()
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv"], rank_pattern={"conv": 3}, use_rslora=True)
    model = get_peft_model(net, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, generator=seeded(len(name)))
    expected = net.weights()
    model.save_pretrained(tmp_path)
    other = Net()
    load_adapter(other, tmp_path)
    for name, weight in other.weights().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4)
    tensors = read_adapter(tmp_path).tensors
    assert_adds(other, {"to_q": 6 / 2**0.5 * product(tensors, "to_q")})


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_network_s_own_file_is_read_as_that_of_a_pipeline_is(tmp_path: Path, prefix: str) -> None:
    net = Net()
    net.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False))
    net.save_lora_adapter(tmp_path, safe_serialization=True)
    tensors = load_file(tmp_path / WEIGHTS)
    if prefix:
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    other = Net()
    load_adapter(other, tmp_path)
    assert_adds(other, {"to_q": (1 if prefix else 3) * product(tensors, "to_q")})  # the second has no header


@pytest.mark.parametrize("ending", [WEIGHTS, "pytorch_lora_weights.bin"])
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("processor.{}_lora.down", "processor.{}_lora.up"),
        ("{}.lora.down", "{}.lora.up"),
        ("{}.lora_linear_layer.down", "{}.lora_linear_layer.up"),
    ],
)
def test_what_earlier_diffusers_wrote_is_read_for_every_layer(tmp_path: Path, down: str, up: str, ending: str) -> None:
    """LoRAAttnAddedKVProcessor adapted to_q, to_k, to_v, add_k_proj, add_v_proj and to_out."""
    tensors = drawn({"to_q": 2, "add_k_proj": 3, "to_out.0": 2})
    names = {"to_q": "to_q", "add_k_proj": "add_k_proj", "to_out.0": "to_out"}
    old = {f"unet.{down.format(names[n.removesuffix(A)])}.weight": t for n, t in tensors.items() if n.endswith(A)}
    old |= {f"unet.{up.format(names[n.removesuffix(B)])}.weight": t for n, t in tensors.items() if n.endswith(B)}
    if ending == WEIGHTS:
        save_file(old, tmp_path / ending)
    else:
        torch.save(old, tmp_path / ending)
    net = Net()
    load_adapter(net, tmp_path)
    assert_adds(net, {name: product(tensors, name) for name in names})
    net.unload_lora()
    old["unet." + {"p": "to_q.alpha"}.get(down[0], "to_q.lora.alpha")] = torch.tensor(6.0)
    load_adapter(net, old)  # its tensors themselves
    assert_adds(net, {name: (3 if name == "to_q" else 1) * product(tensors, name) for name in names})
    net.unload_lora()
    old["unet." + {"p": "to_out.alpha"}.get(down[0], "to_out.lora.alpha")] = torch.tensor(8.0)
    load_adapter(net, old)
    assert_adds(net, {n: {"to_q": 3, "to_out.0": 4}.get(n, 1) * product(tensors, n) for n in names})


def test_a_pickle_that_would_run_something_is_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"unet.to_q_lora.down.weight": Evil()}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(ValueError, match="lora_weights.bin is no whole torch file"):
        load_adapter(Net(), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("alphas", [{}, {"lora_alpha": 4.0}, {"lora_alpha": 4.0, "alpha_pattern": {"to_q": 8.0}}])
def test_layers_of_different_ranks_act_each_at_its_own_strength(alphas: dict[str, Any], tmp_path: Path) -> None:
    tensors = drawn({"to_q": 1, "add_k_proj": 3, "to_out.0": 3})
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in alphas.items()})}
    save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, tmp_path / WEIGHTS, header)
    net = Net()
    load_adapter(net, tmp_path)
    own = alphas.get("alpha_pattern", {})
    scales = {n: own.get(n, alphas.get("lora_alpha", rank)) / rank for n, rank in (("to_q", 1), ("add_k_proj", 3))}
    assert_adds(
        net,
        {name: scales[name] * product(tensors, name) for name in scales}
        | {"to_out.0": scales["add_k_proj"] * product(tensors, "to_out.0")},
    )


def test_dora_scales_each_row_of_the_sum_to_its_stored_length(tmp_path: Path) -> None:
    """Liu et al. 2024, eq. 5: W' = m (W + s B A) / ||W + s B A||, by rows of a linear layer."""
    net = Net()
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"], use_dora=True, init_lora_weights=False)
    net.add_adapter(config)
    lengths = torch.tensor([0.5, 1.0, 2.0])
    next(p for name, p in net.named_parameters() if "magnitude" in name).data.copy_(lengths)
    net.save_lora_adapter(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    save_file({f"unet.{name}": tensor for name, tensor in stored.items()}, tmp_path / "named.safetensors")
    for place, scale in ((tmp_path, 3), (tmp_path / "named.safetensors", 1)):
        other = Net()
        load_adapter(other, place)
        total = Net().to_q.weight.detach() + scale * product(stored, "to_q")
        expected = lengths[:, None] * total / total.norm(dim=1, keepdim=True)
        torch.testing.assert_close(other.weights()["to_q"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"peft_type": "LOKR"}, "is an adapter of peft's type LOKR; expected LORA"),
        ({"modules_to_save": ["conv"]}, "was trained with modules_to_save, which is more than LoRA"),
        ({"bias": "all"}, "was trained with bias, which is more than LoRA"),
        ({"use_dora": True}, "lacks DoRA's .lora_magnitude_vector, and its header says otherwise"),
        ({"use_magic": 3}, "was trained with use_magic, which this peft does not know: upgrade it"),
        ({"use_magic": False, "made_up": None}, None),
    ],
)
def test_a_header_that_means_something_else_is_told(tmp_path: Path, facts: dict[str, Any], message: str | None) -> None:
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in facts.items()})}
    tensors = drawn({"to_q": 2})
    save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, tmp_path / WEIGHTS, header)
    net = Net()
    if message is None:
        load_adapter(net, tmp_path)
        assert_adds(net, {"to_q": product(tensors, "to_q")})
        return
    with pytest.raises(ValueError, match=message):
        load_adapter(net, tmp_path)
    assert not holds_adapter(net)


def test_a_peft_folder_without_its_settings_says_which_file_is_missing(tmp_path: Path) -> None:
    save_file(drawn({"to_q": 2}), tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapter_config.json") as told:
        load_adapter(Net(), tmp_path)
    assert "no whole safetensors file" not in str(told.value)
