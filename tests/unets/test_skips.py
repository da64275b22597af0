"""What the efficient network's up blocks take from its down blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unets.helpers import make, run


def outputs(module: nn.Module, seen: list[Tensor]) -> None:
    module.register_forward_hook(lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))


def inputs(module: nn.Module, seen: list[Tensor]) -> None:
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))


@torch.no_grad()
@pytest.mark.parametrize("attention_levels", [(1,), (0, 1)])
def test_every_residual_block_takes_its_mirror_s_output_and_the_last_of_a_level_is_taken_behind_the_attention(
    attention_levels: tuple[int, ...],
) -> None:
    unet: Any = make("efficient", skip="concat_each", num_res_blocks=(2, 3), attention_levels=attention_levels)
    made: list[list[Tensor]] = [[], []]
    ends: list[list[Tensor]] = [[], []]
    taken: list[list[Tensor]] = [[], []]
    for level, (down, up) in enumerate(zip(unet.down_blocks, reversed(unet.up_blocks), strict=True)):
        outputs(down, ends[level])
        for resnet in down.resnets:
            outputs(resnet, made[level])
        for resnet in up.resnets:
            inputs(resnet, taken[level])
    run(unet)
    for level, width in enumerate((16, 24)):
        expected = [*made[level][:-1], ends[level][0]]
        assert len(taken[level]) == len(expected) == (2, 3)[level]
        for given, skip in zip(taken[level], reversed(expected), strict=True):
            assert given.shape[1] == 2 * width
            assert torch.equal(given[:, width:], skip)
        attended = not torch.equal(made[level][-1], ends[level][0])
        assert attended == (level in attention_levels)


@torch.no_grad()
@pytest.mark.parametrize("skip", ["add", "concat"])
def test_one_skip_a_level_is_its_end_and_the_lowest_level_takes_none(skip: str) -> None:
    unet: Any = make("efficient", skip=skip, num_res_blocks=(2, 2), attention_levels=(0, 1), residual_scale=0.25)
    end: list[Tensor] = []
    taken: list[Tensor] = []
    before: list[Tensor] = []
    outputs(unet.down_blocks[0], end)
    outputs(unet.up_blocks[0], before)
    inputs(unet.up_blocks[1].resnets[0], taken)
    lowest: list[Tensor] = []
    inputs(unet.up_blocks[0].resnets[0], lowest)
    outputs(unet.down_blocks[1], lowest)
    run(unet)
    joined = (before[0] + end[0]) * 0.25 if skip == "add" else torch.cat([before[0], end[0]], dim=1)
    assert torch.equal(taken[0], joined)
    assert torch.equal(*lowest)
