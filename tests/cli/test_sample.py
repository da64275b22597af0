"""sample.py: files and their names, settings inside them, and one clear line for every bad input."""

from __future__ import annotations

import gc
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import imagen.cli.sample
from imagen import ImagenPipeline
from imagen.captions import captioned
from imagen.cli.png import free_stem, read_settings, slug
from imagen.cli.sample import main
from imagen.diffusion.vocabulary import SamplerKind
from tests.factories import tiny_base, tiny_pipeline, tiny_sr

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what is written --------------------------------------------------------------------------------------------------


def test_files_say_prompt_and_seed_and_nothing_is_overwritten(run, capsys):
    assert run("A red circle!", "--seed", "3") == 0
    assert names(run.out) == ["a-red-circle_seed3.png"]
    first = (run.out / "a-red-circle_seed3.png").read_bytes()
    assert run("a red circle", "--seed", "3", "--save-stages") == 0
    assert names(run.out) == [
        "a-red-circle_seed3.png",
        "a-red-circle_seed3_2.png",
        "a-red-circle_seed3_2_16px.png",
        "a-red-circle_seed3_2_32px.png",
    ]
    assert (run.out / "a-red-circle_seed3.png").read_bytes() == first
    assert Image.open(run.out / "a-red-circle_seed3_2_16px.png").size == (16, 16)
    assert capsys.readouterr().out.count(".png\n") == 4


def test_prompts_from_arguments_and_file_with_seeds_in_a_row(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ntwo blue star\n  a small circle  \n\n", encoding="utf-8")
    assert run("a red circle", "--prompts", str(tmp_path / "prompts.txt"), "--num-images", "2", "--grid") == 0
    assert names(run.out) == [
        "a-red-circle_seed0.png",
        "a-red-circle_seed1.png",
        "a-small-circle_seed4.png",
        "a-small-circle_seed5.png",
        "grid_seed0.png",
        "two-blue-star_seed2.png",
        "two-blue-star_seed3.png",
    ]
    grid = Image.open(run.out / "grid_seed0.png")
    cell = np.asarray(captioned(Image.open(run.out / "a-small-circle_seed5.png"), "a small circle"))
    height, width, _ = cell.shape
    assert width == 128
    assert grid.size == (2 * 132 + 4, 3 * (height + 4) + 4)
    assert np.array_equal(np.asarray(grid)[2 * (height + 4) + 4 : -4, 136:264], cell)


def test_the_command_inside_a_picture_makes_it_again(run):
    options = ["--steps", "3,2,1", "--guidance", "64=2", "--aug-level", "0.3", "--sampler", "dpm++", "--seed", "7"]
    options += ["--lowres-consistency", "32=2"]
    options += ["--negative-prompt", "two \u201cgreen\u201d star", "--batch-size", "2"]
    assert run("a red circle", "two blue star", *options) == 0
    path = run.out / "two-blue-star_seed8.png"
    settings = read_settings(path)
    assert settings["prompt"] == "two blue star"
    assert settings["negative_prompt"] == "two \u201cgreen\u201d star"
    assert settings["seed"] == 8
    assert settings["steps"] == {"16": 3, "32": 2, "64": 1}
    assert settings["guidance"] == {"16": 3.0, "32": 3.0, "64": 2.0}
    assert settings["aug_level"] == {"32": 0.3, "64": 0.3}
    assert settings["lowres_consistency"] == {"32": 2, "64": 0}
    assert settings["sampler"]["64"] == "dpm++"
    assert Image.open(path).text["Description"] == "two blue star"
    words = shlex.split(settings["command"])
    assert words[:2] == ["python", "sample.py"]
    assert run(*words[2:], model=None) == 0
    again = np.asarray(Image.open(run.out / "two-blue-star_seed8_2.png"), dtype=int)
    assert np.abs(again - np.asarray(Image.open(path), dtype=int)).max() <= 1  # another batch size, another rounding


def test_start_from_a_picture_and_stop_at_a_size(run, tmp_path):
    Image.new("RGB", (40, 30), (200, 20, 20)).save(tmp_path / "start.png")
    assert run("a red circle", "--image", str(tmp_path / "start.png"), "--size", "32", "--save-stages") == 0
    assert names(run.out) == ["a-red-circle_seed0.png"]
    settings = read_settings(run.out / "a-red-circle_seed0.png")
    assert settings["size"] == 32
    assert list(settings["steps"]) == ["32"]
    assert settings["image"] == str(tmp_path / "start.png")


def test_models_without_text(run, tmp_path):
    parts = {"tokenizer": None, "text_encoder": None, "sr1024_unet": None, "sr1024_scheduler": None}
    pipe = tiny_pipeline(base_unet=tiny_base(text_dim=None), sr256_unet=tiny_sr(text_dim=None), **parts)
    pipe.save_pretrained(tmp_path / "plain")
    plain = str(tmp_path / "plain")
    assert run("--num-images", "3", "--batch-size", "2", model=plain) == 0
    assert names(run.out) == [f"unconditional_seed{seed}.png" for seed in range(3)]
    Image.new("RGB", (16, 16)).save(tmp_path / "scan.png")
    assert run("--image", str(tmp_path / "scan.png"), model=plain) == 0
    assert "scan_seed0.png" in names(run.out)


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError("disk full"), 1)])
def test_what_was_finished_survives_what_comes_later(run, monkeypatch, capsys, error, code):
    original, calls = ImagenPipeline.__call__, []

    def second_fails(self, *args, **kwargs):
        calls.append(kwargs["prompt"])
        if len(calls) == 2:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ImagenPipeline, "__call__", second_fails)
    assert run("a red circle", "two blue star", "--batch-size", "1") == code
    assert names(run.out) == ["a-red-circle_seed0.png"]
    Image.open(run.out / "a-red-circle_seed0.png").load()
    assert "what was finished is in" in capsys.readouterr().err


def test_earlier_stages_are_written_before_the_last_one_runs(run, monkeypatch):
    original = ImagenPipeline.__call__

    def stops_at_the_last(self, *args, callback_on_stage_end, **kwargs):
        def then_stop(pipe, size, images):
            callback_on_stage_end(pipe, size, images)
            if size == 32:
                raise KeyboardInterrupt

        return original(self, *args, callback_on_stage_end=then_stop, **kwargs)

    monkeypatch.setattr(ImagenPipeline, "__call__", stops_at_the_last)
    assert run("a red circle", "--save-stages") == 130
    assert names(run.out) == ["a-red-circle_seed0_16px.png", "a-red-circle_seed0_32px.png"]


def test_a_picture_half_written_leaves_no_file(tmp_path, monkeypatch):
    from imagen.cli.png import write_png

    def broken(self, path, **_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        write_png(Image.new("RGB", (2, 2)), tmp_path, "a", {})
    assert names(tmp_path) == []


def test_slug_and_stem(tmp_path):
    assert slug("Three yellow STARS, on a navy background.") == "three-yellow-stars-on-a-navy-background"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("!!") == "picture"
    assert len(slug("word " * 100)) <= 60
    assert len(slug("x" * 300)) == 60
    assert slug("ein rotes Häuschen 紅") == "ein-rotes-häuschen-紅"
    (tmp_path / "a_32px.png").touch()
    (tmp_path / "a_2.png").touch()
    assert free_stem(tmp_path, "a", ["", "_32px"]) == "a_3"
    assert free_stem(tmp_path, "a", [""]) == "a"


def test_the_samplers_offered_are_those_there_are():
    from imagen.diffusion.sampling import SAMPLERS

    assert get_args(SamplerKind) == tuple(SAMPLERS)


# --- bad input --------------------------------------------------------------------------------------------------------

BAD = [
    ([], "no prompt: write one in quotes"),
    (["  "], "prompt 1 is empty"),
    (["a", "--prompts", "{tmp}/none.txt"], "none.txt' cannot be read: No such file"),
    (["--prompts", "{tmp}/empty.txt"], "empty.txt' holds no prompt"),
    (["--prompts", "{tmp}/binary.txt"], "is not UTF-8 text"),
    (["a", "--size", "48"], "size=48: this model makes 16, 32, 64 px"),
    (["a", "--size", "0"], "--size is 0"),
    (["a", "--steps", "0"], "--steps is 0"),
    (["a", "--steps", "2000"], "--steps of base is 2000; expected an integer from 1 to 1000"),
    (["a", "--steps", "many"], "'many' is not understood; write 50"),
    (["a", "--steps", "5,5"], "--steps has 2 values; expected one, or 3 (for 16, 32, 64 px)"),
    (["a", "--steps", "128=5"], "--steps names stage 128; this model has 16, 32, 64"),
    (["a", "--guidance", "nan"], "--guidance is nan"),
    (["a", "--guidance", "5,nan,5"], "--guidance is nan"),
    (["a", "--guidance", "64=inf"], "--guidance is inf"),
    (["a", "--aug-level", "1.5"], "--aug-level is 1.5"),
    (["a", "--aug-level", "0.1", "--size", "16"], "has no effect: no super-resolution stage runs"),
    (["a", "--lowres-consistency", "-1"], "--lowres-consistency is -1"),
    (["a", "--lowres-consistency", "4", "--size", "16"], "has no effect: no super-resolution stage runs"),
    (["a", "--seed", "-1"], "--seed is -1"),
    (["a", "--num-images", "0"], "--num-images is 0"),
    (["a", "--batch-size", "0"], "--batch-size is 0"),
    (["a", "--image", "{tmp}/none.png"], "none.png' cannot be read as a picture: No such file"),
    (["a", "--image", "{tmp}/empty.txt"], "empty.txt' cannot be read as a picture"),
    (["a red circle " * 20], "has 61 tokens and this model reads 32; shorten it"),
    (["a", "--negative-prompt", "a red circle " * 20], "has 61 tokens and this model reads 32"),
    (["a", "--sampler", "plms"], "--sampler: sampler is 'plms'; expected one of ddpm"),
    (["a", "--offload", "--device", "cpu"], "--offload has no effect"),
    (["a", "--lora", "{tmp}"], "holds no adapter"),
    (["a", "--lora", "sr9={tmp}"], "--lora STAGE is 'sr9'"),
    (["a", "--lora", "sr256={tmp}/a=b"], "a=b' holds no adapter"),
    (["a", "--label", "3"], "label is given but no stage that runs was trained with one; leave it out"),
    (["a", "--device", "tpu9"], "--device 'tpu9' is not there"),
    (["a", "--out", "{tmp}/empty.txt"], "empty.txt' cannot be made"),
    (["a", "--bogus"], "unrecognized arguments: --bogus"),
    (["a", "--stpes", "3"], "unrecognized arguments: --stpes 3; did you mean --steps?"),
    (["a", "--steps", "smart99"], "one of the lists fast27, smart27"),
]


@pytest.mark.parametrize(("argv", "message"), BAD)
def test_bad_input_gets_one_line_and_code_2(run, capsys, tmp_path, argv, message):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert run(*(word.replace("{tmp}", str(tmp_path)) for word in argv)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("sample.py: error: ")
    assert message in error[0]


BROKEN = [
    ("nothing", "no such folder"),
    ("empty", "holds no model_index.json"),
    ("not-json", "model_index.json cannot be read"),
    ("other", "holds a FluxPipeline, not an ImagenPipeline"),
    ("newer", "format_version 99, newer than"),
    ("no-unet", "base_unet is listed but base_unet/ is missing"),
    ("no-weights", "base_unet/ holds no *.safetensors"),
    ("bad-weights", "cannot be loaded"),
    ("no-stage", "size=64: this model makes 16, 32 px"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_broken_model_gets_one_line_and_code_2(run, capsys, tmp_path, model, damage, message):
    import shutil

    folder = tmp_path / "broken"
    if damage == "empty":
        folder.mkdir()
    elif damage != "nothing":
        shutil.copytree(model, folder)
        index = json.loads((folder / "model_index.json").read_text())
        weights = folder / "base_unet" / "diffusion_pytorch_model.safetensors"
        if damage == "other":
            index = {"_class_name": "FluxPipeline", "base_unet": index["base_unet"]}
        elif damage == "newer":
            index["format_version"] = 99
        elif damage == "no-unet":
            shutil.rmtree(folder / "base_unet")
        elif damage == "no-weights":
            weights.unlink()
        elif damage == "bad-weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        elif damage == "no-stage":
            index["sr1024_unet"] = index["sr1024_scheduler"] = [None, None]
        (folder / "model_index.json").write_text("{" if damage == "not-json" else json.dumps(index))
    assert run("a red circle", "--size", "64", model=str(folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert message in error[0]
    assert not run.out.exists() or names(run.out) == []


def test_errors_and_help_come_before_torch():
    program = (
        "import sys\nfrom imagen.cli.sample import main\ncodes = []\n"
        "for argv in (['--help'], ['a', '--steps', '0'], ['a', '--model', '/nothing/here/at/all'], []):\n"
        "    try: codes.append(main(argv))\n"
        "    except SystemExit as error: codes.append(error.code)\n"
        "print(codes, [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1].startswith("[0, 2, "), done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" []"), done.stdout
    assert "--save-stages" in done.stdout


def test_a_command_keeps_its_model_and_its_memory(run, monkeypatch):
    told, load, before = [], imagen.cli.sample.load, gc.get_freeze_count()
    monkeypatch.setattr(imagen.cli.sample, "load", lambda *given: told.append(gc.isenabled()) or load(*given))
    monkeypatch.setattr(imagen.cli.sample, "reuse_freed_memory", lambda: told.append("reused"))
    assert run("a red circle") == 0
    assert (told, gc.isenabled()) == ([False, "reused"], True)
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_a_run_imports_nothing_that_only_others_need(model, tmp_path):
    program = "import sys\nfrom imagen.cli.sample import main\nassert main(sys.argv[1:]) == 0\nprint(*sys.modules)"
    words = [sys.executable, "-c", program, "a red circle", "--model", model, "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    loaded = done.stdout.splitlines()[-1].split()
    assert {"torch", "imagen.pipeline"} <= set(loaded), done.stdout + done.stderr
    others = [f"imagen.{part}" for part in ("captions", "cascade.training", "convert", "evaluation", "training")]
    others += ["cv2", "datasets", "jsonargparse", "matplotlib", "pandas", "pyarrow", "tensorboard", "torchmetrics"]
    assert [name for name in loaded if f"{name}.".startswith(tuple(f"{other}." for other in others))] == []


def test_a_picture_needs_no_prompt_where_the_stages_after_it_read_none(tmp_path, capsys):
    folder, start = tmp_path / "model", tmp_path / "start.png"
    tiny_pipeline(sr256_unet=tiny_sr(text_dim=None), sr1024_unet=tiny_sr(3, text_dim=None)).save_pretrained(folder)
    Image.new("RGB", (16, 16)).save(start)
    common = ["--model", str(folder), "--image", str(start), "--out", str(tmp_path / "out")]
    assert main(common) == 0
    assert len(names(tmp_path / "out")) == 1
    assert main(["a red circle", *common]) == 2
    assert "reads no text in sr256: leave the prompt out" in capsys.readouterr().err


def test_steps_that_a_sampler_cannot_take_are_told_before_anything_runs(run, capsys):
    assert run("a red circle", "--sampler", "unipc", "--steps", "2,smart27,2") == 2
    error = capsys.readouterr().err
    assert "stage sr256: UniPCMultistepScheduler takes no list of timesteps" in error
    assert "Traceback" not in error
    assert not run.out.exists() or not names(run.out)


def test_a_picture_of_another_shape_enters_where_the_pipeline_says(run, tmp_path):
    Image.new("RGB", (40, 40), (200, 20, 20)).save(tmp_path / "start.png")
    shape = ["--image", str(tmp_path / "start.png"), "--height", "64", "--width", "32"]
    assert run("a red circle", *shape, "--steps", "1") == 0
    assert run("a red circle", *shape, "--steps", "1,1") == 2
