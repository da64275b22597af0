"""However training ends, its workers end with it, and so does the command."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from imagen.training.loader import batches_of, outlive_one_signal


class Failing(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            raise ValueError("no picture")
        return torch.zeros(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_worker_is_left_while_the_error_is_still_held(workers: int) -> None:
    loader: DataLoader = DataLoader(Failing(), num_workers=workers, worker_init_fn=outlive_one_signal)

    def train() -> None:
        with batches_of(loader) as batches:  # type: ignore[arg-type]
            assert len(multiprocessing.active_children()) == workers
            for _ in range(50):
                next(batches)

    with pytest.raises(ValueError, match="no picture") as held:
        train()
    assert held.tb is not None
    assert multiprocessing.active_children() == []


def test_no_worker_is_left_behind_the_last_batch() -> None:
    loader: DataLoader = DataLoader(torch.zeros(4, 2), num_workers=1, worker_init_fn=outlive_one_signal)  # type: ignore
    with batches_of(loader) as batches:
        next(batches)
    assert multiprocessing.active_children() == []
