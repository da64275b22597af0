"""Every option of sample.py reaches the call, and the settings and the command inside the picture say it."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import ImagenPipeline
from imagen.cli.png import read_settings
from imagen.cli.sample import parser
from imagen.conditions.options import OPTIONS
from imagen.stages.spec import OF_CALLS
from tests.factories import save_adapters

WORDS = [
    *("--negative-prompt", "a green star", "--size", "64", "--height", "64", "--width", "32"),
    *("--steps", "32=2,64=1", "--guidance", "2.5", "--aug-level", "32=0.3,64=0.2", "--lowres-consistency", "2,4"),
    *("--sampler", "ddim", "--batch-size", "2", "--num-images", "2", "--seed", "5", "--dtype", "bfloat16"),
    *("--device", "cpu", "--save-stages", "--grid", "--guidance-method", "interval(low=-3, high=5)"),
]
CALL = {  # argument of the call -> its value
    "negative_prompt": "a green star",
    "num_inference_steps": {32: 2, 64: 1},
    "guidance_scale": 2.5,
    "guidance": "interval(low=-3, high=5)+cfg",
    "aug_level": {32: 0.3, 64: 0.2},
    "lowres_consistency": [2, 4],
    "size": 64,
    "height": 64,
    "width": 32,
    "num_images_per_prompt": 1,
}
SETTINGS = {  # of the picture that is written
    "negative_prompt": "a green star",
    "size": 64,
    "height": 64,
    "width": 32,
    "steps": {"32": 2, "64": 1},
    "guidance": {"32": 2.5, "64": 2.5},
    "guidance_method": dict.fromkeys(("32", "64"), "interval(low=-3, high=5)+cfg"),
    "aug_level": {"32": 0.3, "64": 0.2},
    "lowres_consistency": {"32": 2, "64": 4},
    "sampler": {"32": "ddim", "64": "ddim"},
    "dtype": "bfloat16",
    "device": "cpu",
    "preset": None,
    "lora": [],
}
ELSEWHERE = {
    "help",
    "prompt",
    "prompts",
    "model",
    "text",
    "out",
    "image",
    "preset",
    "offload",
    "lora",
    "compile",
    "best_of",
    "rerank",
} | set(OPTIONS)


def test_every_option_has_a_value_here() -> None:
    named = {action.option_strings[-1]: action.dest for action in parser()._actions if action.option_strings}
    assert {named[word] for word in WORDS if word.startswith("--")} | ELSEWHERE == {*named.values(), "prompt"}


def test_every_option_reaches_the_call_and_the_picture(run: Any, tmp_path: Any, monkeypatch: Any) -> None:
    original, calls = ImagenPipeline.__call__, []

    def spy(self: ImagenPipeline, *args: Any, **given: Any) -> Any:
        calls.append({**given, "dtype": self.base_unet.dtype, "seeds": [g.initial_seed() for g in given["generator"]]})
        return original(self, *args, **given)

    monkeypatch.setattr(ImagenPipeline, "__call__", spy)
    start = tmp_path / "start.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)).save(start)
    assert run("a red circle", "two blue star", "--image", str(start), *WORDS) == 0
    assert [call["prompt"] for call in calls] == [["a red circle"] * 2, ["two blue star"] * 2]
    assert [call["seeds"] for call in calls] == [[5, 6], [7, 8]]
    for call in calls:
        assert {name: call[name] for name in CALL} == CALL
        assert call["dtype"] == torch.bfloat16
        assert np.array_equal(np.asarray(call["image"]), np.asarray(Image.open(start)))
    picture = run.out / "two-blue-star_seed8.png"
    assert Image.open(picture).size == (32, 64)
    assert Image.open(run.out / "two-blue-star_seed8_32px.png").size == (16, 32)
    assert (run.out / "grid_seed5.png").is_file()
    settings = read_settings(picture)
    assert {name: settings[name] for name in SETTINGS} == SETTINGS
    assert settings["versions"] == {name: version(name) for name in ("torch", "diffusers", "transformers")}
    assert (settings["prompt"], settings["seed"], settings["image"]) == ("two blue star", 8, str(start))

    again = parser().parse_args(shlex.split(settings["command"])[2:])
    asked: dict[str, Any] = {"num_inference_steps": {32: 2, 64: 1}, "guidance_scale": {32: 2.5, 64: 2.5}}
    asked |= {"aug_level": {32: 0.3, 64: 0.2}}
    asked |= {"guidance": dict.fromkeys((32, 64), "interval(low=-3, high=5)+cfg")}
    asked |= {
        "lowres_consistency": {32: 2, 64: 4},
        "sampler": {32: "ddim", 64: "ddim"},
        "dtype": "bfloat16",
        "image": str(start),
    }
    asked |= {"negative_prompt": "a green star", "size": 64, "height": 64, "width": 32, "seed": 8}
    assert {name: getattr(again, name) for name in asked} == asked
    assert again.prompt == ["two blue star"]


def test_the_command_inside_names_preset_and_adapters(run: Any) -> None:
    from imagen.cli.record import Picture, command, recorded

    words = ["a red circle", "--model", "m", "--preset", "if-fast", "--lora", "a", "--lora", "sr256=b"]
    args = parser().parse_args(words)
    empty: dict[str, Any] = {recorded(flag): {} for flag in OF_CALLS.values()} | {"size": 64}
    again = parser().parse_args(shlex.split(command(args, Picture("a red circle", 3), empty))[2:])
    assert (again.preset, again.lora, again.model, again.seed) == ("if-fast", ["a", "sr256=b"], "m", 3)


def test_compile_and_auto_reach_the_pipeline_and_the_picture_says_what_they_came_to(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(ImagenPipeline, "compile", lambda pipe: compiled.append(pipe.base_unet.dtype))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    words = ["--size", "16", "--steps", "1", "--device", "cpu"]
    assert run("a red circle", *words, "--compile", "--dtype", "auto") == 0
    assert compiled == [torch.bfloat16]
    settings = read_settings(run.out / "a-red-circle_seed0.png")
    assert (settings["dtype"], settings["compile"]) == ("bfloat16", True)
    again = parser().parse_args(shlex.split(settings["command"])[2:])
    assert (again.dtype, again.compile) == ("bfloat16", True)
    assert run("a red circle", *words) == 0
    assert len(compiled) == 1, "on request alone"
    asked: list[str] = []
    monkeypatch.setattr("imagen.cascade.parts.fast_dtype", lambda device: asked.append(device) or torch.float32)
    assert run("a red circle", *words, "--dtype", "auto") == 0
    assert asked == ["cpu"], "of the device that is to compute, not of one that is there"
    settings = read_settings(run.out / "a-red-circle_seed0_2.png")
    assert (settings["dtype"], settings["compile"], "--compile" in settings["command"]) == ("float32", False, False)


def test_compile_without_a_compiler_is_one_line(run: Any, capsys: Any) -> None:
    import torch._inductor.config as inductor

    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert run("a red circle", "--device", "cpu", "--compile") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sample.py: error: compile: no C++ compiler is here")


def test_each_stage_gets_its_adapter(run: Any, tmp_path: Path) -> None:
    save_adapters(tmp_path)
    adapters = {"base": str(tmp_path / "base"), "sr256": f"sr256={tmp_path / 'sr256'}"}
    made = {}
    for chosen in ((), ("base",), ("sr256",), ("base", "sr256"), ("sr256", "base")):
        words = [word for name in chosen for word in ("--lora", adapters[name])]
        out = tmp_path / "-".join(("made", *chosen))
        settings = ["--size", "32", "--steps", "1", "--device", "cpu", "--save-stages", "--out", str(out)]
        assert run("a red circle", *settings, *words) == 0
        small, large = sorted((Image.open(path) for path in out.glob("*.png")), key=lambda picture: picture.width)
        made[chosen] = {"base": small.tobytes(), "sr256": large.tobytes()}
    plain, base, sr, both, turned = made.values()
    assert both == turned, "in any order"
    assert base["base"] != plain["base"] == sr["base"]
    assert both["base"] == base["base"]
    assert len({one["sr256"] for one in (plain, base, sr, both)}) == 4


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("--steps", "5", 5),
        ("--steps", " 5 , smart27,7", [5, "smart27", 7]),
        ("--steps", "64=5, base=smart27", {64: 5, "base": "smart27"}),
        ("--guidance", "2", 2.0),
        ("--guidance", "2,3.5", [2.0, 3.5]),
        ("--guidance", "256=0", {256: 0.0}),
        ("--lowres-consistency", "1,2", [1, 2]),
        ("--guidance-method", "interval(low=-1, high=3)", "interval(low=-1, high=3)+cfg"),
        ("--guidance-method", "interval(low=-1, high=3),cfg", ["interval(low=-1, high=3)+cfg", "cfg"]),
        ("--guidance-method", "64=rescaled(phi=0.5),sr256=cfg", {64: "rescaled(phi=0.5)+cfg", "sr256": "cfg"}),
    ],
)
def test_values_are_one_for_all_one_for_each_or_named(flag: str, text: str, expected: Any) -> None:
    read = vars(parser().parse_args([flag, text]))
    (value,) = (read[name] for name, option in OF_CALLS.items() if option == flag)
    assert repr(value) == repr(expected), "numbers of their kind, too"


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        *[("--steps", text) for text in ("64=5,3", "3,64=5", "5,", "64=", "", "64:5", "5.0")],
        *[("--lowres-consistency", "1.5"), ("--guidance", "64:5")],
    ],
)
def test_values_that_are_neither_are_told(flag: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([flag, text])
    assert f"argument {flag}: {text!r} is not understood; write " in capsys.readouterr().err
