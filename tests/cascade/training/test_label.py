"""Class labels: dropped to the null in training, one row for each picture and branch in sampling, and all the way."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from imagen import ImagenPipeline
from imagen.cascade.training.compose import compose
from imagen.cascade.training.task import StageTask
from imagen.cli.png import read_settings
from imagen.cli.sample import main as sample_command
from imagen.conditions.condition import Draw, Target
from imagen.conditions.label import Label, Labels, make_labels
from imagen.data.shapes.language import SHAPES
from imagen.errors import ConfigError
from imagen.stages.folder import read_run
from imagen.training.trainer import Trainer
from tests.factories import sample, seeded, tiny_base, tiny_pipeline

CPU = torch.device("cpu")
CLASSES = {"label": 5}


def draw(drop):
    return Draw(torch.tensor(drop), torch.zeros(len(drop)), lambda *_: torch.zeros(0))


def test_dropped_labels_are_the_null_and_no_other():
    label = Label(5)
    part = label.batch({"label": [4, 0, 2]}, torch.zeros(3, 3, 8, 8), torch.zeros(3))
    given = label.inputs(part, draw([False, True, False]))
    assert given.named["label"].tolist() == [4, 5, 2]
    assert given.named["label"].dtype == torch.int64
    assert not given.values


@pytest.mark.parametrize("numbers", [(3,), (0,), (3, None), (0, 4)])
def test_every_picture_sees_its_label_and_the_unconditional_branch_none(numbers):
    network = tiny_base(classes=CLASSES)
    branches = ("unconditional", "conditional")
    given = Labels(numbers, CPU).given(Target(network, branches, (16, 16), 4))
    first, last = numbers[0], 5 if numbers[-1] is None else numbers[-1]
    expected = [first, first, last, last]
    seen = given.select(given.stacked(branches, torch.arange(4))).named["label"].tolist()
    assert seen == [5, 5, 5, 5, *expected]


def test_a_class_by_number_or_name():
    facts, stored = [tiny_base(classes=CLASSES).facts], {"names": ["a leaf", "red_ball", "3", "d", "e"]}

    def numbers(value, stored=stored):
        return make_labels(value, stored, facts, CPU).numbers

    assert numbers(None) == (None,)
    assert numbers(4) == numbers("4") == (4,)
    assert numbers("red ball") == numbers("red_ball") == (1,)
    assert numbers("3") == (2,), "a name that is a number"
    assert numbers(3) == (3,)
    assert numbers(["a_leaf", None, 3]) == (0, None, 3)
    for wrong, message in (
        (5, "label is 5; expected an integer from 0 to 4"),
        ("x", "label is 'x'; expected one of a"),
        ("²", "label is '²'; expected one of a"),
    ):
        with pytest.raises(ValueError, match=message):
            numbers(wrong)
    with pytest.raises(ValueError, match="label is 'x', but this model's classes have no names; give a number below 5"):
        numbers("x", {})
    with pytest.raises(ValueError, match="empty list"):
        numbers([])


@pytest.mark.parametrize("order", [(5, 3, None), (None, 3, 5)])
def test_a_class_is_one_that_every_stage_knows(order):
    """Of stages with tables of different length the shortest counts; a stage without a table says nothing."""
    networks = [tiny_base(classes={} if count is None else {"label": count}).facts for count in order]
    assert make_labels(2, {}, networks, CPU).numbers == (2,)
    with pytest.raises(ValueError, match="label is 3; expected an integer from 0 to 2"):
        make_labels(3, {}, networks, CPU)


def test_a_call_gives_each_prompt_its_label_and_guides_away_from_none():
    pipe = tiny_pipeline(base_unet=tiny_base(classes=CLASSES), conditions={"label": {"names": list("abcde")}})
    prompts = ["a red circle", "two blue star"]

    def made(labels):
        settings = {"size": 16, "guidance_scale": 2.0, "num_images_per_prompt": 2, "generator": seeded(1)}
        return sample(pipe, prompts, label=labels, **settings).images

    assert torch.equal(made(["b", 3]), made([1, "d"]))
    assert not torch.equal(made(["b", 3]), made([1, 1]))
    assert torch.equal(made(["b", 3])[:2], made([1, 1])[:2]), "the first prompt's label is the same"
    assert torch.equal(made(None), made([None, None]))
    one = sample(pipe, prompts[0], label=["a", "b"], generator=seeded(2), size=16)
    assert len(one.images) == 2, "a label for each of one prompt's pictures"
    with pytest.raises(ValueError, match="2 prompts for 3 labels; give one, or one for each"):
        sample(pipe, prompts, label=[1, 2, 3], size=16)
    for label in (1, 0, [0, 0]):  # class 0 is as much a class as any other
        with pytest.raises(ValueError, match="label is given but no stage that runs was trained with one; leave it"):
            sample(tiny_pipeline(), prompts, label=label)


def test_guidance_acts_on_labels_alone():
    """Without text the unconditional branch is the null class, and the scale counts."""
    pipe = tiny_pipeline(base_unet=tiny_base(text_dim=None, classes=CLASSES), tokenizer=None, text_encoder=None)
    pipe.set_stage_defaults("base", num_inference_steps=1, threshold="none")
    x = {scale: sample(pipe, label=2, size=16, guidance_scale=scale).images for scale in (0.0, 1.0, 0.5)}
    assert not torch.equal(x[0.0], x[1.0])
    free = (x[0.0] > 0) & (x[0.0] < 1) & (x[1.0] > 0) & (x[1.0] < 1)
    torch.testing.assert_close(x[0.5][free], ((x[0.0] + x[1.0]) / 2)[free], atol=1e-5, rtol=0)
    torch.testing.assert_close(sample(pipe, size=16, guidance_scale=1.0).images, x[0.0], atol=1e-5, rtol=0)


@pytest.fixture
def labelled(config):
    return lambda **more: config(
        **{
            "data.fields": {"label": "shape"},
            "conditions": {"label": {"names": list(SHAPES)}},
            "unet.classes": {"label": len(SHAPES)},
            "stage.text_dropout": 0.3,
            **more,
        }
    )


def test_all_the_way_from_the_data_to_the_command_line(labelled, tmp_path, capsys, monkeypatch):
    settings = labelled(grid={"every": 3, "count": 3, "num_inference_steps": 2})
    trainer = Trainer(StageTask(settings))
    table = trainer.task.unet.class_tables["label"].weight
    before = table.detach().clone()
    assert trainer.fit()
    assert not torch.equal(table[-1], before[-1]), "the null row is trained where labels are dropped"
    assert read_run(trainer.run).conditions == {"label": {"names": list(SHAPES)}}
    pipe = compose({"base": trainer.run})
    pipe.save_pretrained(tmp_path / "model")
    again = ImagenPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    pictures = [sample(again, label=name).images for name in (SHAPES[0], 0, SHAPES[1])]
    assert torch.equal(pictures[0], pictures[1])
    out = tmp_path / "out"
    words = ["--model", str(tmp_path / "model"), "--out", str(out), "--device", "cpu"]
    assert sample_command([*words, "--label", SHAPES[1], "--steps", "2"]) == 0
    (file,) = out.glob("*.png")
    settings = read_settings(file)
    assert settings["label"] == SHAPES[1]
    assert f"--label {SHAPES[1]}" in settings["command"]
    assert Image.open(file).size == (8, 8)
    monkeypatch.setattr("imagen.cli.sample.load", None)  # told before the model is loaded
    for label, message in (("nothing", "label is 'nothing'; expected one of"), ("99", "label is 99; expected an")):
        assert sample_command([*words, "--label", label]) == 2
        assert message in capsys.readouterr().err


def test_network_and_configuration_must_agree(labelled, config):
    for changes, message in (
        ({"unet.classes": None}, "conditions.label is given, but the network does not read it"),
        (
            {"conditions": {}, "data.fields": {}},
            r"unet.classes has 'label', but nothing gives it: add conditions.label",
        ),
        ({"data.fields": {}}, "data.fields.label is missing"),
        ({"unet.classes": {"label": 2}}, f"unet.classes.label is 2, but conditions.label gives {len(SHAPES)}"),
        ({"unet.classes": {"label": 99}}, f"unet.classes.label is 99, but conditions.label gives {len(SHAPES)}"),
        ({"unet.classes": None, "unet.extra_channels": {"label": 3}}, "conditions.label .* set unet.classes.label to"),
    ):
        with pytest.raises(ConfigError, match=message):
            Trainer(StageTask(labelled(**changes)))
    with pytest.raises(ConfigError, match="conditions.label has no classes"):
        config(conditions={"label": {"classes": 0}})
