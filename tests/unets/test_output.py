"""What stands between the last level and the output: the head, and the skip from the input."""

import pytest
import torch
import torch.nn.functional as F

from tests.unets.helpers import BASE, KINDS, draw, image_inputs, make, run
from unets import BaseUNet


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient"])
def test_a_new_network_with_an_input_skip_returns_the_low_resolution_image(kind: str) -> None:
    cls, arguments = KINDS[kind]
    unet = cls(**{**arguments, "input_skip": True, "lowres_channels": 3}).double()
    assert torch.equal(run(unet), image_inputs(unet)["lowres"])
    alone = BaseUNet(**BASE, input_skip=True).double()
    assert run(alone).abs().max() == 0


@torch.no_grad()
def test_the_gains_of_the_input_skip_are_linear_in_the_embedding() -> None:
    unet = make("efficient", input_skip=True)
    seen: list[torch.Tensor] = []
    unet.input_gain.register_forward_hook(lambda _, given, out: seen.append(given[0]))
    given, out = image_inputs(unet), run(unet)
    weight, bias = unet.input_gain.weight, unet.input_gain.bias
    gains = torch.einsum("be,ce->bc", seen[0], weight) + bias
    for name, value in unet.named_parameters():
        if name.startswith("conv_out"):
            value.zero_()
    rest = out - run(unet)  # what the network adds without the skip
    skipped = torch.einsum("bc,bchw->bchw", gains[:, :3], given["sample"])
    skipped += torch.einsum("bc,bchw->bchw", gains[:, 3:], given["lowres"])
    assert torch.allclose(out - rest, skipped, rtol=1e-12, atol=1e-12)
    assert rest.abs().max() > 1e-3
    assert (gains[0] - gains[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("head", [8, 40])  # narrower than the last level, and wider
@pytest.mark.parametrize("kind", ["base", "efficient"])
def test_the_head_stands_between_the_last_level_and_the_norm(kind: str, head: int) -> None:
    unet = make(kind, head_channels=head, patch_size=2)
    width = unet.config.model_channels if kind == "base" else unet.config.channels[0]
    x = draw(7, 2, width, 3, 5)
    expected = torch.einsum("oc,bchw->bohw", unet.conv_head.weight[:, :, 0, 0], x) + unet.conv_head.bias[:, None, None]
    normed = F.silu(F.group_norm(expected, 8, unet.conv_norm_out.weight, unet.conv_norm_out.bias))
    folded = F.conv2d(normed, unet.conv_out.weight, unet.conv_out.bias, padding=1)
    assert torch.allclose(unet._output(x), F.pixel_shuffle(folded, 2), rtol=1e-12, atol=1e-12)
    assert make(kind).conv_head is None
