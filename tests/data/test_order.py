"""Who reads what when: a permutation per epoch, the same on any number of processes, resumable at any step."""

from __future__ import annotations

import pytest
import torch

from imagen.data.order import StepSampler, micro_positions, sample_index
from imagen.data.sources import Sample, collate


def draws(length: int | None, count: int, batch_size: int = 4, seed: int = 0) -> list[int]:
    return [sample_index(seed, n // batch_size, n % batch_size, batch_size, length) for n in range(count)]


@pytest.mark.parametrize(("length", "batch_size"), [(12, 4), (10, 4), (3, 8), (1, 2)])
def test_every_epoch_is_a_permutation(length: int, batch_size: int) -> None:
    order = draws(length, 5 * length, batch_size)
    for epoch in range(5):
        indices = order[epoch * length : (epoch + 1) * length]
        assert sorted(index % length for index in indices) == list(range(length))
        assert {index // length for index in indices} == {epoch}


def test_epochs_and_seeds_differ() -> None:
    order, other = draws(50, 100), draws(50, 100, seed=1)
    assert [i % 50 for i in order[:50]] != [i % 50 for i in order[50:]]
    assert order[:50] != other[:50]
    assert order[:50] != list(range(50))
    assert order == draws(50, 100)


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert draws(7, 24, batch_size=2) == draws(7, 24, batch_size=8)


def test_an_endless_source_is_read_in_order() -> None:
    assert draws(None, 100) == list(range(100))


@pytest.mark.parametrize("length", [None, 10])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2)])
def test_processes_and_accumulation_share_out_one_batch(length: int | None, world: int, accumulation: int) -> None:
    batch, steps = 24, 3
    parts = [
        list(StepSampler(length, batch, 5, num_steps=steps, accumulation=accumulation, rank=rank, world=world))
        for rank in range(world)
    ]
    assert all(len(part) == steps * accumulation for part in parts)
    for step in range(steps):
        joined: list[int] = []
        for micro in range(accumulation):
            for part in parts:
                joined += part[step * accumulation + micro]
        assert joined == [sample_index(5, step, position, batch, length) for position in range(batch)]


def test_positions_are_shared_out_once() -> None:
    found = [p for micro in range(2) for rank in range(3) for p in micro_positions(12, micro, 2, rank, 3)]
    assert found == list(range(12))


def test_resuming_is_starting_later() -> None:
    whole = list(StepSampler(10, 4, seed=2, num_steps=9, accumulation=2))
    for step in range(10):
        assert list(StepSampler(10, 4, seed=2, start_step=step, num_steps=9, accumulation=2)) == whole[2 * step :]
    endless = iter(StepSampler(None, 2))
    assert [next(endless) for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("legal", "wrong", "message"),
    [
        ((0, 0), (0, -1), "position is -1 at step 0; expected 0 <= position < 4"),
        ((0, 3), (0, 4), "position is 4 at step 0"),
        ((0, 0), (-1, 0), "position is 0 at step -1"),
    ],
)
def test_positions_are_those_of_a_batch(legal: tuple[int, int], wrong: tuple[int, int], message: str) -> None:
    for length in (None, 10):
        assert 0 <= sample_index(0, *legal, 4, length) < 10
        with pytest.raises(ValueError, match=message):
            sample_index(0, *wrong, 4, length)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((8, 0, 3, 0, 1), "batch of 8 cannot be divided into 3 accumulation steps × 1 processes; .* a multiple of 3"),
        ((8, 0, 1, 0, 3), "batch of 8 cannot be divided into 1 accumulation steps × 3 processes; .* a multiple of 3"),
        ((8, 0, 3, 0, 2), "multiple of 6"),
        ((8, 0, 0, 0, 1), "cannot be divided into 0"),
        ((8, 0, 1, 0, 0), "cannot be divided into 1 accumulation steps × 0"),
        ((8, 0, 1, 2, 2), "rank 2 of 2, micro-batch 0 of 1; expected both to be in range"),
        ((8, 0, 1, -1, 2), "rank -1 of 2"),
        ((8, 2, 2, 0, 2), "micro-batch 2 of 2"),
        ((8, -1, 2, 0, 2), "micro-batch -1 of 2"),
    ],
)
def test_parts_of_a_batch_are_whole_and_there(parts: tuple[int, ...], message: str) -> None:
    assert micro_positions(8, 1, 2, 1, 2) == range(6, 8)
    with pytest.raises(ValueError, match=message):
        micro_positions(*parts)


def test_a_bad_source_or_batch_is_told_before_it_is_read() -> None:
    assert list(StepSampler(1, 1, num_steps=1)) == [[0]]
    with pytest.raises(ValueError, match="the source has 0 samples; expected at least one"):
        StepSampler(0, 8)
    with pytest.raises(ValueError, match="multiple of 6"):
        StepSampler(10, 8, accumulation=3, world=2)
    with pytest.raises(ValueError, match="at step -1"):
        StepSampler(10, 8, start_step=-1)


def sample(key: str = "a", side: int = 4, lowres: bool = False) -> Sample:
    return Sample(key, torch.full((3, side, side), 0.5), f"a {key}", torch.zeros(3, 2, 2) if lowres else None)


def test_collate() -> None:
    batch = collate([sample("a"), sample("b")])
    assert set(batch) == {"key", "image", "caption", "notes"}
    assert (batch["key"], batch["caption"]) == (["a", "b"], ["a a", "a b"])
    assert batch["image"].shape == (2, 3, 4, 4)
    assert collate([sample(lowres=True)])["lowres"].shape == (1, 3, 2, 2)


def test_collate_refuses_what_does_not_go_together() -> None:
    with pytest.raises(ValueError, match="'b' has no lowres"):
        collate([sample("a", lowres=True), sample("b")])
    with pytest.raises(ValueError, match="image has the shapes"):
        collate([sample("a"), sample("b", side=5)])
