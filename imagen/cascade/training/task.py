"""A stage of the cascade as what the trainer trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagen.cascade.training.config.resumed import as_begun, may_change, migrate
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.export import export_stage
from imagen.cascade.training.grids.samples import GridMaker
from imagen.cascade.training.inputs.batches import Batch, BatchMaker
from imagen.cascade.training.inputs.cached import with_cache
from imagen.cascade.training.inputs.conditions import make_conditions
from imagen.cascade.training.inputs.draws import draw_batch
from imagen.cascade.training.inputs.source import make_source
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.start.check import check_before_loading
from imagen.cascade.training.start.network import prepare_unet, set_checkpointing
from imagen.cascade.training.start.origin import with_origin
from imagen.cascade.training.start.whitening import fit_whitening
from imagen.cascade.training.validation import Validation
from imagen.training.config.resumed import Changes
from imagen.training.processes import Processes
from imagen.training.state.ema import EMA
from imagen.training.task import Loaded

QUARTERS = 4


class StageTask:
    """One stage (see :class:`imagen.training.task.Task`). The loss is told apart by quarters of t, clean to noise.

    Raises:
        ConfigError: a configuration that cannot run.
    """

    weights = "unet"
    groups = tuple(f"t{number}" for number in range(QUARTERS))

    def __init__(self, config: RunConfig) -> None:
        config, self.origin = with_origin(with_cache(config))
        check_before_loading(config, self.origin)
        self.config = as_begun(config)
        self.objective = Objective(config.stage)
        self.texts = Texts(config)
        self.conditions = make_conditions(config, self.texts)
        self.validation: Validation | None = None

    @property
    def changes(self) -> Changes:
        """Of a stage's sections."""
        return may_change(self.config)

    @property
    def notes(self) -> Sequence[str]:
        """That a learned variance is left behind."""
        if not self.config.train.drop_variance:
            return ()
        channels = self.unet.config.out_channels
        words = f"the learned variance of train.init_from is dropped ({2 * channels} -> {channels} channels)"
        return (f"{words}; the stage samples with the small fixed one",)

    def migrate(self, saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A stage's config.yaml of any version."""
        return migrate(saved)

    def load(self, device: torch.device, processes: Processes, saved: Mapping[str, Tensor] | None) -> Loaded:
        """Data, encoder, network, and what is measured and drawn meanwhile."""
        config, self.processes = self.config, processes
        source = make_source(config)
        self.texts.load(device)
        self.batch_maker = BatchMaker(self.conditions, config.train.seed, getattr(torch, config.train.dtype), device)
        self.unet = prepare_unet(config, saved)
        self.unet.to(device)
        if saved is None and config.train.init_from is None:
            fit_whitening(self.unet, config, source, self.texts)
        set_checkpointing(self.unet, config.train.gradient_checkpointing)
        if config.validation.every:
            self.validation = Validation(config, self.objective, self.batch_maker)
        self.grids = GridMaker(config, self.objective, self.texts, device, processes)
        assert isinstance(self.unet, nn.Module)
        return Loaded(self.unet, source, self.unet.end_layers)

    def batch(self, raw: Mapping[str, Any], step: int, rows: range) -> Batch:
        """Pictures with their noise, levels and conditions."""
        train = self.config.train
        draws = draw_batch(train.seed, step, train.batch_size, self.config.stage.text_dropout, train.stratified_t)
        return self.batch_maker(raw, draws.rows(rows.start, len(rows)), step, rows)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) float32, weighted."""
        return self.objective(model, batch)

    def group(self, batch: Batch) -> Tensor:
        """The quarter of t."""
        return (batch.t * QUARTERS).long().clamp(0, QUARTERS - 1)

    def measure(self) -> dict[str, float]:
        """The held-out loss, and that of each level; the processes share the work."""
        assert self.validation is not None, "nothing is measured without validation.every"
        return self.validation.record(self.validation.table(self.unet, self.processes))

    def draw(self, ema: EMA, path: Path) -> None:
        """The grids of samples."""
        self.grids.write(self.unet, ema, path)

    def export(self, ema: EMA, folder: Path, step: int) -> None:
        """The stage as the pipeline takes it."""
        export_stage(self.config, self.unet, ema, folder, step, self.origin)
