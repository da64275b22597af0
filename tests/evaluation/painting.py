"""In place of a trained cascade: pictures that show what their prompts say, and a record of how they were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from imagen.evaluation.alignment import truth_pictures
from imagen.evaluation.suites import Prompt
from imagen.stages.spec import StageDefaults


class Perfect:
    """A pipeline that paints the renderer's picture of what it was trained to know: prompt -> picture of each stage."""

    device = torch.device("cpu")

    def __init__(self, prompts: Sequence[Prompt], sizes: Sequence[int] = (64, 256)) -> None:
        self.prompts = {prompt.text: prompt for prompt in prompts}
        self.sizes = sizes
        self.calls: list[dict[str, Any]] = []
        slots = zip(("base", "sr256", "sr1024"), sizes, (None, *sizes), strict=False)
        self.stage_defaults = {
            slot: StageDefaults(size=size, lowres_size=low, num_inference_steps=size // 10, guidance_scale=size / 100)
            for slot, size, low in slots
        }

    def settings(self, image: Any = None, size: int | None = None, **given: Any) -> None:
        """Nothing to say of any call."""

    def __call__(self, texts: list[str], **given: Any) -> Any:
        self.calls.append({"texts": texts, **given})
        prompts = [self.prompts[text] for text in texts]
        from_ = given["image"][0].width if given.get("image") else 0
        sides = [side for side in self.sizes if from_ < side <= given["size"]]
        return SimpleNamespace(stages={side: truth_pictures(prompts, side) for side in sides})
