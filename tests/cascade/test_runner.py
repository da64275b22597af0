"""What one stage hands back, whatever its network says."""

from __future__ import annotations

import pytest
import torch

from imagen.cascade.runner import Job, Stage, run_stage
from imagen.stages.spec import StageDefaults
from tests.factories import tiny_base, tiny_pipeline

CPU = torch.device("cpu")


def bare(**settings: object) -> Stage:
    """A base stage that reads nothing."""
    scheduler = tiny_pipeline(sr256_unet=None, sr1024_unet=None).base_scheduler
    defaults = StageDefaults.from_dict({"size": 16, "num_inference_steps": 2, **settings})
    return Stage("base", tiny_base(text_dim=None), scheduler, defaults)


def test_pictures_lie_in_their_range_also_where_nothing_thresholds_them() -> None:
    """What a later stage starts from, and noises, is of the range it was trained on."""
    made, shown = run_stage(bare(threshold="none"), Job([], [1, 2], CPU))
    assert torch.equal(made, shown)
    assert made.shape == (2, 3, 16, 16)
    assert made.aminmax() == (-1, 1), "a random network goes beyond, or this shows nothing"


@pytest.mark.parametrize("picture", [0, 1])
def test_one_picture_that_is_not_finite_is_told(picture: int) -> None:
    def spoil(state: object) -> None:
        state.z[picture, 2, -1, -1] = torch.inf  # type: ignore[attr-defined]

    with pytest.raises(
        ValueError, match="stage base made numbers that are not finite: .*, or torch.float32 overflowed"
    ):
        run_stage(bare(), Job([], [1, 2], CPU), callback=spoil)


@pytest.mark.parametrize("lost", ["sr256_unet", "sr256_scheduler"])
def test_a_stage_is_there_with_network_and_scheduler(lost: str) -> None:
    pipe = tiny_pipeline(**{lost: None})
    assert list(pipe.stage_defaults) == ["base", "sr1024"]
    with pytest.raises(ValueError, match="size=32: this model makes 16, 64 px"):
        pipe.settings(size=32)
