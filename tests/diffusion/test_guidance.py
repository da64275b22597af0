"""Guidance: equation 2 in every form, and each guidance's closed forms and limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imagen.diffusion.denoiser import make_x0_fn
from imagen.diffusion.guidance import (
    APG,
    CFG,
    GUIDANCES,
    Auto,
    Branch,
    Interval,
    Rescaled,
    branches,
    guide,
    parse_guidance,
)
from imagen.diffusion.parameterization import PREDICTION_TYPES, q_sample, training_target, x0_from
from imagen.diffusion.schedules import CosineSchedule, alpha_sigma
from imagen.diffusion.thresholding import Thresholding
from tests.diffusion.gaussian import Gaussian
from tests.diffusion.guided import LOG_SNRS, TIMESTEP, Network, Z, noise, run


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_guiding_the_output_is_guiding_x0(prediction_type: str) -> None:
    x0, eps, cond, uncond = torch.randn(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_snr = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    alpha, sigma = alpha_sigma(log_snr)
    z = q_sample(x0, eps, log_snr)
    first = x0_from(prediction_type, guide(cond, uncond, 7.5), z, alpha, sigma)
    last = guide(*(x0_from(prediction_type, half, z, alpha, sigma) for half in (cond, uncond)), 7.5)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-12)


def test_guidance_is_equation_two() -> None:
    cond, uncond = torch.tensor([3.0]), torch.tensor([1.0])
    assert guide(cond, uncond, 5.0).item() == 5 * 3 - 4 * 1
    noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(noise[0], noise[1], 1.0), noise[0])
    assert torch.equal(guide(noise[0], noise[1], 0.0), noise[1])


def test_classifier_free_guidance_moves_a_gaussian_along_the_line_of_the_means() -> None:
    """Of two Gaussians of equal spread w leads to the one at mean uncond + w (mean cond - mean uncond)."""
    cond = Gaussian.make(CosineSchedule())
    uncond, guided = (replace(cond, mean=share * cond.mean) for share in (-1.0, 2 * 3.0 - 1))
    networks = {"conditional": cond.network("v_prediction"), "unconditional": uncond.network("v_prediction")}
    z, timestep = noise(2, 1, 4, 4), torch.tensor([300.0, 800.0])
    x0 = make_x0_fn(
        lambda z, t, branches: [networks[branch](z, t) for branch in branches],
        prediction_type="v_prediction",
        log_snrs=LOG_SNRS,
        guidance_scale=3.0,
        thresholding=Thresholding("none"),
    )(z, timestep).x0
    alpha, sigma = (value[:, None, None, None] for value in cond.levels(timestep))
    torch.testing.assert_close(x0, guided.posterior_mean(z, alpha, sigma), rtol=0, atol=1e-9)


# --- what holds for every guidance ------------------------------------------------------------------------------------

EVERY = [
    "cfg",
    "interval(low=-1, high=2)",
    "apg(eta=0.3, norm=2, momentum=-0.5)",
    "rescaled(phi=0.6)",
    "rescaled+apg",
    "auto",
]


def test_every_guidance_is_tested() -> None:
    assert {name for text in EVERY for name in GUIDANCES if name in text} == set(GUIDANCES)


def test_names_in_the_table_are_those_that_a_setting_writes() -> None:
    for name in GUIDANCES:
        assert any(str(parse_guidance(text)).startswith(name) for text in EVERY)


@pytest.mark.parametrize("text", EVERY)
def test_it_evaluates_what_it_says_in_one_call(text: str) -> None:
    network = Network()
    run(text, network=network)(Z, TIMESTEP)
    assert network.asked == [parse_guidance(text).branches]
    assert branches(parse_guidance(text), 4.0) == parse_guidance(text).branches


@pytest.mark.parametrize("text", EVERY)
def test_a_scale_of_one_is_off(text: str) -> None:
    """To the bit, and one evaluation."""
    network = Network()
    x0 = run(text, scale=1.0, network=network)(Z, TIMESTEP).x0
    assert network.asked == [("conditional",)] == [branches(parse_guidance(text), 1.0)]
    assert torch.equal(x0, run("cfg", scale=1.0)(Z, TIMESTEP).x0)


@pytest.mark.parametrize("text", EVERY)
def test_a_picture_does_not_depend_on_its_batch_at_any_step(text: str) -> None:
    together, alone = run(text), [run(text) for _ in Z]
    for number, level in enumerate((900.0, 500.0, 100.0)):
        z = noise(3, 3, 4, 4, seed=number)
        x0 = together(z, torch.full((3,), level)).x0
        for index, x0_fn in enumerate(alone):
            one = x0_fn(z[index : index + 1], torch.tensor([level])).x0
            torch.testing.assert_close(x0[index : index + 1], one, rtol=0, atol=1e-13)


@pytest.mark.parametrize("text", EVERY)
def test_every_run_starts_anew(text: str) -> None:
    settings = parse_guidance(text)
    first, again = (run(settings) for _ in range(2))
    made = [first(noise(3, 3, 4, 4, seed=seed), TIMESTEP).x0 for seed in range(3)]
    for seed, x0 in enumerate(made):
        assert torch.equal(again(noise(3, 3, 4, 4, seed=seed), TIMESTEP).x0, x0)


@pytest.mark.parametrize("text", EVERY)
def test_what_the_network_predicts_makes_no_difference(text: str) -> None:
    """The same network in three forms: its x0, eps and v of one z."""
    made = []
    for form in PREDICTION_TYPES:
        alpha, sigma = (value.reshape(-1, 1, 1, 1) for value in alpha_sigma(LOG_SNRS[TIMESTEP.long()]))

        class Form(Network):
            def __call__(self, z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> list[Tensor]:
                pictures = super().__call__(z, timestep, branches)
                return [training_target(form, x0, (z - alpha * x0) / sigma, alpha, sigma) for x0 in pictures]  # noqa: B023

        made.append(run(text, network=Form(), prediction_type=form)(Z, TIMESTEP).x0)
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(made[2], made[0], rtol=0, atol=1e-11)


# --- interval ---------------------------------------------------------------------------------------------------------


def test_an_interval_guides_inside_and_costs_one_evaluation_outside() -> None:
    """Timestep 500 has log-SNR near 0; both limits are inside, and what is just beyond them is not."""
    level = float(LOG_SNRS[500])
    plain, off = run("cfg")(Z, TIMESTEP).x0, run("cfg", scale=1.0)(Z, TIMESTEP).x0
    for low, high, guided in (
        (-100.0, 100.0, True),
        (level, level + 1, True),
        (level - 1, level, True),
        (level + 1e-9, 100.0, False),
        (-100.0, level - 1e-9, False),
    ):
        network = Network()
        x0 = run(Interval(CFG(), low, high), network=network)(Z, TIMESTEP).x0
        assert torch.equal(x0, plain if guided else off)
        assert network.asked == [("unconditional", "conditional") if guided else ("conditional",)]


def test_an_interval_looks_at_each_picture() -> None:
    timestep = torch.tensor([900.0, 500.0, 100.0])
    x0 = run("interval(low=-1, high=2)")(Z, timestep).x0
    assert torch.equal(x0[1], run("cfg")(Z, timestep).x0[1])
    assert torch.equal(x0[::2], run("cfg", scale=1.0)(Z, timestep).x0[::2])


def test_an_interval_is_a_share_of_sigma() -> None:
    """The conversion that its description gives."""
    for sigma_over_alpha, log_snr in ((1.61, -0.95), (0.19, 3.32)):
        alpha, sigma = alpha_sigma(torch.tensor(log_snr))
        assert abs(float(sigma / alpha) / sigma_over_alpha - 1) < 0.01


# --- adaptive projected guidance --------------------------------------------------------------------------------------


def halves(z: Tensor) -> tuple[Tensor, Tensor]:
    """The network's x0 without and with text, at TIMESTEP; it predicts v."""
    return tuple(run("cfg", scale=scale)(z, TIMESTEP).x0 for scale in (0.0, 1.0))


def lengths(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).norm(dim=1)


def test_apg_without_projection_limit_and_momentum_is_classifier_free_guidance() -> None:
    x0_fn, plain = run(APG(eta=1)), run("cfg")
    for seed in range(3):
        z = noise(3, 3, 4, 4, seed=seed)
        torch.testing.assert_close(x0_fn(z, TIMESTEP).x0, plain(z, TIMESTEP).x0, rtol=0, atol=1e-12)


def test_apg_leaves_the_conditional_picture_at_a_right_angle() -> None:
    """With eta = 0; with more, that share of what is parallel is left, and the rest is the same."""
    uncond, cond = halves(Z)
    update = (run(APG(), scale=2.0)(Z, TIMESTEP).x0 - cond).flatten(1)
    torch.testing.assert_close((update * cond.flatten(1)).sum(1), torch.zeros(3).double(), rtol=0, atol=1e-11)
    some = (run(APG(eta=0.25), scale=2.0)(Z, TIMESTEP).x0 - cond).flatten(1)
    whole = (cond - uncond).flatten(1)
    torch.testing.assert_close(some, 0.75 * update + 0.25 * whole, rtol=0, atol=1e-12)
    assert (lengths(update) > 0.1).all()


def test_apg_shortens_what_is_longer_than_its_norm_and_nothing_else() -> None:
    uncond, cond = halves(Z)
    middle = float(lengths(cond - uncond).median())
    update = run(APG(eta=1, norm=middle), scale=2.0)(Z, TIMESTEP).x0 - cond
    torch.testing.assert_close(lengths(update), lengths(cond - uncond).clamp(max=middle), rtol=0, atol=1e-12)
    turned = update / lengths(update)[:, None, None, None]
    torch.testing.assert_close(turned, (cond - uncond) / lengths(cond - uncond)[:, None, None, None])


def test_apg_gathers_momentum_from_every_evaluation_before() -> None:
    """A sum of powers, of what was there before it was shortened and projected."""
    x0_fn = run(APG(eta=1, momentum=-0.5), scale=2.0)
    limited = run(APG(eta=0, norm=0.1, momentum=-0.5), scale=2.0)
    states = [noise(3, 3, 4, 4, seed=seed) for seed in range(3)]
    updates = [(lambda uncond, cond: cond - uncond)(*halves(z)) for z in states]
    sums = [updates[0], updates[1] - updates[0] / 2, updates[2] - updates[1] / 2 + updates[0] / 4]
    for z, expected in zip(states, sums, strict=True):
        cond = halves(z)[1]
        torch.testing.assert_close(x0_fn(z, TIMESTEP).x0 - cond, expected, rtol=0, atol=1e-12)
        along = (expected * cond).flatten(1).sum(1) / lengths(cond) ** 2
        across = (expected - along[:, None, None, None] * cond) * (0.1 / lengths(expected))[:, None, None, None]
        torch.testing.assert_close(limited(z, TIMESTEP).x0 - cond, across, rtol=0, atol=1e-12)


def test_apg_of_nothing_is_nothing() -> None:
    x0_fn = make_x0_fn(
        lambda z, t, branches: [0 * z for _ in branches],
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance=APG(norm=1.0),
        guidance_scale=4.0,
    )
    assert (x0_fn(Z.float(), TIMESTEP).x0 == 0).all()


# --- rescaled ---------------------------------------------------------------------------------------------------------


def test_rescaled_by_nothing_is_what_it_acts_on() -> None:
    for of in (CFG(), APG(norm=2)):
        assert torch.equal(run(Rescaled(of, phi=0))(Z, TIMESTEP).x0, run(of)(Z, TIMESTEP).x0)


def test_rescaled_gives_each_picture_the_deviation_of_the_conditional_one() -> None:
    """All of it with phi = 1, and a mixture of factors between: the picture is only multiplied."""
    cond, guided = halves(Z)[1], run("cfg")(Z, TIMESTEP).x0
    ratio = cond.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    assert (ratio < 0.8).all()
    whole = run(Rescaled(CFG(), phi=1))(Z, TIMESTEP).x0
    torch.testing.assert_close(whole.std((1, 2, 3)), cond.std((1, 2, 3)), rtol=0, atol=1e-12)
    some = run(Rescaled(CFG(), phi=0.25))(Z, TIMESTEP).x0
    torch.testing.assert_close(some, 0.25 * whole + 0.75 * guided, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole, guided * ratio, rtol=0, atol=1e-12)


def test_rescaled_pictures_without_contrast_stay_finite() -> None:
    x0_fn = make_x0_fn(
        lambda z, t, branches: [0 * z + 0.5 for _ in branches],
        prediction_type="sample",
        log_snrs=LOG_SNRS,
        guidance=Rescaled(CFG()),
        guidance_scale=4.0,
    )
    assert x0_fn(Z.float(), TIMESTEP).x0.isfinite().all()


def test_rescaled_inside_an_interval_leaves_the_rest_alone() -> None:
    x0_fn = run("interval(low=-1, high=2)+rescaled(phi=1)")
    for level, expected in ((500.0, "rescaled(phi=1)"), (900.0, None)):
        other = run(expected) if expected else run("cfg", scale=1.0)
        timestep = torch.full((3,), level)
        assert torch.equal(x0_fn(Z, timestep).x0, other(Z, timestep).x0)


# --- autoguidance -----------------------------------------------------------------------------------------------------


def test_auto_leads_away_from_the_weak_network_with_the_text_in_both() -> None:
    """A network too broad by half leads to the Gaussian of that mean with 1 / D = w / D strong + (1 - w) / D weak."""
    strong = Gaussian.make(CosineSchedule())
    weak = replace(strong, std=1.5 * strong.std)
    networks = {"conditional": strong.network("epsilon"), "weak": weak.network("epsilon")}
    z, timestep, scale = noise(2, 1, 4, 4), torch.tensor([300.0, 600.0]), 1.8
    x0 = make_x0_fn(
        lambda z, t, branches: [networks[branch](z, t) for branch in branches],
        prediction_type="epsilon",
        log_snrs=LOG_SNRS,
        guidance=Auto(),
        guidance_scale=scale,
        thresholding=Thresholding("none"),
    )(z, timestep).x0
    alpha, sigma = (value[:, None, None, None] for value in strong.levels(timestep))
    spreads = [alpha**2 * data.std**2 + sigma**2 for data in (strong, weak)]
    spread = 1 / (scale / spreads[0] + (1 - scale) / spreads[1])
    expected = (z - sigma**2 / spread * (z - alpha * strong.mean)) / alpha
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-9)
    assert ((sigma**2 < spread) & (spread < spreads[0])).all()  # narrower than the strong network's
