"""The grids drawn while training: the same prompts and noise every time, in few DDIM steps.

`step-N.png` shows the stage alone, `step-N-cascade.png` where `grid.cascade` is set the whole cascade with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from imagen.cascade.variance import learns_variance
from imagen.conditions.text import cat_text
from imagen.data import NothingUsable, StreamDataset, collate
from imagen.diffusion.augmentation import augment_lowres, resize
from imagen.diffusion.consistency import match_lowres
from imagen.diffusion.denoiser import make_x0_fn
from imagen.diffusion.guidance import Branch
from imagen.diffusion.levels import level_log_snrs
from imagen.diffusion.sampling import make_scheduler, sample_loop
from imagen.diffusion.schedules import timestep_from_t
from imagen.diffusion.thresholding import Thresholding
from imagen.training.batches import Texts, Words, lowres_of
from imagen.training.cascade_grid import CascadeGrid
from imagen.training.config import RunConfig
from imagen.training.ema import EMA
from imagen.training.loader import make_source
from imagen.training.objective import Objective
from imagen.training.randomness import draw_noise

GAP = 2  # pixels between pictures


def held_out(config: RunConfig) -> list[Any]:
    """grid.count samples: ones that training does not see of the shapes world, the first ones of stored pictures."""
    source = make_source(config, seed=config.train.seed + 1)
    if isinstance(source, StreamDataset):
        found = source.head(config.grid.count)
        if not found:
            raise NothingUsable(f"none of the pictures of data.path {config.data.path!r} can be used")
        return found
    return [source[index] for index in range(config.grid.count)]


class GridMaker:
    """Draws grids: a row of samples for a base stage; rows of input, samples and truth for super-resolution.

    With grid.raw, the samples of the weights as they are follow those of the average. A cascade has a row per stage.
    """

    def __init__(self, config: RunConfig, objective: Objective, texts: Texts, device: torch.device) -> None:
        self.config, self.objective, self.texts, self.device = config, objective, texts, device
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[config.train.dtype]
        self.scheduler = make_scheduler("ddim", objective.schedule, config.stage.prediction_type)
        self._held: list[Any] | None = None
        grid = config.grid
        self.cascade = CascadeGrid(config, self.scheduler, device) if grid.every and grid.cascade else None

    def _held_out(self) -> list[Any]:
        if self._held is None:
            self._held = held_out(self.config)
        return self._held

    @torch.no_grad()
    def write(self, unet: Any, ema: EMA, path: Path) -> None:
        """Sample with the average, and with grid.raw the weights, of `unet`; write PNGs that name their rows."""
        training = unet.training
        unet.eval()
        words, lowres, truth = self._given()
        alone: dict[str, Tensor] = {}
        through: dict[str, Tensor] = {}
        for name in ("ema", "raw") if self.config.grid.raw else ("ema",):
            with ema.swapped_in(unet) if name == "ema" else nullcontext():
                alone[name] = self.sample(unet, words, lowres)
                through.update(self._through_cascade(unet, name))
        unet.train(training)
        if lowres is not None and truth is not None:
            alone = {"input": resize(lowres, truth.shape[-1], "nearest"), **alone, "truth": truth}
        save_grid(path, words.captions, alone)
        if through:
            save_grid(path.with_stem(f"{path.stem}-cascade"), self._words().captions, through)

    def _words(self) -> Words:
        """grid.prompts, or without any the texts of held-out pictures."""
        prompts = list(self.config.grid.prompts)
        return Words(prompts) if prompts else Words.of(collate(self._held_out()))

    def _given(self) -> tuple[Words, Tensor | None, Tensor | None]:
        """Texts, and for super-resolution the inputs (B, C, h, w) and true pictures (B, C, H, W)."""
        if self.config.stage.lowres_size is None:
            return self._words(), None, None
        held = collate(self._held_out())
        truth, given = held["image"].to(self.device, self.dtype), lowres_of(held)
        return Words.of(held), self.objective.make_lowres(truth) if given is None else given.to(truth), truth

    def sample(self, unet: Any, words: Words, lowres: Tensor | None) -> Tensor:
        """(B, C, H, W) in [-1, 1] with `unet` as it is, grid.batch_size pictures at once."""
        side, size = self.config.data.crop or self.config.stage.size, self.config.grid.batch_size
        parts = []
        for first in range(0, len(words), size):
            rows = range(first, min(first + size, len(words)))
            low = None if lowres is None else lowres[rows.start : rows.stop]
            parts.append(self._sample_chunk(unet, words[rows.start : rows.stop], low, rows, side))
        return torch.cat(parts)

    def _through_cascade(self, unet: Any, name: str) -> dict[str, Tensor]:
        """A row for each stage, enlarged to the last one's size; none without grid.cascade."""
        if self.cascade is None:
            return {}
        made = self.cascade.draw(unet, self._words(), self.texts)
        last = made[-1].shape[-1]
        return {f"{name} {row.shape[-1]} px": resize(row, last, "nearest") for row in made}

    def _noise(self, shape: Any, purpose: str, rows: range) -> Tensor:
        generator = torch.Generator(self.device)
        noise = draw_noise(shape, self.config.train.seed, purpose, 0, rows, generator)
        return noise.to(self.dtype)

    def _sample_chunk(self, unet: Any, words: Words, lowres: Tensor | None, rows: range, side: int) -> Tensor:
        sampling, grid, stage = self.config.sampling, self.config.grid, self.config.stage
        text = self.texts(words)
        scale = sampling.guidance_scale if grid.guidance_scale is None else grid.guidance_scale
        scale = 1.0 if text is None else scale
        z = self._noise((unet.config.in_channels, side, side), "grid", rows)
        context = None
        conditions: dict[str, Tensor] = {}
        correct = None
        if text is not None:
            both = (text[0].to(self.dtype), text[1])
            if scale != 1:
                null = self.texts.null(len(words), text[0].shape[-1])
                both = cat_text((null[0].to(self.dtype), null[1]), both)
            context = unet(text=both[0], text_mask=both[1])
        if lowres is not None:
            level = torch.full((len(words),), sampling.aug_level, dtype=torch.float64, device=self.device)
            noise = self._noise(self.objective.lowres_noise_shape(lowres, z), "grid lowres", rows)
            conditions["lowres"] = augment_lowres(
                lowres, level, noise, side, stage.aug_space, self.objective.aug_schedule, stage.lowres_mode
            )
            if sampling.lowres_consistency:
                correct = match_lowres(lowres, sampling.lowres_consistency)
            conditions["aug_timestep"] = timestep_from_t(level).to(self.dtype)

        def evaluate(z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> tuple[Tensor, ...]:
            # classifier-free guidance asks for both halves, or without it for the only one: the context's own rows
            z, timestep = (torch.cat([value] * len(branches)) for value in (z, timestep.to(z.dtype)))
            given = {name: torch.cat([value] * len(branches)) for name, value in conditions.items()}
            text = {} if context is None else {"context": context}
            return tuple(unet(z, timestep, **given, **text).chunk(len(branches)))

        x0_fn = make_x0_fn(
            evaluate,
            prediction_type=stage.prediction_type,
            log_snrs=level_log_snrs(self.scheduler),
            guidance_scale=scale,
            thresholding=Thresholding(sampling.threshold, sampling.threshold_p, sampling.threshold_cap),
            learned_variance=learns_variance(unet.config),
            correct=correct,
        )
        return sample_loop(x0_fn, z, self.scheduler, grid.num_inference_steps)


def save_grid(path: Path, prompts: Sequence[str], rows: dict[str, Tensor]) -> None:
    """Write named rows of pictures as one PNG, with the names, the prompts and the step in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt("prompts", "\n".join(prompts))
    info.add_itxt("rows", "\n".join(rows))
    info.add_itxt("step", path.stem)
    partial = path.with_suffix(".partial")
    tile(list(rows.values())).save(partial, format="PNG", pnginfo=info)
    partial.replace(path)


def tile(rows: list[Tensor]) -> Image.Image:
    """Rows of pictures (B, C, H, W) in [-1, 1], C 1 or 3 (of more, the first) -> one image."""
    side = rows[0].shape[-1] + GAP
    columns = rows[0].shape[0]
    canvas = np.full((side * len(rows) - GAP, side * columns - GAP, 3), 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        pixels = ((row.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for x, picture in enumerate(pixels):
            colour = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1]
            canvas[y * side : y * side + side - GAP, x * side : x * side + side - GAP] = colour
    return Image.fromarray(canvas)
