"""Pictures for a suite, in batches: each prompt with its own seed and its own picture to start from."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen import ImagenPipeline
from imagen.evaluation import generate
from imagen.evaluation.generate import load, sample
from imagen.evaluation.suites import suite
from tests.factories import tiny_pipeline


def drawn(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_pictures_to_start_from_and_seeds_go_with_their_prompts_whatever_the_batches(
    batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny_pipeline(max_length=128)
    prompts, images = suite("heldout", 8)[3:], drawn(5)  # seeds from 3 on
    made = sample(pipe, prompts, 64, {"num_inference_steps": 1}, batch_size, images, label="enlarged")
    assert list(made) == [32, 64]
    assert "enlarged: 100%" in capsys.readouterr().err
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        generator = torch.Generator().manual_seed(prompt.seed)
        alone = pipe(prompt.text, image=image, generator=generator, num_inference_steps=1)
        for side, pictures in made.items():
            assert len(pictures) == 5
            difference = np.asarray(pictures[index], int) - np.asarray(alone.stages[side][0], int)
            assert np.abs(difference).max() <= 1  # another batch size, another rounding


def test_without_pictures_each_prompt_has_its_own_seed() -> None:
    pipe = tiny_pipeline(max_length=128)
    prompts = suite("heldout", 5)[1:]
    made = sample(pipe, prompts, 16, {"num_inference_steps": 1}, 3)[16]
    for prompt, picture in zip(prompts, made, strict=True):
        generator = torch.Generator().manual_seed(prompt.seed)
        alone = pipe(prompt.text, generator=generator, size=16, num_inference_steps=1).images[0]
        assert np.abs(np.asarray(picture, int) - np.asarray(alone, int)).max() <= 1


def test_a_setting_of_zero_is_asked_for_and_one_of_none_is_left_to_the_model() -> None:
    given: list[dict[str, Any]] = []

    def pipe(texts: list[str], **asked: Any) -> Any:
        given.append(asked)
        return SimpleNamespace(stages={16: drawn(len(texts))})

    settings = {"guidance_scale": 0.0, "aug_level": 0.0, "lowres_consistency": 0, "num_inference_steps": None}
    sample(pipe, suite("heldout", 3), 16, settings, 2)  # type: ignore[arg-type]
    assert len(given) == 2
    for asked in given:
        assert asked.items() >= {"guidance_scale": 0.0, "aug_level": 0.0, "lowres_consistency": 0, "size": 16}.items()
        assert asked.get("num_inference_steps") is None


def test_a_model_is_loaded_where_it_is_asked_for_and_shows_no_bars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipeline(max_length=128).save_pretrained(tmp_path)
    pipe = load(Namespace(model=str(tmp_path), device="cpu"))
    assert list(pipe.stage_defaults) == ["base", "sr256", "sr1024"]
    capsys.readouterr()
    pipe("a red circle", size=16, num_inference_steps=1)
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="^--device 'nowhere' is not there: "):
        load(Namespace(model="no model", device="nowhere"))
    monkeypatch.setattr(generate, "check_device", lambda name, device: device)
    moved: list[str] = []
    monkeypatch.setattr(ImagenPipeline, "to", lambda self, device: moved.append(str(device)))
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for device in (None, "meta"):
            load(Namespace(model=str(tmp_path), device=device))
    assert moved == ["cuda", "meta", "cpu", "meta"]


def test_a_bar_is_shown_where_it_has_a_name_and_something_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    def pipe(texts: list[str], **asked: Any) -> Any:
        sizes.append(len(texts))
        return SimpleNamespace(stages={16: drawn(len(texts))})

    sizes: list[int] = []
    prompts = suite("heldout", 3)
    for some, label, shown in ((prompts, None, ""), ([], "name", ""), (prompts, "name", "name: 100%")):
        made = sample(pipe, some, 16, {}, 1, label=label)  # type: ignore[arg-type]
        assert {side: len(pictures) for side, pictures in made.items()} == ({16: 3} if some else {})
        error = capsys.readouterr().err
        assert shown in error if shown else not error
    sample(pipe, suite("heldout", 9), 16, {})  # type: ignore[arg-type]
    assert sizes == [1] * 6 + [8, 1]
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {wrong}; expected at least 1"):
            sample(pipe, prompts, 16, {}, wrong)  # type: ignore[arg-type]


def test_a_sampler_is_one_for_all_stages_or_one_for_each_and_what_is_none_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = ArgumentParser()
    generate.add_sampling_arguments(parser, num=1, split="tune")
    for words, expected in (
        (["ddim"], "ddim"), (["ddim", "dpm++(solver_order=1)"], ["ddim", "dpm++(solver_order=1)"]),
    ):  # fmt: skip
        args = parser.parse_args(["--model", "m", "--sampler", *words])
        assert generate.sampling_settings(args) == {"sampler": expected}
    for words, told in (
        (["--sampler", "plms"], "sampler is 'plms'; expected one of ddpm"), (["--steps", "x"], "'x' is not understood"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            parser.parse_args(["--model", "m", *words])
        assert told in capsys.readouterr().err
