"""A converted cascade under other samplers, its presets, and sample.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from imagen import ImagenPipeline
from imagen.cascade.presets import IF_PRESETS
from imagen.cli.png import read_settings
from imagen.cli.sample import main
from imagen.diffusion.sampling import SAMPLERS
from tests.factories import Calls, sample, seeded

PROMPT = "a red circle"


def load(folder: Path) -> ImagenPipeline:
    pipe = ImagenPipeline.from_pretrained(folder, safety_checker=None, watermarker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_learned_variance_is_ddpms_alone(converted: Path, sampler: str) -> None:
    """For all other samplers the network's last three channels may say anything."""
    pipe = load(converted)
    before = sample(pipe, PROMPT, size=16, num_inference_steps=5, sampler=sampler).images
    with torch.no_grad():
        pipe.base_unet.conv_out.bias[3:] += 3
    after = sample(pipe, PROMPT, size=16, num_inference_steps=5, sampler=sampler).images
    assert torch.isfinite(before).all()
    assert torch.equal(before, after) is (sampler != "ddpm")


@pytest.mark.parametrize("name", IF_PRESETS)
def test_presets_run_the_steps_they_name(converted: Path, name: str) -> None:
    pipe = load(converted)
    with Calls(pipe.sr256_unet) as calls:
        assert torch.isfinite(sample(pipe, PROMPT, image=torch.zeros(1, 3, 16, 16), preset=name).images).all()
    assert len(calls.samples) == pipe.settings(preset=name)["sr256"].steps
    assert {tuple(call["aug_timestep"].tolist()) for call in calls.samples} == {(250.0, 250.0)}
    if name == "if":
        assert [float(call["timestep"][0]) for call in calls.samples][:3] == [999, 988, 977]


def test_an_unknown_preset_and_a_stage_beyond_it_are_named(converted: Path) -> None:
    from tests.factories import tiny_pipeline

    with pytest.raises(
        ValueError, match="preset 'best' is unknown; choose one of balanced, fast, quality, if, if-fast"
    ):
        load(converted)(PROMPT, preset="best")
    with pytest.raises(ValueError, match="says nothing of sr1024"):
        tiny_pipeline()(PROMPT, preset="if")


def test_the_command_line_knows_presets_lists_and_shapes(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["a red circle", "--model", str(converted), "--out", str(tmp_path), "--height", "16", "--width", "48"]
    assert main([*given, "--preset", "if-fast", "--steps", "16=2,32=super27", "--sampler", "ddim"]) == 0
    (file,) = tmp_path.glob("*.png")
    assert Image.open(file).size == (48, 16)
    settings = read_settings(file)
    assert settings["steps"] == {"16": 2, "32": "super27"}
    assert settings["guidance"] == {"16": 7.0, "32": 4.0}, "the preset's, where nothing else is asked for"
    assert settings["sampler"] == dict.fromkeys(("16", "32"), "ddim"), "the one asked for, not the preset's"
    assert "--preset if-fast" in settings["command"]
    assert "--height 16 --width 48" in settings["command"]
    for wrong, message in (
        (["--steps", "smart5"], "'smart5' is not understood"),
        (["--width", "50"], "width=50 is not a multiple of 4"),
        (["--height", "16", "--width", "16", "--preset", "fastest"], "preset 'fastest' is unknown"),
    ):
        capsys.readouterr()
        try:
            code = main([*given, *wrong])
        except SystemExit as error:
            code = int(error.code or 0)
        assert code == 2
        assert message in capsys.readouterr().err


def test_texts_encoded_first_give_the_same_pictures(converted: Path) -> None:
    prompts = ["a red circle", "two blue star"]
    nothing: dict[str, Any] = dict.fromkeys(("safety_checker", "watermarker", "feature_extractor"))
    later = {f"{slot}_{part}": None for slot in ("base", "sr256") for part in ("unet", "scheduler")}
    reader = ImagenPipeline.from_pretrained(converted, **nothing, **later).reader
    (text, mask), (null, null_mask) = reader.encode(prompts), reader.encode([""] * 2)
    alone = ImagenPipeline.from_pretrained(converted, **nothing, text_encoder=None, tokenizer=None)
    few: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt"}
    made = alone(
        prompt_embeds=text,
        prompt_mask=mask,
        negative_prompt_embeds=null,
        negative_prompt_mask=null_mask,
        generator=seeded(3),
        **few,
    ).images
    torch.testing.assert_close(made, load(converted)(prompts, generator=seeded(3), **few).images, atol=1e-5, rtol=0)
