"""EfficientUNet: the paper's super-resolution network (App. B, F.2, F.3; Figs. A.27 to A.29)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .attention import Attention
from .blocks import BlockOptions, Level, LevelText, ResnetBlock, check_positive
from .network import ConditionedUNet, ConditioningOptions


@dataclass(frozen=True)
class EfficientOptions:
    """What the paper leaves open, chosen once for a network; and the attention of its levels.

    Raises ValueError for words and numbers that are not options.
    """

    attention: str
    heads: int
    skip: str
    upsample: str

    def __post_init__(self) -> None:
        words = {
            "attention": ("self", "cross"),
            "skip": ("add", "concat", "concat_each"),
            "upsample": ("nearest", "transposed", "pixel_shuffle"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_positive(heads=self.heads)


def block_attention(channels: int, blocks: BlockOptions, options: EfficientOptions) -> Attention:
    """Fig. A.28: heads of 2*channels/heads, the hidden size twice the channels (we read it as the width of q, k, v)."""
    if 2 * channels % options.heads:
        raise ValueError(f"heads {options.heads} does not divide the attention width {2 * channels}; choose a divisor")
    return Attention(
        channels,
        2 * channels // options.heads,
        blocks.text_dim,
        inner_dim=2 * channels,
        self_attention=options.attention == "self",
        norm_groups=blocks.norm_groups,
    )


class DBlock(Level):
    """Fig. A.28: strided convolution first, then residual blocks with the embedding, then attention."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        stride: int,
        blocks: BlockOptions,
        options: EfficientOptions,
        *,
        attention: bool,
    ) -> None:
        super().__init__()
        self.every_skip = options.skip == "concat_each"
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1)
        self.resnets.extend([ResnetBlock(channels, channels, blocks) for _ in range(depth)])
        if attention:
            self.attentions.append(block_attention(channels, blocks, options))

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
        """x (B, C, H, W) -> (x (B, C', H/stride, W/stride), its skips); with x None see :class:`Level`."""
        if x is None:
            return self.keys_values(text, mask)
        x = self.conv(x)
        made = []
        for resnet in self.resnets:
            x = resnet(x, emb, seeds)
            made.append(x)
        x = self.attend(0, x, text, kv, mask)
        made[-1] = x
        return x, tuple(made) if self.every_skip else (x,)


class UBlock(Level):
    """Fig. A.29: the skip joins, residual blocks with the embedding, attention, and the upsampling convolution last.

    The convolution gives the channels of the next block's skip, the mirror of DBlock (the paper draws its own channels
    there and does not say how they meet the skip's).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        depth: int,
        stride: int,
        blocks: BlockOptions,
        options: EfficientOptions,
        *,
        attention: bool,
        lowest: bool,
    ) -> None:
        super().__init__()
        self.skip = options.skip
        self.residual_scale = blocks.residual_scale
        for index in range(depth):
            joins = options.skip == "concat_each" or (options.skip == "concat" and index == 0 and not lowest)
            self.resnets.append(ResnetBlock(2 * channels if joins else channels, channels, blocks))
        if attention:
            self.attentions.append(block_attention(channels, blocks, options))
        self.conv = upsampling_conv(options.upsample, channels, out_channels, stride)

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
        """x (B, C, H, W) -> (B, C', H*stride, W*stride); no skips at the lowest block; x None: see :class:`Level`."""
        if x is None:
            return self.keys_values(text, mask)
        for index, resnet in enumerate(self.resnets):
            if self.skip == "concat_each":
                x = torch.cat([x, skips[-1 - index]], dim=1)
            elif index == 0 and skips:
                x = join(x, skips[0], self.skip, self.residual_scale)
            x = resnet(x, emb, seeds)
        return self.conv(self.attend(0, x, text, kv, mask))


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
        in_channels, out_channels: of the noisy image and of the output.
        lowres_channels: channels of the low-resolution image, concatenated to the input at the sample's size (the paper
            points to work that does so); 0: none, and no augmentation level.
        patch_size: p folds p x p pixels into channels in front and unfolds them behind (ours, for small machines).
        channels, num_res_blocks, strides: of each block; a stride acts first in DBlock and last in UBlock.
        attention_levels: blocks with attention; the paper's lowest alone.
        attention: "self" (image and text) or "cross" (text alone).
        heads: attention heads, of 2 * channels / heads each.
        text_dim: width of the encoder states; None: a network without text.
        text_whitening: make the encoder states uncorrelated first (:class:`TextWhitening`; ours), by a map that is
            fitted to the captions when training starts, and kept.
        text_proj_dim: width they are projected to in front of all attention layers; None: not projected.
        text_pooling: "attention" (paper), "mean", or "none"; pooled text is added to the time embedding.
        time_embed_dim: width of the time embedding; None: 4 * channels[0] (ours; the paper is silent).
        time_input: the sinusoids see the "timestep" or "cosine_log_snr" (the paper has log-SNR, not how it enters).
        skip: how a UBlock takes its skip: "add" (times ``residual_scale``), "concat", or "concat_each", a skip for
            every residual block as in ADM (Fig. A.29 says "Previous UBlock + Skip").
        shortcut_conv: the residual block's 1x1 convolution: "always" (as Fig. A.27 draws it) or "if_needed".
        upsample: "nearest" (nearest, then convolution), "transposed" or "pixel_shuffle" (the paper does not say).
        input_skip: add the noisy image and the low-resolution one to the output, each times a gain per channel that is
            linear in the embedding and starts at 0 and at 1 (ours, for networks that predict the image through a patch
            stem: narrow layers cannot carry every pixel of a nearly clean input past a nonlinearity).
        head_channels: width of a 1x1 convolution in front of the last norm; None: none (ours, for patch stems: the last
            activation then has more channels than a patch has numbers).
        norm_groups: groups of the group norms; must divide every level's channels.
        residual_scale: factor on each residual sum (the paper: 1/sqrt(2) on skip connections; the works it cites scale
            the residual sum).

    Raises:
        ValueError: options that contradict each other, naming them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ResnetBlock", "Attention"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "time_embedding", "conv_in", "conv_out"]

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
    ) -> None:
        super().__init__()
        _check_blocks(channels, num_res_blocks, strides, attention_levels)
        chosen = EfficientOptions(attention, heads, skip, upsample)
        if shortcut_conv not in ("always", "if_needed"):
            raise ValueError(f"shortcut_conv must be always or if_needed, got {shortcut_conv!r}")
        options = ConditioningOptions(
            in_channels=in_channels,
            lowres_channels=lowres_channels,
            patch_size=patch_size,
            divisor=self.sides_divisor(self.config),
            sinusoid_dim=channels[0],
            emb_dim=4 * channels[0] if time_embed_dim is None else time_embed_dim,
            activation="silu",
            text_dim=text_dim,
            text_whitening=text_whitening,
            text_proj_dim=text_proj_dim,
            text_pooling=text_pooling,
            time_input=time_input,
            input_skip=input_skip,
            head_channels=head_channels,
        )
        blocks = BlockOptions(
            emb_dim=options.emb_dim,
            norm_groups=norm_groups,
            residual_scale=residual_scale,
            shortcut_conv=shortcut_conv,
            text_dim=text_dim if text_proj_dim is None else text_proj_dim,
        )
        self.conv_in = nn.Conv2d((in_channels + lowres_channels) * patch_size**2, channels[0], 3, padding=1)
        self._setup(options)
        self.skip, self.residual_scale = skip, residual_scale
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        current, attending = channels[0], set(attention_levels)
        for i, (width, depth, stride) in enumerate(zip(channels, num_res_blocks, strides, strict=True)):
            self.down_blocks.append(DBlock(current, width, depth, stride, blocks, chosen, attention=i in attending))
            lowest, attends = i == len(channels) - 1, i in attending
            up = UBlock(width, current, depth, stride, blocks, chosen, attention=attends, lowest=lowest)
            self.up_blocks.insert(0, up)
            current = width
        joined = channels[0] if skip == "add" else 2 * channels[0]
        self._setup_output(joined, out_channels, norm_groups)

    def _levels(self) -> list[Level]:
        return [*self.down_blocks, *self.up_blocks]  # type: ignore[list-item]

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        stem = x = self.conv_in(x)
        skips: list[tuple[Tensor, ...]] = []
        start = 0
        for level in self._levels():
            part = text.take(start, len(level.attentions))
            start += len(level.attentions)
            if isinstance(level, DBlock):
                x, made = self._run(level, x, emb, (), part, seeds)
                skips.append(made)
            else:
                taken = skips.pop()
                lowest = len(skips) == len(self.down_blocks) - 1 and self.skip != "concat_each"
                x = self._run(level, x, emb, () if lowest else taken, part, seeds)
        # the stem is the last skip (ours: the paper's figure of the whole network is not explicit)
        return join(x, stem, self.skip, self.residual_scale)


def _check_blocks(
    channels: Sequence[int], depths: Sequence[int], strides: Sequence[int], attention_levels: Sequence[int]
) -> None:
    if not len(channels) == len(depths) == len(strides) > 0:
        raise ValueError(
            f"channels {list(channels)}, num_res_blocks {list(depths)} and strides {list(strides)} "
            "must have one entry per block each"
        )
    if min(*channels, *depths, *strides) < 1:
        raise ValueError(
            f"channels {list(channels)}, num_res_blocks {list(depths)} and strides {list(strides)} must be at least 1"
        )
    wrong = [level for level in attention_levels if level not in range(len(channels))]
    if wrong:
        raise ValueError(f"attention_levels {wrong} do not exist; this network has blocks 0 to {len(channels) - 1}")
