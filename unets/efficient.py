"""EfficientUNet: the paper's super-resolution network (App. B, F.2, F.3; Figs. A.27 to A.29)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .attention import Attention
from .blocks import ResnetBlock, ResnetLevel
from .level import Level, LevelText, Skips
from .options import Options
from .unet import ConditionedUNet, check_levels


@dataclass(frozen=True)
class EfficientOptions(Options):
    """The shared options and this network's own: what the paper leaves open, and the attention of its levels.

    Attributes:
        attention: "self" (image and text) or "cross" (text alone).
        heads: attention heads, of 2 * channels / heads each.
        skip: how a UBlock takes its skip: "add" (times ``residual_scale``), "concat", or "concat_each", a skip for
            every residual block as in ADM (Fig. A.29 says "Previous UBlock + Skip").
        upsample: "nearest" (nearest, then convolution), "transposed" or "pixel_shuffle" (the paper does not say).
    """

    WORDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **Options.WORDS,
        "attention": ("self", "cross"),
        "skip": ("add", "concat", "concat_each"),
        "upsample": ("nearest", "transposed", "pixel_shuffle"),
    }
    COUNTS: ClassVar[tuple[str, ...]] = (*Options.COUNTS, "heads")

    attention: str = "self"
    heads: int = 8
    skip: str = "add"
    upsample: str = "nearest"


def block_attention(channels: int, options: EfficientOptions) -> Attention:
    """Fig. A.28: heads of 2*channels/heads, the hidden size twice the channels (we read it as the width of q, k, v)."""
    if 2 * channels % options.heads:
        raise ValueError(f"heads {options.heads} does not divide the attention width {2 * channels}; choose a divisor")
    options = replace(options, head_dim=2 * channels // options.heads)
    return Attention(channels, options, inner_dim=2 * channels, self_attention=options.attention == "self")


class DBlock(ResnetLevel):
    """Fig. A.28: strided convolution first, then residual blocks with the embedding, then attention.

    The last ``skips`` of the residual blocks make one each; ``before`` are the channels that come in.
    """

    def __init__(
        self, before: int, width: int, depth: int, stride: int, options: EfficientOptions, attention: bool, skips: int
    ) -> None:
        super().__init__()
        self.makes = skips
        self.conv = nn.Conv2d(before, width, 3, stride=stride, padding=1)
        self.resnets.extend([ResnetBlock(width, width, options) for _ in range(depth)])
        if attention:
            self.attentions.append(block_attention(width, options))

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """x (B, C, H, W) -> x (B, C', H/stride, W/stride) and its skips; see :class:`Level`."""
        x = self.conv(x)
        made = []
        for resnet in self.resnets:
            x = resnet(x, emb, seeds)
            made.append(x)
        x = self.attend(0, x, text)
        made[-1] = x
        return x, tuple(made[len(made) - self.makes :])


class UBlock(ResnetLevel):
    """Fig. A.29: the skip joins, residual blocks with the embedding, attention, and the upsampling convolution last.

    The convolution gives the channels of the next block's skip, the mirror of DBlock (the paper draws its own channels
    there and does not say how they meet the skip's): ``behind``. The first ``skips`` residual blocks take one each.
    """

    def __init__(
        self, width: int, behind: int, depth: int, stride: int, options: EfficientOptions, attention: bool, skips: int
    ) -> None:
        super().__init__()
        self.takes, self.skip, self.residual_scale = skips, options.skip, options.residual_scale
        for index in range(depth):
            joins = options.skip != "add" and index < self.takes
            self.resnets.append(ResnetBlock(2 * width if joins else width, width, options))
        if attention:
            self.attentions.append(block_attention(width, options))
        self.conv = upsampling_conv(options.upsample, width, behind, stride)

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """x (B, C, H, W) -> (B, C', H*stride, W*stride); see :class:`Level`."""
        for index, resnet in enumerate(self.resnets):
            if index < len(skips):
                x = join(x, skips[-1 - index], self.skip, self.residual_scale)
            x = resnet(x, emb, seeds)
        return self.conv(self.attend(0, x, text)), ()


def join(x: Tensor, skip: Tensor, kind: str, scale: float) -> Tensor:
    """A block's input and the skip: their sum times ``scale`` ("add") or both side by side."""
    return (x + skip) * scale if kind == "add" else torch.cat([x, skip], dim=1)


def upsampling_conv(kind: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The convolution behind a UBlock: (B, C, H, W) -> (B, C', H*stride, W*stride)."""
    if stride == 1:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1)
    if kind == "pixel_shuffle":
        wide = nn.Conv2d(in_channels, out_channels * stride**2, 3, padding=1)
        return nn.Sequential(wide, nn.PixelShuffle(stride))
    return nn.Sequential(nn.Upsample(scale_factor=stride), nn.Conv2d(in_channels, out_channels, 3, padding=1))


class EfficientUNet(ConditionedUNet, ModelMixin, ConfigMixin):
    """The Efficient U-Net (Imagen App. B.1): depth at low resolution, resampling first or last, 1/sqrt(2).

    The defaults are the 64 -> 256 network of App. F.2; F.3 (256 -> 1024) has ``attention="cross"``. See :meth:`forward`
    for the ways to call it.

    Args:
        channels, num_res_blocks, strides: of each block; a stride acts first in DBlock and last in UBlock.
        attention_levels: blocks with attention; the paper's lowest alone.
        time_embed_dim: None: 4 * channels[0] (ours; the paper is silent).

    All other arguments are described at :class:`EfficientOptions` and :class:`unets.options.Options`.

    Raises:
        ValueError: options that contradict each other, naming them.
    """

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """The patch times all strides."""
        return int(arguments["patch_size"]) * math.prod(arguments["strides"])

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        lowres_channels: int = 3,
        patch_size: int = 1,
        channels: Sequence[int] = (128, 256, 512, 1024),
        num_res_blocks: Sequence[int] = (2, 4, 8, 8),
        strides: Sequence[int] = (2, 2, 2, 2),
        attention_levels: Sequence[int] = (3,),
        attention: str = "self",
        heads: int = 8,
        text_dim: int | None = 4096,
        text_whitening: bool = False,
        text_proj_dim: int | None = None,
        text_pooling: str = "attention",
        time_embed_dim: int | None = None,
        time_input: str = "timestep",
        skip: str = "add",
        shortcut_conv: str = "always",
        upsample: str = "nearest",
        norm_groups: int = 32,
        residual_scale: float = 2**-0.5,
        input_skip: bool = False,
        head_channels: int | None = None,
        qk_norm: bool = False,
        classes: Mapping[str, int] | None = None,
        extra_channels: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        check_levels(attention_levels, channels=channels, num_res_blocks=num_res_blocks, strides=strides)
        options = EfficientOptions.of(self.config, sinusoid_dim=channels[0], time_embed_dim=4 * channels[0])
        self._setup_input(options, channels[0])
        self.skip, self.residual_scale = skip, residual_scale
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        current, attending = channels[0], set(attention_levels)
        for i, (width, depth, stride) in enumerate(zip(channels, num_res_blocks, strides, strict=True)):
            # one skip of each block but the lowest, or one of every residual block
            skips = depth if skip == "concat_each" else int(i < len(channels) - 1)
            self.down_blocks.append(DBlock(current, width, depth, stride, options, i in attending, skips))
            self.up_blocks.insert(0, UBlock(width, current, depth, stride, options, i in attending, skips))
            current = width
        self._setup_output(channels[0] if skip == "add" else 2 * channels[0])

    def _levels(self) -> list[Level]:
        return [*self.down_blocks, *self.up_blocks]  # type: ignore[list-item]

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        stem = self.conv_in(x)
        x = self._run_levels(stem, emb, text, seeds)
        # the stem is the last skip (ours: the paper's figure of the whole network is not explicit)
        return self._output(join(x, stem, self.skip, self.residual_scale))
