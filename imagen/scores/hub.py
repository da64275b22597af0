"""What is read of folders and Hub ids of transformers: in silence, and what they are called."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("modeling_utils", "utils.import_utils", "image_processing_utils")


@contextmanager
def muted() -> Iterator[None]:
    """Within it transformers does not report to people which weights it did not find, nor that torchvision is missing,
    and shows no bars.

    A level set here would make it look at, and report, how the layers are sharded.
    """
    from transformers.utils import logging as told

    loggers = [logging.getLogger(f"transformers.{name}") for name in LOGGERS]
    before, bars = [logger.disabled for logger in loggers], told.is_progress_bar_enabled()
    for logger in loggers:
        logger.disabled = True
    told.disable_progress_bar()
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
        if bars:
            told.enable_progress_bar()


def short_name(name: str | Path) -> str:
    """The last part of a folder or Hub id, wherever one stands; of a run's ``runs/clip/model`` it is ``clip``."""
    path = Path(os.path.abspath(name))
    return path.parent.name if path.name == "model" and path.parent.name else path.name
