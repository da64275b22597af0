"""What the two U-Nets share beside the conditioning: where cells lie, and the layers at input and output."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import zero_init
from .blocks import activation
from .dropout import number_layers
from .network import Network
from .norms import GroupNorm
from .options import Options


def check_levels(attention_levels: Sequence[int], **numbers: Sequence[int]) -> None:
    """Raises ValueError unless each option has one number of at least 1 per level, and levels with attention exist."""
    said = ", ".join(f"{name} {list(each)}" for name, each in numbers.items())
    count = len(next(iter(numbers.values())))
    if count == 0 or any(len(each) != count for each in numbers.values()):
        raise ValueError(f"{said}: give one entry for every level, and at least one level")
    if min(map(min, numbers.values())) < 1:
        raise ValueError(f"{said} must be at least 1 on every level")
    wrong = [level for level in attention_levels if level not in range(count)]
    if wrong:
        raise ValueError(f"attention_levels {wrong} do not exist; this network has levels 0 to {count - 1}")


def coordinates(x: Tensor) -> Tensor:
    """Where the cells of x (B, C, H, W) lie: (B, 2, H, W), row and column from -1 at one border to 1 at the other."""
    batch, _, height, width = x.shape
    axes = [(torch.arange(n, device=x.device, dtype=torch.float32) * 2 + 1) / n - 1 for n in (height, width)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.to(x.dtype).expand(batch, -1, -1, -1)


class ConditionedUNet(Network):
    """A U-Net between a first and a last convolution; a subclass builds its levels."""

    input_layer: ClassVar[str] = "conv_in"
    output_layer: ClassVar[str] = "conv_out"
    end_layers: ClassVar[tuple[str, ...]] = ("conv_in", "conv_out", "class_tables")
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ResnetBlock", "Attention"]
    _repeated_blocks: ClassVar[list[str]] = ["ResnetBlock", "Attention"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "time_embedding", *end_layers]

    def _setup_input(self, options: Options, width: int) -> None:
        """Builds the first convolution, to ``width`` channels, and then the conditioning."""
        self.conv_in = nn.Conv2d(options.stem_channels + 2 * options.coordinates, width, 3, padding=1)
        self._setup(options)

    def _setup_output(self, width: int) -> None:
        """Builds what follows the last level: the head where there is one, norm, activation, zero convolution."""
        options = self.options
        head = options.head_channels
        self.conv_head = None if head is None else nn.Conv2d(width, head, 1)
        width = width if head is None else head
        if width % options.norm_groups:
            raise ValueError(
                f"head_channels {width} is not divisible by norm_groups {options.norm_groups}; choose a multiple"
            )
        self.conv_norm_out = GroupNorm(options.norm_groups, width)
        self.conv_act = activation(options.activation)
        self.conv_out = zero_init(nn.Conv2d(width, options.out_channels * options.patch_size**2, 3, padding=1))
        number_layers(self)

    def _output(self, x: Tensor) -> Tensor:
        """(B, width, h, w) of the last level -> (B, out_channels, h * patch_size, w * patch_size)."""
        if self.conv_head is not None:
            x = self.conv_head(x)
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return F.pixel_shuffle(out, self.options.patch_size)

    def _stem(self, sample: Tensor, lowres: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        x = super()._stem(sample, lowres, named)
        return torch.cat([x, coordinates(x)], dim=1) if self.options.coordinates else x

    def _level_numbers(self) -> list[int]:
        run = len(self._levels())
        return [min(place, run - 1 - place, run // 2 - 1) for place in range(run)]
