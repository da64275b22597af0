"""Dropout by a seed per picture: a fair coin for each number, the same for a picture in any batch."""

import math

import pytest
import torch
from torch import Tensor

from tests.unets.helpers import KINDS, draw, image_inputs, make, run
from unets import BaseUNet
from unets.blocks import ResnetBlock
from unets.dropout import RowDropout, mix, number_layers, uniform_bits
from unets.options import Options

SEEDS = torch.tensor([3, 2**62 + 11, 0, 987654321])


def layer(p: float, number: int = 0) -> RowDropout:
    made = RowDropout(p)
    made.layer = number
    return made


def masks(p: float, seeds: Tensor = SEEDS, number: int = 0, shape: tuple[int, ...] = (8, 50, 50)) -> Tensor:
    return layer(p, number)(torch.ones(len(seeds), *shape), seeds) != 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_and_the_scale_of_what_is_kept(p: float) -> None:
    x = draw(1, 4, 8, 50, 50)
    out = layer(p)(x, SEEDS)
    dropped = out == 0
    error = math.sqrt(p * (1 - p) / dropped[0].numel())
    for share in dropped.double().mean(dim=(1, 2, 3)):
        assert abs(share.item() - p) < 5 * error
    for share in dropped.double().mean(dim=(0, 2, 3)):  # no channel is favoured
        assert abs(share.item() - p) < 5 * error * math.sqrt(dropped[0].numel() / dropped[:, 0].numel())
    assert torch.allclose(out[~dropped], x[~dropped] / (1 - p), rtol=1e-15)


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard errors of independent masks."""
    both = torch.stack([a.flatten().double(), b.flatten().double()])
    return abs(torch.corrcoef(both)[0, 1].item()) * math.sqrt(a.numel())


def test_rows_layers_neighbours_and_near_seeds_are_independent() -> None:
    mask = masks(0.3)
    assert correlation(mask[0], mask[1]) < 5
    assert correlation(mask, masks(0.3, number=1)) < 5
    assert correlation(mask, masks(0.3, SEEDS + 1)) < 5
    for axis, step in ((1, 1), (2, 1), (3, 1), (3, 2)):
        assert correlation(mask, mask.roll(step, axis)) < 5


def test_the_bits_are_uniform() -> None:
    bits = uniform_bits(SEEDS, 7, 20_000)
    assert bits.min() >= 0
    assert bits.max() < 2**32
    counts = torch.bincount((bits >> 26).flatten(), minlength=64).double()
    expected = bits.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63)  # chi squared
    one = torch.tensor([0x9E3779B97F4A7C15 - 2**64])
    assert mix(one).item() == 0xE220A8397B1DCDAF - 2**64  # SplitMix64's first output from state 0, as published


def test_the_bits_are_splitmix64s_in_plain_integers() -> None:
    """A stream for each row and layer, begun at mix(mix(seed) + layer), of which each number is the upper half."""
    whole = 2**64

    def finalized(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % whole
        x = (x ^ x >> 27) * 0x94D049BB133111EB % whole
        return x ^ x >> 31

    for number in (0, 7):
        expected = [
            [
                finalized((finalized((finalized(seed) + number) % whole) + place * 0x9E3779B97F4A7C15) % whole) >> 32
                for place in range(1, 6)
            ]
            for seed in SEEDS.tolist()
        ]
        assert uniform_bits(SEEDS, number, 5).tolist() == expected


def test_a_row_is_masked_alike_in_any_batch_dtype_and_layout() -> None:
    mask = masks(0.3)
    assert torch.equal(masks(0.3, SEEDS[2:3])[0], mask[2])
    assert torch.equal(masks(0.3, SEEDS.flip(0)).flip(0), mask)
    ones = torch.ones(4, 8, 50, 50)
    for x in (ones.bfloat16(), ones.double(), ones.to(memory_format=torch.channels_last)):
        out = layer(0.3)(x, SEEDS)
        assert out.dtype == x.dtype
        assert torch.equal(out != 0, mask)


def test_without_seeds_it_is_torchs_and_in_evaluation_it_is_nothing() -> None:
    x = draw(2, 4, 3, 5)
    torch.manual_seed(0)
    ours = layer(0.4)(x)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.4))
    assert torch.equal(layer(0.4).eval()(x, SEEDS), x)
    assert torch.equal(layer(0.0)(x, SEEDS), x)


@torch.no_grad()
def test_a_residual_block_drops_what_its_second_convolution_reads() -> None:
    """As ADM does: what is dropped is one number there, and nine of the block's output."""
    block = ResnetBlock(4, 4, Options(time_embed_dim=3, norm_groups=2, dropout=0.5)).double()
    for number, parameter in enumerate(block.parameters()):
        parameter.copy_(draw(number, *parameter.shape))
    read: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    x, emb = draw(50, 4, 4, 3, 5), draw(51, 4, 3)
    whole = block.eval()(x, emb, SEEDS)
    out = block.train()(x, emb, SEEDS)
    dropped = layer(0.5)(read[0], SEEDS)
    assert torch.equal(read[1], dropped)
    assert (dropped == 0).any()
    assert torch.allclose(out, x + block.conv2(dropped), rtol=1e-12, atol=1e-12)
    assert torch.allclose(whole, x + block.conv2(read[0]), rtol=1e-12, atol=1e-12)


def gradients(unet: torch.nn.Module, rows: slice) -> tuple[Tensor, list[Tensor]]:
    """Outputs and the gradients of their sum of squares."""
    given = {k: v[rows] for k, v in image_inputs(unet, batch=4).items()}
    unet.zero_grad()
    out = unet(**given, text=draw(3, 4, 3, 24)[rows], dropout_seeds=SEEDS[rows])
    out.square().sum().backward()
    return out.detach(), [p.grad.clone() for p in unet.parameters() if p.grad is not None]


def test_a_networks_gradients_do_not_depend_on_how_its_batch_is_divided() -> None:
    unet = make("base", dropout=0.3).train()
    whole, sums = gradients(unet, slice(None))
    parts = [gradients(unet, part) for part in (slice(0, 1), slice(1, 4))]
    assert torch.allclose(torch.cat([out for out, _ in parts]), whole, rtol=1e-10, atol=1e-12)
    for total, *by_part in zip(sums, *(grads for _, grads in parts), strict=True):
        assert torch.allclose(sum(by_part), total, rtol=1e-8, atol=1e-10)  # type: ignore[arg-type]
    unet.enable_gradient_checkpointing()
    again, repeated = gradients(unet, slice(None))
    assert torch.equal(again, whole)
    assert all(torch.equal(a, b) for a, b in zip(repeated, sums, strict=True))


def test_seeds_alone_decide_and_every_layer_has_a_number() -> None:
    unet = make("base", dropout=0.3).train()
    assert torch.equal(run(unet, dropout_seeds=SEEDS[:2]), run(unet, dropout_seeds=SEEDS[:2]))
    assert not torch.equal(run(unet, dropout_seeds=SEEDS[:2]), run(unet, dropout_seeds=SEEDS[2:]))
    numbers = [m.layer for m in unet.modules() if isinstance(m, RowDropout)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 5
    with pytest.raises(ValueError, match="dropout_seeds has batch size 3, sample 2"):
        run(unet, dropout_seeds=SEEDS[:3])
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, got 1\.0"):
        BaseUNet(**{**KINDS["base"][1], "dropout": 1.0})


def test_it_compiles_into_one_graph() -> None:
    dropout = torch.nn.Sequential(layer(0.3), layer(0.3))
    number_layers(dropout)
    x = draw(4, 4, 3, 6, 6)
    expected = dropout[1](dropout[0](x, SEEDS), SEEDS)

    def both(x: Tensor, seeds: Tensor) -> Tensor:
        return dropout[1](dropout[0](x, seeds), seeds)

    torch.compiler.reset()
    assert torch.equal(torch.compile(both, backend="aot_eager", fullgraph=True)(x, SEEDS), expected)
