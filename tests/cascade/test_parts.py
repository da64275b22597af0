"""The parts of a saved pipeline that are loaded here get what diffusers gives to those that it loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imagen import ImagenPipeline
from tests.factories import tiny_pipeline


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(sr256_unet=None, sr1024_unet=None).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"default": torch.bfloat16}, [torch.bfloat16, torch.bfloat16]),
        ({"default": torch.bfloat16, "text_encoder": torch.float32}, [torch.float32, torch.bfloat16]),
        ({"text_encoder": torch.bfloat16}, [torch.bfloat16, torch.float32]),
    ],
)
def test_a_dtype_for_each_part_and_a_default(
    saved: Path, asked: dict[str, torch.dtype], expected: list[torch.dtype]
) -> None:
    pipe = ImagenPipeline.from_pretrained(saved, dtype=asked)
    assert [pipe.text_encoder.dtype, pipe.base_unet.dtype] == expected
