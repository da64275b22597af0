"""The efficient network's own layers and options: the convolution that enlarges, heads, one number for each block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.unets.helpers import EFFICIENT, KINDS, NAMED, conditions, draw, make, run
from unets import EfficientUNet
from unets.efficient import EfficientOptions, block_attention, upsampling_conv


@torch.no_grad()
@pytest.mark.parametrize("kind", ["nearest", "transposed", "pixel_shuffle"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_convolution_behind_a_block_enlarges_as_its_name_says(kind: str, stride: int) -> None:
    layer = upsampling_conv(kind, 4, 5, stride).double()
    x = draw(1, 2, 4, 3, 2)
    weights = {tuple(p.shape): p for p in layer.parameters()}
    if stride == 1:
        expected = F.conv2d(x, weights[5, 4, 3, 3], weights[5,], padding=1)
    elif kind == "nearest":
        large = x.repeat_interleave(stride, 2).repeat_interleave(stride, 3)
        expected = F.conv2d(large, weights[5, 4, 3, 3], weights[5,], padding=1)
    elif kind == "pixel_shuffle":
        wide = 5 * stride**2
        expected = F.pixel_shuffle(F.conv2d(x, weights[wide, 4, 3, 3], weights[wide,], padding=1), stride)
    else:  # each pixel lays its multiple of the kernel down, centred on every stride-th place
        expected = torch.zeros(2, 5, 3 * stride + 2, 2 * stride + 2, dtype=torch.float64)
        for row in range(3):
            for column in range(2):
                laid = torch.einsum("bc,cokl->bokl", x[:, :, row, column], weights[4, 5, 3, 3])
                expected[:, :, row * stride :, column * stride :][:, :, :3, :3] += laid
        expected = expected[:, :, 1:-1, 1:-1] + weights[5,][:, None, None]
    assert layer(x).shape == (2, 5, 3 * stride, 2 * stride)
    assert torch.allclose(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 16])
def test_attention_is_twice_as_wide_as_the_block_and_shared_out_to_the_heads(heads: int) -> None:
    for kind in ("self", "cross"):
        layer = block_attention(8, EfficientOptions(heads=heads, attention=kind, text_dim=6, norm_groups=4))
        assert (layer.to_q.out_features, layer.add_v_proj.out_features, layer.heads) == (16, 16, heads)
        assert (layer.to_k is None) == (kind == "cross")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_res_blocks": (1,)}, r"num_res_blocks \[1\].*: give one entry for every level"),
        ({"num_res_blocks": (1, 0)}, r"num_res_blocks \[1, 0\].* must be at least 1 on every level"),
        ({"strides": (2, 2, 2)}, r"strides \[2, 2, 2\].*: give one entry for every level"),
        ({"channels": (), "num_res_blocks": (), "strides": ()}, "at least one level"),
        ({"attention_levels": (0, 2)}, r"attention_levels \[2\] do not exist; this network has levels 0 to 1"),
        ({"norm_groups": 16}, r"norm_groups 16 does not divide the channels of a block \(24 -> 24\)"),
    ],
)
def test_numbers_that_are_not_one_for_each_block_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientUNet(**{**EFFICIENT, **change})


OWN: dict[str, dict[str, Any]] = {
    "base": {"coordinates": True, "head_channels": 40, "activation": "gelu"},
    "efficient": {"time_input": "cosine_log_snr", "head_channels": 40, "skip": "concat"},
    "dit": {},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", OWN)
def test_every_option_keeps_to_the_dtype_of_the_weights(kind: str) -> None:
    """In bfloat16, with all that a network may be told: what is made on the way takes the weights' dtype."""
    shared = {"text_whitening": True, "text_proj_dim": 16, "qk_norm": True, "input_skip": True, "lowres_channels": 3}
    unet = make(kind, **NAMED, **shared, **OWN[kind], text_pooling="mean")
    exact = run(unet, conditions=conditions())
    out = run(unet.to(torch.bfloat16), conditions=conditions())
    assert out.dtype == torch.float64, "the sample's"
    assert (out - exact).abs().max() < 0.2 * exact.abs().max()
    assert {cls.__name__ for cls, _ in KINDS.values()} == {KINDS[name][0].__name__ for name in OWN}
