"""Attention by other kernels; what this project adds to it: normed queries and keys, and where a cell lies."""

import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.unets.helpers import BASE, draw, image_inputs, make, run
from unets import BaseUNet
from unets.attention import Attention, sdpa, xformers_attention
from unets.options import Options
from unets.unet import coordinates


def attention(**options) -> Attention:  # type: ignore[no-untyped-def]
    layer = Attention(8, Options(head_dim=4, text_dim=6, norm_groups=4, qk_norm=True), **options).double()
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = draw(number, *parameter.shape)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("self_attention", [True, False])
def test_normed_attention_is_the_formula(self_attention: bool) -> None:
    layer = attention(self_attention=self_attention)
    x, text = draw(50, 2, 8, 3, 2), draw(51, 2, 5, 6)
    hidden = torch.nn.functional.group_norm(x, 4, layer.group_norm.weight, layer.group_norm.bias, 1e-5)
    hidden = hidden.flatten(2).transpose(1, 2)
    states = torch.nn.functional.layer_norm(text, (6,), layer.norm_cross.weight, layer.norm_cross.bias)

    def heads(linear: torch.nn.Linear, states: torch.Tensor, norm: torch.nn.RMSNorm | None) -> torch.Tensor:
        parts = (states @ linear.weight.T + linear.bias).unflatten(-1, (2, 4))
        if norm is not None:
            parts = parts / (parts.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        return parts

    query = heads(layer.to_q, hidden, layer.norm_q)
    keys, values = [heads(layer.add_k_proj, states, layer.norm_added_k)], [heads(layer.add_v_proj, states, None)]
    if self_attention:
        keys.append(heads(layer.to_k, hidden, layer.norm_k))
        values.append(heads(layer.to_v, hidden, None))
    logits = torch.einsum("bqhd,bkhd->bhqk", query, torch.cat(keys, 1)) / 2
    out = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), torch.cat(values, 1)).flatten(2)
    out = out @ layer.to_out[0].weight.T + layer.to_out[0].bias
    expected = x + out.transpose(1, 2).unflatten(-1, (3, 2))
    assert torch.allclose(layer(x, text), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(layer(x, kv=layer(None, text)), layer(x, text))


@torch.no_grad()
def test_normed_attention_does_not_saturate_when_its_weights_grow() -> None:
    layer = attention()
    x, text = draw(50, 2, 8, 3, 2), draw(51, 2, 5, 6)
    before = layer(x, text)
    for linear in (layer.to_q, layer.to_k, layer.add_k_proj):
        linear.weight.mul_(1000)
        linear.bias.mul_(1000)
    assert torch.allclose(layer(x, text), before, rtol=1e-4, atol=1e-4)  # but for the norm's epsilon
    plain = Attention(8, Options(head_dim=4, text_dim=6, norm_groups=4))
    assert {name for name, _ in layer.named_parameters()} - {name for name, _ in plain.named_parameters()} == {
        "norm_q.weight", "norm_k.weight", "norm_added_k.weight",
    }  # fmt: skip


@torch.no_grad()
def test_coordinates_run_from_border_to_border() -> None:
    rows, columns = coordinates(torch.zeros(2, 5, 2, 4))[1]
    assert rows.tolist() == [[-0.5] * 4, [0.5] * 4]
    assert columns.tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2


@torch.no_grad()
def test_coordinates_are_the_last_inputs_of_the_first_convolution() -> None:
    unet = make("base", coordinates=True, patch_size=2)
    plain = BaseUNet(**{**BASE, "patch_size": 2}).double()
    state = unet.state_dict()
    with_coordinates = run(unet)
    state["conv_in.weight"] = state["conv_in.weight"][:, :-2]
    plain.load_state_dict(state)
    assert (run(plain) - with_coordinates).abs().max() > 1e-3
    unet.conv_in.weight[:, -2:] = 0
    assert torch.equal(run(plain), run(unet))
    sample = image_inputs(unet)["sample"]
    assert unet._stem(sample, None, {}).shape[1] == sample.shape[1] * 4 + 2


def test_xformers_is_asked_for_as_diffusers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = make("base")
    if "xformers" not in sys.modules and not torch.cuda.is_available():
        with pytest.raises((ModuleNotFoundError, ValueError), match="xformers"):
            unet.enable_xformers_memory_efficient_attention()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: Any, op: Any) -> torch.Tensor:
        if attn_bias is not None:
            assert attn_bias.stride(-2) in (0, *range(0, 1 << 20, 8))
        assert op == "an op"
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=attn_bias)
        return out.transpose(1, 2)

    ops = types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = attend  # type: ignore[attr-defined]
    package = types.ModuleType("xformers")
    package.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    q, k, v = draw(1, 2, 5, 8), draw(2, 2, 7, 8), draw(3, 2, 7, 8)
    for mask in (None, torch.arange(7)[None] < torch.tensor([[7], [3]])):
        got = xformers_attention(q, k, v, 2, mask, "an op")  # type: ignore[arg-type]
        assert torch.allclose(got, sdpa(q, k, v, 2, mask), atol=1e-12)


def test_xformers_is_switched_on_and_off_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, used = attention(), []
    x, text = draw(50, 2, 8, 3, 2), draw(51, 2, 5, 6)

    def instead(*given: Any, op: Any) -> torch.Tensor:
        used.append(op)
        return sdpa(*given)

    monkeypatch.setattr("unets.attention.xformers_attention", instead)
    monkeypatch.setattr("unets.attention.is_xformers_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="xformers.* needs a CUDA device; none is available"):
        layer.set_use_memory_efficient_attention_xformers(True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = layer(x, text)
    layer.set_use_memory_efficient_attention_xformers(True, "an op")  # type: ignore[arg-type]
    assert torch.equal(layer(x, text), before)
    assert used == ["an op"]
    layer.set_use_memory_efficient_attention_xformers(False)
    assert torch.equal(layer(x, text), before)
    assert len(used) == 1
    monkeypatch.setattr("unets.attention.is_xformers_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        layer.set_use_memory_efficient_attention_xformers(True)


def test_wide_numbers_stay_wide_while_they_learn() -> None:
    q, k, v = (draw(i, 2, 9, 8).requires_grad_() for i in range(3))
    got = sdpa(q, k, v, 2, None)
    halves = [torch.softmax(q[..., part] @ k[..., part].mT / 2, -1) @ v[..., part] for part in (slice(4), slice(4, 8))]
    assert got.dtype is torch.float64
    assert torch.allclose(got, torch.cat(halves, -1), rtol=1e-12, atol=1e-12)


def test_mixed_precision_on_a_cpu_attends_in_float32_while_it_learns() -> None:
    q, k, v = (draw(i, 2, 9, 8).to(torch.bfloat16).requires_grad_() for i in range(3))
    mask = torch.arange(9)[None] < torch.tensor([[9], [3]])
    want = sdpa(q.float(), k.float(), v.float(), 2, mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = sdpa(q, k, v, 2, mask)
    assert got.dtype is torch.bfloat16
    assert torch.equal(got, want.to(torch.bfloat16))
    direction = draw(4, 2, 9, 8)
    ours = torch.autograd.grad((got * direction).sum(), (q, k, v))
    theirs = torch.autograd.grad((want * direction.to(torch.bfloat16)).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype is torch.bfloat16
        assert torch.allclose(a.float(), b.float(), atol=1e-6, rtol=1e-2)
