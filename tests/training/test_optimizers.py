"""The optimizer's groups and the learning rate as a function of the step."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from imagen.training.config import OptimConfig
from imagen.training.optimizers import learning_rate, make_optimizer, set_learning_rate


@pytest.mark.parametrize(
    ("ours", "theirs"), [("constant", "constant_with_warmup"), ("cosine", "cosine"), ("linear", "linear")]
)
def test_schedules_equal_diffusers(ours, theirs):
    config = OptimConfig(lr=0.5, warmup=7, schedule=ours)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=7, num_training_steps=40)
    for step in range(40):
        assert learning_rate(config, step, 40) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_hold_keeps_the_peak_and_the_decay_ends_at_zero():
    config = OptimConfig(lr=1.0, warmup=10, hold=20, schedule="linear")
    assert [learning_rate(config, step, 50) for step in (0, 5, 10, 29, 30, 40, 50)] == [0, 0.5, 1, 1, 1, 0.5, 0]
    assert learning_rate(config, 99, 50) == 0


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(OptimConfig(lr=2.0, warmup=0), 0, 10) == 2.0


def test_only_matrices_decay():
    module = nn.Sequential(nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2))
    optimizer = make_optimizer(module, OptimConfig(weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6))
    for group in optimizer.param_groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim >= 2 else 0.0)
        assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


def test_first_update_is_adamw():
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = make_optimizer(module, OptimConfig(lr=1.0, weight_decay=0.5))
    set_learning_rate(optimizer, 0.01)
    module.weight.grad = torch.tensor([[3.0, -2.0]])
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.01 * 0.5) - 0.01 * torch.tensor([[1.0, -1.0]]))


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())
