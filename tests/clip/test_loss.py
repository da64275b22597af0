"""The contrast of a batch, against its formula, and shared out over processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from imagen.clip.loss import contrast, gathered
from imagen.training.processes import Processes

SCALE = torch.tensor(7.0, dtype=torch.float64)


def vectors(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 5, generator=generator, dtype=torch.float64), dim=1)


def side_by_side(world: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Let threads do the work of processes: `add` waits for all and gives each the sum."""
    meet, parts = threading.Barrier(world), [torch.empty(0)] * world

    def add(rank: int) -> Callable[[Tensor], Tensor]:
        def added(part: Tensor) -> Tensor:
            parts[rank] = part.clone()
            meet.wait()
            total = torch.stack(parts).sum(dim=0)
            meet.wait()
            return total

        return added

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: work(Processes(rank, world, add(rank))), range(world)))


def test_it_is_the_mean_of_both_directions_log_probabilities() -> None:
    images, texts = vectors(4, 0), vectors(4, 1)
    found = contrast(images, texts, SCALE, Processes())
    for row in range(4):
        to_texts = torch.tensor([SCALE * images[row] @ text for text in texts])
        to_images = torch.tensor([SCALE * texts[row] @ image for image in images])
        expected = -(to_texts[row] - to_texts.exp().sum().log() + to_images[row] - to_images.exp().sum().log()) / 2
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-12)


def test_it_is_that_of_transformers() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    images, texts = vectors(6, 2), vectors(6, 3)
    expected = image_text_contrastive_loss(SCALE * texts @ images.T)
    torch.testing.assert_close(contrast(images, texts, SCALE, Processes()).mean(), expected)


def test_alike_pairs_cannot_be_told_apart_and_unlike_ones_can() -> None:
    one = vectors(1, 0).expand(8, 5)
    torch.testing.assert_close(contrast(one, one, SCALE, Processes()), torch.full((8,), 8.0, dtype=torch.float64).log())
    apart = torch.eye(5, dtype=torch.float64)
    expected = (4 / SCALE.exp() + 1).log()
    torch.testing.assert_close(contrast(apart, apart, SCALE, Processes()), expected.expand(5).double())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_with_the_losses_and_gradients_of_one(world: int) -> None:
    weights = [vectors(7, 10 + n).requires_grad_() for n in range(2)] + [torch.tensor(1.9, dtype=torch.float64)]
    weights[2].requires_grad_()
    inputs = [vectors(6, 20)[:, :5], vectors(6, 21)[:, :5]]

    def losses(mine: list[Tensor], rows: slice, processes: Processes) -> Tensor:
        images, texts = (normalize(x[rows] @ w[:5].T, dim=1) for x, w in zip(inputs, mine[:2], strict=True))
        return contrast(images, texts, mine[2].exp(), processes)

    whole = losses(weights, slice(0, 6), Processes())
    expected = torch.autograd.grad(whole.mean(), weights)
    share = 6 // world

    def work(processes: Processes) -> tuple[Tensor, Any]:
        mine = [weight.detach().clone().requires_grad_() for weight in weights]
        start = processes.rank * share
        own = losses(mine, slice(start, start + share), processes)
        return own.detach(), torch.autograd.grad(own.mean(), mine)

    found = side_by_side(world, work)
    torch.testing.assert_close(torch.cat([own for own, _ in found]), whole.detach(), rtol=1e-14, atol=1e-14)
    for number, gradient in enumerate(expected):  # which data parallel averages
        mean = torch.stack([gradients[number] for _, gradients in found]).mean(dim=0)
        torch.testing.assert_close(mean, gradient, rtol=1e-12, atol=1e-14)


def test_rows_are_gathered_in_the_order_of_the_processes_and_keep_their_dtype() -> None:
    found = side_by_side(2, lambda p: gathered(torch.full((2, 3), float(p.rank)), p))
    for one in found:
        assert one.tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
        assert one.dtype is torch.float32
