"""The watermark of released checkpoints lies where their own pipelines put it, on pictures of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.pipelines.deepfloyd_if import IFWatermarker
from PIL import Image

from tests.factories import sample, tiny_pipeline


def watermarker() -> IFWatermarker:
    """One whose mark is opaque noise, so that each of its pixels shows."""
    mark = torch.randint(0, 256, (62, 62, 4), generator=torch.Generator().manual_seed(0)).float()
    mark[..., 3] = 255
    made = IFWatermarker()
    made.watermark_image.copy_(mark)
    return made


@pytest.mark.parametrize("shape", [(64, 64), (128, 64), (64, 128)])
def test_it_is_the_checkpoints_own_at_every_stage(shape: tuple[int, int]) -> None:
    plain, marking = tiny_pipeline(), tiny_pipeline(watermarker=watermarker())
    given = {"prompt": "a red circle", "height": shape[0], "width": shape[1], "output_type": "pil"}
    clean, marked = sample(plain, **given).stages, sample(marking, **given).stages
    changed = {}
    for size, pictures in marked.items():
        copies = [picture.copy() for picture in clean[size]]
        if np.prod(copies[0].size) > 16 * 16:  # of 16 x 16 px the mark has no pixel
            copies = watermarker().apply_watermark(copies, min(copies[0].size))
        assert [np.asarray(a).tolist() for a in pictures] == [np.asarray(b).tolist() for b in copies]
        difference = np.abs(np.asarray(pictures[0], int) - np.asarray(clean[size][0], int)).max(axis=-1)
        changed[size] = np.argwhere(difference > 0)
    assert len(changed[16]) == (shape != (64, 64))
    side = int((shape[0] * shape[1]) ** 0.5 / 1024 * 62)  # K of the checkpoints' rule, of the picture as it is
    assert np.ptp(changed[64], axis=0).tolist() == [side - 1, side - 1]
    assert isinstance(marked[64][0], Image.Image)
