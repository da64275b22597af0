"""From a batch of pictures to the loss of each: noise, condition, predict, compare (paper section 2.1, eq. 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor

from imagen.cascade.training.config.stage import ScheduleConfig, StageConfig
from imagen.conditions.text import drop_text
from imagen.diffusion.augmentation import aug_noise_shape, augment_lowres, resize
from imagen.diffusion.losses import LossWeighting, diffusion_loss
from imagen.diffusion.parameterization import q_sample, x0_from
from imagen.diffusion.schedules import (
    NUM_TIMESTEPS,
    alpha_sigma,
    level_time,
    make_schedule,
    steepness,
    timestep_from_t,
)
from imagen.diffusion.variance import vlb_term


@dataclass(frozen=True)
class Batch:
    """What one micro-batch needs, on the training device.

    image (B, C, H, W) in [-1, 1]; noise like image; t and aug_level (B,); drop (B,) bool, True where the text is
    dropped; text (B, L, D) and text_mask (B, L), None without text; lowres (B, C, h, w) and its noise for SR stages;
    dropout_seeds (B,) int64, of the dropout inside the network; None leaves it to torch's own generator.
    """

    image: Tensor
    noise: Tensor
    t: Tensor
    drop: Tensor
    aug_level: Tensor
    text: Tensor | None = None
    text_mask: Tensor | None = None
    lowres: Tensor | None = None
    lowres_noise: Tensor | None = None
    dropout_seeds: Tensor | None = None


class Objective:
    """The loss of a stage: `objective(unet, batch)` is (B,) float32, weighted, one value per picture.

    Of a network with a learned variance it is iDDPM's hybrid loss (imagen.diffusion.variance).
    """

    def __init__(self, stage: StageConfig) -> None:
        self.stage = stage
        self.schedule = make_schedule(**asdict(stage.schedule))
        self.aug_schedule = make_schedule(**asdict(stage.aug_schedule))
        self.weighting = LossWeighting(stage.loss.kind, stage.loss.gamma, stage.loss.low, stage.loss.bias)

    def make_lowres(self, image: Tensor) -> Tensor:
        """The low-resolution copy of pictures (B, C, H, W); windows shrink by the same factor as whole pictures."""
        assert self.stage.lowres_size is not None
        return resize(image, image.shape[-1] * self.stage.lowres_size // self.stage.size)

    def lowres_noise_shape(self, lowres: Tensor, image: Tensor) -> tuple[int, ...]:
        """(C, H, W) of the noise that augments `lowres`: its own size or, in space "upsampled", the picture's."""
        return aug_noise_shape(lowres.shape, (image.shape[-2], image.shape[-1]), self.stage.aug_space)[1:]

    def __call__(self, unet: Callable[..., Tensor], batch: Batch) -> Tensor:
        t, level = on_levels(batch.t, self.stage.schedule), on_levels(batch.aug_level, self.stage.aug_schedule)
        log_snr = self.schedule.log_snr(t)
        z = q_sample(batch.image, batch.noise, log_snr)
        conditions: dict[str, Tensor] = {}
        if batch.dropout_seeds is not None:
            conditions["dropout_seeds"] = batch.dropout_seeds
        if batch.text is not None and batch.text_mask is not None:
            text, mask = drop_text(batch.text, batch.text_mask, batch.drop)
            conditions.update(text=text, text_mask=mask)
        if batch.lowres is not None and batch.lowres_noise is not None:
            conditions["lowres"] = augment_lowres(
                batch.lowres,
                level,
                batch.lowres_noise,
                size=(batch.image.shape[-2], batch.image.shape[-1]),
                space=self.stage.aug_space,
                schedule=self.aug_schedule,
                mode=self.stage.lowres_mode,
            )
            conditions["aug_timestep"] = timestep_from_t(level).to(batch.image.dtype)
        output = unet(z, timestep_from_t(t).to(batch.image.dtype), **conditions)
        prediction, image = self.stage.prediction_type, batch.image
        said, v = output[:, : image.shape[1]], output[:, image.shape[1] :]
        loss = diffusion_loss(prediction, said, image, batch.noise, log_snr, self.weighting)
        if self.stage.loss.per == "log_snr":
            loss = loss * (steepness(self.schedule, t) / 2).to(loss.dtype)
        if v.shape[1] == 0:  # no variance is learned
            return loss
        estimate = x0_from(prediction, said.to(z.dtype), z, *alpha_sigma(log_snr.double()))
        bound = NUM_TIMESTEPS * vlb_term(v, estimate, image, z, t, self.schedule)
        return loss + self.stage.loss.vlb_weight * bound


def on_levels(t: Tensor, schedule: ScheduleConfig) -> Tensor:
    """Uniform times in [0, 1) as a schedule is trained at them: as they are or, where it has levels, on those."""
    return level_time(t) if schedule.kind == "cosine_discrete" else t
