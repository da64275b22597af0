"""From a batch of pictures to the loss of each: noise, condition, predict, compare (paper section 2.1, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor

from imagen.cascade.training.config.sections import StageConfig
from imagen.cascade.training.inputs.batches import Batch
from imagen.diffusion.losses import LossWeighting, diffusion_loss
from imagen.diffusion.parameterization import q_sample, x0_from
from imagen.diffusion.schedules import NUM_TIMESTEPS, alpha_sigma, level_time, make_schedule, timestep_from_t
from imagen.diffusion.variance import vlb_term


class Objective:
    """The loss of a stage: `objective(unet, batch)` is (B,) float32, weighted, one value per picture.

    Of a network with a learned variance it is iDDPM's hybrid loss (imagen.diffusion.variance).
    """

    def __init__(self, stage: StageConfig) -> None:
        self.stage = stage
        self.schedule = make_schedule(**asdict(stage.schedule))
        self.weighting = LossWeighting(stage.loss.kind, stage.loss.gamma, stage.loss.low, stage.loss.bias)

    def __call__(self, unet: Callable[..., Tensor], batch: Batch) -> Tensor:
        t = level_time(batch.t) if self.stage.schedule.kind == "cosine_discrete" else batch.t  # on its levels alone
        log_snr = self.schedule.log_snr(t)
        z = q_sample(batch.image, batch.noise, log_snr)
        output = unet(z, timestep_from_t(t).to(batch.image.dtype), **batch.inputs)
        prediction, image = self.stage.prediction_type, batch.image
        said, v = output[:, : image.shape[1]], output[:, image.shape[1] :]
        loss = diffusion_loss(prediction, said, image, batch.noise, log_snr, self.weighting)
        if self.stage.loss.per == "log_snr":
            loss = loss * (self.schedule.steepness(t) / 2).to(loss.dtype)
        if v.shape[1] == 0:  # no variance is learned
            return loss
        estimate = x0_from(prediction, said.to(z.dtype), z, *alpha_sigma(log_snr.double()))
        bound = NUM_TIMESTEPS * vlb_term(v, estimate, image, z, t, self.schedule)
        return loss + self.stage.loss.vlb_weight * bound
