"""The held-out loss per noise level: the same pictures and noise every time, so that only the weights move it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig
from imagen.cascade.training.inputs.batches import BatchMaker, Draws, draw_batch
from imagen.cascade.training.inputs.source import make_source
from imagen.cascade.training.objective import Objective
from imagen.data.config import DataConfig
from imagen.data.sources import Note, collate
from imagen.errors import require
from imagen.training.held_out import held_out_source
from imagen.training.processes import Processes
from imagen.training.randomness import derive_seed
from unets.network import Network


def validation_source(config: RunConfig) -> Any:
    """The pictures that `validation.data` names; of the shapes world, ones that training does not see.

    Raises:
        ConfigError: nothing there, or fewer than validation asks for.
    """

    def make(data: DataConfig, seed: int) -> Any:
        return make_source(replace(config, data=data, validation=LossPerLevelConfig()), seed)

    return held_out_source(config.validation, make, config.validation.needs)


class Validation:
    """The training loss of a network on validation.samples held-out pictures, each at every noise level.

    Level j of n is t = (j + 1/2) / n, so the mean over levels estimates the loss that training minimises; captions are
    not dropped. Noise is a function of (validation.seed, level, picture), nothing is drawn from torch's own generators.
    Pictures are worked through in the same batches whatever the number of processes, which take turns.

    Raises:
        ConfigError: as :func:`validation_source`, or levels that cannot be told apart.
    """

    def __init__(self, config: RunConfig, objective: Objective, batch_maker: BatchMaker) -> None:
        self.settings, self.objective = config.validation, objective
        self.source = validation_source(config)
        self.seed = derive_seed(config.validation.seed, "validation")
        self.batch_maker = BatchMaker(batch_maker.conditions, self.seed, batch_maker.dtype, batch_maker.device)
        count = self.settings.levels
        self.t = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        self.keys = [f"val_loss/log_snr_{value:+.2f}" for value in objective.schedule.log_snr(self.t).tolist()]
        require(len(set(self.keys)) == count, f"validation.levels {count}: some have the same log-SNR, use fewer")
        self._told: set[Note] = set()

    def _draws(self, level: int, rows: range) -> Draws:
        drawn = draw_batch(self.seed, level, self.settings.samples, text_dropout=0.0, stratified=False)
        return drawn._replace(t=self.t[level].expand(self.settings.samples)).rows(rows)

    @torch.no_grad()
    def table(self, unet: Network, processes: Processes) -> Tensor:
        """(levels, samples) losses of `unet` as it is, float64 on its device; the processes of a run share the work."""
        training = unet.training
        unet.eval()
        samples, size = self.settings.samples, self.settings.batch_size
        table = torch.zeros(len(self.t), samples, dtype=torch.float64, device=self.batch_maker.device)
        for rows in processes.turns(samples, size):
            raw = collate([self.source[row] for row in rows])
            self.tell(raw["notes"])
            batch = self.batch_maker(raw, self._draws(0, rows), 0, rows)
            for level in range(len(self.t)):
                batch = self.batch_maker.redrawn(batch, self._draws(level, rows), level, rows)
                table[level, rows.start : rows.stop] = self.objective(unet, batch)
        unet.train(training)
        return processes.add(table)

    def tell(self, notes: list[Note]) -> None:
        """Warn of held-out pictures that cannot be used, of each once."""
        for note in notes:
            if note.action == "skipped" and note not in self._told:
                self._told.add(note)
                warnings.warn(f"validation: {note.key} {note.reason}; another picture takes its place", stacklevel=2)

    def record(self, table: Tensor) -> dict[str, float]:
        """The whole table -> val_loss, the mean, and one mean per level, named by its log-SNR."""
        means = table.mean(dim=1).tolist()
        return {"val_loss": table.mean().item(), **dict(zip(self.keys, means, strict=True))}
