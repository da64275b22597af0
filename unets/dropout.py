"""Dropout as a function of one seed per picture, so that a picture's mask does not depend on its batch."""

import torch
from torch import Tensor, nn

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # these three wrap around, as int64 does; of SplitMix64 (Steele et al. 2014)
MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


class RowDropout(nn.Dropout):
    """Dropout whose mask is a hash of (the row's seed, the layer's number, the position within the row).

    Nothing is drawn from a generator: a row is masked alike in any batch, on any device, in any dtype, and again when
    gradient checkpointing repeats it. Without seeds it is ``nn.Dropout``, which draws from torch's own generator.

    Attributes:
        layer: the layer's number in its network, by which :func:`number_layers` tells the layers apart.
    """

    layer = 0

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """x (B, ...), seeds (B,) int64 or None -> as x."""
        if seeds is None or not self.training or self.p == 0:
            return super().forward(x)
        kept = uniform_bits(seeds, self.layer, x[0].numel()).view(x.shape) >= round(self.p * 2**32)
        return torch.where(kept, x / (1 - self.p), 0.0)


def number_layers(network: nn.Module) -> None:
    """Gives every :class:`RowDropout` of the network its number, in the order they were built."""
    for number, layer in enumerate(m for m in network.modules() if isinstance(m, RowDropout)):
        layer.layer = number


def uniform_bits(seeds: Tensor, layer: int, count: int) -> Tensor:
    """(B, count) int64, uniform in [0, 2^32): a function of each seed (B,) int64, the layer and the position."""
    keys = mix(mix(seeds) + layer)
    positions = torch.arange(1, count + 1, device=seeds.device) * GOLDEN
    return shifted(mix(keys[:, None] + positions), 32)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer, a bijection of int64 in which every bit of x reaches every bit of the result."""
    x = (x ^ shifted(x, 30)) * MULTIPLIERS[0]
    x = (x ^ shifted(x, 27)) * MULTIPLIERS[1]
    return x ^ shifted(x, 31)


def shifted(x: Tensor, bits: int) -> Tensor:
    """int64 x shifted right with zeros coming in, whatever its sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
