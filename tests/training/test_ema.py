"""The average of the weights: closed form, warm-up, and that it moves."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from imagen.training.state.ema import EMA


def walk(module: nn.Module, ema: EMA, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [module.weight.detach().double().clone()]
    for _ in range(steps):
        with torch.no_grad():
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        ema.update(module)
        values.append(module.weight.detach().double().clone())
    return values


def test_constant_decay_equals_the_closed_form():
    module = nn.Linear(3, 2)
    ema = EMA(module, decay=0.9, warmup=False)
    values = walk(module, ema, 20)
    expected = 0.9**20 * values[0] + sum(0.1 * 0.9 ** (20 - k) * values[k] for k in range(1, 21))
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=0, atol=1e-6)
    assert ema.updates == 20


def test_warm_up_equals_the_recursion_with_growing_decay():
    module = nn.Linear(3, 2)
    ema = EMA(module, decay=0.5, warmup=True)
    values = walk(module, ema, 12)
    expected = values[0]
    for n in range(12):
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * values[n + 1]
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=0, atol=1e-6)
    assert [ema.decay_at(n) for n in (0, 1, 8, 100)] == [0.1, 2 / 11, 0.5, 0.5]


def test_average_is_float32_of_low_precision_weights_and_float64_of_double():
    assert EMA(nn.Linear(2, 2).to(torch.bfloat16)).average["weight"].dtype == torch.float32
    assert EMA(nn.Linear(2, 2).double()).average["weight"].dtype == torch.float64


def test_small_changes_are_not_lost_in_bfloat16_weights():
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    ema = EMA(module, decay=0.9999, warmup=False)
    before = ema.average["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    ema.update(module)
    assert 0 < (ema.average["weight"] - before).item() < 1e-3


def test_buffers_are_copied():
    module = nn.BatchNorm1d(2)
    ema = EMA(module, decay=0.9, warmup=False)
    module.running_mean.fill_(5.0)
    module.num_batches_tracked.fill_(7)
    ema.update(module)
    assert ema.average["running_mean"].tolist() == [5.0, 5.0]
    assert ema.average["num_batches_tracked"].item() == 7


def test_swapping_in_and_out_returns_the_weights_bit_for_bit():
    module = nn.Linear(4, 4)
    ema = EMA(module, decay=0.5, warmup=False)
    walk(module, ema, 3)
    raw = module.weight.detach().clone()
    with ema.swapped_in(module):
        assert torch.equal(module.weight, ema.average["weight"])
        assert not torch.equal(module.weight, raw)
    assert torch.equal(module.weight, raw)
    with contextlib.suppress(RuntimeError), ema.swapped_in(module):
        raise RuntimeError("an exception on the way must not leave the average behind")
    assert torch.equal(module.weight, raw)


def test_an_average_that_stands_still_is_noticed():
    module = nn.Linear(4, 4)
    ema = EMA(module, decay=0.5, warmup=False)
    walk(module, ema, 3)
    ema.check_moved(module)
    frozen = {name: value.clone() for name, value in ema.average.items()}
    walk(module, ema, 3)
    for name, value in frozen.items():
        ema.average[name].copy_(value)
    with pytest.raises(RuntimeError, match="did not move"):
        ema.check_moved(module)


def test_an_average_that_has_arrived_may_stand_still():
    module = nn.Linear(4, 4)
    ema = EMA(module)
    ema.update(module)
    ema.check_moved(module)


def test_loading_names_what_does_not_fit():
    ema = EMA(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="weight differs"):
        ema.load(EMA(nn.Linear(5, 4)).average, 3)
