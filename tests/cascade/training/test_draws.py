"""What is drawn for a batch, of the distributions that it should have."""

from __future__ import annotations

import torch

from imagen.cascade.training.inputs.batches import draw_batch


def test_draws_repeat_and_differ_between_steps_and_seeds():
    first, again = draw_batch(3, 5, 8, 0.1, True), draw_batch(3, 5, 8, 0.1, True)
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.aug_level, again.aug_level)
    assert not torch.equal(first.t, draw_batch(3, 6, 8, 0.1, True).t)
    assert not torch.equal(first.t, draw_batch(4, 5, 8, 0.1, True).t)


def test_stratified_times_have_one_draw_in_each_interval_in_random_order():
    t = draw_batch(0, 0, 32, 0.1, True).t
    assert sorted((t * 32).long().tolist()) == list(range(32))
    assert not torch.equal(t, t.sort().values)


def test_times_and_levels_are_uniform():
    for stratified in (True, False):
        draws = [draw_batch(1, step, 4, 0.1, stratified) for step in range(2500)]
        for values in (torch.cat([d.t for d in draws]), torch.cat([d.aug_level for d in draws])):
            assert 0 <= values.min() < 0.01
            assert 0.99 < values.max() < 1
            empirical = values.sort().values
            assert (empirical - torch.linspace(0, 1, len(values))).abs().max() < 0.02  # Kolmogorov-Smirnov
        first = torch.stack([d.t[0] for d in draws])  # every position by itself, too
        assert (first.sort().values - torch.linspace(0, 1, len(first))).abs().max() < 0.04


def test_share_of_dropped_captions():
    drop = torch.cat([draw_batch(2, step, 50, 0.1, True).drop for step in range(400)]).double()
    assert abs(drop.mean() - 0.1) < 4 * (0.1 * 0.9 / len(drop)) ** 0.5
    assert not draw_batch(2, 0, 50, 0.0, True).drop.any()
    assert draw_batch(2, 0, 50, 1.0, True).drop.all()


def test_dropping_does_not_depend_on_the_noise_level():
    draws = [draw_batch(2, step, 50, 0.5, True) for step in range(200)]
    t, drop = torch.cat([d.t for d in draws]), torch.cat([d.drop for d in draws])
    assert abs(t[drop].mean() - t[~drop].mean()) < 0.02


def test_time_level_and_dropping_are_drawn_apart():
    """In a run whose times are not spread, too: one number for two of them would tie the noise of the two pictures."""
    for stratified in (True, False):
        draws = [draw_batch(2, step, 8, 0.5, stratified) for step in range(300)]
        drawn = torch.stack(
            [torch.cat([getattr(d, name).double() for d in draws]) for name in ("t", "drop", "aug_level")]
        )
        assert (torch.corrcoef(drawn) - torch.eye(3)).abs().max() < 0.1


def test_rows_are_those_of_every_draw():
    draws = draw_batch(1, 2, 6, 0.5, True)
    part = draws.rows(range(2, 5))
    for name in ("t", "drop", "aug_level"):
        assert torch.equal(getattr(part, name), getattr(draws, name)[2:5])
    assert draws.t.dtype == draws.aug_level.dtype == torch.float64
    assert draws.drop.dtype == torch.bool
