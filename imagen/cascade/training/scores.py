"""Scores of samples while a stage trains: how far they are, as a set, from held-out pictures, and their CLIP score."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagen.cascade.pictures import finish
from imagen.cascade.runner import Job, run_stage
from imagen.cascade.seeds import picture_seeds
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.drawing import picture_generators, sampled_conditions, stage_in_training, windowed
from imagen.cascade.training.inputs.source import lowres_condition, network_facts
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.objective import Objective
from imagen.cascade.training.validation import Validation
from imagen.conditions.text import Words
from imagen.data.sources import collate
from imagen.diffusion.sampling import make_scheduler
from imagen.errors import config_errors, require
from imagen.scores.encoders import DualEncoder, clip_score
from imagen.scores.features import load_features
from imagen.scores.frechet import Moments, frechet_distance
from imagen.scores.kernel import kernel_distance
from imagen.training.processes import Processes
from unets.network import Network


def check_scores(config: RunConfig) -> None:
    """Raises ConfigError where the stage's pictures are none that a feature network looks at."""
    channels = network_facts(config).in_channels
    told = f"validation.scores: feature networks look at pictures of 1 or 3 channels, this stage's have {channels}"
    require(config.validation.scores is None or channels in (1, 3), told)


class Scores:
    """Scores of samples with the texts, and for super-resolution the inputs, of the first validation.scores.count
    held-out pictures, against these pictures: with data.crop, windows against windows.

    Samples are a function of the weights and (validation.scores.seed, picture), worked through in the same batches
    whatever the number of processes, which take turns.

    Raises:
        ConfigError: no feature network there.
    """

    def __init__(
        self, config: RunConfig, objective: Objective, texts: Texts, validation: Validation, processes: Processes
    ) -> None:
        assert config.validation.scores is not None
        self.config, self.settings, self.texts, self.validation = config, config.validation.scores, texts, validation
        self.device, self.lowres = validation.batch_maker.device, lowres_condition(config)
        self.scheduler = make_scheduler("ddim", objective.schedule, config.stage.prediction_type)
        self.processes = processes
        with config_errors("validation.scores.features: "):
            self.network = load_features(self.settings.features, str(self.device))
            both = self.network.preprocessing.get("output") == "image embedding" and config.text.used
            self.encoder = DualEncoder.load(self.settings.features, self.device) if both else None

    @torch.no_grad()
    def measure(self, unet: Network) -> dict[str, float]:
        """``scores/fd[LABEL]``, ``scores/kd[LABEL]`` and, of networks that embed texts too, ``scores/clip``, of samples
        of `unet` as it is. All processes of a run call it, and share the work.
        """
        truth, moments, texts = self._held_out
        made = self._table(lambda raw, rows: self._features(self._sample(unet, raw, rows)), self.network.dim)
        label = self.network.label
        record = {
            f"scores/fd[{label}]": frechet_distance(Moments.of(made), moments),
            f"scores/kd[{label}]": kernel_distance(made, truth),
        }
        if texts is not None:
            unit = torch.nn.functional.normalize(torch.from_numpy(made), dim=1)
            record["scores/clip"] = clip_score(unit, texts).mean().item()
        return record

    @cached_property
    def _held_out(self) -> tuple[NDArray[np.float64], Moments, Tensor | None]:
        """Features of the held-out pictures, (N, D), and their moments; and unit vectors of their texts, (N, D)."""
        truth = self._table(lambda raw, rows: self._features(raw["image"]), self.network.dim)
        if self.encoder is None:
            return truth, Moments.of(truth), None
        encoder, self.encoder = self.encoder, None  # texts stay what they are
        texts = self._table(lambda raw, rows: encoder.texts(raw["caption"]), encoder.dim)
        return truth, Moments.of(truth), torch.from_numpy(texts)

    def _table(self, rows_of: Callable[[dict[str, Any], range], Tensor], width: int) -> NDArray[np.float64]:
        """A row (width,) for every held-out picture, whole on every process."""
        count = self.settings.count
        table = torch.zeros(count, width, dtype=torch.float64, device=self.device)
        for rows in self.processes.turns(count, self.settings.batch_size):
            raw = collate([self.validation.source[row] for row in rows])
            self.validation.tell(raw["notes"])
            table[rows.start : rows.stop] = rows_of(raw, rows).to(self.device, torch.float64)
        found: NDArray[np.float64] = self.processes.add(table).cpu().numpy()
        return found

    def _features(self, pictures: Tensor) -> Tensor:
        """(B, D) of pictures (B, C, H, W) in [-1, 1], as they would be saved."""
        return torch.from_numpy(self.network.features(finish(pictures, "pil"), self.settings.batch_size))

    def _sample(self, unet: Network, raw: dict[str, Any], rows: range) -> Tensor:
        """(B, C, H, W) in [-1, 1], a sample for each of these held-out pictures."""
        image = raw["image"].to(self.device, getattr(torch, self.config.train.dtype))
        stage = stage_in_training(self.config, unet, self.scheduler, self.settings)
        stage = stage if image.shape[-1] == stage.settings.size else windowed(stage, image.shape[-1])
        conditions = sampled_conditions(self.config, self.texts, Words.of(raw), raw, [stage], self.device)
        seeds = picture_seeds(picture_generators(self.settings.seed, "scores", rows), len(rows))
        lowres = [] if self.lowres is None else list(self.lowres.picture(raw, image))
        return run_stage(stage, Job(conditions, seeds, self.device), lowres)[0]
