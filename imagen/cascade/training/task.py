"""A stage of the cascade as what the trainer trains."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagen.cascade.adapters import check_targets
from imagen.cascade.plan import check_sampler
from imagen.cascade.runner import Stage
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.export import export_stage, stage_defaults, stage_scheduler
from imagen.cascade.training.grids import GridMaker, find_stages
from imagen.cascade.training.inputs.batches import Batch, BatchMaker, draw_batch
from imagen.cascade.training.inputs.source import make_conditions, make_source
from imagen.cascade.training.inputs.texts import Texts, with_cache
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.scores import Scores, check_scores
from imagen.cascade.training.start.network import fit_whitening, make_unet, prepare_unet, set_checkpointing
from imagen.cascade.training.start.origin import Origin, differences, with_origin
from imagen.cascade.training.validation import Validation
from imagen.errors import ConfigError, config_errors
from imagen.stages.spec import EARLIER_NAMES
from imagen.training.config import resumed as general
from imagen.training.config.resumed import Changes
from imagen.training.loader import as_it_is
from imagen.training.processes import Processes
from imagen.training.state.ema import EMA
from imagen.training.task import Loaded

QUARTERS = 4


def migrate(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the configuration in the keys of today, what its owner should know) of a stage's config.yaml of any version."""
    tree, notes = general.migrate(saved)
    stage = tree.get("stage") or {}
    if stage.get("name") in EARLIER_NAMES:
        tree["stage"] = {**stage, "name": EARLIER_NAMES[stage["name"]]}
    return tree, notes


def as_begun(config: RunConfig) -> RunConfig:
    """`config`, what it leaves open filled in as the run that goes on in its folder began, or else as a new one."""
    stored = general.read_stored(Path(config.run_dir), migrate)
    return general.with_rules(config, None if stored is None else stored[0])


def check_before_loading(config: RunConfig, origin: Origin) -> None:
    """Everything that can be wrong with a configuration, found without data, encoder or memory for weights.

    Args:
        origin: what train.init_from says of itself. An adapter is for that stage as it is; all weights together may
            learn to be another, with a warning.

    Raises:
        ConfigError: in one line.
    """
    start, adapter, text = config.train.init_from, config.lora.rank is not None, config.text
    unet = make_unet(config, device="meta")
    set_checkpointing(unet, config.train.gradient_checkpointing)
    assert isinstance(unet, nn.Module)
    with config_errors("lora.targets: "):
        check_targets(unet, config.lora.targets if adapter else ())
    others = differences(config, origin)
    if others and adapter:
        raise ConfigError(f"{others[0]}, as train.init_from {start!r} was trained")
    if others:
        warnings.warn(f"train.init_from {start!r} was trained otherwise: {'; '.join(others)}", stacklevel=3)
    with config_errors("stage: "):
        Objective(config.stage)
        make_conditions(config, Texts(config))
        scheduler = stage_scheduler(config)
    with config_errors("sampling: "):
        check_sampler(Stage(config.stage.name, unet, scheduler, stage_defaults(config)))
    if config.grid.every and config.grid.cascade is not None:
        find_stages(config)
    check_scores(config)
    encoder = text.encoder if text.cache is None and text.encoder else ""  # a cache stands in for it
    a_path = encoder.startswith((".", "/", "~")) or encoder.count("/") > 1
    if a_path and not Path(encoder).is_dir():
        raise ConfigError(
            f"text.encoder {encoder!r} does not exist: give a folder or Hub id of a T5 or a CLIP, or make one with "
            "python -m imagen.cli.pretrain_text"
        )


class StageTask:
    """One stage (see :class:`imagen.training.task.Task`). The loss is told apart by quarters of t, clean to noise.

    Raises:
        ConfigError: a configuration that cannot run.
    """

    weights = "unet"
    groups = tuple(f"t{number}" for number in range(QUARTERS))
    migrate = staticmethod(migrate)

    def __init__(self, config: RunConfig) -> None:
        config, self.origin = with_origin(with_cache(config))
        check_before_loading(config, self.origin)
        self.config = as_begun(config)
        self.objective = Objective(config.stage)
        self.texts = Texts(config)
        self.conditions = make_conditions(config, self.texts)

    @property
    def changes(self) -> Changes:
        """Of a stage's sections. An adapter's run keeps nothing of the network under it, so that stays."""
        start = ("train.init_from",) if self.config.lora.rank is None else ()
        return Changes(("train.gradient_checkpointing", "sampling", *start), ("text.encoder", "text.cache"))

    @property
    def notes(self) -> tuple[str, ...]:
        """That a learned variance is left behind, and that sampling will need a weaker network."""
        config, notes = self.config, list[str]()
        if config.train.drop_variance:
            channels = self.unet.config.out_channels
            words = f"the learned variance of train.init_from is dropped ({2 * channels} -> {channels} channels)"
            notes.append(f"{words}; the stage samples with the small fixed one")
        if config.needs_weaker:
            notes.append(
                f"sampling.guidance {config.sampling.guidance!r} needs a weaker network, which a run's folder has not: "
                "sample it with --guidance-method cfg, as grids do, or from a pipeline that holds one "
                f"(pipe.register_modules({config.stage.name}_weak_unet=...))"
            )
        return tuple(notes)

    def load(self, device: torch.device, processes: Processes, saved: Mapping[str, Tensor] | None) -> Loaded:
        """Data, encoder, network, and what is measured and drawn meanwhile."""
        config, self.processes = self.config, processes
        source = make_source(config)
        self.texts.load(device)
        self.batch_maker = BatchMaker(self.conditions, config.train.seed, getattr(torch, config.train.dtype), device)
        self.unet = prepare_unet(config, saved)
        self.unet.to(device)
        if saved is None and config.train.init_from is None:
            if self.unet.whitening is not None and processes.rank == 0:  # it may take a minute
                print("reading the first captions, with their pictures, to whiten what they become", file=sys.stderr)
            fit_whitening(self.unet, config, source, self.texts)
        set_checkpointing(self.unet, config.train.gradient_checkpointing)
        self.validation = Validation(config, self.objective, self.batch_maker) if config.validation.every else None
        held_out, asked = self.validation, config.validation.scores is not None
        self.scores = Scores(config, self.objective, self.texts, held_out, processes) if held_out and asked else None
        self.grids = GridMaker(config, self.objective, self.texts, device, processes)
        assert isinstance(self.unet, nn.Module)
        ready = self.texts.tokenized if self.config.text.unconditional == "zero" else as_it_is  # else rows are replaced
        return Loaded(self.unet, source, self.unet.end_layers, ready)

    def batch(self, raw: Mapping[str, Any], step: int, rows: range) -> Batch:
        """Pictures with their noise, levels and conditions."""
        train = self.config.train
        draws = draw_batch(train.seed, step, train.batch_size, self.config.stage.text_dropout, train.stratified_t)
        return self.batch_maker(raw, draws.rows(rows), step, rows)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,) float32, weighted."""
        return self.objective(model, batch)

    def group(self, batch: Batch) -> Tensor:
        """The quarter of t."""
        return (batch.t * QUARTERS).long().clamp(0, QUARTERS - 1)

    def measure(self, step: int) -> dict[str, float]:
        """The held-out loss, that of each level and, where they are due, scores; the processes share the work."""
        assert self.validation is not None, "nothing is measured without validation.every"
        record = self.validation.record(self.validation.table(self.unet, self.processes))
        if self.scores is not None and (step % self.scores.settings.every == 0 or step == self.config.train.steps):
            record |= self.scores.measure(self.unet)
        return record

    def draw(self, ema: EMA, path: Path) -> list[Path]:
        """The grids of samples."""
        return self.grids.write(self.unet, ema, path)

    def export(self, ema: EMA, folder: Path, step: int) -> None:
        """The stage as the pipeline takes it."""
        export_stage(self.config, self.unet, ema, folder, step, self.origin)
