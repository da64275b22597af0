"""The optimizer's groups and the learning rate as a function of the step."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from imagen.errors import ConfigError
from imagen.training.config.sections import OptimConfig, TrainConfig
from imagen.training.optim.optimizers import (
    MuonAdamW,
    make_optimizer,
    restore_optimizer,
    schedule_factor,
    set_learning_rate,
)
from imagen.training.state.checkpoint import State, StateFolder
from imagen.training.state.ema import EMA
from imagen.training.trainer import Trainer
from tests.training.regression import RegressionConfig, RegressionTask


@pytest.mark.parametrize(
    ("ours", "theirs"), [("constant", "constant_with_warmup"), ("cosine", "cosine"), ("linear", "linear")]
)
def test_schedules_equal_diffusers(ours, theirs):
    config = OptimConfig(lr=0.5, warmup=7, schedule=ours)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=7, num_training_steps=40)
    for step in range(40):
        assert 0.5 * schedule_factor(config, step, 40) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_hold_keeps_the_peak_and_the_decay_ends_at_zero():
    config = OptimConfig(lr=1.0, warmup=10, hold=20, schedule="linear")
    assert [schedule_factor(config, step, 50) for step in (0, 5, 10, 29, 30, 40, 50)] == [0, 0.5, 1, 1, 1, 0.5, 0]
    assert schedule_factor(config, 99, 50) == 0


def test_no_warm_up_starts_at_the_peak():
    assert schedule_factor(OptimConfig(lr=2.0, warmup=0), 0, 10) == 1


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


ENDS = ("conv_in", "conv_out")


class Ends(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 3)
        self.hidden = nn.Conv2d(4, 4, 3)
        self.norm = nn.GroupNorm(1, 4)
        self.conv_out = nn.Conv2d(4, 3, 3)

    def forward(self, x):
        return self.conv_out(self.norm(self.hidden(self.conv_in(x))))


def trained(module, optimizer, steps=3):
    for step in range(steps):
        module(torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


def test_muon_takes_the_matrices_between_the_ends():
    module = Ends()
    optimizer = make_optimizer(module, OptimConfig(lr=1.0, muon_lr=0.25), ENDS)
    assert isinstance(optimizer, MuonAdamW)
    on_muon = [p for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    assert [id(p) for p in on_muon] == [id(module.hidden.weight)]
    set_learning_rate(optimizer, 0.5)
    assert {(group["muon"], group["lr"]) for group in optimizer.param_groups} == {(True, 0.125), (False, 0.5)}


def test_muon_steps_along_the_orthogonal_factor_of_the_gradient():
    # The first momentum is a multiple of the gradient G = U S V^T: the update goes along U V^T, up to the spread of the
    # singular values that five Newton-Schulz iterations in bfloat16 leave (0.7 to 1.2 by the method's authors).
    torch.manual_seed(0)
    module = nn.Sequential(nn.Identity(), nn.Conv2d(4, 6, 3, bias=False))
    before = module[1].weight.detach().clone()
    gradient = torch.randn(6, 4, 3, 3)
    module[1].weight.grad = gradient.clone()
    optimizer = make_optimizer(module, OptimConfig(lr=1.0, muon_lr=0.1, weight_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    optimizer.step()
    update = (before * (1 - 0.1 * 0.5) - module[1].weight.detach()).flatten(1) / (0.1 * 0.2 * 36**0.5)
    u, _, vh = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    in_basis = u.T @ update @ vh.T
    assert in_basis.diagonal().min() > 0.6
    assert in_basis.diagonal().max() < 1.3
    torch.testing.assert_close(in_basis - in_basis.diagonal().diag(), torch.zeros(6, 6), atol=0.05, rtol=0)


def test_on_matrices_it_is_torch_s_muon_over_many_steps():
    config = OptimConfig(lr=1.0, muon_lr=0.25, weight_decay=0.5)
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(5, 7, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, config)
    theirs_optimizer = torch.optim.Muon(theirs.parameters(), weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        gradient = torch.randn(7, 5, generator=torch.Generator().manual_seed(step)) * 10.0**-step
        ours.weight.grad, theirs.weight.grad = gradient.clone(), gradient.clone()
        set_learning_rate(optimizer, 0.1 * step)
        theirs_optimizer.param_groups[0]["lr"] = 0.25 * 0.1 * step
        optimizer.step()
        theirs_optimizer.step()
        assert torch.equal(ours.weight, theirs.weight)
    optimizer.zero_grad()
    before = ours.weight.detach().clone()
    optimizer.step()
    assert torch.equal(ours.weight, before), "without a gradient nothing moves"


def test_what_is_not_on_muon_is_updated_as_by_adamw():
    torch.manual_seed(0)
    first, second = Ends(), Ends()
    second.load_state_dict(first.state_dict())
    for module in (first, second):
        module.hidden.requires_grad_(False)
    config = OptimConfig(lr=0.01, weight_decay=0.1)
    trained(first, make_optimizer(first, config))
    groups = make_optimizer(second, config).param_groups
    both = MuonAdamW(groups, lr=0.01, betas=config.betas, eps=config.eps, fused=True)
    trained(second, both)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, msg=name, atol=0, rtol=0)


def test_muon_goes_on_from_its_state_bit_for_bit():
    config = OptimConfig(lr=0.01, muon_lr=0.02)
    torch.manual_seed(0)
    whole = Ends()
    parted = Ends()
    parted.load_state_dict(whole.state_dict())
    optimizer = make_optimizer(whole, config, ENDS)
    trained(whole, optimizer)
    again = make_optimizer(parted, config, ENDS)
    trained(parted, again)
    resumed = make_optimizer(parted, config, ENDS)
    resumed.load_state_dict(again.state_dict())
    trained(whole, optimizer)
    trained(parted, resumed)
    for name, value in whole.state_dict().items():
        assert torch.equal(parted.state_dict()[name], value), name


KINDS = {
    "adamw": OptimConfig(lr=0.01, weight_decay=0.1),
    "muon": OptimConfig(lr=0.01, muon_lr=0.02, weight_decay=0.1),
    "adafactor": OptimConfig(kind="adafactor", lr=0.01, momentum=0.9),
}


class Wide(Ends):
    """The hidden weight large enough for Adafactor to factor, and not of one pixel, so that its layout matters."""

    def __init__(self):
        super().__init__()
        self.conv_in, self.hidden = nn.Conv2d(3, 128, 3), nn.Conv2d(128, 130, 3)
        self.norm, self.conv_out = nn.GroupNorm(1, 130), nn.Conv2d(130, 3, 3)


def channels_last_pair(cls):
    """Two equal networks, the second with channels-last weights."""
    torch.manual_seed(0)
    plain, last = cls(), cls()
    last.load_state_dict(plain.state_dict())
    last.to(memory_format=torch.channels_last)
    assert not last.hidden.weight.is_contiguous()
    return plain, last


def give_gradients(plain, last, step):
    """The same gradients in each one's own layout, as autograd lays them."""
    generator = torch.Generator().manual_seed(step)
    for p, q in zip(plain.parameters(), last.parameters(), strict=True):
        p.grad = torch.randn(p.shape, generator=generator)
        q.grad = torch.empty_like(q).copy_(p.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_weights_train_like_others(kind, tmp_path):
    """Weights, average and every state, also after a resume point that a run without channels-last weights wrote."""
    rounding = {"rtol": 1e-5, "atol": 1e-7}  # kernels add up, and end, in the order of memory
    pair = channels_last_pair(Wide)
    before = pair[1].hidden.weight.detach().clone()
    optimizers = [make_optimizer(module, KINDS[kind], ENDS) for module in pair]
    averages = [EMA(module, decay=0.5, warmup=False) for module in pair]
    for step in range(6):
        give_gradients(*pair, step)
        for module, optimizer, average in zip(pair, optimizers, averages, strict=True):
            optimizer.step()
            average.update(module)
        if step == 2:
            folder = StateFolder(tmp_path / "state", keep_last=1)
            folder.save(State(3, {}, optimizers[0].state_dict(), {}))
            optimizers[1] = make_optimizer(pair[1], KINDS[kind], ENDS)
            restore_optimizer(optimizers[1], folder.newest().optimizer)
    assert not torch.equal(pair[1].hidden.weight, before)
    for (name, p), q in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
        torch.testing.assert_close(q, p, msg=name, **rounding)
        if kind == "muon" and name == "hidden.weight":
            assert torch.equal(p, q)
        torch.testing.assert_close(averages[1].average[name], averages[0].average[name], msg=name, **rounding)
        for key, value in optimizers[0].state[p].items():
            torch.testing.assert_close(optimizers[1].state[q][key], value, msg=f"{name} {key}", **rounding)


@pytest.fixture
def eight_bits(monkeypatch):
    """A stand-in for bitsandbytes, which needs a GPU: AdamW with the signature that is used of it."""
    package = types.ModuleType("bitsandbytes")
    package.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    optim = types.ModuleType("bitsandbytes.optim")

    class AdamW8bit(torch.optim.AdamW):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
            super().__init__(params, lr, betas, eps, weight_decay)

    optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return AdamW8bit


def test_adam8bit_gets_the_groups_and_options(eight_bits):
    config = OptimConfig(kind="adam8bit", lr=0.5, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1)
    optimizer = make_optimizer(nn.Sequential(nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2)), config)
    assert isinstance(optimizer, eight_bits)
    decays = {group["params"][0].ndim >= 2: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {True: 0.1, False: 0.0}
    assert {(g["lr"], g["betas"], g["eps"], g["peak_lr"]) for g in optimizer.param_groups} == {
        (0.5, (0.8, 0.9), 1e-6, 0.5)
    }


def test_what_was_asked_for_now_goes_before_what_a_resume_point_had():
    module = nn.Linear(4, 4)
    then = make_optimizer(module, OptimConfig(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.99), eps=1e-8))
    module.weight.grad, module.bias.grad = torch.ones(4, 4), torch.ones(4)
    then.step()
    now = make_optimizer(module, OptimConfig(lr=1e-2, weight_decay=0.3, betas=(0.5, 0.6), eps=1e-6))
    restore_optimizer(now, then.state_dict())
    for group, decay in zip(now.param_groups, (0.3, 0.0), strict=True):
        asked = {"peak_lr": 1e-2, "weight_decay": decay, "betas": (0.5, 0.6), "eps": 1e-6}
        assert {name: group[name] for name in asked} == asked
    assert torch.equal(now.state[module.weight]["exp_avg"], then.state[module.weight]["exp_avg"])


class Bytes(torch.optim.SGD):
    """As bitsandbytes' optimizers do, it takes its bytes over as they are."""

    def load_state_dict(self, saved):
        self.state[self.param_groups[0]["params"][0]] = dict(saved["state"][0])


def test_a_state_of_bytes_stays_one_and_takes_the_weight_s_layout():
    weight = nn.Parameter(torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last))
    optimizer, state = Bytes([weight], lr=1.0), torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    restore_optimizer(optimizer, {"state": {0: {"bytes": state}}})
    found = optimizer.state[weight]["bytes"]
    assert found.dtype == torch.uint8
    assert torch.equal(found, state)
    assert found.stride() == weight.stride()


def test_a_state_of_numbers_is_taken_over_as_it_is():
    """Of bitsandbytes' optimizers the step is one."""
    module = nn.Linear(2, 2, bias=False)
    module.weight.grad = torch.ones(2, 2)
    then, now = make_optimizer(module, OptimConfig()), make_optimizer(module, OptimConfig())
    then.step()
    saved = then.state_dict()
    saved["state"][0]["step"] = 3
    restore_optimizer(now, saved)
    assert now.state[module.weight]["step"] == 3


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("adam8bit", {"muon_lr": 0.1}),
        ("adafactor", {"muon_lr": 0.1}),
        ("adafactor", {"betas": (0.5, 0.6)}),
        ("adafactor", {"eps": 1e-5}),
        ("adamw", {"momentum": 0.9}),
        ("adam8bit", {"momentum": 0.9}),
    ],
)
def test_an_option_that_its_optimizer_does_not_read_is_refused(kind, option):
    (name,) = option
    with pytest.raises(
        ConfigError, match=f"^optim.{name} .* and optim.kind is {kind}: leave it out or change the kind$"
    ):
        OptimConfig(kind=kind, **option)


def test_adam8bit_says_what_it_lacks_before_anything_loads(monkeypatch, tmp_path):
    def start(dtype="float32"):
        config = RegressionConfig(str(tmp_path), optim=OptimConfig("adam8bit"), train=TrainConfig(dtype=dtype))
        task = RegressionTask(config)
        task.load = lambda *_: pytest.fail("something was loaded")
        Trainer(task)

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="adam8bit needs bitsandbytes: pip install"):
        start()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a CUDA GPU, and torch finds none here: use optim.kind adamw"):
        start()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="cannot train float64 weights"):
        start("float64")
