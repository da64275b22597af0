"""The shipped demo: it fits its budget, loads, and draws what prompts say that no training stage has seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imagen import ImagenPipeline
from imagen.data.shapes.language import is_heldout, parse
from imagen.evaluation.judge import check

MODEL = Path(__file__).resolve().parents[1] / "pretrained" / "shapes"
README_PROMPT = "three yellow stars on a navy background"
HELDOUT = ["a large green heart", "a purple circle on a cream background", "a small red hexagon", "a pink triangle"]


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    loaded = ImagenPipeline.from_pretrained(MODEL)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_it_fits_its_budget():
    sizes = {path.relative_to(MODEL): path.stat().st_size for path in MODEL.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 36e6, sizes
    assert max(sizes.values()) <= 15e6, sizes
    assert not [path for path in sizes if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")], "safetensors only"


def test_it_has_every_stage(pipe):
    assert [stage.size for stage in pipe.stage_defaults.values()] == [64, 256, 1024]


@pytest.fixture(scope="module")
def readme_out(pipe):
    return pipe([README_PROMPT], generator=torch.Generator().manual_seed(0))


def test_the_prompt_of_the_readme_passes_every_stage(readme_out):
    sizes = {side: picture[0].size for side, picture in readme_out.stages.items()}
    assert sizes == {side: (side, side) for side in (64, 256, 1024)}


def test_it_draws_the_prompt_of_the_readme_at_1024(readme_out):
    verdict = check(readme_out.images[0], parse(README_PROMPT))
    assert verdict.ok, (verdict.facts, verdict.detection)


def test_it_draws_combinations_that_no_stage_was_trained_on(pipe):
    assert all(is_heldout(parse(prompt)) for prompt in HELDOUT)
    out = pipe(HELDOUT, generator=torch.Generator().manual_seed(0), size=256)
    verdicts = {prompt: check(picture, parse(prompt)) for prompt, picture in zip(HELDOUT, out.images, strict=True)}
    right = [prompt for prompt, verdict in verdicts.items() if verdict.ok]
    assert len(right) >= len(HELDOUT) - 1, {prompt: verdict.facts for prompt, verdict in verdicts.items()}
