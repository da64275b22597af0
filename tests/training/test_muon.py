"""Muon on many matrices at once is torch's, which takes them one after another; so does ours on a CPU, to the bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from imagen.training.optim import muon as ours

SHAPES = [(8, 8), (6, 36), (8, 8), (36, 6), (1, 5), (5, 1), (6, 36), (1, 1), (64, 64), (40, 90), (6, 36), (64, 64)]
TOGETHER = [[0, 2], [1, 6, 10], [3], [4], [5], [7], [8, 11], [9]]


def several(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A matrix of each shape, of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) * 10.0 ** (n % 4) for n, shape in enumerate(SHAPES)]


def torch_s_own(weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Over these tensors, which it changes."""
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    return torch.optim.Muon(parameters, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_of_many_shapes_move_as_torch_moves_each(
    monkeypatch: pytest.MonkeyPatch, together: bool, dtype: torch.dtype
) -> None:
    """Alone to the bit; together but for rounding, because the kernels are others."""
    if together:
        monkeypatch.setattr(ours, "batches", lambda _: TOGETHER)
    theirs, weights = several(0, dtype), several(0, dtype)
    optimizer = torch_s_own(theirs)
    parameters = optimizer.param_groups[0]["params"]
    momenta = [torch.zeros_like(weight) for weight in weights]
    for step in range(1, 4):
        gradients = several(step, dtype)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        ours.muon(weights, gradients, momenta, lr=0.02, weight_decay=0.1)
        for shape, mine, momentum, parameter in zip(SHAPES, weights, momenta, parameters, strict=True):
            update = 0.02 * 0.2 * max(shape) ** 0.5
            rounding = update / 50 if together else 0.0
            torch.testing.assert_close(
                mine, parameter.detach(), rtol=1e-6 * together, atol=rounding, msg=f"{step} {shape}"
            )
            assert torch.equal(momentum, optimizer.state[parameter]["momentum_buffer"]), (step, shape)


@pytest.mark.parametrize(
    ("at_once", "expected"),
    [
        (2**24, TOGETHER),
        (2 * 6 * 36, [[0, 2], [1, 6], [10], [3], [4], [5], [7], [8], [11], [9]]),
        (1, [[0], [2], [1], [6], [10], [3], [4], [5], [7], [8], [11], [9]]),
    ],
)
def test_each_is_in_one_batch_of_its_shape(
    monkeypatch: pytest.MonkeyPatch, at_once: int, expected: list[list[int]]
) -> None:
    monkeypatch.setattr(ours, "AT_ONCE", at_once)
    assert list(ours.batches([matrix.to("meta") for matrix in several(0)])) == expected


def test_on_a_cpu_each_is_alone() -> None:
    assert sorted(ours.batches(several(0))) == [[number] for number in range(len(SHAPES))]


@pytest.mark.parametrize("batches", [[[0, 1]], [[0], [1]]])
def test_without_a_gradient_nothing_moves_and_its_neighbours_do(
    monkeypatch: pytest.MonkeyPatch, batches: list[list[int]]
) -> None:
    monkeypatch.setattr(ours, "batches", lambda _: batches)
    weights = [torch.ones(3, 4), torch.ones(3, 4)]
    ours.muon(weights, [torch.zeros(3, 4), torch.ones(3, 4)], [torch.zeros(3, 4), torch.zeros(3, 4)], 0.1, 0.0)
    assert torch.equal(weights[0], torch.ones(3, 4))
    assert not torch.equal(weights[1], torch.ones(3, 4))


def test_no_matrices_are_none() -> None:
    assert list(ours.batches([])) == []
    ours.muon([], [], [], 0.1, 0.0)
