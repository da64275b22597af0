"""Inpainting: what is masked is not seen, what is drawn is a rectangle, and a trained network goes on with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose
from imagen.cascade.training.task import StageTask
from imagen.cli.png import read_settings
from imagen.cli.sample import main as sample_command
from imagen.conditions.condition import Draw, Target
from imagen.conditions.mask import Mask, Masked, make_masked, masked, rectangles
from imagen.data.fields import Paired
from imagen.data.prepare import Want
from imagen.errors import ConfigError
from imagen.training.trainer import Trainer
from tests.factories import Calls, sample, seeded, tiny_base, tiny_pipeline

CHANNELS = {"mask": 4}


def draw(drop, seed=0):
    noise = torch.Generator().manual_seed(seed)
    return Draw(torch.tensor(drop), torch.zeros(len(drop)), lambda _, s: torch.randn(len(drop), *s, generator=noise))


def test_a_rectangle_is_where_its_numbers_say():
    uniform = torch.tensor([[[0.75, 0.25, 0.0, 0.5], [0.9, 0.95, 0.6, 0.6]]])  # borders in any order; one is empty
    mask = rectangles(uniform, 8, 8)[0, 0]
    expected = torch.zeros(8, 8)
    expected[2:6, 0:4] = 1
    assert torch.equal(mask, expected)


def test_what_is_masked_is_not_seen_and_dropped_pictures_are_masked_all_over():
    image = torch.rand(64, 3, 8, 8, generator=seeded()) + 0.5
    seen = Mask(8).inputs((image, None), draw([False] * 63 + [True])).named["mask"]
    picture, mask = seen[:, :3], seen[:, 3:]
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert (picture * mask == 0).all()
    assert torch.equal(picture + image * mask, image)
    assert mask[-1].all()
    assert 0.1 < float(mask[:-1].mean()) < 0.6
    assert len({tuple(one.flatten().tolist()) for one in mask[:-1]}) > 50, "masks differ"
    again = Mask(8).inputs((image, None), draw([False] * 64)).named["mask"]
    assert torch.equal(again[:-1], seen[:-1]), "a function of the draw alone"


def test_stored_masks_are_the_field_s():
    want = Mask(8, stored_masks=True).wants(Want(8))
    assert want.fields == {"mask": Paired(8, 1, binary=True)}
    assert Mask(8).wants(Want(8)).fields == {}
    image, stored = torch.rand(2, 3, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float()
    condition = Mask(8, stored_masks=True)
    part = condition.batch({"mask": stored}, image, torch.zeros(2))
    assert torch.equal(condition.inputs(part, draw([False, False])).named["mask"], masked(image, stored))


def test_a_call_s_picture_is_masked_at_the_stage_s_size_and_hidden_colours_count_nothing():
    network = tiny_base(extra_channels=CHANNELS)
    picture = torch.full((4, 32, 32), 0.5)
    picture[3] = 1
    picture[:, :, 13:] = torch.tensor([-1.0, 1, 1, -1]).reshape(4, 1, 1)  # transparent, with colours behind
    target = Target(network, ("unconditional", "conditional"), (8, 8), 2)
    given = Masked((picture,)).given(target)
    seen = given.select(given.stacked(target.branches, torch.arange(2))).named["mask"]
    assert seen.shape == (4, 4, 8, 8)
    expected = torch.zeros(8, 8)
    expected[:, 3:] = 1  # a quarter of the fourth column is opaque
    assert torch.equal(seen[0, 3], expected)
    torch.testing.assert_close(seen[0, :3, :, :3], torch.full((3, 8, 3), 0.5))
    picture[3, :, 13:15] = 1  # most of the fourth column is opaque, its last quarter is not
    picture[:3, :, 13:15] = 0.5
    seen = Masked((picture,)).given(target).named["mask"]
    torch.testing.assert_close(seen[0, :3, :, :4], torch.full((3, 8, 4), 0.5))
    picture[3, :, 14:] = -1  # exactly half of the fourth column is transparent
    assert torch.equal(Masked((picture,)).given(target).named["mask"][0, 3], expected)
    nothing = Masked(()).given(target).named["mask"]
    assert nothing[:, 3].all()
    assert not nothing[:, :3].any()


def test_each_prompt_s_pictures_see_its_mask_in_every_branch():
    network = tiny_base(extra_channels=CHANNELS)
    pictures = torch.rand(2, 4, 8, 8, generator=seeded()) * 2 - 1
    branches = ("unconditional", "conditional")
    given = Masked(tuple(pictures)).given(Target(network, branches, (8, 8), 4))
    seen = given.select(given.stacked(branches, torch.arange(4))).named["mask"]
    first, second = (masked(one[None, :3], (one[None, 3:] <= 0).float()) for one in pictures)
    torch.testing.assert_close(seen, torch.cat([first, first, second, second] * 2))


@pytest.mark.parametrize("stored", [True, False])
def test_held_out_pictures_are_masked_as_in_training_or_in_the_middle(stored):
    """What a grid shows of a run with masks: its network is given the picture but for what is to be painted."""
    image, mask = torch.rand(2, 3, 8, 8, generator=seeded()) * 2 - 1, torch.zeros(2, 1, 8, 8)
    mask[0, :, :3], mask[1, :, :, 5:] = 1, 1
    expected = mask
    if not stored:
        expected = torch.zeros(2, 1, 8, 8)
        expected[:, :, 2:6, 2:6] = 1
    condition = Mask(8, stored_masks=stored)
    target = Target(tiny_base(extra_channels=CHANNELS), ("conditional",), (8, 8), 2)
    given = condition.sampled({"mask": mask}, image).given(target)
    seen = given.select(given.stacked(target.branches, torch.arange(2))).named["mask"]
    torch.testing.assert_close(seen, masked(image, expected))
    nothing = condition.sampled(None, None).given(target).named["mask"]
    assert torch.equal(nothing, masked(torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)))


def test_a_call_takes_pictures_with_transparency():
    pipe = tiny_pipeline(base_unet=tiny_base(extra_channels=CHANNELS))
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[:, 8:, 3] = 0
    settings = {"size": 16, "guidance_scale": 2.0}
    with Calls(pipe.base_unet) as calls:
        sample(pipe, ["a red circle", "two blue star"], mask=Image.fromarray(pixels), **settings)
    seen = calls.samples[0]["conditions"]["mask"]
    assert seen.shape == (4, 4, 16, 16), "both branches of both prompts"
    assert torch.equal(seen[:, 3], (torch.arange(16) >= 8).float().expand(4, 16, 16))
    torch.testing.assert_close(seen[:, :3, :, :8], torch.full((4, 3, 16, 8), 200 / 127.5 - 1))
    array = sample(pipe, "a red circle", mask=pixels, **settings).images
    assert torch.equal(array, sample(pipe, "a red circle", mask=Image.fromarray(pixels), **settings).images)
    assert not torch.equal(array, sample(pipe, "a red circle", **settings).images)
    with pytest.raises(ValueError, match="mask is given but no stage that runs was trained with one; leave it out"):
        sample(tiny_pipeline(), "a red circle", mask=Image.fromarray(pixels))
    with pytest.raises(ValueError, match="mask has 2 channels; expected 4, the last one opacity"):
        make_masked([torch.zeros(2, 8, 8)], {}, [pipe.base_unet.facts], torch.device("cpu"))


def test_the_network_has_a_channel_more_than_a_picture(config):
    with pytest.raises(ConfigError, match="unet.extra_channels.mask is 1, but conditions.mask gives 4: set it to that"):
        Trainer(StageTask(config(conditions={"mask": {}}, **{"unet.extra_channels": {"mask": 1}})))


def test_a_trained_network_goes_on_with_masks_and_paints_around_what_it_is_given(config, tmp_path, capsys):
    first = Trainer(StageTask(config(run_dir=str(tmp_path / "first"))))
    assert first.fit()
    start = {"train.init_from": str(tmp_path / "first" / "model"), "unet.extra_channels": CHANNELS}
    grid = {"every": 30, "count": 2, "num_inference_steps": 2}
    steps = {"train.steps": 30, "optim.lr": 1e-2, "stage.text_dropout": 0.1}
    settings = config(**start, **steps, conditions={"mask": {}}, grid=grid, run_dir=str(tmp_path / "run"))
    trainer = Trainer(StageTask(settings))
    unet = trainer.task.unet
    before, trained = unet.conv_in.weight.detach().clone(), first.ema.average["conv_in.weight"]
    assert torch.equal(before[:, :3], trained)
    assert not before[:, 3:].any(), "the new channels start at zero"
    assert trainer.fit()
    assert unet.conv_in.weight[:, 3:].abs().max() > 0
    pipe = compose({"base": trainer.run})
    pipe.save_pretrained(tmp_path / "model")
    pipe = ImagenPipeline.from_pretrained(tmp_path / "model")
    pipe.set_progress_bar_config(disable=True)
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 220, 255
    pixels[:4, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    made = sample(pipe, mask=Image.fromarray(pixels)).images
    assert torch.isfinite(made).all()
    words = ["--model", str(tmp_path / "model"), "--device", "cpu", "--steps", "2", "--out", str(tmp_path / "out")]
    assert sample_command([*words, "--mask", str(tmp_path / "mask.png")]) == 0
    (file,) = (tmp_path / "out").glob("*.png")
    assert f"--mask {tmp_path / 'mask.png'}" in read_settings(file)["command"]
    assert sample_command([*words, "--mask", str(tmp_path / "none.png")]) == 2
    assert "--mask" in capsys.readouterr().err
    pixels[..., 3] = 200
    for opaque in (Image.fromarray(pixels), Image.fromarray(pixels[..., :3]), Image.new("I;16", (8, 8))):
        opaque.save(tmp_path / "opaque.png")
        assert sample_command([*words, "--mask", str(tmp_path / "opaque.png")]) == 2
        assert "has no transparent part, so nothing would be painted" in capsys.readouterr().err
