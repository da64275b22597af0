"""Schedules: formulas, inverses, ends, and the export to a float32 scheduler's betas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from imagen.diffusion.schedules import (
    CosineSchedule,
    DiscreteCosineSchedule,
    LinearSchedule,
    Schedule,
    alpha_sigma,
    export_error,
    level_log_snrs,
    level_time,
    log_snr_at,
    log_snr_from_betas,
    make_schedule,
    t_from_timestep,
    timestep_at,
    timestep_from_t,
    trained_betas,
)

SCHEDULES = [
    CosineSchedule(),
    CosineSchedule(shift=64 / 256),
    CosineSchedule(shift=64 / 1024),
    LinearSchedule(),
    LinearSchedule(shift=64 / 256),
    LinearSchedule(beta_start=0.01, beta_end=0.01),
    DiscreteCosineSchedule(),
    DiscreteCosineSchedule(shift=64 / 256),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
LEVELS = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000


def test_cosine_is_nichol_and_dhariwals_alpha_bar() -> None:
    alpha, sigma = alpha_sigma(CosineSchedule().log_snr(LEVELS))
    expected = torch.cos((LEVELS + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(alpha**2, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-14, atol=0)


def test_the_discrete_cosine_is_diffusers_squaredcos_cap_v2() -> None:
    betas = DDPMScheduler(beta_schedule="squaredcos_cap_v2").betas.double()
    alpha, _ = alpha_sigma(DiscreteCosineSchedule().log_snr(LEVELS))
    torch.testing.assert_close(alpha**2, torch.cumprod(1 - betas, 0), rtol=2e-5, atol=0)  # their betas are float32
    torch.testing.assert_close(trained_betas(DiscreteCosineSchedule()), betas.tolist(), rtol=1e-5, atol=1e-7)


def test_linear_is_the_limit_of_linear_betas() -> None:
    alpha, _ = alpha_sigma(LinearSchedule().log_snr(LEVELS))
    torch.testing.assert_close(alpha**2, torch.exp(-(0.1 * LEVELS + 9.95 * LEVELS**2)), rtol=1e-10, atol=0)
    # 100,000 betas from 1e-6 to 2e-4 have the same integral: the discrete product comes near the exponential.
    betas = torch.linspace(1e-4, 0.02, 100_000, dtype=torch.float64) / 100
    product = torch.cumprod(1 - betas, 0)[49_999]
    torch.testing.assert_close(
        alpha_sigma(LinearSchedule().log_snr(torch.tensor(0.5).double()))[0] ** 2, product, rtol=1e-3, atol=0
    )


@every_schedule
def test_t_inverts_log_snr(schedule: Schedule) -> None:
    t = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    torch.testing.assert_close(schedule.t(schedule.log_snr(t)), t, rtol=0, atol=1e-12)
    assert schedule.log_snr(t.float()).dtype == torch.float32


@every_schedule
def test_float32_is_the_rounding_of_what_is_computed_in_float64(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 101)
    log_snr = schedule.log_snr(t)
    assert torch.equal(log_snr, schedule.log_snr(t.double()).float())
    assert torch.equal(schedule.t(log_snr), schedule.t(log_snr.double()).float())
    for narrow, wide in zip(alpha_sigma(log_snr), alpha_sigma(log_snr.double()), strict=True):
        assert torch.equal(narrow, wide.float())


@every_schedule
def test_snr_falls_with_time(schedule: Schedule) -> None:
    assert (schedule.log_snr(LEVELS).diff() < 0).all()


def test_shift_moves_the_log_snr_by_twice_its_logarithm() -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for cls in (CosineSchedule, LinearSchedule):
        moved = cls(shift=0.25).log_snr(t) - cls().log_snr(t)
        torch.testing.assert_close(moved, torch.full_like(t, 2 * math.log(0.25)), rtol=0, atol=1e-12)


def test_both_ends_are_clamped() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert CosineSchedule(s=0.0).log_snr(ends).tolist() == [20.0, -20.0]
    assert LinearSchedule(max_log_snr=6.0).log_snr(ends).tolist() == [6.0, -6.0]
    assert LinearSchedule().log_snr(ends)[0] == 20.0
    for schedule in SCHEDULES:
        alpha, sigma = alpha_sigma(schedule.log_snr(ends.float()))
        assert (alpha > 0).all()
        assert (sigma > 0).all()
        far = schedule.t(torch.tensor([-1e3, 1e3], dtype=torch.float64))
        torch.testing.assert_close(far, schedule.t(torch.tensor([-20.0, 20.0], dtype=torch.float64)), rtol=0, atol=0)
        assert ((far >= 0) & (far <= 1)).all()


def test_timesteps_and_times() -> None:
    index = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(timestep_from_t(LEVELS), index, rtol=0, atol=1e-9)
    torch.testing.assert_close(t_from_timestep(index), LEVELS, rtol=0, atol=1e-15)
    assert t_from_timestep(torch.tensor([0, 999])).tolist() == pytest.approx([0.0005, 0.9995])
    assert timestep_from_t(torch.tensor([0.0, 1.0])).tolist() == [0.0, 999.5]


@every_schedule
def test_export_keeps_the_log_snr(schedule: Schedule) -> None:
    betas = trained_betas(schedule)
    assert len(betas) == 1000
    assert all(0 < beta < 1 for beta in betas)
    # In float64 the betas say exactly the schedule; in a scheduler's float32, to well under a thousandth of a level.
    torch.testing.assert_close(log_snr_from_betas(betas), schedule.log_snr(LEVELS), rtol=0, atol=1e-9)
    assert export_error(betas, schedule) < 2e-3


def test_export_error_sees_what_alpha_bar_hides() -> None:
    """1 - alpha_bar = 1e-6 at the clean end: a relative error of 1e-7 in alpha_bar is a tenth in log-SNR."""
    schedule = CosineSchedule(s=0.0, shift=4.0)
    log_snr = schedule.log_snr(LEVELS)
    alpha_bar = torch.sigmoid(log_snr)
    betas = (1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])).tolist()
    rebuilt = torch.cumprod(1 - torch.tensor(betas), 0)
    assert (rebuilt.double() - alpha_bar).abs().max() < 1e-6
    assert export_error(betas, schedule) > 0.1
    with pytest.raises(ValueError, match="float32 scheduler would be off"):
        trained_betas(schedule)


def test_the_largest_error_of_an_export_is_a_twentieth() -> None:
    """The cosine without its offset is off by 0.034 at the clean end, and by 0.067 where it is cleaner by 2.2."""
    assert len(trained_betas(CosineSchedule(s=0.0))) == 1000
    with pytest.raises(ValueError, match=r"off by 0\.0668 in log-SNR \(at most 0.05 is accepted\)"):
        trained_betas(CosineSchedule(s=0.0, shift=2.2))


def test_a_flat_schedule_is_not_exported() -> None:
    with pytest.raises(ValueError, match="does not fall"):
        trained_betas(CosineSchedule(max_log_snr=4.0))
    assert len(trained_betas(LinearSchedule(shift=2.0, max_log_snr=10.5))) == 1000  # one level is clamped
    with pytest.raises(ValueError, match="does not fall between 1 pairs of its 1000 levels"):  # two are
        trained_betas(LinearSchedule(shift=2.0, max_log_snr=10.0))


@dataclass(frozen=True)
class Straight:
    """log_snr = 4 - 8 t."""

    def log_snr(self, t: Tensor) -> Tensor:
        return 4 - 8 * t

    def t(self, log_snr: Tensor) -> Tensor:
        return (4 - log_snr) / 8


def test_between_levels_the_log_snr_is_interpolated() -> None:
    log_snrs = log_snr_from_betas(trained_betas(Straight()))
    timestep = torch.tensor([0.0, 0.25, 500.5, 998.75, 999.0, 999.5], dtype=torch.float64)
    torch.testing.assert_close(
        log_snr_at(timestep, log_snrs), Straight().log_snr(t_from_timestep(timestep)), rtol=0, atol=1e-9
    )
    assert log_snr_at(torch.tensor([7]), log_snrs).item() == log_snrs[7].item()


@every_schedule
def test_timestep_at_inverts_log_snr_at(schedule: Schedule) -> None:
    log_snrs = log_snr_from_betas(trained_betas(schedule))
    timestep = torch.tensor([0.0, 0.3, 17.0, 500.25, 998.9, 999.0], dtype=torch.float64)
    torch.testing.assert_close(timestep_at(log_snr_at(timestep, log_snrs), log_snrs), timestep, rtol=0, atol=1e-9)
    assert timestep_at(torch.tensor([99.0, -99.0]), log_snrs).tolist() == [0.0, 999.0]


def test_a_last_beta_of_one_has_no_signal() -> None:
    assert log_snr_from_betas([0.5, 1.0])[-1] == -math.inf


def test_levels_of_a_scheduler_are_those_of_its_betas_however_noisy() -> None:
    """Only a level without any signal has no log-SNR of its own, and is given -20."""
    betas = [0.5, 0.9999, 0.9999, 0.99999]
    noisy = level_log_snrs(DDPMScheduler(4, trained_betas=betas))
    torch.testing.assert_close(noisy, torch.logit(torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)))
    assert noisy[-1] < -20
    assert level_log_snrs(DDPMScheduler(2, trained_betas=[0.5, 1.0])).tolist() == [0.0, -20.0]


def test_a_time_falls_into_the_level_that_it_lies_in() -> None:
    t = torch.tensor([0.0, 0.0009, 0.001, 0.4999, 0.9999], dtype=torch.float64)
    torch.testing.assert_close(level_time(t) * 1000, torch.tensor([0.5, 0.5, 1.5, 499.5, 999.5], dtype=torch.float64))


def test_make_schedule() -> None:
    assert make_schedule("cosine", shift=0.25, s=0.01) == CosineSchedule(s=0.01, shift=0.25)
    assert make_schedule("linear", max_log_snr=10, beta_end=0.01) == LinearSchedule(beta_end=0.01, max_log_snr=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "schedule kind is 'cosin'"),
        ({"kind": "cosine", "beta_end": 0.1}, "unknown key 'beta_end'"),
        ({"kind": "linear", "shift": 0.0}, "shift=0.0"),
        ({"kind": "linear", "shift": math.nan}, "shift=nan"),
        ({"kind": "cosine", "shift": math.inf}, "shift=inf"),
        ({"kind": "cosine", "max_log_snr": -1.0}, "max_log_snr=-1.0"),
        ({"kind": "cosine_discrete", "max_log_snr": 0.0}, "max_log_snr=0.0"),
        ({"kind": "linear", "max_log_snr": math.inf}, "max_log_snr=inf"),
        ({"kind": "cosine", "s": -0.1}, "s=-0.1"),
        ({"kind": "cosine", "s": math.inf}, "s=inf"),
        ({"kind": "cosine_discrete", "s": math.nan}, "s=nan"),
        ({"kind": "linear", "beta_start": 0.5}, "beta_start=0.5"),
        ({"kind": "linear", "beta_start": 0.0}, "beta_start=0.0"),
        ({"kind": "linear", "beta_end": 1.0}, "beta_end=1.0"),
    ],
)
def test_bad_schedules_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_schedule(**options)  # type: ignore[arg-type]


def test_what_schedules_share_is_given_by_name() -> None:
    """So that a number by its place is what the schedule itself is named for."""
    assert CosineSchedule(0.01) == CosineSchedule(s=0.01, shift=1.0, max_log_snr=20.0)
    assert LinearSchedule(0.01, 0.03) == LinearSchedule(beta_start=0.01, beta_end=0.03)
    with pytest.raises(TypeError):
        CosineSchedule(0.01, 0.5)  # type: ignore[misc]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "cosine", "shift": 1e-3, "max_log_snr": 1e-3, "s": 0.0},
        {"kind": "cosine_discrete", "s": 0.0},
        {"kind": "linear", "beta_start": 1e-9, "beta_end": 0.999},
        {"kind": "linear", "beta_start": 0.999, "beta_end": 0.999},
    ],
)
def test_the_nearest_values_that_a_schedule_may_have_pass(options: dict[str, float]) -> None:
    middle = make_schedule(**options).log_snr(torch.tensor([0.5], dtype=torch.float64))  # type: ignore[arg-type]
    assert middle.isfinite().all()


def test_integer_times_are_refused() -> None:
    with pytest.raises(ValueError, match="^t has dtype torch.int64; .*t_from_timestep"):
        CosineSchedule().log_snr(torch.tensor([500]))
    with pytest.raises(ValueError, match="^log_snr has dtype torch.int64; expected floating point"):
        CosineSchedule().t(torch.tensor([0]))


def test_steepness_is_the_slope() -> None:
    t = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    # cosine: log_snr = -2 log tan(angle), angle = (t + s) / (1 + s) pi/2
    angle = (t + 0.008) / 1.008 * math.pi / 2
    expected = 2 * math.pi / (1.008 * torch.sin(2 * angle))
    for shift in (1.0, 0.25):
        torch.testing.assert_close(CosineSchedule(shift=shift).steepness(t), expected)
    rise = 0.1 * t + 9.95 * t**2
    torch.testing.assert_close(LinearSchedule().steepness(t), (0.1 + 19.9 * t) / (1 - torch.exp(-rise)))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)  # both ends of both are beyond a clamp of 5
    for schedule in (CosineSchedule(max_log_snr=5.0), LinearSchedule(max_log_snr=5.0)):
        assert schedule.steepness(ends).tolist() == [0, 0]


def test_steepness_of_levels_is_that_of_the_curve_they_lie_on() -> None:
    """Level i has alpha_bar cos^2(a(t)) / cos^2(a(0)), t = (i + 1) / 1000; d log_snr = d alpha_bar / (ab (1 - ab))."""
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    angle, start = (t + 0.008) / 1.008 * math.pi / 2, 0.008 / 1.008 * math.pi / 2
    alpha_bar = (torch.cos(angle) / math.cos(start)).square()
    rate = torch.sin(2 * angle) / math.cos(start) ** 2 * math.pi / 2 / 1.008
    curve = rate / (alpha_bar * (1 - alpha_bar))
    for shift in (1.0, 0.25):
        found = DiscreteCosineSchedule(shift=shift).steepness(LEVELS)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found[20:980], curve[20:980], rtol=1e-2, atol=0)
        torch.testing.assert_close(found[2:997], curve[2:997], rtol=0.15, atol=0)  # it doubles from level to level
        assert found.min() > 3
    continuous = CosineSchedule().steepness(LEVELS)
    torch.testing.assert_close(found[100:980], continuous[100:980], rtol=0.03, atol=0)


def test_steepness_of_levels_is_one_sided_at_the_ends_and_counts_the_clamp() -> None:
    levels = DiscreteCosineSchedule().levels()
    found = DiscreteCosineSchedule(max_log_snr=100.0).steepness(LEVELS)
    torch.testing.assert_close(found[0], 1000 * (levels[0] - levels[1]))
    torch.testing.assert_close(found[-1], 1000 * (levels[-2] - levels[-1]))
    torch.testing.assert_close(found[1:-1], 500 * (levels[:-2] - levels[2:]), rtol=1e-9, atol=0)
    between = DiscreteCosineSchedule(max_log_snr=100.0).steepness(LEVELS[:-1] + 0.0005)
    torch.testing.assert_close(between[1:-1], ((found[:-1] + found[1:]) / 2)[1:-1], rtol=1e-9, atol=0)
    beyond = DiscreteCosineSchedule(max_log_snr=5.0)
    assert beyond.steepness(LEVELS[[0, 10, -10, -1]]).tolist() == [0, 0, 0, 0]
    assert torch.equal(beyond.steepness(LEVELS[400:600]), found[400:600])
