"""The regions of a network compiled by themselves: the same numbers, few graphs, and none anew for what may change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.unets.helpers import draw, image_inputs, make
from unets.blocks import ResnetBlock
from unets.options import Options
from unets.regions import uncompiled


def texts(batch: int, length: int) -> dict[str, Tensor]:
    """The first of ``length`` tokens, the others of one."""
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[0] = mask[:, 0] = True
    return {"text": draw(3, batch, length, 24), "text_mask": mask}


def regions(network: Any) -> list[Any]:
    return [module for module in network.modules() if type(module).__name__ in network._repeated_blocks]


@pytest.fixture
def counting() -> CompileCounterWithBackend:
    torch.compiler.reset()
    return CompileCounterWithBackend("eager")


@torch.no_grad()
@pytest.mark.parametrize(("kind", "graphs"), [("base", 10), ("efficient", 3), ("dit", 1)])
def test_no_graph_is_made_anew_for_a_step_a_text_or_a_number_of_pictures(
    kind: str, graphs: int, counting: CompileCounterWithBackend
) -> None:
    """One for each shape: of the base network nine residual blocks and one attention layer."""
    plain = make(kind)
    unet = copy.deepcopy(plain)
    unet.compile_repeated_blocks(backend=counting)
    for batch, length, step in ((2, 3, 500), (2, 3, 499), (2, 7, 20), (3, 4, 20), (6, 6, 1)):
        read, given = texts(batch, length), {**image_inputs(unet, batch), "timestep": step}
        before = counting.frame_count
        context = unet(**read)
        assert counting.frame_count == before, "the text alone is compiled"
        assert torch.equal(unet(**given, context=context), plain(**given, context=plain(**read)))
        assert 0 < counting.frame_count <= graphs
    assert counting.frame_count == graphs <= len(regions(unet))


@torch.no_grad()
def test_equal_regions_share_one_graph_and_take_pictures_of_any_side(counting: CompileCounterWithBackend) -> None:
    """Of a DiT: its tokens are a sequence."""
    unet = make("dit", depth=5)
    unet.compile_repeated_blocks(backend=counting)
    for size in ((8, 8), (12, 8)):
        unet(**image_inputs(unet, 2, size), **texts(2, 3))
    assert counting.frame_count == 1


@torch.no_grad()
def test_more_shapes_than_torch_would_compile_by_itself(counting: CompileCounterWithBackend) -> None:
    blocks = [ResnetBlock(8 * (i + 1), 8, Options(text_dim=None, time_embed_dim=4, norm_groups=4)) for i in range(3)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for i, block in enumerate(blocks):
            block.compile(backend=counting)
            block(torch.randn(2, 8 * (i + 1), 2, 2), torch.randn(2, 4))
    assert counting.frame_count == 3


def test_gradients_are_those_of_the_network_itself(counting: CompileCounterWithBackend) -> None:
    plain = make("dit", dropout=0.5).train()
    unet = copy.deepcopy(plain)
    unet.compile_repeated_blocks(backend=counting)
    unet.enable_gradient_checkpointing()
    given = {**image_inputs(unet, 2), **texts(2, 3), "dropout_seeds": torch.tensor([3, 4])}
    for network in (plain, unet):
        network(**given).square().sum().backward()
    assert counting.frame_count > 0
    for (name, expected), (_, got) in zip(plain.named_parameters(), unet.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-10, atol=1e-12, msg=name)


@torch.no_grad()
def test_neither_copies_nor_stored_weights_know_of_it(counting: CompileCounterWithBackend) -> None:
    unet = make("dit")
    names = list(unet.state_dict())
    unet.compile_repeated_blocks(backend=counting)
    assert list(unet.state_dict()) == names
    given = {**image_inputs(unet, 2), **texts(2, 3)}
    copy.deepcopy(unet)(**given)
    assert counting.frame_count == 0
    uncompiled(unet)
    unet(**given)
    assert counting.frame_count == 0
