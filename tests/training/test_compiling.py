"""A network that is compiled for training: one graph for texts of any length, and none where no gradient is asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from imagen.training.compiling import compile_steps
from tests.factories import WIDTH, seeded, tiny_base


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def call(network: Any, length: int, rows: int = 2) -> Tensor:
    generator = seeded()
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, -2:] = False
    text = {"text": torch.randn(rows, length, WIDTH, generator=generator), "text_mask": mask}
    out: Tensor = network(torch.randn(rows, 3, 16, 16, generator=generator), torch.full((rows,), 500.0), **text)
    return out


def test_texts_of_any_length_share_a_graph_and_its_gradients() -> None:
    plain = tiny_base()
    network = copy.deepcopy(plain)
    compile_steps(network, backend="eager")
    for length in (5, 8, 3):
        wanted, made = call(plain, length), call(network, length)
        torch.testing.assert_close(made, wanted)
        wanted.square().mean().backward()
        made.square().mean().backward()
    assert counters["stats"]["unique_graphs"] == 1
    for (name, one), other in zip(plain.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


def test_without_gradients_nothing_is_compiled_and_nothing_differs() -> None:
    plain = tiny_base()
    network = copy.deepcopy(plain)
    compile_steps(network, backend="eager")
    with torch.no_grad():
        for rows in (1, 3):
            assert torch.equal(call(network, 4, rows), call(plain, 4, rows))
    assert not counters["stats"]


def test_what_is_told_to_torch_reaches_it() -> None:
    network, seen = tiny_base(), []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(len(inputs))
        return graph.forward

    compile_steps(network, backend=backend)
    call(network, 4)
    assert len(seen) == 1
