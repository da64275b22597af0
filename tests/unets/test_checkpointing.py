"""Gradient checkpointing of some levels: the same gradients, and only those levels run twice."""

from __future__ import annotations

import pytest
import torch

from tests.unets.helpers import UNETS, make, run


def resnets(unet):
    """The residual blocks of each level: two levels here, the middle with the last."""
    down, up = unet.down_blocks, unet.up_blocks
    middle = list(unet.mid_block.resnets) if hasattr(unet, "mid_block") else []
    return [[*down[0].resnets, *up[1].resnets], [*down[1].resnets, *middle, *up[0].resnets]]


@pytest.mark.parametrize("kind", UNETS)
@pytest.mark.parametrize("levels", [(), (0,), (1,), (0, 1)], ids=str)
def test_named_levels_alone_run_twice_and_gradients_are_equal(kind, levels):
    plain, unet = make(kind).train(), make(kind).train()
    unet.checkpoint_levels(levels)
    calls = [0, 0]
    for level, blocks in enumerate(resnets(unet)):
        for block in blocks:

            def count(*_, level=level):
                calls[level] += 1

            block.register_forward_pre_hook(count)  # a repeated run may end before its last block does
    run(plain).square().mean().backward()
    run(unet).square().mean().backward()
    assert calls == [len(blocks) * (2 if level in levels else 1) for level, blocks in enumerate(resnets(unet))]
    for (name, one), other in zip(plain.named_parameters(), unet.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_nothing_is_checkpointed_where_there_are_no_gradients():
    unet = make("base")
    unet.enable_gradient_checkpointing()
    repeated = []
    unet._gradient_checkpointing_func = lambda level, *given: repeated.append(level) or level(*given)
    with torch.no_grad():
        run(unet)
    assert repeated == []
    run(unet)
    assert repeated == unet._levels()


@pytest.mark.parametrize("kind", ["base", "efficient"])
@pytest.mark.parametrize("levels", [(2,), (0, -1)], ids=str)
def test_a_level_that_is_not_there_is_refused(kind, levels):
    wrong = levels[-1]
    with pytest.raises(ValueError, match=rf"levels \[{wrong}\] do not exist; this network has levels 0 to 1"):
        make(kind).checkpoint_levels(levels)
