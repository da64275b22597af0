"""The networks under torch.export and torch.compile: one graph for every batch, length of text and timestep."""

import io
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import Dim, export

from tests.unets.helpers import draw, image_inputs, make
from unets import TextContext


def texts(batch: int, length: int) -> dict[str, Tensor]:
    """A text of ``length`` tokens, and others of one: a mask is needed, and its last column is padding in every row."""
    mask = torch.zeros(batch, length + 1, dtype=torch.bool)
    mask[0, :length] = mask[:, 0] = True
    return {"text": draw(3, batch, length + 1, 24), "text_mask": mask}


def inputs(unet: Any, way: str, batch: int, length: int) -> dict[str, Any]:
    given, read = image_inputs(unet, batch), texts(batch, length)
    return {**given, **read} if way == "training" else {**given, "context": unet(**read)}


def exported(unet: Any, given: dict[str, Any]) -> torch.export.ExportedProgram:
    """With batch and length of the text open."""
    row, tokens = {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    sizes: dict[str, Any] = {name: tokens if name in ("text", "text_mask") else row for name in given}
    if "context" in given:
        many = (tokens,) * len(given["context"].keys)
        sizes["context"] = TextContext(row, many, many, tokens)
    return export(unet, (), given, dynamic_shapes=sizes)


@torch.no_grad()
@pytest.mark.parametrize("way", ["training", "sampling"])
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_a_graph_exported_once_takes_any_batch_and_length_of_text(kind: str, way: str) -> None:
    """The efficient network has a low-resolution input, and its level."""
    unet = make(kind)
    program = exported(unet, inputs(unet, way, 3, 4))
    for batch, length in ((5, 7), (2, 2)):
        given = inputs(unet, way, batch, length)
        assert torch.allclose(program.module()(**given), unet(**given), rtol=1e-6)


@torch.no_grad()
def test_an_exported_graph_is_stored_with_the_context_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch 2.13 logs a line there that lacks an argument, which pytest takes for a mistake of the test
    monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
    unet = make("dit", depth=1)
    file = io.BytesIO()
    torch.export.save(exported(unet, inputs(unet, "sampling", 3, 4)), file)
    file.seek(0)
    given = inputs(unet, "sampling", 2, 2)
    assert torch.allclose(torch.export.load(file).module()(**given), unet(**given), rtol=1e-6)


class Counting:
    """A backend of torch.compile that counts graphs; it goes the way of inductor, where floats become constants."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, examples)


NUMBERS: dict[str, list[Any]] = {
    "int": [0, 1, *range(17, 999, 55)],
    "float": [999.5 - 50 * i for i in range(20)],
    "numpy": [np.float64(17.25 + i) for i in range(20)],
    "mixed": [i + 0.5 * (i % 2) if i % 2 else i for i in range(20)],
}


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False], ids=["torch.compile", "module.compile"])
@pytest.mark.parametrize("numbers", NUMBERS)
def test_a_new_number_is_no_new_graph(numbers: str, whole: bool) -> None:
    """One for the first number, one for any number of that type; and none again for low-resolution levels."""
    unet, plain = (make("dit", depth=1, lowres_channels=3).float() for _ in range(2))
    given = {name: value.float() for name, value in image_inputs(unet).items()}
    sample, lowres, context = given["sample"], given["lowres"], plain(text=draw(3, 2, 3, 24).float())
    torch.compiler.reset()
    counting = Counting()
    if whole:
        compiled: Any = torch.compile(unet, backend=counting)
    else:
        unet.compile(backend=counting)
        compiled = unet
    for number in NUMBERS[numbers]:
        further = {"lowres": lowres, "aug_timestep": number}
        expected = plain(sample, number, context, **further)
        assert torch.allclose(compiled(sample, number, context, **further), expected, rtol=1e-5, atol=1e-6)
    assert counting.graphs <= 3


@torch.no_grad()
@pytest.mark.parametrize("number", [999, 0.001, 123.4])
def test_a_number_is_the_timestep_that_it_says_whatever_the_network_s_dtype(number: float) -> None:
    """bfloat16 has no 999."""
    unet = make("dit").to(torch.bfloat16)
    given = {**image_inputs(unet, 2), **texts(2, 3)}
    given["timestep"] = torch.full((2,), number)
    expected = unet(**given)
    assert torch.equal(unet(**{**given, "timestep": number}), expected)
