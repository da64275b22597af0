"""Residual blocks and the levels of the base network (ADM's "biggan" blocks: resampling inside the residual block)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .dropout import RowDropout

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": nn.GELU}


def activation(name: str) -> nn.Module:
    """The activation called ``name`` ("silu" as the paper, "gelu" as DeepFloyd IF)."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def zero_init(module: nn.Conv2d) -> nn.Conv2d:
    """Sets a convolution to zero, so that the branch it ends starts as nothing (ADM)."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def start_as_identity(conv: nn.Conv2d, scale: float) -> None:
    """Sets a square 1x1 shortcut to 1/scale times the identity, so that the block starts as the identity (ours).

    With torch's own draw each block would shrink the signal by sqrt(6), and twenty in a row leave nothing of it.
    """
    with torch.no_grad():
        nn.init.dirac_(conv.weight).div_(scale)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def check_positive(**options: int | None) -> None:
    """Raises ValueError naming the first option below 1; None, where an option may be left out, passes."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class BlockOptions:
    """What all residual and attention blocks of one network share. Raises ValueError for impossible numbers."""

    emb_dim: int
    activation: str = "silu"
    dropout: float = 0.0
    norm_groups: int = 32
    norm_eps: float = 1e-5
    residual_scale: float = 1.0
    shortcut_conv: str = "if_needed"
    head_dim: int = 64
    text_dim: int | None = None
    text_norm: str = "layer"
    qk_norm: bool = False

    def __post_init__(self) -> None:
        check_positive(norm_groups=self.norm_groups, head_dim=self.head_dim)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.residual_scale > 0:  # nan, too
            raise ValueError(f"residual_scale must be above 0, got {self.residual_scale}; 1 leaves the sums alone")


class ResnetBlock(nn.Module):
    """GroupNorm, activation, conv, FiLM by the embedding, activation, conv; plus the input (ADM; Imagen Fig. A.27).

    ``resample`` "down" (2x2 mean) or "up" (nearest x2) acts between the first activation and the first convolution and
    on the shortcut alike. The sum is multiplied by ``options.residual_scale``.
    """

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions, resample: str | None = None) -> None:
        super().__init__()
        if in_channels % options.norm_groups or out_channels % options.norm_groups:
            raise ValueError(
                f"norm_groups {options.norm_groups} does not divide the channels of a block "
                f"({in_channels} -> {out_channels}); choose a divisor of all of them"
            )
        self.resample = resample
        self.residual_scale = options.residual_scale
        self.nonlinearity = activation(options.activation)
        self.norm1 = nn.GroupNorm(options.norm_groups, in_channels, eps=options.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(options.emb_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(options.norm_groups, out_channels, eps=options.norm_eps)
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


def make_attention(channels: int, options: BlockOptions) -> Attention:
    """Self-attention with text keys and values in front (App. D.3.1)."""
    return Attention(
        channels,
        options.head_dim,
        options.text_dim,
        norm_groups=options.norm_groups,
        norm_kind=options.text_norm,
        qk_norm=options.qk_norm,
    )


class LevelText(NamedTuple):
    """What levels get of the text: states (B, L, D) to project, or keys and values projected before; and the mask."""

    states: Tensor | None = None
    keys_values: tuple[tuple[Tensor, Tensor], ...] = ()
    mask: Tensor | None = None

    def take(self, start: int, count: int) -> "LevelText":
        """The part of attention layers start, ..., start + count - 1."""
        return LevelText(self.states, self.keys_values[start : start + count], self.mask)


class Level(nn.Module):
    """Base of the parts that a U-Net runs in turn: residual blocks, each followed by its attention where there is one.

    A level is called in two ways. ``level(x, emb, skips, text, kv, mask, seeds)`` runs it;
    ``level(None, text=..., mask=...)`` returns the keys and values of its attention layers. Both pass
    through ``forward``, so sharding and offload hooks placed on a level see every use of its weights. ``checkpointed``
    says whether gradient checkpointing, once enabled for the network, acts on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checkpointed = True
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()

    def keys_values(self, text: Tensor | None, mask: Tensor | None) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of every attention layer for text (B, L, D)."""
        return tuple(attention(None, text, None, mask) for attention in self.attentions)

    def attend(self, index: int, x: Tensor, text: Tensor | None, kv: Sequence[Any], mask: Tensor | None) -> Tensor:
        """Attention layer ``index`` where the level has attention, else x."""
        if len(self.attentions) == 0:
            return x
        out: Tensor = self.attentions[index](x, text, kv[index] if kv else None, mask)
        return out


class DownLevel(Level):
    """``depth`` residual blocks, then (unless last) one that halves the resolution."""

    def __init__(
        self, in_channels: int, channels: int, depth: int, options: BlockOptions, *, attention: bool, downsample: bool
    ) -> None:
        super().__init__()
        for index in range(depth):
            self.resnets.append(ResnetBlock(in_channels if index == 0 else channels, channels, options))
            if attention:
                self.attentions.append(make_attention(channels, options))
        down = [ResnetBlock(channels, channels, options, resample="down")] if downsample else []
        self.downsamplers = nn.ModuleList(down)

    def forward(
        self,
        x: Tensor | None,
        emb: Tensor | None = None,
        skips: tuple[Tensor, ...] = (),
        text: Tensor | None = None,
        kv: Sequence[Any] = (),
        mask: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Any:
        """Returns (x, skips of this level)."""
        if x is None:
            return self.keys_values(text, mask)
        made = []
        for index, resnet in enumerate(self.resnets):
            x = self.attend(index, resnet(x, emb, seeds), text, kv, mask)
            made.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x, emb, seeds)
            made.append(x)
        return x, tuple(made)


class MidLevel(Level):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, options: BlockOptions, *, attention: bool) -> None:
        super().__init__()
        self.resnets.extend([ResnetBlock(channels, channels, options), ResnetBlock(channels, channels, options)])
        if attention:
            self.attentions.append(make_attention(channels, options))

    def forward(
        self,
        x: Tensor | None,
        emb: Tensor | None = None,
        skips: tuple[Tensor, ...] = (),
        text: Tensor | None = None,
        kv: Sequence[Any] = (),
        mask: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Any:
        """Returns x."""
        if x is None:
            return self.keys_values(text, mask)
        x = self.resnets[0](x, emb, seeds)
        return self.resnets[1](self.attend(0, x, text, kv, mask), emb, seeds)


class UpLevel(Level):
    """A residual block per skip, last skip first, concatenated; then (unless last) one that doubles the resolution."""

    def __init__(
        self,
        in_channels: int,
        skip_channels: Sequence[int],
        channels: int,
        options: BlockOptions,
        *,
        attention: bool,
        upsample: bool,
    ) -> None:
        super().__init__()
        for index, skip in enumerate(skip_channels):
            self.resnets.append(ResnetBlock((in_channels if index == 0 else channels) + skip, channels, options))
            if attention:
                self.attentions.append(make_attention(channels, options))
        up = [ResnetBlock(channels, channels, options, resample="up")] if upsample else []
        self.upsamplers = nn.ModuleList(up)

    def forward(
        self,
        x: Tensor | None,
        emb: Tensor | None = None,
        skips: tuple[Tensor, ...] = (),
        text: Tensor | None = None,
        kv: Sequence[Any] = (),
        mask: Tensor | None = None,
        seeds: Tensor | None = None,
    ) -> Any:
        """Returns x; ``skips`` are this level's, in the order they were made."""
        if x is None:
            return self.keys_values(text, mask)
        for index, (resnet, skip) in enumerate(zip(self.resnets, reversed(skips), strict=True)):
            x = self.attend(index, resnet(torch.cat([x, skip], dim=1), emb, seeds), text, kv, mask)
        for upsampler in self.upsamplers:
            x = upsampler(x, emb, seeds)
        return x
