"""Work that processes share out, its batch too: every turn is somebody's, nobody's twice, and the parts add up."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor

from imagen.errors import ConfigError
from imagen.training import processes
from imagen.training.config.sections import OptimConfig, RunSettings, TrainConfig
from imagen.training.processes import Processes, check_optimizer, check_processes, make_accelerator


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize(("count", "size"), [(0, 2), (1, 4), (7, 2), (8, 2), (9, 4), (10, 1)])
def test_turns_are_dealt_out_once_each_and_in_order(world: int, count: int, size: int) -> None:
    turns = [list(Processes(rank, world).turns(count, size)) for rank in range(world)]
    everything = sorted((rows for mine in turns for rows in mine), key=lambda rows: rows.start)
    assert [row for rows in everything for row in rows] == list(range(count))
    assert all(1 <= len(rows) <= size for rows in everything)
    for rank, mine in enumerate(turns):
        assert [rows.start // size for rows in mine] == list(range(rank, -(-count // size), world))


def test_alone_a_part_is_the_whole() -> None:
    part = torch.arange(3.0)
    assert Processes().add(part) is part
    assert list(Processes().turns(3, 2)) == [range(0, 2), range(2, 3)]


class Launched:
    """What accelerate says of a process, and the sum it makes of this process's part and the others'."""

    def __init__(self, rank: int, world: int, others: Tensor) -> None:
        self.process_index, self.num_processes, self.others = rank, world, others

    def reduce(self, part: Tensor, reduction: str) -> Tensor:
        whole = part + self.others
        return whole if reduction == "sum" else whole / self.num_processes


@pytest.mark.parametrize(("rank", "world"), [(2, 4), (1, 2), (0, 2)])
def test_the_processes_of_a_launch_add_their_parts_up(rank: int, world: int) -> None:
    others = torch.tensor([0.0, 3.0, 4.0])
    launched: Any = Launched(rank, world, others)
    processes = Processes.of(launched)
    assert (processes.rank, processes.world) == (rank, world)
    assert torch.equal(processes.add(torch.tensor([5.0, 0.0, 0.0])), torch.tensor([5.0, 3.0, 4.0]))
    alone: Any = Launched(0, 1, others)
    assert Processes.of(alone) == Processes()


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


@pytest.fixture
def anew() -> Iterator[None]:
    """accelerate keeps the arithmetic of its first use for the whole process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("mixed", ["no", "bf16"])
def test_accelerate_is_told_the_run_s_arithmetic_folder_and_whether_to_log(mixed: Any, anew: None) -> None:
    accelerator = make_accelerator(RunSettings("a/run", train=TrainConfig(mixed_precision=mixed)))
    assert (accelerator.mixed_precision, accelerator.project_dir, accelerator.log_with) == (mixed, "a/run", [])
    assert not accelerator.step_scheduler_with_optimizer
    accelerator = make_accelerator(
        RunSettings("a/run", train=TrainConfig(mixed_precision=mixed, trackers=("tensorboard",)))
    )
    assert [str(kind) for kind in accelerator.log_with] == ["tensorboard"]
    assert (accelerator.logging_dir, accelerator.trackers) == ("a/run", [])


def test_an_optimizer_of_torch_s_own_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda _: None)
    for kind in ("adamw", "adafactor"):
        check_optimizer(RunSettings("run", optim=OptimConfig(kind), train=TrainConfig(dtype="float64")))  # type: ignore
