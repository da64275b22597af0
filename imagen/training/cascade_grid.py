"""A stage in training as a part of the whole cascade, whose other stages come from a folder (grid.cascade)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagen.cascade.route import route
from imagen.errors import ConfigError
from imagen.stages.folder import INDEX, read_index, read_run, read_saved
from imagen.stages.load import load_network, load_scheduler
from imagen.stages.spec import SLOTS, StageDefaults
from imagen.training.batches import Texts, Words
from imagen.training.config import RunConfig
from imagen.training.export import stage_defaults
from imagen.training.randomness import derive_seed
from unets.contract import Network, facts


def find_stages(config: RunConfig) -> tuple[dict[str, StageDefaults], list[str]]:
    """The defaults of the run's own stage and of those in grid.cascade, by slot, and the slots that run, in order.

    Reads configurations, no weights.

    Raises:
        ConfigError: no pipeline and no stage there, or none that meets this stage's sizes, text or channels.
    """
    folder, own = Path(str(config.grid.cascade)), config.stage.name
    try:
        saved = read_saved(folder)
        stages = {slot: stage.defaults for slot, stage in saved.items()} | {own: stage_defaults(config)}
        slots = route({slot: stages[slot] for slot in SLOTS if slot in stages})
    except ValueError as error:
        raise ConfigError(f"grid.cascade: {error}") from error
    if own not in slots or len(slots) == 1:
        made = " -> ".join(f"{stages[slot].size} px" for slot in slots)
        raise ConfigError(
            f"grid.cascade {str(folder)!r}: its stages do not meet {config.stage.name} ({stages[own].lowres_size} to "
            f"{stages[own].size} px); what runs is {made}"
        )
    for slot in slots:
        if slot != own:
            _check_network(config, saved[slot].unet)
    return stages, slots


def _check_network(config: RunConfig, folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ours, theirs = facts(config.unet), facts({"kind": stored.get("_class_name"), **stored})
    for name in ("text_dim", "in_channels"):
        if getattr(theirs, name) != getattr(ours, name):
            raise ConfigError(
                f"grid.cascade: {folder} has {name} {getattr(theirs, name)}, this run's unet {getattr(ours, name)}: a "
                "cascade's stages share their text encoder and channels"
            )


class CascadeGrid:
    """Draws pictures of prompts through the whole cascade, with the network in training in its slot.

    The other networks wait on the CPU. They sample with their own scheduler and stored guidance, all stages in
    grid.num_inference_steps steps. The text is the run's: its encoder must be the one they were trained with.

    Raises:
        ConfigError: as :func:`find_stages`.
    """

    def __init__(self, config: RunConfig, scheduler: Any, device: torch.device) -> None:
        from imagen.pipeline import ImagenPipeline

        self.config, self.device, self.own = config, device, config.stage.name
        stages, self.slots = find_stages(config)
        folder = Path(str(config.grid.cascade))
        others = [slot for slot in self.slots if slot != self.own]
        self.parts: dict[str, Any] = {f"{self.own}_scheduler": scheduler}
        if (folder / INDEX).is_file():
            wanted = {f"{slot}_{part}" for slot in others for part in ("unet", "scheduler")}
            unwanted = {k: None for k, v in read_index(folder).items() if isinstance(v, list) and k not in wanted}
            pipe = ImagenPipeline.from_pretrained(folder, **unwanted)
            self.parts.update({name: getattr(pipe, name) for name in wanted})
        else:
            stage = read_run(folder)
            self.parts[f"{stage.slot}_unet"] = load_network(stage.unet)
            self.parts[f"{stage.slot}_scheduler"] = load_scheduler(stage.scheduler)
        self.others = [self.parts[f"{slot}_unet"].eval().requires_grad_(False) for slot in others]
        scale = config.grid.guidance_scale
        if scale is not None:
            stages[self.own] = dataclasses.replace(stages[self.own], guidance_scale=scale)
        self.stages = {slot: stages[slot].to_dict() for slot in self.slots}

    @torch.no_grad()
    def draw(self, unet: Network, words: Words, texts: Texts) -> list[Tensor]:
        """The pictures (B, C, H, W) in [-1, 1] of each stage in turn, with `unet` as it is in the run's slot."""
        from imagen.pipeline import ImagenPipeline

        parts = {**self.parts, f"{self.own}_unet": unet}
        pipe = ImagenPipeline(**parts, stages=self.stages)
        pipe.set_progress_bar_config(disable=True)
        made: list[dict[int, Tensor]] = []
        for network in self.others:
            network.to(self.device)
        size, steps = self.config.grid.batch_size, self.config.grid.num_inference_steps
        for start in range(0, len(words), size):
            rows = range(start, min(start + size, len(words)))
            text = texts(words[start : rows.stop])
            given: dict[str, Any] = {"num_images_per_prompt": len(rows)}
            if text is not None:
                null = texts.null(1, text[0].shape[-1])
                given = {"prompt_embeds": text[0], "prompt_mask": text[1]}
                given |= {"negative_prompt_embeds": null[0], "negative_prompt_mask": null[1]}
            generators = self._generators(rows)
            out: Any = pipe(**given, num_inference_steps=steps, generator=generators, output_type="pt")
            made.append(out.stages)
        for network in self.others:
            network.to("cpu")
        return [torch.cat([chunk[side] for chunk in made]) * 2 - 1 for side in made[0]]

    def _generators(self, rows: Sequence[int]) -> list[torch.Generator]:
        """One for each picture, so that it is the same in any batch."""
        seed = self.config.train.seed
        return [torch.Generator().manual_seed(derive_seed(seed, "cascade", row)) for row in rows]
