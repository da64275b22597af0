"""What this project adds to a network's attention and input: normed queries and keys, and where a cell lies."""

import pytest
import torch

from tests.unets.helpers import BASE, draw, image_inputs, make, run
from unets import BaseUNet
from unets.attention import Attention
from unets.network import coordinates


def attention(**options) -> Attention:  # type: ignore[no-untyped-def]
    layer = Attention(8, 4, 6, norm_groups=4, qk_norm=True, **options).double()
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
    plain = Attention(8, 4, 6, norm_groups=4)
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
    assert unet._stem(sample, None).shape[1] == sample.shape[1] * 4 + 2
