"""What a run stands on: processes that share its batch equally, in the one way of launching that is supported."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from imagen.errors import ConfigError
from imagen.training.launch import check_processes


def check(batch_size: int, accumulation: int, world: int, kind: DistributedType = DistributedType.MULTI_CPU) -> None:
    config: Any = SimpleNamespace(train=SimpleNamespace(batch_size=batch_size, accumulation=accumulation))
    launched: Any = SimpleNamespace(distributed_type=kind, num_processes=world)
    check_processes(config, launched)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world", "unit"),
    [(6, 1, 4, 4), (6, 4, 1, 4), (6, 2, 2, 4), (9, 3, 2, 6), (4, 1, 8, 8)],
)
def test_a_batch_is_shared_out_over_steps_and_processes(
    batch_size: int, accumulation: int, world: int, unit: int
) -> None:
    message = f"{batch_size} is not divisible by {accumulation} accumulation steps x {world} processes: .* of {unit}$"
    with pytest.raises(ConfigError, match=message):
        check(batch_size, accumulation, world)
    for times in (1, 3):
        check(times * unit, accumulation, world)


@pytest.mark.parametrize("kind", list(DistributedType))
def test_only_data_parallel_launches_are_supported(kind: DistributedType) -> None:
    if kind in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        check(4, 1, 2, kind)
    else:
        with pytest.raises(ConfigError, match=f"launched with {kind.value}, but sharded weights are not supported"):
            check(4, 1, 2, kind)
