"""Residual blocks and the levels of the base network (ADM's "biggan" blocks: resampling inside the residual block)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, zero_init
from .dropout import RowDropout
from .level import Level, LevelText, Skips
from .norms import GroupNorm
from .options import Options
from .regions import Region

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU}


def activation(name: str) -> nn.Module:
    """The activation called ``name`` ("silu" as the paper, "gelu" as DeepFloyd IF)."""
    return ACTIVATIONS[name]()


def start_as_identity(conv: nn.Conv2d, scale: float) -> None:
    """Sets a square 1x1 shortcut to 1/scale times the identity, so that the block starts as the identity (ours).

    With torch's own draw each block would shrink the signal by sqrt(6), and twenty in a row leave nothing of it.
    """
    zero_init(conv)
    with torch.no_grad():
        nn.init.dirac_(conv.weight).div_(scale)


class ResnetBlock(Region):
    """GroupNorm, activation, conv, FiLM by the embedding, activation, conv; plus the input (ADM; Imagen Fig. A.27).

    ``resample`` "down" (2x2 mean) or "up" (nearest x2) acts between the first activation and the first convolution and
    on the shortcut alike. The sum is multiplied by ``options.residual_scale``.
    """

    def __init__(self, in_channels: int, out_channels: int, options: Options, resample: str | None = None) -> None:
        super().__init__()
        if in_channels % options.norm_groups or out_channels % options.norm_groups:
            raise ValueError(
                f"norm_groups {options.norm_groups} does not divide the channels of a block "
                f"({in_channels} -> {out_channels}); choose a divisor of all of them"
            )
        self.resample = resample
        self.residual_scale = options.residual_scale
        self.nonlinearity = activation(options.activation)
        self.norm1 = GroupNorm(options.norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(options.emb_dim, 2 * out_channels)
        self.norm2 = GroupNorm(options.norm_groups, out_channels)
        self.dropout = RowDropout(options.dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        wanted = in_channels != out_channels or options.shortcut_conv == "always"
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if wanted else None
        if self.conv_shortcut is not None and in_channels == out_channels:
            start_as_identity(self.conv_shortcut, options.residual_scale)

    def forward(self, x: Tensor, emb: Tensor, seeds: Tensor | None = None) -> Tensor:
        """x (B, C_in, H, W), emb (B, emb_dim) after its activation, seeds (B,) of dropout -> (B, C_out, H', W')."""
        hidden = self._resample(self.nonlinearity(self.norm1(x)))
        hidden = self.conv1(hidden)
        scale, shift = self.time_emb_proj(emb)[:, :, None, None].chunk(2, dim=1)
        hidden = self.nonlinearity(torch.addcmul(shift, self.norm2(hidden), 1 + scale))
        hidden = self.conv2(self.dropout(hidden, seeds))
        x = self._resample(x)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        out = x + hidden
        return out if self.residual_scale == 1 else out * self.residual_scale

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class ResnetLevel(Level):
    """Residual blocks, each followed by its attention where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()

    def add(self, in_channels: int, channels: int, options: Options, attention: bool) -> None:
        """One more residual block, with attention behind it or without."""
        self.resnets.append(ResnetBlock(in_channels, channels, options))
        if attention:
            self.attentions.append(Attention(channels, options))


class DownLevel(ResnetLevel):
    """``depth`` residual blocks, then (unless last) one that halves the resolution; each makes a skip."""

    def __init__(
        self, in_channels: int, channels: int, depth: int, options: Options, *, attention: bool, downsample: bool
    ) -> None:
        super().__init__()
        for index in range(depth):
            self.add(in_channels if index == 0 else channels, channels, options, attention)
        down = [ResnetBlock(channels, channels, options, resample="down")] if downsample else []
        self.downsamplers = nn.ModuleList(down)

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """See :class:`Level`."""
        made = []
        for index, resnet in enumerate(self.resnets):
            x = self.attend(index, resnet(x, emb, seeds), text)
            made.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, emb, seeds)
            made.append(x)
        return x, tuple(made)


class MidLevel(ResnetLevel):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, options: Options, *, attention: bool) -> None:
        super().__init__()
        self.add(channels, channels, options, attention=False)
        self.add(channels, channels, options, attention)

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """See :class:`Level`."""
        x = self.attend(0, self.resnets[0](x, emb, seeds), text)
        return self.resnets[1](x, emb, seeds), ()


class UpLevel(ResnetLevel):
    """A residual block per skip, last skip first, concatenated; then (unless last) one that doubles the resolution."""

    def __init__(
        self, in_channels: int, skips: list[int], channels: int, options: Options, *, attention: bool, upsample: bool
    ) -> None:
        super().__init__()
        self.takes = len(skips)
        for index, skip in enumerate(skips):
            self.add((in_channels if index == 0 else channels) + skip, channels, options, attention)
        up = [ResnetBlock(channels, channels, options, resample="up")] if upsample else []
        self.upsamplers = nn.ModuleList(up)

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """See :class:`Level`."""
        for index, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            x = self.attend(index, resnet(torch.cat([x, skip], dim=1), emb, seeds), text)
        for upsampler in self.upsamplers:
            x = upsampler(x, emb, seeds)
        return x, ()
