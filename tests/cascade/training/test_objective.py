"""What the network is shown and how its answer is judged."""

from __future__ import annotations

import math

import pytest
import torch

from imagen.cascade.training.config.sections import LossConfig, ScheduleConfig, StageConfig
from imagen.cascade.training.inputs.batches import Batch
from imagen.cascade.training.objective import Objective
from imagen.diffusion.parameterization import q_sample, x0_from
from imagen.diffusion.schedules import alpha_sigma
from imagen.diffusion.variance import vlb_term

BATCH = 5


def make_batch(**changes) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    fields = {
        "image": image,
        "noise": noise,
        "t": torch.linspace(0.05, 0.95, BATCH, dtype=torch.float64),
        "inputs": {},
    }
    return Batch(**{**fields, **changes})


class Spy:
    """A network that answers a constant and keeps what it was shown."""

    def __init__(self, answer: float = 0.0) -> None:
        self.answer = answer

    def __call__(self, z, timestep, **conditions):
        self.z, self.timestep, self.conditions = z, timestep, conditions
        return torch.full_like(z, self.answer)


def cosine(t):
    angle = (t + 0.008) / 1.008 * math.pi / 2
    return torch.cos(angle)[:, None, None, None], torch.sin(angle)[:, None, None, None]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_loss_of_a_zero_answer_is_the_mean_square_of_the_target(prediction):
    batch, spy = make_batch(), Spy()
    losses = Objective(StageConfig(size=8, prediction_type=prediction))(spy, batch)
    alpha, sigma = cosine(batch.t)
    target = {
        "epsilon": batch.noise,
        "v_prediction": alpha * batch.noise - sigma * batch.image,
        "sample": batch.image,
    }[prediction]
    # the paper's weight is 1 on the eps loss: SNR on that of x0, alpha^2 on that of v
    weight = {"epsilon": 1, "v_prediction": alpha.flatten() ** 2, "sample": (alpha / sigma).flatten() ** 2}[prediction]
    torch.testing.assert_close(losses, target.square().mean(dim=(1, 2, 3)) * weight)
    torch.testing.assert_close(spy.z, alpha * batch.image + sigma * batch.noise)
    torch.testing.assert_close(spy.timestep, 1000 * batch.t - 0.5)


def test_the_weight_of_the_configuration_is_used():
    batch = make_batch()
    stage = StageConfig(size=8, prediction_type="sample", loss=LossConfig(kind="clamped_snr", gamma=5.0, low=0.5))
    losses = Objective(stage)(Spy(), batch)
    alpha, sigma = cosine(batch.t)
    snr = (alpha / sigma).flatten() ** 2
    torch.testing.assert_close(losses, batch.image.square().mean(dim=(1, 2, 3)) * snr.clamp(0.5, 5.0))


def test_the_network_is_given_what_its_conditions_say_and_nothing_else():
    spy, text = Spy(), torch.randn(BATCH, 4, 6)
    Objective(StageConfig(size=8))(spy, make_batch())
    assert spy.conditions == {}
    Objective(StageConfig(size=8))(spy, make_batch(inputs={"text": text}))
    assert spy.conditions.keys() == {"text"}
    assert spy.conditions["text"] is text


def test_a_learned_variance_adds_the_bound_and_leaves_the_mean_to_the_plain_loss():
    stage = StageConfig(size=8, schedule=ScheduleConfig(kind="cosine_discrete"), loss=LossConfig(vlb_weight=0.002))
    objective, batch = Objective(stage), make_batch()
    output = torch.randn(BATCH, 6, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    output.requires_grad_()
    losses = objective(lambda z, timestep: output, batch)
    t = (torch.floor(1000 * batch.t) + 0.5) / 1000  # on the levels
    log_snr = objective.schedule.log_snr(t)
    z = q_sample(batch.image, batch.noise, log_snr)
    estimate = x0_from("epsilon", output[:, :3], z, *alpha_sigma(log_snr))
    bound = vlb_term(output[:, 3:], estimate, batch.image, z, t, objective.schedule)
    simple = (output[:, :3] - batch.noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, simple + 2 * bound)  # 0.002 of a thousand terms
    (grad,) = torch.autograd.grad(losses.sum(), output, retain_graph=True)
    (plain,) = torch.autograd.grad(simple.sum(), output)
    torch.testing.assert_close(grad[:, :3], plain[:, :3])
    assert grad[:, 3:].abs().max() > 0


def test_a_schedule_of_levels_is_trained_on_its_levels():
    spy, batch = Spy(), make_batch()
    Objective(StageConfig(size=8, schedule=ScheduleConfig(kind="cosine_discrete")))(spy, batch)
    torch.testing.assert_close(spy.timestep, torch.floor(1000 * batch.t), atol=1e-9, rtol=0)


EVERY_KIND = [{}, {"shift": 0.25}, {"kind": "linear"}, {"kind": "cosine_discrete"}]


@pytest.mark.parametrize("schedule", EVERY_KIND, ids=str)
def test_a_weight_per_log_snr_does_not_depend_on_the_schedule(schedule):
    """The mean over t is 1/2 of the integral of the weight over log-SNR (Kingma & Gao 2023, eq. 5): of the sigmoid, a
    difference of softplus."""
    count = 20_000
    t = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ones = torch.ones(count, 1, 1, 1, dtype=torch.float64)  # a loss of 1 in eps everywhere
    batch = make_batch(image=ones, noise=ones, t=t)
    loss = LossConfig("sigmoid", bias=-1.0, per="log_snr")
    objective = Objective(StageConfig(size=8, schedule=ScheduleConfig(max_log_snr=5.0, **schedule), loss=loss))
    mean = objective(Spy(), batch).mean()
    softplus = torch.nn.functional.softplus
    expected = (softplus(torch.tensor(-1.0 + 5)) - softplus(torch.tensor(-1.0 - 5))) / 2
    assert mean.item() == pytest.approx(expected.item(), rel=1e-3)
