"""What a call of the pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput

from imagen.cascade.route import ByStage


@dataclass
class ImagenPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: the last stage's pictures: a list of PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), floats
            in [0, 1]; prompt by prompt, ``num_images_per_prompt`` of each.
        stages: the same for every stage that ran, by its side in pixels (the last of that side) or its slot.
    """

    images: Any
    stages: ByStage[Any]
