"""A pipeline cast by ``to`` is the one that was loaded in that dtype, weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.stages.spec import StageDefaults
from tests.factories import (
    sample,
    save_stage,
    tiny_base,
    tiny_clip,
    tiny_clip_tokenizer,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_tokenizer,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
OUTPUT = "encoder.block.0.layer.1.DenseReluDense.wo.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


def weights(pipe: ImagenPipeline) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}/{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def expect_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert {name: value.dtype for name, value in one.items()} == {name: value.dtype for name, value in other.items()}
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("dtype", [F16, BF16, F32, torch.float64])
@pytest.mark.parametrize(
    "cast",
    [
        lambda pipe, dtype: pipe.to(dtype),
        lambda pipe, dtype: pipe.to("cpu", dtype),
        lambda pipe, dtype: pipe.to(device="cpu", dtype=dtype),
        lambda pipe, dtype: ImagenPipeline.from_pipe(pipe, dtype=dtype),
    ],
    ids=["dtype", "device and dtype", "by name", "from_pipe"],
)
def test_what_is_cast_is_what_is_loaded_in_that_dtype(saved: Path, cast: Any, dtype: torch.dtype) -> None:
    loaded = weights(ImagenPipeline.from_pretrained(saved, dtype=dtype))
    pipe = cast(ImagenPipeline.from_pretrained(saved), dtype)
    assert isinstance(pipe, ImagenPipeline)
    expect_same(weights(pipe), loaded)
    assert pipe.text_encoder.get_parameter(OUTPUT).dtype == (F32 if dtype == F16 else dtype)


def test_pictures_of_both_are_the_same_and_finite(saved: Path) -> None:
    cast, loaded = ImagenPipeline.from_pretrained(saved).to(F16), ImagenPipeline.from_pretrained(saved, dtype=F16)
    for pipe in (cast, loaded):
        pipe.set_progress_bar_config(disable=True)
    pictures = sample(cast, "a red circle").images
    assert torch.isfinite(pictures).all()
    assert torch.equal(pictures, sample(loaded, "a red circle").images)


def test_an_output_that_overflows_float16_does_not_in_a_cast_pipeline() -> None:
    """What ``wo`` is kept in float32 for: a weight that float16 has no number for."""
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.text_encoder.get_parameter(OUTPUT)[0, 0] = 1e5
    pipe.to(F16)
    assert pipe.text_encoder.get_parameter(OUTPUT)[0, 0] == 1e5
    assert torch.isfinite(sample(pipe, "a red circle").images).all()


def test_moving_alone_casts_nothing_and_a_clip_has_nothing_to_keep() -> None:
    pipe = tiny_pipeline(text_encoder=tiny_clip(), tokenizer=tiny_clip_tokenizer(), max_length=20)
    before = weights(pipe)
    expect_same(weights(pipe.to("cpu")), before)
    assert {value.dtype for value in weights(pipe.to(F16)).values()} == {F16}
    assert tiny_pipeline(text_encoder=None, tokenizer=None).to(F16).base_unet.dtype == F16


def test_runs_are_loaded_in_the_dtype_that_a_saved_pipeline_is(tmp_path: Path) -> None:
    tiny_text_encoder().save_pretrained(tmp_path / "t5")
    tiny_tokenizer().save_pretrained(tmp_path / "t5")
    scheduler = tiny_pipeline().base_scheduler
    save_stage(
        tmp_path / "run", "base", tiny_base(), scheduler, defaults=StageDefaults(size=16), encoder=str(tmp_path / "t5")
    )
    pipe = ImagenPipeline.from_pretrained(tmp_path / "run", dtype=F16)
    assert pipe.text_encoder.get_parameter(OUTPUT).dtype == F32
    pipe.save_pretrained(tmp_path / "composed")
    expect_same(weights(pipe), weights(ImagenPipeline.from_pretrained(tmp_path / "composed", dtype=F16)))


def test_dtypes_by_name_for_each_part(saved: Path) -> None:
    pipe = ImagenPipeline.from_pretrained(saved, dtype={"default": "bfloat16", "base_unet": "float32"})
    parts = (pipe.base_unet, pipe.sr256_unet, pipe.text_encoder)
    assert [part.dtype for part in parts] == [F32, BF16, BF16]
    with pytest.raises(ValueError, match="dtype is 'big'; expected float32"):
        ImagenPipeline.from_pretrained(saved, dtype={"default": "big"})
