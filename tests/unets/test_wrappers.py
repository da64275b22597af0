"""The ways other libraries wrap a network: offload hooks, sharding, compilation. All of them see ``forward`` alone."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.unets.helpers import KINDS, draw, image_inputs, make


def both_ways(unet: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The output by one call, and by way of the text's context."""
    given = image_inputs(unet)
    text, mask = draw(3, 2, 3, 24), torch.tensor([[1, 1, 1], [1, 0, 0]])
    return unet(**given, text=text, text_mask=mask), unet(**given, context=unet(text=text, text_mask=mask))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_offloaded_layer_by_layer(kind: str) -> None:
    unet = make(kind)
    expected = both_ways(unet)
    cpu_offload(unet, execution_device=torch.device("cpu"))
    assert next(unet.parameters()).is_meta
    for got, wanted in zip(both_ways(unet), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # advice against in-place changes, of which there are none
@pytest.mark.parametrize("layers_too", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sharded(kind: str, layers_too: bool) -> None:
    """fully_shard on one process: levels, then attention layers too, are units; only their forward has the weights."""
    expected = make(kind)
    plain = both_ways(expected)
    plain[0].square().mean().backward()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        unet = make(kind)
        mesh = init_device_mesh("cpu", (1,))
        for level in unet._levels():
            for attention in level.attentions if layers_too else ():
                fully_shard(attention, mesh=mesh)
            fully_shard(level, mesh=mesh)
        fully_shard(unet, mesh=mesh)
        sharded = both_ways(unet)
        for got, wanted in zip(sharded, plain, strict=True):
            assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)
        sharded[0].square().mean().backward()
        for got, wanted in zip(unet.parameters(), expected.parameters(), strict=True):
            assert torch.allclose(got.grad.full_tensor(), wanted.grad, rtol=1e-10, atol=1e-12)
    finally:
        dist.destroy_process_group()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_traced_into_one_graph(kind: str) -> None:
    """What torch.compile needs, in both modes: no break in the graph."""
    unet = make(kind)
    expected = both_ways(unet)
    torch.compiler.reset()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    for got, wanted in zip(both_ways(compiled), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)
