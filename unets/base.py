"""BaseUNet: the paper's 64x64 network (App. F.1), which is ADM's with text; also the family of DeepFloyd IF."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from .blocks import BlockOptions, DownLevel, Level, LevelText, MidLevel, UpLevel
from .network import ConditionedUNet, ConditioningOptions


class BaseUNet(ConditionedUNet, ModelMixin, ConfigMixin):
    """The base diffusion U-Net (Imagen App. F.1; ADM's layout).

    Level i has ``model_channels * channel_mult[i]`` channels at 1/2^i of the resolution (after the patch stem). Each
    has residual blocks with FiLM by the time embedding and, where ``attention_levels`` names it, self-attention whose
    keys and values are preceded by those of the text. See :meth:`forward` for the ways to call it. Module names are
    those of diffusers' ``UNet2DConditionModel``, so IF's weights load by name.

    Args:
        in_channels, out_channels: of the noisy image and of the output (6 for a learned variance of 3 channels).
        lowres_channels: channels of a low-resolution image concatenated to the input; 0: none, nor its noise level.
        patch_size: p folds p x p pixels into channels in front and unfolds them behind (ours, for small machines).
        model_channels: the paper's embed_dim, channels of the first level.
        channel_mult: channels of each level over ``model_channels``.
        num_res_blocks: residual blocks of each level: one number, or one per level.
        attention_levels: levels with attention. At 64 px the paper's resolutions 32, 16, 8 are levels 1, 2, 3.
        head_dim: channels of an attention head.
        qk_norm: norm queries and keys in every attention layer (ours: an optimizer such as Muon lets their products
            grow until every head looks at a single token, and learns no more).
        text_dim: width of the encoder states; None: a network without text.
        text_whitening: make the encoder states uncorrelated first (:class:`TextWhitening`; ours), by a map that is
            fitted to the captions when training starts, and kept.
        text_proj_dim: width they are projected to in front of all attention layers; None: not projected (our reading of
            the paper; IF projects).
        text_norm: "layer" (paper, 2.5) or "group" (IF), in front of each attention layer's text projections.
        text_pooling: "attention" (paper), "mean" (its ablation), or "none"; pooled text is added to the time embedding.
        pool_heads: heads of attention pooling; None: heads of gcd(text_dim, 64) channels (the paper is silent).
        time_embed_dim: width of the time embedding; None: 4 * model_channels (ADM).
        activation: "silu" (paper) or "gelu" (IF).
        dropout: in residual blocks.
        norm_groups: groups of the group norms; must divide every level's channels.
        residual_scale: factor on each residual sum; 1 (ADM, IF-I) or 0.7071 (IF-II).
        input_skip: add the noisy image and the low-resolution one to the output, each times a gain per channel that is
            linear in the embedding and starts at 0 and at 1 (ours, for networks that predict the image through a patch
            stem: narrow layers cannot carry every pixel of a nearly clean input past a nonlinearity).
        head_channels: width of a 1x1 convolution in front of the last norm; None: none (ours, for patch stems: the last
            activation then has more channels than a patch has numbers).
        coordinates: two more input channels say where each cell lies, -1 to 1 (CoordConv, Liu et al. 2018; ours, for
            small networks, which else know it by the padding of their convolutions alone).

    Raises:
        ValueError: options that contradict each other, naming them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ResnetBlock", "Attention"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "time_embedding", "conv_in", "conv_out"]

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """The patch, halved once less than there are levels."""
        return int(arguments["patch_size"]) * 2 ** (len(arguments["channel_mult"]) - 1)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        lowres_channels: int = 0,
        patch_size: int = 1,
        model_channels: int = 512,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_res_blocks: int | Sequence[int] = 3,
        attention_levels: Sequence[int] = (1, 2, 3),
        head_dim: int = 64,
        text_dim: int | None = 4096,
        text_whitening: bool = False,
        text_proj_dim: int | None = None,
        text_norm: str = "layer",
        text_pooling: str = "attention",
        pool_heads: int | None = None,
        time_embed_dim: int | None = None,
        activation: str = "silu",
        dropout: float = 0.0,
        norm_groups: int = 32,
        residual_scale: float = 1.0,
        input_skip: bool = False,
        head_channels: int | None = None,
        coordinates: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        channels = [model_channels * mult for mult in channel_mult]
        depths = [num_res_blocks] * len(channels) if isinstance(num_res_blocks, int) else list(num_res_blocks)
        _check_levels(channels, depths, attention_levels)
        options = ConditioningOptions(
            in_channels=in_channels,
            lowres_channels=lowres_channels,
            patch_size=patch_size,
            divisor=self.sides_divisor(self.config),
            sinusoid_dim=model_channels,
            emb_dim=4 * model_channels if time_embed_dim is None else time_embed_dim,
            activation=activation,
            text_dim=text_dim,
            text_whitening=text_whitening,
            text_proj_dim=text_proj_dim,
            text_norm=text_norm,
            text_pooling=text_pooling,
            pool_heads=pool_heads,
            input_skip=input_skip,
            head_channels=head_channels,
            coordinates=coordinates,
        )
        inputs = (in_channels + lowres_channels) * patch_size**2 + 2 * coordinates
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self._setup(options)
        blocks = BlockOptions(
            emb_dim=options.emb_dim,
            activation=activation,
            dropout=dropout,
            norm_groups=norm_groups,
            residual_scale=residual_scale,
            head_dim=head_dim,
            text_dim=text_dim if text_proj_dim is None else text_proj_dim,
            text_norm=text_norm,
            qk_norm=qk_norm,
        )
        self._build_levels(channels, depths, set(attention_levels), blocks)
        self._setup_output(channels[0], out_channels, norm_groups)

    def _build_levels(self, channels: list[int], depths: list[int], attention: set[int], blocks: BlockOptions) -> None:
        self.down_blocks = nn.ModuleList()
        skips, current, last = [channels[0]], channels[0], len(channels) - 1
        for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
            down = i < last
            self.down_blocks.append(DownLevel(current, width, depth, blocks, attention=i in attention, downsample=down))
            skips += [width] * (depth + down)
            current = width
        # the paper is silent on the middle; ADM and IF attend there, so we do wherever the lowest level does
        self.mid_block = MidLevel(current, blocks, attention=last in attention)
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(channels))):
            taken = [skips.pop() for _ in range(depths[i] + 1)]
            level = UpLevel(current, taken, channels[i], blocks, attention=i in attention, upsample=i > 0)
            self.up_blocks.append(level)
            current = channels[i]

    def _levels(self) -> list[Level]:
        return [*self.down_blocks, self.mid_block, *self.up_blocks]  # type: ignore[list-item]

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        x = self.conv_in(x)
        skips: tuple[Tensor, ...] = (x,)
        start = 0
        for level in self._levels():
            part = text.take(start, len(level.attentions))
            start += len(level.attentions)
            if isinstance(level, DownLevel):
                x, made = self._run(level, x, emb, (), part, seeds)
                skips += made
            elif isinstance(level, UpLevel):
                count = len(level.resnets)
                x = self._run(level, x, emb, skips[-count:], part, seeds)
                skips = skips[:-count]
            else:
                x = self._run(level, x, emb, (), part, seeds)
        return x


def _check_levels(channels: list[int], depths: list[int], attention_levels: Sequence[int]) -> None:
    if not channels:
        raise ValueError("channel_mult is empty; give one number per level, e.g. (1, 2, 3, 4)")
    if min(channels) < 1:
        raise ValueError(f"model_channels times channel_mult is {channels}; give numbers of at least 1")
    if len(depths) != len(channels):
        raise ValueError(f"num_res_blocks {depths} has {len(depths)} entries for {len(channels)} levels; give one each")
    if min(depths) < 1:
        raise ValueError(f"num_res_blocks must be at least 1 on every level, got {depths}")
    wrong = [level for level in attention_levels if level not in range(len(channels))]
    if wrong:
        raise ValueError(f"attention_levels {wrong} do not exist; this network has levels 0 to {len(channels) - 1}")
