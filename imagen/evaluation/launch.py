"""The processes that a command was started on, as torchrun and accelerate tell them, for work that is kept in files."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed

from imagen.disk import occupied
from imagen.errors import Stopped, one_line

FOR_EVER = timedelta(days=365)  # of work; a process that ends meanwhile is noticed at once


@dataclass(frozen=True)
class Launch:
    """This process among those of a command.

    Attributes:
        rank, world: its number, and how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls) -> Launch:
        """What the launcher says; one process where there was none."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def keeping(self, folder: Path) -> AbstractContextManager[None]:
        """The folder is kept for this command, by its first process (:func:`imagen.disk.occupied`)."""
        return occupied(folder) if self.first else nullcontext()

    def wait(self) -> None:
        """Come back when all processes have come here, however long their work takes.

        Raises:
            Stopped: one of them ended before.
            ValueError: the launcher did not say where they meet.
        """
        if self.world == 1:
            return
        try:
            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group("gloo", rank=self.rank, world_size=self.world)
            torch.distributed.monitored_barrier(timeout=FOR_EVER)
        except RuntimeError as error:
            told = f"another of the {self.world} processes ended before its work was done ({one_line(error)[:200]})"
            raise Stopped(f"{told}; what is finished is kept, the same command goes on behind it") from error
