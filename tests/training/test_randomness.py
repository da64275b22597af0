"""Randomness is a function of (seed, step, position in the global batch)."""

from __future__ import annotations

import torch

from imagen.training.randomness import derive_seed, draw_noise


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
