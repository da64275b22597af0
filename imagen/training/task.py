"""What a family gives to the trainer: a module, batches for it, and the loss of each picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from imagen.data.pictures import StreamDataset
from imagen.data.sources import Source
from imagen.training.config.resumed import Changes
from imagen.training.config.sections import RunSettings
from imagen.training.loader import as_it_is
from imagen.training.processes import Processes
from imagen.training.state.ema import EMA

BatchT = TypeVar("BatchT")


class Loaded(NamedTuple):
    """What a task has loaded.

    Attributes:
        module: to be trained, on the device. What its frozen parameters hold is not saved.
        source: of the pictures.
        ends: names of the module's layers at input and output; Muon trains the matrices of all others.
        ready: what is to be done to a collated batch where it is loaded, in workers where there are some.
    """

    module: nn.Module
    source: Source | StreamDataset
    ends: Sequence[str] = ()
    ready: Callable[[dict[str, Any]], dict[str, Any]] = as_it_is


class Task(Protocol[BatchT]):
    """What is trained, and on what; the trainer does the rest, the same for all.

    A resume point holds the module's weights and buffers and nothing else of a task: whatever is drawn is a function of
    (seed, step, row in the global batch), see :mod:`imagen.training.randomness`.
    """

    @property
    def weights(self) -> str:
        """Name of the file of a resume point that holds the module's state."""

    @property
    def groups(self) -> Sequence[str]:
        """Names of what the loss is told apart by in metrics.jsonl (``loss_NAME``); there may be none."""

    @property
    def config(self) -> RunSettings:
        """Of the run, nothing left open in it."""

    @property
    def changes(self) -> Changes:
        """What of its own sections may change when a run goes on."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user is told at every start, a line each."""

    def migrate(self, saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """A config.yaml of any version in the keys of today, and what its owner should know."""

    def load(self, device: torch.device, processes: Processes, saved: Mapping[str, Tensor] | None) -> Loaded:
        """Load all that training needs, once and before any method below.

        Args:
            saved: what a resume point kept of the module; None begins: with new weights, or those of another model.

        Raises:
            ConfigError: something is not there, or does not fit.
        """

    def batch(self, raw: Mapping[str, Any], step: int, rows: range) -> BatchT:
        """A collated micro-batch on the device, with all that is random about it; ``rows`` are its positions in the
        global batch of ``step``."""

    def losses(self, model: nn.Module, batch: BatchT) -> Tensor:
        """(B,), one loss per picture. ``model`` is the module, within what shares it out over processes."""

    def group(self, batch: BatchT) -> Tensor:
        """(B,) int64, the number of each picture's group."""

    def measure(self, step: int) -> dict[str, float]:
        """Of the module as it is after ``step`` steps, on held-out pictures: ``val_loss``, more under names that begin
        with ``val_`` and, of what it makes, under names that begin with ``scores/``."""

    def draw(self, ema: EMA, path: Path) -> Sequence[Path]:
        """Write samples of the module's average as a picture; all processes call it, and the first one writes.

        Returns:
            the picture files that this process wrote: ``path``, and others beside it whose names begin like its own.
        """

    def export(self, ema: EMA, folder: Path, step: int) -> None:
        """Write the model after ``step`` steps into ``folder``, over an earlier export of the run."""
