"""What a grid is put together from: its pictures, its words, the stages of a cascade, and the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.captions import strip
from imagen.cascade.runner import Job, Stage
from imagen.cascade.seeds import picture_seeds
from imagen.cascade.text import Text
from imagen.cascade.training import grids
from imagen.cascade.training.config.run import RunConfig, StageGridConfig
from imagen.cascade.training.config.sections import (
    ConditionsConfig,
    LabelConfig,
    SamplingConfig,
    StageConfig,
    TextConfig,
)
from imagen.cascade.training.drawing import picture_generators
from imagen.cascade.training.grids import (
    GridMaker,
    captioned_grid,
    find_stages,
    held_out,
    load_others,
    save_grid,
    tile,
)
from imagen.cascade.training.inputs.source import make_source
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.conditions.text import Words
from imagen.data.config import DataConfig
from imagen.data.decode import NothingUsable
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.errors import ConfigError
from imagen.stages.spec import StageDefaults
from imagen.training.processes import Processes
from imagen.training.randomness import derive_seed
from tests.factories import WIDTH, save_stage, seeded, tiny_base, tiny_sr

CPU = torch.device("cpu")


def pixels(rows: list[torch.Tensor]) -> np.ndarray:
    return np.asarray(tile(rows)).astype(int)


def test_every_picture_stands_in_its_row_and_column_with_two_white_pixels_between() -> None:
    first = torch.tensor([-1.0, -0.5, 0.0])[:, None, None, None].expand(3, 3, 4, 4)
    second = torch.tensor([0.5, 0.9, 1.0])[:, None, None, None].expand(3, 3, 4, 4)
    found = pixels([first, second])
    assert found.shape == (10, 16, 3)
    shown = [[0, 64, 128], [191, 242, 255]]
    for y, row in enumerate(shown):
        for x, value in enumerate(row):
            assert (found[6 * y : 6 * y + 4, 6 * x : 6 * x + 4] == value).all()
    assert (found[4:6] == 255).all()
    assert all((found[:, x : x + 2] == 255).all() for x in (4, 10))


def test_a_picture_is_neither_turned_nor_are_its_colours_changed() -> None:
    picture = torch.full((1, 3, 2, 2), -1.0)
    picture[0, 0, 0, 1], picture[0, 1, 1, 0], picture[0, 2, 1, 1] = 1, 1, 1
    found = pixels([picture])
    assert found[0].tolist() == [[0, 0, 0], [255, 0, 0]]
    assert found[1].tolist() == [[0, 255, 0], [0, 0, 255]]


def test_what_lies_beyond_is_clamped_grey_is_grey_and_of_many_channels_three_are_shown() -> None:
    assert pixels([torch.full((1, 3, 1, 1), 7.0), torch.full((1, 3, 1, 1), -7.0)])[:, 0, 0].tolist() == [
        255,
        255,
        255,
        0,
    ]
    grey = torch.tensor([-1.0, 1.0]).reshape(1, 1, 1, 2).expand(1, 1, 2, 2)
    assert pixels([grey])[0].tolist() == [[0, 0, 0], [255, 255, 255]]
    five = torch.tensor([1.0, -1.0, 0.0, 1.0, 1.0]).reshape(1, 5, 1, 1)
    assert pixels([five])[0, 0].tolist() == [255, 0, 128]
    assert pixels([torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)])[0, 0].tolist() == [255] * 3, "two are no colours"
    assert pixels([torch.zeros(1, 3, 1, 1, dtype=torch.bfloat16)])[0, 0].tolist() == [128] * 3


def test_the_file_says_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "step-00000012.png"
    rows = {"input": torch.zeros(2, 3, 4, 4), "ema": torch.ones(2, 3, 4, 4)}
    for _ in range(2):
        save_grid(path, ["ein grüner Stern", "two"], rows)
    with Image.open(path) as grid:
        told = {name: str(text) for name, text in grid.text.items()}  # type: ignore[attr-defined]
        shown = np.asarray(grid)
    assert told == {"prompts": "ein grüner Stern\ntwo", "rows": "input\nema", "step": "step-00000012"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    large = [row.repeat_interleave(32, -1).repeat_interleave(32, -2) for row in rows.values()]
    assert np.array_equal(shown[:258], np.asarray(tile(large))), (
        "pictures are repeated pixels, and captions stand below"
    )
    for x, caption in enumerate(("ein gruner Stern", "two")):
        assert np.array_equal(shown[258:, 130 * x : 130 * x + 128], np.asarray(strip(caption, 128)))


def test_a_grid_without_any_captions_has_no_room_for_them() -> None:
    row = torch.zeros(2, 3, 128, 128)
    assert captioned_grid(["", ""], [row]).size == (258, 128)
    assert captioned_grid(["", "two"], [row]).size == (258, 128 + strip("", 128).height)


def test_every_picture_has_the_generator_of_its_own_place() -> None:
    found = [generator.initial_seed() for generator in picture_generators(3, "here", range(2, 5))]
    assert found == [derive_seed(3, "here", row) for row in (2, 3, 4)]


UNET: dict[str, Any] = {"kind": "BaseUNet", "text_dim": None}
BASE = RunConfig("run", unet=UNET, stage=StageConfig(size=8), grid=StageGridConfig(count=3, num_inference_steps=2))


def test_of_the_endless_world_pictures_are_held_out_that_training_does_not_see() -> None:
    found = held_out(BASE)
    other = make_source(BASE, seed=1)
    assert [sample.caption for sample in found] == [other[index].caption for index in range(3)]
    seen = make_source(BASE)
    assert not any(torch.equal(sample.image, seen[index].image) for sample in found for index in range(20))


def test_of_stored_pictures_the_first_are_shown_and_none_at_all_is_told(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (8, 8), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
    config = replace(BASE, data=DataConfig("folder", str(tmp_path), resize="area"))
    assert [sample.key for sample in held_out(config)] == ["0.png", "1.png", "2.png"]


def test_a_stream_of_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(grids.StreamDataset):
        def __init__(self) -> None: ...

        def head(self, count: int) -> list[Any]:
            return []

    monkeypatch.setattr(grids, "make_source", lambda *_, **__: Empty())
    with pytest.raises(NothingUsable, match="none of the pictures of data.path 'there' can be used"):
        held_out(replace(BASE, data=DataConfig("folder", "there")))


def maker(config: RunConfig) -> GridMaker:
    return GridMaker(config, Objective(config.stage), Texts(config).load(CPU), CPU, Processes())


def test_the_words_are_the_prompts_or_those_of_what_is_held_out() -> None:
    prompts = replace(BASE, grid=replace(BASE.grid, prompts=("a", "b")))
    assert list(maker(prompts)._words().captions) == ["a", "b"]
    assert list(maker(BASE)._words().captions) == [sample.caption for sample in held_out(BASE)]


def test_a_stage_that_starts_from_a_picture_shows_what_is_held_out_whatever_the_prompts() -> None:
    stage = StageConfig("sr256", 16, 8)
    config = replace(BASE, unet={"kind": "EfficientUNet"}, stage=stage, grid=replace(BASE.grid, prompts=("a", "b")))
    words, lowres, truth = maker(config)._given()
    held = held_out(config)
    assert list(words.captions) == [sample.caption for sample in held]
    assert lowres is not None
    assert truth is not None
    assert torch.equal(truth, torch.stack([sample.image for sample in held]))
    assert torch.equal(lowres, torch.stack([sample.lowres for sample in held if sample.lowres is not None]))
    assert maker(replace(BASE, grid=config.grid))._given()[1:] == (None, None)


def test_windows_of_a_stage_have_windows_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 px from 16, cropped to 12: the input's window has 8, and what is drawn has the window's size."""
    config = RunConfig(
        "run", unet={"kind": "EfficientUNet", "text_dim": None}, stage=StageConfig("sr256", 24, 16),
        data=DataConfig(crop=12), grid=StageGridConfig(num_inference_steps=1),
    )  # fmt: skip
    seen: list[Stage] = []

    def spy(stage: Stage, job: Job, made: Any) -> tuple[torch.Tensor, ...]:
        seen.append(stage)
        assert all(picture.shape == (3, 8, 8) for picture in made)
        return (torch.zeros(len(made), 3, *stage.shape),) * 2

    monkeypatch.setattr(grids, "run_stage", spy)
    found = maker(config).sample(tiny_sr(text_dim=None), Words(["", ""]), torch.zeros(2, 3, 8, 8))
    assert found.shape == (2, 3, 12, 12)
    assert {(stage.settings.size, stage.settings.lowres_size) for stage in seen} == {(12, 8)}
    base = replace(config, unet=UNET, stage=StageConfig(size=24))
    seen.clear()
    monkeypatch.setattr(grids, "run_stage", lambda stage, *_: torch.full((2, 2, 3, *stage.shape), float(len(seen))))
    assert maker(base).sample(tiny_base(text_dim=None), Words(["", ""]), None).shape == (2, 3, 12, 12)


def test_the_stage_in_training_is_shown_as_it_will_sample_but_for_the_grid_s_own() -> None:
    sampling = SamplingConfig(guidance_scale=2.0, num_inference_steps=50, threshold="static", guidance="apg")
    config = replace(BASE, sampling=sampling)
    unet = tiny_base(text_dim=None)
    stage = maker(config).own_stage(unet)
    assert (stage.slot, stage.unet) == ("base", unet)
    assert (stage.settings.guidance_scale, stage.settings.num_inference_steps) == (2.0, 2)
    assert (stage.settings.threshold, stage.settings.size) == ("static", 8)
    assert stage.settings.guidance == sampling.guidance
    assert type(stage.scheduler) is type(make_scheduler("ddim", CosineSchedule(), "epsilon"))
    for own in (0.0, 5.0):
        given = replace(config, grid=replace(config.grid, guidance_scale=own))
        assert maker(given).own_stage(unet).settings.guidance_scale == own


def test_each_stage_of_a_cascade_starts_from_what_the_one_before_it_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[float], list[int]]] = []

    def spy(stage: Stage, job: Job, made: list[torch.Tensor]) -> torch.Tensor:
        seen.append((stage.slot, [float(picture.mean()) for picture in made], list(job.seeds)))
        return torch.full((2, len(job.seeds), 3, *stage.shape), float(len(seen)))

    monkeypatch.setattr(grids, "run_stage", spy)
    config = replace(BASE, grid=replace(BASE.grid, batch_size=2), train=replace(BASE.train, seed=4))
    one = maker(config).own_stage(tiny_base(text_dim=None))
    two = Stage("sr256", tiny_sr(text_dim=None), one.scheduler, StageDefaults(size=16, lowres_size=8))
    made = maker(config).draw([one, two], Words(["", "", ""]), "cascade")
    assert [table.shape for table in made] == [(3, 3, 8, 8), (3, 3, 16, 16)]
    assert [(slot, means) for slot, means, _ in seen] == [
        ("base", []), ("sr256", [1.0, 1.0]), ("base", []), ("sr256", [3.0]),
    ]  # fmt: skip
    assert made[0].mean(dim=(1, 2, 3)).tolist() == [1, 1, 3]
    assert made[1].mean(dim=(1, 2, 3)).tolist() == [2, 2, 4]
    assert [seeds for *_, seeds in seen[::2]] == [
        picture_seeds(picture_generators(4, "cascade", rows), len(rows)) for rows in (range(2), range(2, 3))
    ]
    given = maker(config).draw(
        [two], Words(["", "", ""]), "grid", torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 3, 8, 8)
    )
    assert [means for _, means, _ in seen[4:]] == [[0.0, 1.0], [2.0]]
    assert len(given) == 1


# --- the stages of a cascade -----------------------------------------------------------------------------------------


@pytest.fixture
def above(tmp_path: Path) -> Path:
    """A stage 8 -> 16 of another run."""
    defaults = StageDefaults(size=16, lowres_size=8, num_inference_steps=7, aug_level=0.3)
    rule = make_scheduler("ddpm", CosineSchedule(), "sample")
    save_stage(tmp_path / "above", "sr256", tiny_sr(5, text_dim=None), rule, defaults=defaults)
    return tmp_path / "above"


def test_the_others_of_a_cascade_are_loaded_as_they_sample_in_the_grid_s_steps(above: Path) -> None:
    config = replace(BASE, grid=replace(BASE.grid, cascade=str(above)))
    assert list(find_stages(config)) == ["base", "sr256"]
    found = load_others(config)
    assert found["base"] is None
    stage = found["sr256"]
    assert stage is not None
    assert (stage.settings.num_inference_steps, stage.settings.aug_level) == (2, 0.3)
    assert (stage.slot, type(stage.scheduler).__name__) == ("sr256", "ImagenDDPMScheduler")
    assert not stage.unet.training
    assert not any(parameter.requires_grad for parameter in stage.unet.parameters())
    expected = tiny_sr(5, text_dim=None).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in stage.unet.state_dict().items())
    for grid in (replace(config.grid, every=0), replace(config.grid, cascade=None)):
        assert maker(replace(config, grid=grid)).cascade == {}


def test_a_run_s_own_stage_takes_the_place_of_the_one_that_is_there(above: Path) -> None:
    """Of a cascade of this very stage nothing else runs, and one of other sizes does not meet."""
    cascade, rule = replace(BASE.grid, cascade=str(above)), make_scheduler("ddim", CosineSchedule(), "sample")
    with pytest.raises(ConfigError, match=rf"'{above}': its stages do not meet base \(None to 4 px\); what runs is "):
        find_stages(replace(BASE, stage=StageConfig(size=4), grid=cascade))
    save_stage(above, "base", tiny_base(text_dim=None), rule, defaults=StageDefaults(size=4))
    with pytest.raises(ConfigError, match=r"do not meet base \(None to 8 px\); what runs is 8 px"):
        find_stages(replace(BASE, grid=cascade))
    with pytest.raises(ConfigError, match="^grid.cascade: there is no folder"):
        find_stages(replace(BASE, grid=replace(BASE.grid, cascade="/nowhere")))


@pytest.mark.parametrize(("run", "network", "stored", "told"), [
    ({}, {}, {}, ""),
    ({"text_dim": WIDTH}, {}, {}, "text_dim None, this run with 16"),
    ({"in_channels": 1, "out_channels": 1}, {}, {}, "in_channels 3, this run with 1"),
    ({"classes": {"label": 2}}, {"classes": {"label": 3}}, {}, "classes of label 3, this run with 2"),
    ({"classes": {"label": 2}}, {"classes": {"label": 2}}, {"label": {"names": ["b", "a"]}}, "label .*'b', 'a'.*"),
    ({"classes": {"label": 2}}, {"classes": {"label": 2}}, {"label": {"names": ["a", "b"]}}, ""),
    ({}, {"classes": {"label": 3}}, {"label": {"names": ["b", "a", "c"]}}, ""),  # which this run does not read
    ({"classes": {"label": 2}}, {}, {}, ""),  # or the other does not
])  # fmt: skip
def test_stages_of_a_cascade_share_encoder_channels_and_what_conditions_mean(
    tmp_path: Path, run: dict[str, Any], network: dict[str, Any], stored: dict[str, Any], told: str
) -> None:
    sizes, rule = StageDefaults(size=16, lowres_size=8), make_scheduler("ddim", CosineSchedule(), "sample")
    save_stage(tmp_path, "sr256", tiny_sr(**{"text_dim": None, **network}), rule, defaults=sizes, conditions=stored)
    label = ConditionsConfig(LabelConfig(names=("a", "b")) if "classes" in run else None)
    text = TextConfig("t5") if "text_dim" in run else TextConfig()
    config = replace(BASE, unet=UNET | run, conditions=label, text=text, grid=replace(BASE.grid, cascade=str(tmp_path)))
    if not told:
        assert list(find_stages(config)) == ["base", "sr256"]
    else:
        with pytest.raises(ConfigError, match=f"grid.cascade: sr256 was trained with {told}"):
            find_stages(config)


def test_the_text_comes_with_its_null_and_what_only_other_stages_read_as_nulls() -> None:
    data = DataConfig("folder", "pictures", embedding="npy")
    config = replace(BASE, unet={**UNET, "text_dim": WIDTH}, data=data)
    words = Words(["a", "b"], torch.randn(2, 4, WIDTH, generator=seeded()), torch.ones(2, 4).bool())
    one = maker(config)
    text, *others = one._conditions(words, None, [one.own_stage(tiny_base())])
    assert others == []
    assert isinstance(text, Text)
    assert words.embedding is not None
    assert torch.equal(text.prompt[0], words.embedding)
    assert text.negative[0].shape == (1, 1, WIDTH)
    assert not text.negative[0].any()
    labelled = tiny_sr(classes={"label": 3}, extra_channels={"mask": 4})
    more = one._conditions(words, None, [one.own_stage(tiny_base()), one.own_stage(labelled)])
    assert [condition.name for condition in more[1:]] == ["label", "mask"]


@pytest.mark.parametrize(("prompts", "start", "held"), [((), None, True), (("a", "b", "c"), None, False),
                                                        (("a", "b", "c"), torch.zeros(3, 3, 8, 8), True)])  # fmt: skip
def test_held_out_pictures_are_drawn_with_their_labels_and_prompts_without(
    monkeypatch: pytest.MonkeyPatch, prompts: tuple[str, ...], start: Any, held: bool
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(
        grids, "run_stage", lambda stage, job, made: jobs.append(job) or torch.zeros(2, len(job.seeds), 3, *stage.shape)
    )
    config = replace(
        BASE, unet={**UNET, "classes": {"label": 3}}, data=DataConfig(fields={"label": "shape"}),
        conditions=ConditionsConfig(LabelConfig(names=("circle", "square", "triangle"))),
        grid=replace(BASE.grid, prompts=prompts, batch_size=2),
    )  # fmt: skip
    one = maker(config)
    one._held_out = [  # type: ignore[misc]
        replace(sample, fields={"label": number}) for number, sample in enumerate(held_out(BASE))
    ]
    one.sample(tiny_base(text_dim=None, classes={"label": 3}), Words(["", "", ""]), start)
    found = [condition.numbers for job in jobs for condition in job.conditions]  # type: ignore[attr-defined]
    assert found == ([(0, 1), (2,)] if held else [(None,)] * 2)
