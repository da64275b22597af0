"""The picture that a stage starts from: made small, noised at a level, and the level told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from imagen.conditions.condition import Draw
from imagen.conditions.lowres import Lowres
from imagen.data.fields import Paired
from imagen.data.prepare import Want
from imagen.diffusion.augmentation import resize
from imagen.diffusion.schedules import CosineSchedule, make_schedule, timestep_from_t

BATCH = 5
IMAGE = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LEVEL = torch.linspace(0.1, 0.9, BATCH, dtype=torch.float64)
NONE = torch.zeros(BATCH, dtype=torch.bool)


def inputs(condition: Lowres, noise: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """What the network is given of IMAGE at LEVEL, and the noise that was used."""
    drawn: list[Tensor] = []

    def normal(purpose: str, shape: Any) -> Tensor:
        assert purpose == "lowres"
        drawn.append(noise * torch.randn(BATCH, *shape, dtype=torch.float64))
        return drawn[0]

    given = condition.inputs(condition.batch({}, IMAGE, NONE), Draw(NONE, LEVEL, normal))
    return dict(given.values), drawn[0]


@pytest.mark.parametrize("space", ["lowres", "upsampled"])
def test_it_is_augmented_and_its_level_told(space: Any) -> None:
    condition = Lowres(8, 4, CosineSchedule(), space=space)
    small = torch.nn.functional.avg_pool2d(IMAGE, 2)
    torch.testing.assert_close(condition.picture({}, IMAGE), small)
    given, noise = inputs(condition)
    assert noise.shape[-1] == (4 if space == "lowres" else 8)
    angle = (LEVEL + 0.008) / 1.008 * math.pi / 2
    alpha, sigma = torch.cos(angle)[:, None, None, None], torch.sin(angle)[:, None, None, None]
    noised = alpha * small + sigma * noise if space == "lowres" else alpha * resize(small, 8) + sigma * noise
    torch.testing.assert_close(given["lowres"], resize(noised, 8))
    torch.testing.assert_close(given["aug_timestep"], timestep_from_t(LEVEL))
    assert given.keys() == {"lowres", "aug_timestep"}


def test_a_schedule_of_levels_is_used_on_its_levels() -> None:
    schedule = make_schedule("cosine_discrete")
    condition = Lowres(8, 4, schedule, on_levels=True, space="upsampled", mode="bilinear_corners")
    given, _ = inputs(condition, noise=0.0)
    torch.testing.assert_close(given["aug_timestep"], torch.floor(1000 * LEVEL), atol=1e-9, rtol=0)
    # IF: bilinear with aligned corners, times the square root of the level's alpha_bar
    alpha_bar = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    alpha = alpha_bar[torch.floor(1000 * LEVEL).long()].sqrt()[:, None, None, None]
    small = torch.nn.functional.avg_pool2d(IMAGE, 2)
    large = torch.nn.functional.interpolate(small, (8, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(given["lowres"], alpha * large, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ["lowres", "upsampled"])
def test_a_pair_of_any_shape_is_enlarged_to_the_pictures(space: Any) -> None:
    """4 x 2 pixels beside 8 x 4; what is drawn is of each picture's shape, and the level told in its dtype."""
    image, pair = torch.zeros(BATCH, 3, 8, 4), torch.rand(BATCH, 3, 4, 2, generator=torch.Generator().manual_seed(1))
    condition, asked = Lowres(8, 4, CosineSchedule(), space=space), []

    def normal(purpose: str, shape: Any) -> Tensor:
        asked.append(tuple(shape))
        return torch.zeros(BATCH, *shape)

    given = condition.inputs(condition.batch({"conditioning": pair}, image, NONE), Draw(NONE, 0 * LEVEL, normal))
    assert asked == [(3, 4, 2) if space == "lowres" else (3, 8, 4)]
    torch.testing.assert_close(given.values["lowres"], resize(pair, (8, 4)), rtol=0, atol=1e-3)
    assert given.values["aug_timestep"].dtype == torch.float32  # type: ignore[union-attr]


def test_windows_shrink_by_the_factor_of_whole_pictures() -> None:
    assert Lowres(1024, 256, CosineSchedule()).picture({}, torch.zeros(1, 3, 256, 256)).shape == (1, 3, 64, 64)


def test_what_comes_with_the_pictures_is_taken_before_what_can_be_made_of_them() -> None:
    condition, own, pair = Lowres(8, 4, CosineSchedule()), torch.ones(BATCH, 3, 4, 4), torch.zeros(BATCH, 3, 4, 4)
    assert torch.equal(condition.picture({"lowres": own}, IMAGE), own.double())
    assert torch.equal(condition.picture({"lowres": own, "conditioning": pair}, IMAGE), pair.double())


def test_a_source_is_asked_for_the_small_picture_or_for_the_pair() -> None:
    want, pair = Want(8), Paired(4, 1)
    assert Lowres(8, 4, CosineSchedule()).wants(want) == Want(8, lowres_size=4)
    assert Lowres(8, 4, CosineSchedule(), paired=pair).wants(want) == Want(8, fields={"conditioning": pair})
