"""A CLIP as what the trainer trains."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from imagen.clip.config import ContrastConfig
from imagen.clip.loss import contrast
from imagen.clip.sheet import write_sheet
from imagen.clip.towers import Clip, Towers, begun_from, new_clip, train_tokenizer
from imagen.data import ShapesDataset, Want, make_source
from imagen.data.config import DataConfig
from imagen.data.pictures import StreamDataset
from imagen.data.sources import collate
from imagen.disk import filling
from imagen.errors import config_errors
from imagen.modes import evaluating
from imagen.scores.encoders import text_tokens
from imagen.training.config import resumed as general
from imagen.training.config.resumed import Changes
from imagen.training.held_out import held_out_source
from imagen.training.processes import Processes
from imagen.training.state.ema import EMA
from imagen.training.task import Loaded

SCENES = 20_000  # captions that a tokenizer learns from, where a source has no end
SHOWN = 24  # pictures of a grid


class Pairs(NamedTuple):
    """pictures (B, 3, H, W), as the model's processor prepares them, and the tokens of their texts, (B, L) each."""

    images: Tensor
    tokens: Mapping[str, Tensor]


class ContrastTask:
    """A CLIP (see :class:`imagen.training.task.Task`). Its loss has no groups.

    Raises:
        ConfigError: a configuration that cannot run.
    """

    weights = "clip"
    groups = ()
    changes = Changes(free=("clip.init_from", "clip.gradient_checkpointing"))
    notes = ()
    migrate = staticmethod(general.migrate)

    def __init__(self, config: ContrastConfig) -> None:
        stored = general.read_stored(Path(config.run_dir), general.migrate)
        self.config = general.with_rules(config, None if stored is None else stored[0])

    def load(self, device: torch.device, processes: Processes, saved: Mapping[str, Tensor] | None) -> Loaded:
        """Towers, tokenizer, pictures, and the held-out pairs."""
        config, self.processes, self.device = self.config, processes, device
        start = (
            Path(config.run_dir) / "start"
        )  # all but the weights: a run keeps its tokenizer, whatever becomes of data
        self.clip = Clip.empty(start) if saved is not None else self._begin(start)
        self.module = Towers(self.clip.model).to(device, getattr(torch, config.train.dtype))
        if saved is not None:
            self.module.load_state_dict(saved)
        if config.clip.gradient_checkpointing:
            self.clip.model.gradient_checkpointing_enable()
        self.module.train()
        self.mean, self.std = (part.to(device) for part in self.clip.normalisation)
        validation = config.validation
        self.held_out = held_out_source(validation, self._source) if validation.every else None
        self.shown: dict[str, Any] | None = None  # of the grids
        return Loaded(self.module, self._source(config.data, config.train.seed), self.module.ends, self._tokenized)

    def _begin(self, start: Path) -> Clip:
        """A new model, or that of clip.init_from; all but its weights is kept in the folder `start`."""
        config = self.config
        if config.clip.init_from is not None:
            found = begun_from(config.clip.init_from)
        else:
            tokenizer = train_tokenizer(self._captions(), config.clip)
            found = new_clip(config.clip, tokenizer, config.train.seed)
        if self.processes.rank == 0:
            replace_folder(start, partial(found.save, weights=False))
        return found

    def _captions(self) -> Any:
        """All captions of the data, or the first ones of the shapes world."""
        with config_errors("data: ", also=OSError):
            source = make_source(self.config.data, Want(self.config.clip.image_size), self.config.train.seed)
        if isinstance(source, ShapesDataset):
            return (source.scene(index)[1] for index in range(SCENES))
        return chain.from_iterable(source.captions())

    def _source(self, data: DataConfig, seed: int) -> Any:
        with config_errors("data: ", also=OSError):
            return make_source(data, Want(self.clip.side), seed)

    def _tokenized(self, raw: dict[str, Any]) -> dict[str, Any]:
        """A collated batch with the tokens of its captions."""
        return {**raw, "tokens": text_tokens(self.clip.tokenizer, raw["caption"], self.clip.model.config)}

    def batch(self, raw: Mapping[str, Any], step: int, rows: range) -> Pairs:
        """Pictures with the tokens of their captions; nothing about it is random."""
        shown = (raw["image"].to(self.device, non_blocking=True) + 1) / 2
        images = ((shown - self.mean) / self.std).to(getattr(torch, self.config.train.dtype))
        return Pairs(images, {name: ids.to(self.device, non_blocking=True) for name, ids in raw["tokens"].items()})

    def losses(self, model: nn.Module, batch: Pairs) -> Tensor:
        """(B,), each pair among all pairs of the global batch."""
        self.module.limit_scale()
        images, texts, scale = model(batch.images, **batch.tokens)
        return contrast(images, texts, scale, self.processes)

    def group(self, batch: Pairs) -> Tensor:
        """One for all."""
        return torch.zeros(len(batch.images), dtype=torch.int64, device=self.device)

    def measure(self, step: int) -> dict[str, float]:
        """The loss among all held-out pairs, and how many pictures (texts) find their own text (picture), or one with
        the same caption.
        """
        assert self.held_out is not None, "nothing is measured without validation.every"
        settings = self.config.validation
        found = torch.zeros(settings.samples, 2 * self.clip.dim + 1, dtype=torch.float64, device=self.device)
        for rows in self.processes.turns(settings.samples, settings.batch_size):
            raw = collate([self.held_out[row] for row in rows])
            told = torch.tensor([zlib.crc32(text.encode()) for text in raw["caption"]], device=self.device)
            found[rows.start : rows.stop] = torch.cat([*self._vectors(raw), told[:, None]], dim=1)
        every = self.processes.add(found)
        images, texts = every[:, :-1].chunk(2, dim=1)
        cosines, told = images @ texts.T, every[:, -1]
        losses = contrast(images, texts, self.clip.model.logit_scale.detach().exp().double(), Processes())
        shares = {
            name: (told[cosines.argmax(dim=axis)] == told).double().mean().item()
            for name, axis in (("image_to_text", 1), ("text_to_image", 0))
        }
        return {"val_loss": losses.mean().item(), **{f"val_{name}": share for name, share in shares.items()}}

    @torch.no_grad()
    def _vectors(self, raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Unit vectors of collated pairs, (B, D) float64 each, by the module as it is."""
        batch = self.batch(self._tokenized(raw), 0, range(len(raw["image"])))
        with evaluating(self.module):
            images, texts, _ = self.module(batch.images, **batch.tokens)
        return images.double(), texts.double()

    def draw(self, ema: EMA, path: Path) -> list[Path]:
        """Pictures, held out where there are such, each with the caption among theirs that the averaged model picks."""
        if self.processes.rank != 0:
            return []
        if self.shown is None:
            source = self.held_out or self._source(self.config.data, self.config.train.seed)
            first = source.head(SHOWN) if isinstance(source, StreamDataset) else source
            count = min(SHOWN, len(first) if isinstance(first, list) else first.length or SHOWN)
            self.shown = collate([first[row] for row in range(count)])
        with ema.swapped_in(self.module):
            images, texts = self._vectors(self.shown)
        picked = [self.shown["caption"][row] for row in (images @ texts.T).argmax(dim=1)]
        write_sheet(path, self.shown["image"], self.shown["caption"], picked)
        return [path]

    def export(self, ema: EMA, folder: Path, step: int) -> None:
        """The averaged model as transformers keep it."""
        with ema.swapped_in(self.module):
            self.module.limit_scale()
            replace_folder(folder, self.clip.save)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Have `folder` written anew, whole: until then the earlier one stays."""
    made = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    with filling(made):
        write(made)
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)
