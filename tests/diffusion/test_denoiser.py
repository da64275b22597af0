"""The contract: guidance, thresholding and the learned variance are settled inside x0_fn."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from imagen.diffusion.denoiser import Level, Step, make_x0_fn
from imagen.diffusion.guidance import CFG, Branch, Guidance, Guide, Interval, Rescaled, Wrapper, guide
from imagen.diffusion.parameterization import PREDICTION_TYPES, training_target, x0_from
from imagen.diffusion.schedules import CosineSchedule, alpha_sigma, log_snr_from_betas, trained_betas
from imagen.diffusion.thresholding import Thresholding

LOG_SNRS = log_snr_from_betas(trained_betas(CosineSchedule()))
NONE = Thresholding("none")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_it_recovers_x0_from_every_form(prediction_type: str) -> None:
    x0, eps = noise(2, 3, 4, 4), noise(1, 2, 3, 4, 4)[0]
    timestep = torch.tensor([100.0, 750.25])  # and between two levels, where samplers ask too
    log_snr = torch.stack([LOG_SNRS[100], 0.75 * LOG_SNRS[750] + 0.25 * LOG_SNRS[751]])
    alpha, sigma = (c[:, None, None, None] for c in alpha_sigma(log_snr))
    target = training_target(prediction_type, x0, eps, alpha, sigma)
    x0_fn = make_x0_fn(lambda z, t, b: [target], prediction_type=prediction_type, log_snrs=LOG_SNRS, thresholding=NONE)
    x0_out, variance = x0_fn(alpha * x0 + sigma * eps, timestep)
    torch.testing.assert_close(x0_out, x0, rtol=0, atol=1e-12)
    assert variance is None


def test_a_scale_of_one_computes_no_unconditional_branch() -> None:
    asked = []

    def evaluate(z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> list[Tensor]:
        asked.append((len(z), len(timestep), branches))
        return [z] * len(branches)

    for scale in (1.0, 3.0):
        make_x0_fn(evaluate, prediction_type="sample", log_snrs=LOG_SNRS, guidance_scale=scale)(
            noise(2, 3, 4, 4), torch.full((2,), 9.0)
        )
    assert asked == [(2, 2, ("conditional",)), (2, 2, ("unconditional", "conditional"))]


def test_the_two_branches_take_their_places_in_equation_two() -> None:
    answers = {"unconditional": 1.0, "conditional": 3.0}
    x0_fn = make_x0_fn(
        lambda z, t, branches: [torch.full_like(z, answers[branch]) for branch in branches],
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance_scale=5.0,
        thresholding=NONE,
    )
    x0, _ = x0_fn(noise(2, 3, 4, 4), torch.full((2,), 9.0))
    assert torch.equal(x0, torch.full_like(x0, 5 * 3 - 4 * 1))


def test_thresholding_acts_on_the_guided_x0() -> None:
    """Not on the two halves, and with the paper's dynamic kind unless told otherwise."""
    z, timestep = noise(2, 3, 8, 8), torch.tensor([400.0, 600.0])
    halves = noise(1, 4, 3, 8, 8)[0]
    alpha, sigma = alpha_sigma(LOG_SNRS[timestep.long()])
    guided = x0_from("epsilon", 4 * halves[2:] - 3 * halves[:2], z, alpha, sigma)
    for setting in (None, Thresholding("static"), Thresholding("dynamic", 0.9, 1.5)):
        x0_fn = make_x0_fn(
            lambda z, t, b: halves.chunk(2),
            prediction_type="epsilon",
            log_snrs=LOG_SNRS,
            guidance_scale=4.0,
            thresholding=setting,
        )
        used = setting or Thresholding("dynamic", 0.995)
        expected = used(guided)
        torch.testing.assert_close(x0_fn(z, timestep).x0, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_learned_variance_is_the_conditional_halfs_and_unguided(scale: float) -> None:
    z = noise(2, 3, 4, 4)
    output = noise(1, 4, 6, 4, 4)[0]

    x0_fn = make_x0_fn(
        lambda z, t, branches: output.chunk(2)[-len(branches) :],
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance_scale=scale,
        thresholding=NONE,
        learned_variance=True,
    )
    x0, variance = x0_fn(z, torch.full((2,), 9.0))
    assert variance is not None
    assert torch.equal(variance, output[2:, 3:])
    torch.testing.assert_close(x0, scale * output[2:, :3] + (1 - scale) * output[:2, :3], rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Towards(Wrapper):
    """A step down the gradient, through the network, of half the squared distance to a grey value."""

    value: float = 0.25

    @property
    def gradient(self) -> bool:
        return True

    def start(self) -> Guide:
        inner = self.of.start()

        def towards(step: Step) -> Tensor:
            x0 = inner(step)
            (gradient,) = torch.autograd.grad((x0 - self.value).square().sum() / 2, step.z)
            return x0 - gradient

        return towards


def test_a_guidance_differentiates_through_the_network_where_gradients_are_off() -> None:
    """Of x0 = 3 z (1.5 z guided by 3 from 0.75 z) the gradient of the distance is 3 (3 z - value)."""
    z = noise(2, 3, 4, 4)

    def evaluate(z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> list[Tensor]:
        return [{"unconditional": 0.75, "conditional": 1.5}[branch] * torch.cat([z, z], 1) for branch in branches]

    def run(guidance: Guidance) -> tuple[Tensor, Tensor | None]:
        return make_x0_fn(
            evaluate,
            prediction_type="sample",
            log_snrs=LOG_SNRS,
            guidance=guidance,
            guidance_scale=3.0,
            thresholding=NONE,
            learned_variance=True,
        )(z, torch.full((2,), 9.0))

    with torch.no_grad():
        x0, variance = run(Towards(CFG(), value=0.25))
        torch.testing.assert_close(x0, 3 * z - 3 * (3 * z - 0.25), rtol=0, atol=1e-12)
        assert variance is not None
        assert not x0.requires_grad
        assert not variance.requires_grad
        assert not z.requires_grad
        for wrapped in (Rescaled(Towards(CFG()), phi=0.0), Interval(Towards(CFG()), low=-100.0)):
            torch.testing.assert_close(run(wrapped)[0], x0, rtol=0, atol=1e-12)
    z.requires_grad_()
    x0, variance = run(CFG())  # who samples with gradients keeps them, back to what was given
    assert variance is not None
    assert torch.allclose(torch.autograd.grad(x0.sum(), z, retain_graph=True)[0], torch.full_like(z, 3.0))
    assert torch.allclose(torch.autograd.grad(variance.sum(), z)[0], torch.full_like(z, 1.5))


def test_thresholding_comes_after_every_guidance() -> None:
    x0_fn = make_x0_fn(
        lambda z, t, branches: [0 * z + 0.9 for _ in branches],
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance=Louder(CFG()),
        guidance_scale=3.0,
        thresholding=Thresholding("static"),
    )
    assert (x0_fn(noise(2, 3, 4, 4), torch.full((2,), 9.0)).x0 == 1).all()


@dataclass(frozen=True)
class Louder(Wrapper):
    """Ten times what another guidance makes."""

    def start(self) -> Guide:
        inner = self.of.start()
        return lambda step: 10 * inner(step)


def test_a_branch_is_evaluated_once_a_step() -> None:
    """What a guidance asks again, or the learned variance needs, is kept; the rest is asked in one call."""
    asked: list[tuple[Branch, ...]] = []

    def evaluate(z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> list[Tensor]:
        asked.append(branches)
        return [z] * len(branches)

    z = noise(1, 3, 4, 4)
    step = Step(evaluate, 3, "sample", z, Level(*torch.tensor([[9.0], [1.0], [0.8], [0.6]])))
    step.evaluate("conditional")
    assert len(step.evaluate("weak", "conditional", "unconditional")) == 3
    step.evaluate("weak")
    assert asked == [("conditional",), ("weak", "unconditional")]


def test_the_boundary_is_in_the_dtype_of_z() -> None:
    x0_fn = make_x0_fn(lambda z, t, b: [z.bfloat16()], prediction_type="v_prediction", log_snrs=LOG_SNRS)
    assert x0_fn(noise(1, 3, 4, 4).float(), torch.tensor([5.0])).x0.dtype == torch.float32


def test_branches_of_a_network_in_half_precision_are_combined_in_the_dtype_of_z() -> None:
    """Guidance multiplies what the branches differ in, and with it every rounding."""
    z = noise(2, 3, 4, 4).float()
    said = dict(zip(CFG.branches, noise(4, 6, 4, 4).bfloat16().chunk(2), strict=True))
    x0, variance = make_x0_fn(
        lambda z, t, branches: [said[branch] for branch in branches],
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance_scale=7.3,
        thresholding=NONE,
        learned_variance=True,
    )(z, torch.full((2,), 5.0))
    exact = guide(said["conditional"][:, :3].double(), said["unconditional"][:, :3].double(), 7.3)
    torch.testing.assert_close(x0.double(), exact, rtol=1e-5, atol=1e-5)
    assert variance is not None
    assert variance.dtype == torch.float32


def test_errors() -> None:
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            make_x0_fn(lambda z, t, b: [z], prediction_type="sample", log_snrs=LOG_SNRS, guidance_scale=scale)
    with pytest.raises(ValueError, match="prediction_type is 'x0'"):
        make_x0_fn(lambda z, t, b: [z], prediction_type="x0", log_snrs=LOG_SNRS)
    x0_fn = make_x0_fn(lambda z, t, b: [torch.cat([z, z], 1)], prediction_type="sample", log_snrs=LOG_SNRS)
    with pytest.raises(ValueError, match="learned_variance=True"):
        x0_fn(noise(1, 3, 4, 4), torch.tensor([5.0]))
    for wrong in ((2, 3, 4, 4), (1, 3, 8, 4), (1, 3, 4, 8), (3, 4, 4)):
        x0_fn = make_x0_fn(lambda z, t, b: [z.new_zeros(wrong)], prediction_type="sample", log_snrs=LOG_SNRS)  # noqa: B023
        with pytest.raises(ValueError, match=r"the network answered .*, expected \(1, 3, 4, 4\)"):
            x0_fn(noise(1, 3, 4, 4), torch.tensor([5.0]))
