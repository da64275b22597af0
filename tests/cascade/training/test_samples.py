"""Grids: of the average and the weights, in batches, alone and through the whole cascade; training does not notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from imagen import ImagenPipeline
from imagen.captions import enlargement, strip
from imagen.cascade.training.compose import compose
from imagen.cascade.training.drawing import picture_generators
from imagen.cascade.training.task import StageTask
from imagen.data.shapes.language import SHAPES
from imagen.diffusion.augmentation import resize
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.errors import ConfigError
from imagen.training.processes import Processes
from imagen.training.trainer import Trainer
from tests.factories import redraw, tiny_sr
from unets import BaseUNet

WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"
GRID = {"every": 6, "count": 3, "num_inference_steps": 2}
SR = {
    "stage": {"name": "sr256", "size": 16, "lowres_size": 8, "prediction_type": "v_prediction"},
    "unet.lowres_channels": 3,
}


def rows_of(path: Path, side: int) -> dict[str, np.ndarray]:
    """Row name -> its pictures (columns, side, side, 3)."""
    with Image.open(path) as grid:
        names, pixels, prompts = grid.text["rows"].splitlines(), np.asarray(grid), grid.text["prompts"].splitlines()
    times = enlargement(side)
    step = side * times + 2
    below = strip("", side * times).height if any(prompts) else 0
    assert pixels.shape[0] == step * len(names) - 2 + below
    columns, shown = (pixels.shape[1] + 2) // step, slice(0, side * times, times)
    return {
        name: np.stack([pixels[step * y :, step * x :][shown, shown] for x in range(columns)])
        for y, name in enumerate(names)
    }


@pytest.fixture
def sr_folder(tmp_path: Path) -> Path:
    """A pipeline folder with the stages 8 -> 16 -> 32, without text."""
    schedulers = [make_scheduler("ddim", CosineSchedule(), "sample") for _ in range(2)]
    pipe = ImagenPipeline(
        sr256_unet=tiny_sr(2, text_dim=None),
        sr256_scheduler=schedulers[0],
        sr1024_unet=tiny_sr(3, text_dim=None),
        sr1024_scheduler=schedulers[1],
        stages={"sr256": {"size": 16, "lowres_size": 8}, "sr1024": {"size": 32, "lowres_size": 16}},
    )
    pipe.save_pretrained(tmp_path / "upper", safe_serialization=True)
    return tmp_path / "upper"


def test_rows_are_named_and_training_does_not_notice(config, tmp_path):
    settings = {**SR, "unet.dropout": 0.3}  # which goes on behind a grid
    quiet = config(**settings, run_dir=str(tmp_path / "quiet"))
    drawn = config(**settings, run_dir=str(tmp_path / "drawn"), grid={**GRID, "every": 3, "raw": True})
    for settings in (quiet, drawn):
        Trainer(StageTask(settings)).fit()
    assert (tmp_path / "quiet" / WEIGHTS).read_bytes() == (tmp_path / "drawn" / WEIGHTS).read_bytes()
    grids = sorted((tmp_path / "drawn" / "samples").glob("*.png"))
    assert [grid.name for grid in grids] == ["step-00000003.png", "step-00000006.png"]
    rows = rows_of(grids[1], 16)
    assert list(rows) == ["input", "ema", "raw", "truth"]
    assert all(len(pictures) == 3 for pictures in rows.values())
    with Image.open(grids[0]) as grid:
        assert len(grid.text["prompts"].splitlines()) == 3


def test_each_row_is_drawn_from_its_own_weights(config):
    trainer = Trainer(StageTask(config(grid={**GRID, "raw": True}, **{"train.dtype": "float64"})))
    seen, sample = [], trainer.task.grids.sample

    def spy(unet, prompts, lowres):
        assert not unet.training, "nothing is dropped"
        seen.append({name: value.clone() for name, value in unet.state_dict().items()})
        return sample(unet, prompts, lowres)

    trainer.task.grids.sample = spy
    trainer.fit()
    ema, raw = seen
    assert all(torch.equal(ema[name], trainer.ema.average[name]) for name in ema)
    assert all(torch.equal(raw[name], value) for name, value in trainer.module.state_dict().items())
    assert any(not torch.equal(ema[name], raw[name]) for name in raw)
    rows = rows_of(trainer.run / "samples" / "step-00000006.png", 8)
    assert list(rows) == ["ema", "raw"]
    assert not np.array_equal(rows["ema"], rows["raw"])


@pytest.mark.parametrize("changes", [{}, SR], ids=["base", "sr"])
def test_batches_change_nothing_but_memory(config, changes):
    made = []
    for size in (1, 2, 16):
        trainer = Trainer(StageTask(config(**changes, grid={**GRID, "batch_size": size}, **{"train.dtype": "float64"})))
        redraw(trainer.module, 1)
        most = []
        trainer.module.register_forward_pre_hook(lambda _, args, most=most: most.append(len(args[0])))
        prompts, lowres, _ = trainer.task.grids._given()
        with torch.no_grad():
            made.append(trainer.task.grids.sample(trainer.module, prompts, lowres))
        assert max(most) == min(size, 3)
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=0, atol=1e-12)


def shared_out(trainer: Trainer, draw: Callable[[], Tensor]) -> list[Tensor]:
    """What `draw` makes on each of two processes, before their parts are added up."""
    parts: list[Tensor] = []

    def keep(part: Tensor) -> Tensor:
        parts.append(part.clone())
        return part

    for rank in range(2):
        trainer.task.grids.processes = Processes(rank, 2, keep)
        draw()
    return parts


@pytest.mark.parametrize("changes", [{}, SR], ids=["base", "sr"])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_the_parts_of_two_processes_add_up_to_the_grid(config, changes, size):
    trainer = Trainer(StageTask(config(**changes, grid={**GRID, "batch_size": size}, **{"train.dtype": "float64"})))
    redraw(trainer.module, 1)  # a new base network makes black of everything
    prompts, lowres, _ = trainer.task.grids._given()

    def draw() -> Tensor:
        with torch.no_grad():
            return trainer.task.grids.sample(trainer.module, prompts, lowres)

    whole = draw()
    parts = shared_out(trainer, draw)
    drawn = [part.abs().amax(dim=(1, 2, 3)) > 0 for part in parts]
    assert (drawn[0] ^ drawn[1]).all(), "each picture is drawn by one process"
    assert all(mine.any() for mine in drawn), "both have work, whatever grid.batch_size"
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=0, atol=1e-12)


def test_a_grid_is_added_up_and_written_by_the_first_process(config, tmp_path):
    trainer = Trainer(StageTask(config(grid=GRID, **{"train.dtype": "float64"})))
    for rank in range(2):
        trainer.task.grids.processes = Processes(rank, 2, lambda part: torch.zeros_like(part) + 1)
        written = trainer.task.grids.write(trainer.module, trainer.ema, tmp_path / f"{rank}.png")
        assert written == [tmp_path / "0.png"][rank:]
    assert not (tmp_path / "1.png").exists()
    assert (rows_of(tmp_path / "0.png", 8)["ema"] == 255).all(), "what is written is what was added up"


def test_the_parts_of_a_cascade_add_up_stage_by_stage(config, sr_folder):
    trainer = Trainer(StageTask(config(grid={**GRID, "cascade": str(sr_folder)}, **{"train.dtype": "float64"})))
    redraw(trainer.module, 1)
    stages = [
        stage or trainer.task.grids.own_stage(trainer.module.eval()) for stage in trainer.task.grids.cascade.values()
    ]
    words = trainer.task.grids._words()
    with torch.no_grad():
        whole = trainer.task.grids.draw(stages, words, "cascade")
        parts = shared_out(trainer, lambda: trainer.task.grids.draw(stages, words, "cascade"))
    assert len(parts) == 2 * len(whole) == 6
    for first, second, table in zip(parts[:3], parts[3:], whole, strict=True):
        torch.testing.assert_close(first + second, table, rtol=0, atol=1e-5)  # the others' networks are in float32


def test_the_colours_of_the_input_are_kept_where_the_stage_will_keep_them(config):
    shifts = []
    for cell in (0, 1):
        trainer = Trainer(StageTask(config(**SR, grid=GRID, sampling={"lowres_consistency": cell})))
        prompts, lowres, _ = trainer.task.grids._given()
        with torch.no_grad():
            made = trainer.task.grids.sample(trainer.module, prompts, lowres)
        shifts.append(float((resize(made, 8, "area") - lowres).abs().mean()))
    assert shifts[0] > 0.2
    assert shifts[1] < shifts[0] / 3


def test_a_base_stage_is_drawn_through_the_stages_of_a_pipeline(config, sr_folder):
    settings = config(grid={**GRID, "cascade": str(sr_folder), "batch_size": 2, "raw": True})
    trainer = Trainer(StageTask(settings))
    trainer.fit()
    rows = rows_of(trainer.run / "samples" / "step-00000006-cascade.png", 32)
    assert list(rows) == [f"{weights} {side} px" for weights in ("ema", "raw") for side in (8, 16, 32)]
    # what the finished stage makes in that pipeline, all pictures at once
    upper = ImagenPipeline.from_pretrained(sr_folder)
    parts = {name: part for name, part in upper.components.items() if part is not None}
    base = BaseUNet.from_pretrained(trainer.run / "model" / "unet")
    scheduler = make_scheduler("ddim", CosineSchedule(), "sample")
    stages = {slot: defaults.to_dict() for slot, defaults in upper.stage_defaults.items()}
    pipe = ImagenPipeline(
        **{**parts, "base_unet": base, "base_scheduler": scheduler}, stages={**stages, "base": {"size": 8}}
    )
    pipe.set_progress_bar_config(disable=True)
    generators = picture_generators(settings.train.seed, "cascade", range(3))
    made = pipe(num_images_per_prompt=3, num_inference_steps=2, generator=generators, output_type="np").stages
    for side, pictures in made.items():
        expected = np.round(pictures * 255).repeat(32 // side, axis=1).repeat(32 // side, axis=2)
        assert np.abs(rows[f"ema {side} px"] - expected).max() <= 1


def test_a_super_resolution_stage_is_drawn_behind_a_trained_base(config, tmp_path):
    Trainer(StageTask(config(run_dir=str(tmp_path / "base")))).fit()
    grid = {**GRID, "cascade": str(tmp_path / "base")}
    trackers = {"train.trackers": ("tensorboard",)}
    trainer = Trainer(StageTask(config(**SR, **trackers, run_dir=str(tmp_path / "sr"), grid=grid)))
    trainer.fit()
    shown = EventAccumulator(str(tmp_path / "sr" / "tensorboard")).Reload()
    assert shown.Tags()["images"] == ["samples", "samples-cascade"]
    rows = rows_of(trainer.run / "samples" / "step-00000006-cascade.png", 16)
    assert [list(rows), len(rows["ema 8 px"])] == [["ema 8 px", "ema 16 px"], 3]


def test_a_base_whose_label_the_stage_does_not_read_is_drawn_without_one(config, tmp_path):
    shapes = list(SHAPES)

    def labelled(names, **more):
        label = {"conditions": {"label": {"names": names}}, "unet.classes": {"label": len(shapes)}}
        return config(**{"data.fields": {"label": "shape"}, "train.steps": 2, **label, **more})

    base = str(tmp_path / "base")
    Trainer(StageTask(labelled(shapes, run_dir=base))).fit()
    grid = {**GRID, "cascade": base}
    trainer = Trainer(StageTask(config(**SR, run_dir=str(tmp_path / "sr"), grid=grid)))
    trainer.fit()
    row = rows_of(trainer.run / "samples" / "step-00000006-cascade.png", 16)["ema 8 px"]
    pipe = compose({"base": Path(base)})
    pipe.set_progress_bar_config(disable=True)
    generators = picture_generators(trainer.config.train.seed, "cascade", range(3))
    made = pipe(num_images_per_prompt=3, num_inference_steps=2, generator=generators, output_type="np").images
    assert np.abs(row - np.round(made * 255).repeat(2, axis=1).repeat(2, axis=2)).max() <= 1
    with pytest.raises(ConfigError, match="grid.cascade: base was trained with label .* this run with"):
        Trainer(StageTask(labelled(shapes[::-1], **SR, run_dir=str(tmp_path / "other"), grid=grid)))
    folder = str(tmp_path / "numbers")
    numbers = {"conditions": {"label": {"classes": len(shapes)}}}
    Trainer(StageTask(labelled([], run_dir=folder, **numbers))).fit()
    more = {
        "conditions": {"label": {"classes": 99}},
        "unet.classes": {"label": 99},
        "grid": {**GRID, "cascade": folder},
    }
    with pytest.raises(ConfigError, match=f"trained with classes of label {len(shapes)}, this run with 99"):
        Trainer(StageTask(labelled([], **SR, **more, run_dir=str(tmp_path / "other"))))


def test_a_cascade_that_does_not_fit_is_told_before_training(config, sr_folder, tmp_path):
    def message(**changes):
        with pytest.raises(ConfigError) as caught:
            Trainer(StageTask(config(**{"grid": {**GRID, "cascade": str(sr_folder)}, **changes})))
        return str(caught.value)

    assert "there is no folder" in message(grid={**GRID, "cascade": str(tmp_path / "none")})
    assert "do not meet base (" in message(**{"stage.size": 12})
    with_text = tiny_sr(2)
    with_text.save_config(sr_folder / "sr256_unet")
    assert "was trained with text_dim 16, this run with None" in message()
    assert config(grid={**GRID, "every": 0, "cascade": "nowhere"}).grid.cascade == "nowhere"
    Trainer(StageTask(replace(config(), grid=replace(config().grid, every=0, cascade="nowhere"))))
