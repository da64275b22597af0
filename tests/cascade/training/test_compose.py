"""Stage runs become one pipeline folder that samples what the stages would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from imagen import ImagenPipeline
from imagen.cascade.presets import read_presets, with_preset
from imagen.cascade.training.compose import compose
from imagen.cascade.training.export import stage_scheduler
from imagen.cascade.training.task import StageTask
from imagen.cli.compose import main
from imagen.cli.png import read_settings
from imagen.cli.sample import main as sample
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.errors import ConfigError
from imagen.stages.folder import read_run
from imagen.stages.model import find_model
from imagen.stages.spec import StageDefaults
from imagen.training.trainer import Trainer
from tests.factories import WIDTH, save_stage, tiny_base, tiny_pipeline, tiny_sr
from tests.factories import sample as draw

BASE = {"unet.text_dim": WIDTH, "train.steps": 2, "text.max_length": 12, "sampling.num_inference_steps": 2}
SR = {
    "stage": {"name": "sr256", "size": 16, "lowres_size": 8},
    "unet": {
        "kind": "EfficientUNet", "channels": [8, 8], "num_res_blocks": [1, 1], "strides": [1, 2], "heads": 2,
        "attention_levels": [1], "norm_groups": 4, "text_dim": WIDTH,
    },
    "sampling": {"num_inference_steps": 3, "guidance_scale": 1.5, "threshold": "static", "aug_level": 0.3,
                 "lowres_consistency": 2},
    "train.steps": 2,
    "text.max_length": 12,
}  # fmt: skip


def train(config, run, t5, **changes) -> Trainer:
    trainer = Trainer(StageTask(config(run_dir=str(run), **{**changes, "text.encoder": t5})))
    trainer.fit()
    return trainer


def test_round_trip(config, t5, tmp_path, capsys):
    base, sr = train(config, tmp_path / "a", t5, **BASE), train(config, tmp_path / "b", t5, **SR)
    out = tmp_path / "model"
    out.mkdir()
    (out / "README.md").write_text("a model card")
    command = ["--base64", str(tmp_path / "a"), "--sr256", str(tmp_path / "b"), "--out", str(out)]
    for _ in range(2):  # again over the first
        assert main([*command, "--text", t5]) == 0
    assert (out / "README.md").read_text() == "a model card"
    assert "base_unet" in capsys.readouterr().out
    pipe = ImagenPipeline.from_pretrained(out)
    for trainer, unet in ((base, pipe.base_unet), (sr, pipe.sr256_unet)):
        for name, value in unet.state_dict().items():
            assert torch.equal(value, trainer.ema.average[name])
    settings = pipe.stage_defaults["sr256"]
    assert (settings.size, settings.lowres_size, settings.num_inference_steps) == (16, 8, 3)
    assert (settings.guidance_scale, settings.threshold, settings.aug_level) == (1.5, "static", 0.3)
    assert settings.lowres_consistency == 2
    assert pipe.config["max_length"] == 12
    assert pipe.sr1024_unet is None
    pictures = pipe("a red circle", generator=torch.Generator().manual_seed(0), output_type="pt")
    assert {size: tuple(stage.shape) for size, stage in pictures.stages.items()} == {
        8: (1, 3, 8, 8),
        16: (1, 3, 16, 16),
    }


def test_a_stage_is_taken_from_a_composed_pipeline(config, t5, tmp_path, capsys):
    first, other = (
        train(config, tmp_path / "a", t5, **BASE),
        train(config, tmp_path / "c", t5, **BASE, **{"train.seed": 1}),
    )
    train(config, tmp_path / "b", t5, **SR)
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    assert main(["--base64", str(tmp_path / "a"), "--sr256", str(tmp_path / "b"), "--text", t5, "--out", old]) == 0
    assert main(["--base64", str(tmp_path / "c"), "--sr256", old, "--text", old, "--out", new]) == 0
    before, after = ImagenPipeline.from_pretrained(old), ImagenPipeline.from_pretrained(new)
    for part in ("sr256_unet", "text_encoder"):
        theirs = getattr(before, part).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(after, part).state_dict().items())
    assert after.sr256_scheduler.config == before.sr256_scheduler.config
    assert {k: after.config[k] for k in ("stages", "text", "max_length")} == {
        k: before.config[k] for k in ("stages", "text", "max_length")
    }
    for name, value in after.base_unet.state_dict().items():
        assert torch.equal(value, other.ema.average[name])
    assert any(not torch.equal(value, other.ema.average[name]) for name, value in first.ema.average.items())
    for file in tmp_path.glob("new/**/*.json"):
        assert str(tmp_path) not in file.read_text(), f"{file.name} tells where it was made"
    assert main(["--sr1024", old, "--out", new]) == 2
    assert f"--sr1024: the pipeline {old!r} has no sr1024, only base, sr256" in capsys.readouterr().err


def test_runs_are_sampled_as_they_lie(config, t5, tmp_path, capsys):
    train(config, tmp_path / "a", t5, **BASE)
    train(config, tmp_path / "b", t5, **SR)
    runs, model = f"{tmp_path / 'b'},{tmp_path / 'a'}", tmp_path / "model"
    assert main(["--base64", str(tmp_path / "a"), "--sr256", str(tmp_path / "b"), "--out", str(model)]) == 0
    for name, out in ((runs, tmp_path / "one"), (str(model), tmp_path / "two")):
        assert sample(["a red circle", "--model", name, "--out", str(out), "--device", "cpu", "--save-stages"]) == 0
    pictures = [sorted(folder.glob("*.png")) for folder in (tmp_path / "one", tmp_path / "two")]
    assert len(pictures[0]) == len(pictures[1]) == 2
    for one, two in zip(*pictures, strict=True):
        assert Image.open(one).tobytes() == Image.open(two).tobytes()
    with pytest.MonkeyPatch.context() as patch:  # the encoder moves away
        patch.chdir(tmp_path)
        moved = shutil.copytree(t5, tmp_path / "moved")
        shutil.move(t5, tmp_path / "gone")
        words = ["a red circle", "--model", runs, "--out", str(tmp_path / "three"), "--device", "cpu"]
        assert sample(words) == 2
        assert f"not at {t5!r} any more: say with --text where it is now" in capsys.readouterr().err
        assert sample([*words, "--text", "moved"]) == 0
        shutil.move(tmp_path / "gone", t5)
        assert moved.is_dir()
    (picture,) = (tmp_path / "three").glob("*.png")
    assert Image.open(picture).tobytes() == Image.open(tmp_path / "one" / picture.name).tobytes()
    assert "--text moved" in read_settings(picture)["command"]
    assert sample(["a red circle", "--model", str(model), "--text", "x", "--out", str(tmp_path / "x")]) == 2
    assert "--text 'x' is for training runs" in capsys.readouterr().err
    (tmp_path / "new" / "state").mkdir(parents=True)
    for name, message in (
        (f"{tmp_path / 'a'},{tmp_path / 'a'}", "names two runs of the stage base,"),
        (f"{tmp_path / 'a'},{tmp_path}", "holds no exported stage"),
        (str(tmp_path / "new"), "has exported no stage yet"),
    ):
        assert sample(["a red circle", "--model", name, "--out", str(tmp_path / "x")]) == 2
        assert message in capsys.readouterr().err


def test_half_precision_and_shards(config, t5, tmp_path):
    train(config, tmp_path / "a", t5, **BASE)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run = str(tmp_path / "a")  # --text is the encoder of the training where it is not given
    assert main(["--base64", run, "--out", str(whole)]) == 0
    assert main(["--base64", run, "--out", str(halves), "--dtype", "fp16", "--max_shard_size", "20KB"]) == 0
    size = [sum(p.stat().st_size for p in folder.rglob("base_unet/*.safetensors")) for folder in (whole, halves)]
    assert size[1] < 0.7 * size[0]
    assert len(list(halves.glob("base_unet/*.safetensors"))) > 1
    one, two = ImagenPipeline.from_pretrained(whole), ImagenPipeline.from_pretrained(halves)
    for name, value in one.base_unet.state_dict().items():
        torch.testing.assert_close(two.base_unet.state_dict()[name].float(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no stage given"),
        (["--base64", "/nowhere"], "there is no folder '/nowhere': give the run_dir of a training"),
        (["--sr256", "{a}"], "holds the stage base: pass it as --base"),
        (["--base64", "{a}", "--text", "/nowhere"], "--text: no text encoder at '/nowhere'"),
        (["--base64", "{a}", "--sr256", "{b}"], "sr256 starts from 8 px but base makes 10 px"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, expected):
    for folder, name, size, lowres in (("a", "base64", 10, None), ("b", "sr256", 16, 8)):
        (tmp_path / folder).mkdir()
        stage = {"size": size, "lowres_size": lowres}
        record = {"format_version": 1, "name": name, "stage": stage, "text": {"encoder": None, "max_length": 8}}
        (tmp_path / folder / "stage.json").write_text(json.dumps(record))
    words = [word.format(a=tmp_path / "a", b=tmp_path / "b") for word in arguments]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compose: error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_newer_export_is_refused(tmp_path):
    (tmp_path / "stage.json").write_text('{"format_version": 99}')
    with pytest.raises(ValueError, match="stage.json has format_version 99, newer than the 5 this version"):
        read_run(tmp_path)


def test_the_encoder_s_width_must_fit(config, t5, tmp_path):
    with pytest.raises(ConfigError, match="unet.text_dim 32 differs from the encoder's width 16: set unet.text_dim 16"):
        train(config, tmp_path / "a", t5, **{**BASE, "unet.text_dim": 32})


def test_stages_whose_channels_do_not_meet_and_damaged_networks_are_refused(tmp_path):
    grey, rgb = tmp_path / "grey", tmp_path / "rgb"
    tiny_pipeline(base_unet=tiny_base(in_channels=1, out_channels=1)).save_pretrained(grey)
    tiny_pipeline().save_pretrained(rgb)
    with pytest.raises(ConfigError, match="sr256 starts from 3 channels but the stage before it makes 1"):
        compose({"base64": grey, "sr256": rgb}, text=str(rgb))
    path = rgb / "sr256_unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ConfigError, match="sr256_unet lacks 1 tensors of the network"):
        compose({"base64": rgb, "sr256": rgb})


def test_a_pipeline_is_not_replaced_by_one_with_fewer_stages_and_nothing_is_left_behind(tmp_path, capsys):
    whole, card = tmp_path / "whole", tmp_path / "card"
    tiny_pipeline().save_pretrained(whole)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert main(["--base64", str(whole), "--out", str(whole)]) == 2
    assert f"holds sr256_unet, which this pipeline lacks: add --sr256 {whole}" in capsys.readouterr().err
    card.write_text("a file")
    assert main(["--base64", str(whole), "--out", str(card)]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    card.unlink()
    assert main(["--base64", str(whole), "--out", str(tmp_path / "new"), "--max_shard_size", "foo"]) == 2
    assert "--max_shard_size 'foo' is no size" in capsys.readouterr().err
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    stages = [word for name in ("base64", "sr256", "sr1024") for word in (f"--{name}", str(whole))]
    assert main([*stages, "--out", str(whole)]) == 0
    (whole / "README.md").unlink()  # the card
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("there", ["config.yaml", "metrics.jsonl", "stage.json", "text_encoder/config.json",
                                   "base_unet/precious.txt"])  # fmt: skip
def test_a_folder_of_something_else_is_not_written_to(tmp_path, capsys, there):
    whole, out = tmp_path / "whole", tmp_path / "out"
    tiny_pipeline().save_pretrained(whole)
    (out / there).parent.mkdir(parents=True)
    (out / there).write_text("mine")
    stages = [word for name in ("base", "sr256", "sr1024") for word in (f"--{name}", str(whole))]
    assert main([*stages, "--out", str(out)]) == 2
    told = f"--out {str(out)!r} holds {there.partition('/')[0]}, and is no pipeline: give a folder of its own"
    assert capsys.readouterr().err == f"compose: error: {told}\n"
    assert [path.read_text() for path in out.rglob("*") if path.is_file()] == ["mine"]
    (out / there).rename(out / "notes.txt")
    shutil.rmtree((out / there).parent) if "/" in there else None
    assert main([*stages, "--out", str(out)]) == 0
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("index", "told"), [
    ('{"_class_name": "StableDiffusionPipeline"}', "holds base_unet, and is no pipeline"), ("[1", "cannot be read"),
])  # fmt: skip
def test_a_pipeline_of_another_kind_is_not_replaced(tmp_path, capsys, index, told):
    whole, out = tmp_path / "whole", tmp_path / "out"
    tiny_pipeline().save_pretrained(whole)
    (out / "base_unet").mkdir(parents=True)
    (out / "base_unet" / "precious.txt").write_text("mine")
    (out / "model_index.json").write_text(index)
    capsys.readouterr()
    stages = [word for name in ("base", "sr256", "sr1024") for word in (f"--{name}", str(whole))]
    assert main([*stages, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error
    assert (out / "base_unet" / "precious.txt").read_text() == "mine"


def stage_run(folder: Path, slot: str, conditions: dict[str, Any], **options: Any) -> Path:
    """A run of a stage without text as its export lies there."""
    sizes, unet = {"size": 16}, tiny_base(text_dim=None, **options)
    if slot != "base":
        sizes, unet = {"size": 32, "lowres_size": 16}, tiny_sr(text_dim=None, **options)
    defaults = StageDefaults(num_inference_steps=1, **sizes)
    rule = make_scheduler("ddim", CosineSchedule(), "sample")
    save_stage(folder / "model", slot, unet, rule, defaults=defaults, conditions=conditions)
    return folder


@pytest.mark.parametrize("reading", ["base", "sr256"])
def test_what_any_stage_stores_of_its_conditions_is_the_pipeline_s_and_stays_when_stages_are_exchanged(
    tmp_path, reading
):
    names = {"label": {"names": ["a leaf", "a stone", "a shell"]}}
    folders = {
        slot: stage_run(tmp_path / slot, slot, names if slot == reading else {}, **classes)
        for slot in ("base", "sr256")
        for classes in [{"classes": {"label": 3}} if slot == reading else {}]
    }
    pipe = compose(folders)
    assert pipe.config["conditions"] == names
    pipe.save_pretrained(tmp_path / "model")
    other = "sr256" if reading == "base" else "base"
    again = compose({reading: tmp_path / "model", other: folders[other]})
    assert again.config["conditions"] == names
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
    stone = draw(pipe, label="a stone").images
    assert torch.equal(draw(again, label="a stone").images, stone)
    assert torch.equal(draw(again, label=1).images, stone)
    assert not torch.equal(draw(again, label="a leaf").images, stone)


def test_stages_that_mean_other_things_by_a_condition_are_not_put_together(tmp_path):
    classes = {"classes": {"label": 2}}
    base = stage_run(tmp_path / "a", "base", {"label": {"names": ["a", "b"]}}, **classes)
    sr = stage_run(tmp_path / "b", "sr256", {"label": {"names": ["b", "a"]}}, **classes)
    with pytest.raises(ConfigError, match="sr256 was trained with label .*'b', 'a'.*, a stage before it with .*'a', "):
        compose({"base": base, "sr256": sr})


def test_a_learned_variance_is_exported_without_gamma(config):
    """A stage that learned its variance has no use for one between the two fixed ones; a scheduler refuses both."""
    for gamma in (0.0, 0.3):
        exported = stage_scheduler(config(**{"sampling.gamma": gamma, "unet.out_channels": 6})).config
        assert (exported.variance_type, exported.get("gamma", 0.0)) == ("learned_range", 0.0)


def test_gamma_is_the_exported_sampler_s(config):
    assert stage_scheduler(config(**{"sampling.gamma": 0.3})).config.gamma == 0.3
    with pytest.raises(ConfigError, match=r"sampling.gamma 0.3 must lie in \[0, 1\], and be 0 with another sampler"):
        config(**{"sampling.gamma": 0.3, "sampling.sampler": "ddim"})


def test_presets_are_stored_with_the_pipeline(tmp_path, capsys):
    run, out = stage_run(tmp_path / "a", "base", {}), tmp_path / "model"
    ways = tmp_path / "ways.yaml"
    command = ["--base", str(run), "--out", str(out)]
    assert main(command) == 0
    assert json.loads((out / "model_index.json").read_text())["presets"].keys() == {"quality", "balanced", "fast"}
    ways.write_text("quick: {base: {sampler: 'dpm++ (solver_order = 1)', num_inference_steps: 2}}")
    assert main([*command, "--presets", str(ways)]) == 0
    stored = {"quick": {"base": {"sampler": "dpm++(solver_order=1)", "num_inference_steps": 2}}}
    assert json.loads((out / "model_index.json").read_text())["presets"] == stored
    capsys.readouterr()
    for text, told in (("quick: {base: {step: 2}}", "--presets: preset 'quick' of base: unknown key 'step'"),
                       ("quick: [", "cannot be read: "), ("3", "presets is 3; expected settings by name")):  # fmt: skip
        ways.write_text(text)
        assert main([*command, "--presets", str(ways)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert main([*command, "--presets", str(tmp_path / "none.yaml")]) == 2
    assert json.loads((out / "model_index.json").read_text())["presets"] == stored, "what was there is untouched"


def test_the_demo_is_composed_with_the_presets_that_it_ships():
    root = Path(__file__).resolve().parents[3]
    ways = yaml.safe_load((root / "configs/shapes/presets.yaml").read_text())
    model = find_model(root / "pretrained/shapes")
    stages = {slot: stage.defaults for slot, stage in model.stages.items()}
    assert read_presets(ways, stages) == read_presets(model.presets, stages)
    assert ways["quality"] == {"base": {}, "sr256": {}, "sr1024": {}}
    made = {name: with_preset(name, stages, ways)["base"] for name in ways}
    assert made["quality"] == stages["base"]
    assert made["fast"].steps < made["balanced"].steps < made["quality"].steps
