"""What a callback sees of the loop, may change of it, and costs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imagen.diffusion import loop
from imagen.diffusion.denoiser import Denoised
from imagen.diffusion.loop import LoopState, StepRule, sample_loop
from imagen.diffusion.sampling import SAMPLERS, make_scheduler
from imagen.diffusion.schedules import CosineSchedule


def noise() -> Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def constant(value: float) -> Any:
    return lambda z, timestep: Denoised(torch.full_like(z, value))


def test_callbacks_see_each_step_and_may_change_or_stop_it() -> None:
    for kind in SAMPLERS:
        states: list[LoopState] = []
        scheduler = make_scheduler(kind, CosineSchedule(), "epsilon")
        plain = sample_loop(constant(0.5), noise(), StepRule(scheduler, 6), callback=states.append)
        assert [(s.step, s.total) for s in states] == [(i, 6) for i in range(6)]
        assert torch.equal(states[-1].z, plain)
        assert all(torch.equal(s.x0, torch.full_like(s.x0, 0.5)) for s in states)
        # At the noisy end a variance-preserving state has the size of the noise, whatever the sampler works with.
        assert 0.5 < states[0].z.std() < 1.5, kind


def test_a_callback_changes_the_state() -> None:
    def halve(state: LoopState) -> None:
        if state.step == 1:
            state.z = state.z / 2

    def halve_in_place(state: LoopState) -> None:
        if state.step == 1:
            state.z.div_(2)

    def stop(state: LoopState) -> None:
        state.stop = state.step == 1

    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        return Denoised(0.3 * z)

    for kind in ("ddim", "euler"):
        scheduler = make_scheduler(kind, CosineSchedule(), "epsilon")
        whole, halved = (
            sample_loop(x0_fn, noise(), StepRule(scheduler, 4)),
            sample_loop(x0_fn, noise(), StepRule(scheduler, 4), None, halve),
        )
        torch.testing.assert_close(halved, whole / 2, rtol=1e-4, atol=1e-5)  # the loop is linear in z here
        assert torch.equal(sample_loop(x0_fn, noise(), StepRule(scheduler, 4), None, halve_in_place), halved)
        stopped = sample_loop(x0_fn, noise(), StepRule(scheduler, 4), None, stop)
        assert 0.3 < stopped.std() < 1.5, "not in variance-preserving form"
        seen: list[LoopState] = []
        sample_loop(x0_fn, noise(), StepRule(scheduler, 4), None, seen.append)
        torch.testing.assert_close(stopped, seen[1].z, rtol=0, atol=0)
        assert not torch.equal(seen[1].z, seen[2].z)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_what_a_callback_changes_is_seen_without_comparing_values(
    kind: str, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def x0_fn(z: Tensor, timestep: Tensor) -> Denoised:
        return Denoised(torch.tanh(z))

    def refuse(*_: Any) -> None:
        raise AssertionError("values were compared, which waits for the device")

    def run(callback: Any = None) -> Tensor:
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        with monkeypatch.context() as patch, torch.inference_mode(inference):
            for place in (torch, Tensor):
                for name in ("equal", "allclose", "isclose", "eq", "ne"):
                    patch.setattr(place, name, refuse)
            return sample_loop(x0_fn, noise(), StepRule(cut, 4), generators, callback).clone()

    def at_one(change: Any) -> Any:
        return lambda state: change(state) if state.step == 1 else None

    def replace(state: LoopState) -> None:
        state.z = state.z / 2

    cut = make_scheduler(kind, CosineSchedule(), "epsilon")
    plain = run()
    assert torch.equal(run(lambda state: None), plain), "looking on changed the result"
    assert torch.equal(run(at_one(lambda state: state.z.clone().zero_())), plain)
    halved = run(at_one(replace))
    assert (halved - plain).abs().max() > 1e-3
    assert torch.equal(run(at_one(lambda state: state.z.div_(2))), halved)
    by_picture = run(at_one(lambda state: [picture.div_(2) for picture in state.z]))  # through views
    assert torch.equal(by_picture, halved)
    other = run(at_one(lambda state: setattr(state, "z", state.z.double() / 2)))
    torch.testing.assert_close(other, halved)
    assert other.dtype == torch.float32
    with pytest.raises(ValueError, match="the callback made z"):
        run(at_one(lambda state: setattr(state, "z", state.z[:1])))


@pytest.mark.parametrize("callback", [None, lambda state: None], ids=["nobody", "a watcher"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_no_step_waits_for_the_device(kind: str, callback: Any) -> None:
    """On torch's meta device there are no values: to ask for one, which elsewhere waits for the device, raises."""
    z = torch.empty(2, 1, 4, 4, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError), match="(?i)meta"):
        torch.equal(z, z + 0)
    out = sample_loop(constant(0.5), z, StepRule(make_scheduler(kind, CosineSchedule(), "epsilon"), 4), None, callback)
    assert out.shape == z.shape


def test_z_is_made_where_it_is_read_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(loop, "_countable", lambda z: made.append(1) or z.clone())
    rule = StepRule(make_scheduler("euler", CosineSchedule(), "epsilon"), 4)
    kept: list[LoopState] = []
    out = sample_loop(constant(0.5), noise(), rule, None, kept.append)
    assert not made
    assert torch.equal(kept[-1].z, out)
    assert kept[1].z is kept[1].z
    assert len(made) == 2
    # a stop answers with the state, which nobody had read
    stopped = sample_loop(constant(0.5), noise(), rule, None, lambda state: setattr(state, "stop", state.step == 1))
    assert torch.equal(stopped, kept[1].z)
