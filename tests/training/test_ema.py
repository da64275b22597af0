"""The average of the weights: closed form, warm-up, and that it moves."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from imagen.training.state.ema import EMA, trained_state


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


def test_frozen_parameters_are_neither_averaged_nor_saved_nor_swapped():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    names = {"0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert trained_state(module).keys() == names
    ema = EMA(module, decay=0.5, warmup=False)
    assert ema.average.keys() == names
    assert ema.average["1.num_batches_tracked"].dtype == torch.int64
    with torch.no_grad():
        module[0].weight.add_(2)
    before = module[0].bias.clone()
    ema.update(module)
    torch.testing.assert_close(ema.average["0.weight"], module[0].weight.detach() - 1)
    with ema.swapped_in(module):
        assert torch.equal(module[0].bias, before)


def test_the_average_is_a_copy_and_not_the_weights_themselves():
    module = nn.Linear(3, 3)
    ema = EMA(module)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(ema.average["weight"], before)
    assert not ema.average["weight"].requires_grad


def test_by_default_it_starts_short_and_ends_at_a_decay_of_four_nines():
    ema = EMA(nn.Linear(1, 1))
    assert [ema.decay_at(updates) for updates in (0, 9, 10**6)] == [0.1, 10 / 19, 0.9999]


def test_a_loaded_average_counts_on_from_its_updates_and_may_stand_still_until_the_next():
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = EMA(module, decay=0.5), EMA(other, decay=0.5)
    walk(module, first, 4)
    second.load(first.average, first.updates)
    second.check_moved(other)
    assert second.updates == 4
    with torch.no_grad():
        other.load_state_dict(module.state_dict())
    for ema, weights in ((first, module), (second, other)):
        walk(weights, ema, 3)
        ema.check_moved(weights)
    assert all(torch.equal(value, second.average[name]) for name, value in first.average.items())
    assert second.average["weight"].data_ptr() != first.average["weight"].data_ptr()


def test_whether_it_moved_is_asked_anew_each_time():
    """Of the updates since the last check: one that moved long ago is no excuse, and none need not move."""
    module = nn.Linear(4, 4)
    ema = EMA(module, decay=0.5, warmup=False)
    walk(module, ema, 2)
    ema.check_moved(module)
    ema.check_moved(module)
    ema.updates += 2
    with pytest.raises(RuntimeError, match="did not move in 2 updates"):
        ema.check_moved(module)
    walk(module, ema, 1)
    ema.check_moved(module)


def test_the_last_of_several_weights_that_is_far_is_enough():
    module = nn.Linear(2, 2)
    ema = EMA(module, decay=0.5, warmup=False)
    with torch.no_grad():
        module.bias.add_(1)
    ema.updates += 1
    with pytest.raises(RuntimeError, match="did not move in 1 updates"):
        ema.check_moved(module)


@pytest.mark.parametrize(("saved", "told"), [
    (nn.Linear(5, 4), r"weight differs \(and 0 more\)"), (nn.Linear(4, 5), r"bias differs \(and 1 more\)"),
    (nn.Linear(4, 4, bias=False), r"bias differs \(and 0 more\)"),
    (nn.Sequential(nn.Linear(4, 4)), r"0.bias differs \(and 3 more\)"),
])  # fmt: skip
def test_an_average_of_other_names_or_shapes_is_not_taken(saved, told):
    ema = EMA(nn.Linear(4, 4))
    before = {name: value.clone() for name, value in ema.average.items()}
    with pytest.raises(ValueError, match=told):
        ema.load(EMA(saved).average, 3)
    assert ema.updates == 0
    assert all(torch.equal(value, before[name]) for name, value in ema.average.items())
