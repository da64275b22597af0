"""Randomness is a function of (seed, step, position in the global batch)."""

from __future__ import annotations

import pytest
import torch

from imagen.training import randomness
from imagen.training.randomness import derive_seed, draw_noise, row_seeds, rows_at_once


def test_noise_of_a_row_does_not_depend_on_its_batch():
    generator = torch.Generator()
    whole = draw_noise((3, 8, 8), 7, "image", 4, range(6), generator)
    halves = [draw_noise((3, 8, 8), 7, "image", 4, rows, generator) for rows in (range(3), range(3, 6))]
    assert torch.equal(whole, torch.cat(halves))
    assert abs(whole.mean()) < 0.1
    assert abs(whole.std() - 1) < 0.1
    flat = whole.flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(6)).abs().max() < 0.35  # rows are independent


def test_purposes_and_steps_have_streams_of_their_own():
    seeds = {
        derive_seed(0, purpose, step, row) for purpose in ("image", "lowres") for step in range(9) for row in range(9)
    }
    assert len(seeds) == 2 * 9 * 9
    assert derive_seed(1, "a", 23) != derive_seed(1, "a", 2, 3)


def test_a_seed_is_a_number_that_generators_and_tensors_take_and_depends_on_all_it_is_made_of():
    drawn = [derive_seed(seed, "a", 1, row) for seed in range(20) for row in range(20)]
    assert len({*drawn}) == 400
    assert 0 <= min(drawn) < 2**57
    assert 2**62 < max(drawn) < 2**63
    assert len({derive_seed(*given) for given in ((0, "a", 1, 2), (1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 1))}) == 4
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", 1, 0)


def test_a_row_has_the_seed_of_its_own_place():
    seeds = row_seeds(3, "image", 5, range(2, 5))
    assert (seeds.dtype, seeds.device.type) == (torch.int64, "cpu")
    assert seeds.tolist() == [derive_seed(3, "image", 5, row) for row in (2, 3, 4)]
    noise = draw_noise((2, 3), 3, "image", 5, range(2, 5), torch.Generator())
    assert (noise.shape, noise.dtype) == ((3, 2, 3), torch.float32)
    for own, row in zip(noise, (2, 3, 4), strict=True):
        generator = torch.Generator().manual_seed(derive_seed(3, "image", 5, row))
        assert torch.equal(own, torch.randn(2, 3, generator=generator))


def test_on_an_accelerator_as_many_rows_share_a_stream_as_make_four_million_numbers():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    sizes = (3 * 64**2, 3 * 256**2, 3 * 1024**2, 3 * 2048**2, 2**22, 2**22 + 1)
    assert [rows_at_once(numbers, cuda) for numbers in sizes] == [256, 16, 1, 1, 1, 1]
    assert {rows_at_once(numbers, cpu) for numbers in sizes} == {1}


def test_there_a_row_has_the_same_noise_in_whatever_part_of_the_batch(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator()
    monkeypatch.setattr(randomness, "rows_at_once", lambda numbers, device: 4)
    whole = draw_noise((2, 3), 7, "image", 4, range(12), generator)
    for start, stop in ((0, 4), (4, 12), (3, 5), (5, 6), (1, 11), (8, 12), (11, 12)):
        part = draw_noise((2, 3), 7, "image", 4, range(start, stop), generator)
        assert torch.equal(part, whole[start:stop]), (start, stop)
    second = torch.randn(4, 2, 3, generator=generator.manual_seed(derive_seed(7, "image", 4, 1)))
    assert torch.equal(whole[4:8], second)
    assert len({*whole.flatten().tolist()}) == whole.numel()
