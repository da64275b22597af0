"""Where a run can be watched: TensorBoard, Weights & Biases and the others that accelerate writes to.

What is ours is that a run goes on in the same place, and that it does not end where a tracker fails.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from imagen.disk import write_text
from imagen.errors import one_line, require
from imagen.training.config.resumed import flatten
from imagen.training.config.sections import RunSettings

ONE_PICTURE = ("aim", "clearml")  # whose log_images takes a picture under each name; others take a batch


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that accelerate does not know, or whose package is not installed."""
    there = [str(one) for one in get_available_trackers()]
    for name in names:
        known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
        require(name in LOGGER_TYPE_TO_CLASS, f"train.trackers: {name!r} is no tracker; accelerate knows {known}")
        missing = name in LoggerType.list() and name not in there
        require(not missing, f"train.trackers: {name} is not installed: pip install {name}, or leave it out")


def flat_config(config: RunSettings) -> dict[str, str | int | float | bool]:
    """Dotted keys and what they hold; lists and null as JSON, for not every tracker takes them."""
    flat = flatten(asdict(config))
    return {key: one if isinstance(one, (str, int, float)) else json.dumps(one) for key, one in flat.items()}


class Trackers:
    """The trackers of a run. The first process writes to them, the others have none.

    One that fails is told of once, and the run goes on without it.

    Args:
        accelerator: which was given their names.
        tell: shows the user a line.
    """

    def __init__(self, accelerator: Accelerator, tell: Callable[[str], None]) -> None:
        self.accelerator, self.tell = accelerator, tell

    @contextmanager
    def of(self, config: RunSettings, step: int) -> Iterator[None]:
        """Keep them running for the time of a `with` block; however it ends, what they were told is written.

        Args:
            step: the last one that the run has behind it.
        """
        if self.accelerator.is_main_process:
            self._start(config, step)
        try:
            yield
        finally:
            self._each(lambda tracker: tracker.finish())
            self.accelerator.trackers = []

    def log(self, values: Mapping[str, int | float], step: int) -> None:
        """Tell all of them numbers of a step."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def show(self, pictures: Mapping[str, Path], step: int) -> None:
        """Give picture files to those that take pictures."""
        self._each(lambda tracker: _show(tracker, pictures, step))

    def _start(self, config: RunSettings, step: int) -> None:
        """One after the other: accelerate by itself starts all or none."""
        accelerator, run, running = self.accelerator, Path(config.run_dir), []
        asked = accelerator.log_with
        for kind in asked:
            name = str(kind)
            in_run = name == "tensorboard"  # its project is a folder in the run's, and every configuration one in that
            project = name if in_run else run.resolve().name
            flat = None if in_run and step else flat_config(config)
            accelerator.log_with, accelerator.trackers = [kind], []
            try:
                accelerator.init_trackers(project, flat, {name: going_on(name, run, step)})
            except Exception as error:  # as in _each
                self._lost(name, error)
            else:
                running += accelerator.trackers
        accelerator.log_with, accelerator.trackers = asked, running

    def _each(self, act: Callable[[GeneralTracker], None]) -> None:
        for tracker in list(self.accelerator.trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever the package raises where there is no network, space or key
                self.accelerator.trackers.remove(tracker)
                self._lost(tracker.name, error)

    def _lost(self, name: str, error: Exception) -> None:
        self.tell(f"train.trackers: {name} failed, and the run goes on without it: {one_line(error)}")


def going_on(name: str, run: Path, step: int) -> dict[str, str | int]:
    """What a tracker is given so that what a run tells behind ``step`` joins what it told before."""
    if name == "tensorboard":
        return {"purge_step": step + 1}  # what was told of later steps is told again
    if name != "wandb":
        return {}
    kept = run / "wandb.id"
    if not (step and kept.exists()):  # a new run is not to go on with what another one left in its folder
        write_text(kept, secrets.token_hex(4))
    return {
        "id": kept.read_text(encoding="utf-8").strip(),
        "resume": "allow",
        "name": run.resolve().name,
        "dir": str(run),
    }


def _show(tracker: GeneralTracker, pictures: Mapping[str, Path], step: int) -> None:
    """Each tracker has its own idea of a picture."""
    show = getattr(tracker, "log_images", None)
    if show is None:
        return
    for name, path in pictures.items():
        with Image.open(path) as opened:
            picture = np.asarray(opened.convert("RGB"))
        given = picture if tracker.name in ONE_PICTURE else picture[None]
        show({name: given}, step=step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))
