"""Grids show the stage as it will sample: every setting that says how acts on them."""

from __future__ import annotations

from typing import Any

import torch

from imagen.cascade.training.config.run import RunConfig, StageGridConfig
from imagen.cascade.training.config.sections import SamplingConfig, ScheduleConfig, StageConfig
from imagen.cascade.training.grids import GridMaker
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.conditions.text import Words
from imagen.data.config import DataConfig
from imagen.training.processes import Processes
from tests.factories import WIDTH, seeded, tiny_sr

STAGE: dict[str, Any] = {
    "prediction_type": "v_prediction",
    "schedule": ScheduleConfig(shift=0.5),
    "aug_space": "upsampled",
    "aug_schedule": ScheduleConfig(shift=0.5),
    "lowres_mode": "nearest",
}
SAMPLING: dict[str, Any] = {
    "guidance_scale": 2.0,
    "guidance": "interval(low=-3, high=3)+cfg",
    "threshold": "static",
    "threshold_p": 0.5,
    "threshold_cap": 1.2,
    "aug_level": 0.7,
    "lowres_consistency": 4,
}
GRID: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0}
OF_TRAINING = {"name", "size", "lowres_size", "loss", "text_dropout"}
OF_THE_PIPELINE = {"sampler", "gamma", "num_inference_steps"}  # a grid has DDIM, and steps of its own


def grid(stage: dict[str, Any], sampling: dict[str, Any], given: dict[str, Any], **more: Any) -> torch.Tensor:
    config = RunConfig(
        "run",
        unet={"kind": "EfficientUNet", "text_dim": WIDTH},
        stage=StageConfig(name="sr256", size=16, lowres_size=8, **stage),
        sampling=SamplingConfig(**sampling),
        data=DataConfig("folder", "pictures", embedding="npy"),
        grid=StageGridConfig(**{"num_inference_steps": 3, **given}),
    )
    device = torch.device("cpu")
    maker = GridMaker(config, Objective(config.stage), Texts(config).load(device), device, Processes())
    embedding = torch.randn(3, 4, WIDTH, generator=seeded(1))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    words = Words(["a", "b", "c"], embedding, mask)
    lowres = torch.rand(3, 3, 8, 8, generator=seeded(2)) * 2 - 1
    with torch.no_grad():
        return maker.sample(tiny_sr(4, **more), words, lowres)


def test_every_setting_acts() -> None:
    assert STAGE.keys() | OF_TRAINING == StageConfig.__dataclass_fields__.keys()
    assert SAMPLING.keys() | OF_THE_PIPELINE == SamplingConfig.__dataclass_fields__.keys()
    plain = grid({}, {}, {})
    assert torch.equal(grid({}, {}, {}), plain)
    for section, values in enumerate((STAGE, SAMPLING, GRID)):
        for field, value in values.items():
            changes: list[dict[str, Any]] = [{}, {}, {}]
            changes[section] = {field: value}
            assert (grid(*changes) - plain).abs().max() > 1e-3, f"{field} has no effect on grids"


def test_pictures_of_a_grid_do_not_depend_on_its_batches_with_texts_of_any_length() -> None:
    whole = grid({}, {}, {})
    for size in (1, 2):
        torch.testing.assert_close(grid({}, {}, {"batch_size": size}), whole, rtol=0, atol=1e-4)


def test_a_grid_s_own_guidance_replaces_the_stage_s() -> None:
    for scale in (3.0, 0.0):  # 0 is a scale, too
        own = grid({}, {"guidance_scale": 2.0}, {"guidance_scale": scale})
        assert torch.equal(own, grid({}, {"guidance_scale": scale}, {}))


def test_a_learned_variance_is_left_aside() -> None:
    """Grids step with DDIM, which reads none: the first channels are what is predicted."""
    wide = grid({}, {}, {}, out_channels=6)
    assert wide.shape == (3, 3, 16, 16)
    assert torch.isfinite(wide).all()


def test_a_grid_has_no_weaker_network_and_guides_without() -> None:
    assert torch.equal(grid({}, {"guidance": "auto"}, {}), grid({}, {}, {}))
