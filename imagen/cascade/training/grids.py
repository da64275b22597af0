"""The grids drawn while training: the same prompts and noise every time, in few DDIM steps.

`step-N.png` shows the stage alone, `step-N-cascade.png` where `grid.cascade` is set the whole cascade with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from imagen.captions import enlargement, strip
from imagen.cascade.route import route
from imagen.cascade.runner import Job, Stage, run_stage
from imagen.cascade.seeds import picture_seeds
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.drawing import picture_generators, sampled_conditions, stage_in_training, windowed
from imagen.cascade.training.export import stage_defaults
from imagen.cascade.training.inputs.source import lowres_condition, make_source, named_conditions
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.start.origin import unet_section
from imagen.conditions.condition import Sampled
from imagen.conditions.text import Words
from imagen.data.decode import NothingUsable
from imagen.data.pictures import StreamDataset
from imagen.data.sources import Sample, collate
from imagen.diffusion.augmentation import resize
from imagen.diffusion.sampling import make_scheduler
from imagen.disk import filling
from imagen.errors import ConfigError, config_errors, require
from imagen.stages.folder import SavedStage, read_saved
from imagen.stages.load import load_network, load_scheduler
from imagen.stages.spec import SLOTS
from imagen.training.processes import Processes
from imagen.training.state.ema import EMA
from unets.contract import facts
from unets.network import Network

GAP = 2  # pixels between pictures


def held_out(config: RunConfig) -> list[Sample]:
    """grid.count samples: ones that training does not see of the shapes world, the first ones of stored pictures."""
    source, count = make_source(config, seed=config.train.seed + 1), config.grid.count
    found = source.head(count) if isinstance(source, StreamDataset) else [source[index] for index in range(count)]
    if not found:
        raise NothingUsable(f"none of the pictures of data.path {config.data.path!r} can be used")
    return found


class GridMaker:
    """Draws grids: a row of samples for a base stage; rows of input, samples and truth for super-resolution.

    With grid.raw, the samples of the weights as they are follow those of the average. A cascade has a row per stage;
    its other networks wait on the CPU. The processes of a run share the pictures out.
    """

    def __init__(
        self, config: RunConfig, objective: Objective, texts: Texts, device: torch.device, processes: Processes
    ) -> None:
        self.config, self.texts, self.lowres = config, texts, lowres_condition(config)
        self.device, self.processes, self.dtype = device, processes, getattr(torch, config.train.dtype)
        self.scheduler = make_scheduler("ddim", objective.schedule, config.stage.prediction_type)
        self.cascade = load_others(config) if config.grid.every and config.grid.cascade else {}

    @cached_property
    def _held_out(self) -> list[Sample]:
        return held_out(self.config)

    @torch.no_grad()
    def write(self, unet: Network, ema: EMA, path: Path) -> list[Path]:
        """Sample with the average, and with grid.raw the weights, of `unet`.

        Returns:
            the PNGs, which the first process writes; of the others none.
        """
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
        if self.processes.rank:
            return []
        if lowres is not None and truth is not None:
            alone = {"input": resize(lowres, truth.shape[-1], "nearest"), **alone, "truth": truth}
        save_grid(path, words.captions, alone)
        if not through:
            return [path]
        cascade = path.with_stem(f"{path.stem}-cascade")
        save_grid(cascade, self._words().captions, through)
        return [path, cascade]

    def _words(self) -> Words:
        """grid.prompts, or without any the texts of held-out pictures."""
        prompts = list(self.config.grid.prompts)
        return Words(prompts) if prompts else Words.of(collate(self._held_out))

    def _given(self) -> tuple[Words, Tensor | None, Tensor | None]:
        """Texts, and for super-resolution the inputs (B, C, h, w) and true pictures (B, C, H, W)."""
        if self.lowres is None:
            return self._words(), None, None
        held = collate(self._held_out)
        truth = held["image"].to(self.device, self.dtype)
        return Words.of(held), self.lowres.picture(held, truth), truth

    def own_stage(self, unet: Network) -> Stage:
        """The stage in training as it will sample, but for DDIM, and grid's steps and guidance scale."""
        return stage_in_training(self.config, unet, self.scheduler, self.config.grid)

    def sample(self, unet: Network, words: Words, lowres: Tensor | None) -> Tensor:
        """(B, C, H, W) in [-1, 1] with `unet` as it is: whole pictures or, with data.crop, windows of them."""
        stage, side = self.own_stage(unet), self.config.data.crop
        return self.draw([stage if side is None else windowed(stage, side)], words, "grid", lowres)[0]

    def draw(self, stages: Sequence[Stage], words: Words, purpose: str, start: Tensor | None = None) -> list[Tensor]:
        """The pictures (B, C, H, W) in [-1, 1] of each stage in turn, grid.batch_size or fewer at once.

        Args:
            start: (B, C, h, w) that the first stage starts from; None: from noise alone.
        """
        count, seed = len(words), self.config.train.seed
        size = min(self.config.grid.batch_size, -(-count // self.processes.world))
        tables = [torch.zeros(count, one.channels, *one.shape, dtype=one.dtype, device=self.device) for one in stages]
        for rows in self.processes.turns(count, size):
            part = slice(rows.start, rows.stop)
            seeds = picture_seeds(picture_generators(seed, purpose, rows), len(rows))
            held = part if start is not None or not self.config.grid.prompts else None
            job = Job(self._conditions(words[part], held, stages), seeds, self.device)
            made = [] if start is None else list(start[part])
            for table, stage in zip(tables, stages, strict=True):
                table[part], _ = run_stage(stage, job, made)
                made = list(table[part])
        return [self.processes.add(table) for table in tables]

    def _conditions(self, words: Words, held: slice | None, stages: Sequence[Stage]) -> list[Sampled]:
        """Both halves of the text, and the other conditions of these held-out samples.

        With prompts, and of those that other stages of a cascade read and this run's does not, the nulls.
        """
        conditions = named_conditions(self.config)
        raw = None if held is None or not conditions else collate(self._held_out[held])
        return sampled_conditions(self.config, self.texts, words, raw, stages, self.device)

    def _through_cascade(self, unet: Network, name: str) -> dict[str, Tensor]:
        """A row for each stage, enlarged to the last one's size; none without grid.cascade."""
        if not self.cascade:
            return {}
        stages = [stage or self.own_stage(unet) for stage in self.cascade.values()]
        others = [stage.unet for stage in self.cascade.values() if stage is not None]
        for network in others:
            network.to(self.device)
        made = self.draw(stages, self._words(), "cascade")
        for network in others:
            network.to("cpu")
        last = made[-1].shape[-1]
        return {f"{name} {row.shape[-1]} px": resize(row, last, "nearest") for row in made}


def save_grid(path: Path, prompts: Sequence[str], rows: dict[str, Tensor]) -> None:
    """Write named rows of pictures as one PNG, the prompts beneath; names, prompts and step are in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt("prompts", "\n".join(prompts))
    info.add_itxt("rows", "\n".join(rows))
    info.add_itxt("step", path.stem)
    partial = path.with_suffix(".partial")
    with filling(partial):
        captioned_grid(prompts, list(rows.values())).save(partial, format="PNG", pnginfo=info)
        partial.replace(path)


def captioned_grid(prompts: Sequence[str], rows: list[Tensor]) -> Image.Image:
    """Rows as :func:`tile` has them, small pictures enlarged, with each column's prompt beneath if there are any."""
    times = enlargement(rows[0].shape[-1])
    grid = tile([row.repeat_interleave(times, -1).repeat_interleave(times, -2) for row in rows])
    if not any(prompts):
        return grid
    side = times * rows[0].shape[-1]
    strips = [strip(prompt, side) for prompt in prompts]
    made = Image.new("RGB", (grid.width, grid.height + strips[0].height), "white")
    made.paste(grid)
    for column, one in enumerate(strips):
        made.paste(one, (column * (side + GAP), grid.height))
    return made


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


def find_stages(config: RunConfig) -> dict[str, SavedStage | None]:
    """The stages that run with this run's own among those of grid.cascade, by slot and in order; None for its own.

    Reads configurations, no weights.

    Raises:
        ConfigError: no pipeline and no stage there, or none that meets this stage's sizes, text or channels.
    """
    folder, own = Path(str(config.grid.cascade)), config.stage.name
    with config_errors("grid.cascade: "):
        saved = read_saved(folder)
        stages = {slot: stage.defaults for slot, stage in saved.items()} | {own: stage_defaults(config)}
        slots = route({slot: stages[slot] for slot in SLOTS if slot in stages})
    if own not in slots or len(slots) == 1:
        made = " -> ".join(f"{stages[slot].size} px" for slot in slots)
        raise ConfigError(
            f"grid.cascade {str(folder)!r}: its stages do not meet {own} ({stages[own].lowres_size} to "
            f"{stages[own].size} px); what runs is {made}"
        )
    for slot in slots:
        if slot != own:
            _check_shared(config, saved[slot])
    return {slot: None if slot == own else saved[slot] for slot in slots}


def _check_shared(config: RunConfig, stage: SavedStage) -> None:
    """Raises ConfigError where another stage reads or makes something else than this run's under the same name."""
    with config_errors("grid.cascade: "):
        ours, theirs = facts(config.unet), facts(unet_section(stage.unet))
    stored = {condition.name: condition.stored for condition in named_conditions(config)}
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in ("text_dim", "in_channels")]
    pairs += [(f"classes of {name}", there, ours.classes.get(name, there)) for name, there in theirs.classes.items()]
    pairs += [(name, there, stored.get(name, there)) for name, there in stage.conditions.items()]
    for name, there, here in pairs:
        require(
            there == here,
            f"grid.cascade: {stage.slot} was trained with {name} {there}, this run with {here}: a cascade's stages "
            "share their text encoder, channels and what their conditions mean",
        )


def load_others(config: RunConfig) -> dict[str, Stage | None]:
    """The stages of grid.cascade, loaded on the CPU, by slot and in order; None for this run's own.

    They sample with their own scheduler and stored settings, in grid.num_inference_steps steps. The text is the run's:
    its encoder must be the one they were trained with.

    Raises:
        ConfigError: as :func:`find_stages`, or weights that are not whole.
    """

    def loaded(saved: SavedStage) -> Stage:
        settings = replace(saved.defaults, num_inference_steps=config.grid.num_inference_steps)
        unet = load_network(saved.unet).eval().requires_grad_(False)
        return Stage(saved.slot, unet, load_scheduler(saved.scheduler), settings)

    stages = find_stages(config)
    with config_errors("grid.cascade: "):
        return {slot: None if saved is None else loaded(saved) for slot, saved in stages.items()}
