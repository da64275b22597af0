"""Adafactor equals a transcription of its formula to numpy, keeps little, and goes on from its state bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from imagen.errors import ConfigError
from imagen.training.config.sections import OptimConfig
from imagen.training.optim.adafactor import Adafactor, factored_axes
from imagen.training.optim.optimizers import make_optimizer, set_learning_rate

SHAPES = [(7,), (), (5, 6), (128, 200), (200, 128), (131, 129, 3, 3), (3, 130, 2, 128), (130, 4, 3, 3), (127, 300)]


def reference(p, gradients, lr, momentum=None, weight_decay=0.0):
    """optax's chain: factored mean square, clipping, a step relative to the weights, their average and decay."""
    p = p.copy()
    v = rows = columns = average = 0.0
    for t, g in enumerate(gradients, start=1):
        b = 1 - t**-0.8
        square = g**2 + 1e-30
        order = np.argsort(p.shape)
        if p.ndim >= 2 and p.shape[order[-2]] >= 128:
            second, largest = int(order[-2]), int(order[-1])
            rows = b * rows + (1 - b) * square.mean(axis=largest)
            columns = b * columns + (1 - b) * square.mean(axis=second)
            left = second - (second > largest)  # where `second` is in `rows`, which has lost the largest axis
            whole = np.expand_dims(rows.mean(axis=left, keepdims=True), largest)
            v = np.expand_dims(rows, largest) * np.expand_dims(columns, second) / whole
        else:
            v = b * v + (1 - b) * square
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u**2).mean()))
        u = lr * max(np.sqrt((p**2).mean()), 1e-3) * u
        if momentum is not None:
            average = momentum * average + (1 - momentum) * u
            u = average
        p = p - u - lr * weight_decay * p
    return p


def run(p, gradients, **options):
    parameter = nn.Parameter(p.clone())
    optimizer = Adafactor([parameter], **options)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer


def draw(shape, steps=5, seed=0):
    """A parameter and gradients whose size changes from step to step and place to place, one of them of zeros."""
    generator = torch.Generator().manual_seed(seed)
    p, spread = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    gradients = [
        torch.randn(shape, generator=generator, dtype=torch.float64) * spread.exp() * 10.0**k for k in range(steps)
    ]
    gradients[2] = torch.zeros(shape, dtype=torch.float64)
    return 0.1 * p, gradients


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.3}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula(shape, options):
    p, gradients = draw(shape)
    found, _ = run(p, gradients, lr=0.05, **options)
    expected = reference(p.numpy(), [g.numpy() for g in gradients], 0.05, **options)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-15)


def test_a_step_is_relative_to_the_weights_but_tiny_weights_move_too():
    gradient = [torch.ones(200)]
    for size, moved in ((2.0, 2.0), (1e-5, 1e-3), (0.0, 1e-3)):
        found, _ = run(torch.full((200,), size), gradient, lr=0.01)
        torch.testing.assert_close(found, torch.full((200,), size - 0.01 * moved))


def test_a_sudden_gradient_is_clipped():
    # after 100 steps of ones the mean square barely knows a gradient of 1000: without the clip the step would be 40
    found, _ = run(torch.ones(8, dtype=torch.float64), [torch.ones(8, dtype=torch.float64)] * 100, lr=0.0)
    gradients = [torch.ones(8, dtype=torch.float64)] * 100 + [torch.full((8,), 1000.0, dtype=torch.float64)]
    before, _ = run(found, gradients[:-1], lr=0.01)
    after, _ = run(found, gradients, lr=0.01)
    torch.testing.assert_close(after, before * 0.99)


def test_it_keeps_little():
    """A wide convolution keeps about 9 (O + I) numbers; with torch's own Adafactor two thirds of them all."""
    assert factored_axes(torch.Size((512, 256, 3, 3))) == (0, 1)
    assert factored_axes(torch.Size((127, 512, 3, 3))) is None
    assert factored_axes(torch.Size((512,))) is None
    conv = torch.randn(160, 128, 3, 3)
    _, optimizer = run(conv, [conv], lr=0.1)
    (state,) = optimizer.state_dict()["state"].values()
    assert sum(value.numel() for value in state.values()) == 9 * (160 + 128) + 1
    theirs = torch.optim.Adafactor([nn.Parameter(conv)])
    theirs.param_groups[0]["params"][0].grad = conv
    theirs.step()
    (state,) = theirs.state_dict()["state"].values()
    assert sum(value.numel() for value in state.values()) == 2 * conv.numel() // 3 + 1


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}], ids=str)
def test_it_goes_on_from_its_state_bit_for_bit(options):
    config = OptimConfig(kind="adafactor", lr=0.05, weight_decay=0.1, **options)
    shapes = [(9,), (130, 129, 1, 1), (4, 5)]
    drawn = [draw(shape, steps=6) for shape in shapes]

    def make():
        module = nn.Module()
        module.weights = nn.ParameterList([nn.Parameter(p.float()) for p, _ in drawn])
        return module, make_optimizer(module, config)

    def train(module, optimizer, steps):
        for step in steps:
            for p, (_, gradients) in zip(module.weights, drawn, strict=True):
                p.grad = gradients[step].float()
            set_learning_rate(optimizer, 1.0)
            optimizer.step()

    whole, optimizer = make()
    train(whole, optimizer, range(6))
    parted, first = make()
    train(parted, first, range(3))
    resumed = make_optimizer(parted, config)
    resumed.load_state_dict(first.state_dict())
    train(parted, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, parted.weights, strict=True))


def test_the_configuration_chooses_it():
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2))
    optimizer = make_optimizer(module, OptimConfig(kind="adafactor", lr=0.5, momentum=0.9, weight_decay=0.1))
    assert isinstance(optimizer, Adafactor)
    assert {(g["lr"], g["momentum"], g["params"][0].ndim >= 2, g["weight_decay"]) for g in optimizer.param_groups} == {
        (0.5, 0.9, True, 0.1),
        (0.5, 0.9, False, 0.0),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "adafactor", "betas": (0.9, 0.999)},
        {"kind": "adafactor", "eps": 1e-6},
        {"kind": "adafactor", "muon_lr": 0.1},
        {"kind": "adamw", "momentum": 0.9},
    ],
    ids=str,
)
def test_options_of_another_optimizer_are_refused(options):
    with pytest.raises(ConfigError, match=rf"optim\.{list(options)[1]} .* is of kind .*: leave it out"):
        OptimConfig(**options)
