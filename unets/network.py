"""The ``forward`` that both networks share: its modes, its checks, and the order in which levels run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Level, LevelText, activation, check_positive, zero_init
from .conditioning import (
    TextPooling,
    TextWhitening,
    TimestepEmbedding,
    cosine_log_snr_coordinate,
    sinusoids,
    trim,
)
from .contract import Facts, TextContext, facts_of
from .dropout import number_layers


@dataclass(frozen=True)
class ConditioningOptions:
    """What both networks share of their configuration. Raises ValueError for words and numbers that are not options."""

    in_channels: int
    lowres_channels: int
    patch_size: int
    divisor: int
    sinusoid_dim: int
    emb_dim: int
    activation: str
    text_dim: int | None
    text_proj_dim: int | None
    text_norm: str = "layer"
    text_pooling: str = "attention"
    pool_heads: int | None = None
    time_input: str = "timestep"
    input_skip: bool = False
    head_channels: int | None = None
    coordinates: bool = False
    text_whitening: bool = False

    def __post_init__(self) -> None:
        words = {
            "text_norm": ("layer", "group"),
            "text_pooling": ("attention", "mean", "none"),
            "time_input": ("timestep", "cosine_log_snr"),
        }
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_positive(
            in_channels=self.in_channels,
            patch_size=self.patch_size,
            time_embed_dim=self.emb_dim,
            text_dim=self.text_dim,
            text_proj_dim=self.text_proj_dim,
            pool_heads=self.pool_heads,
            head_channels=self.head_channels,
        )
        if self.lowres_channels < 0:
            raise ValueError(f"lowres_channels must be at least 0, which is none, got {self.lowres_channels}")


def coordinates(x: Tensor) -> Tensor:
    """Where the cells of x (B, C, H, W) lie: (B, 2, H, W), row and column from -1 at one border to 1 at the other."""
    batch, _, height, width = x.shape
    axes = [(torch.arange(n, device=x.device, dtype=torch.float32) * 2 + 1) / n - 1 for n in (height, width)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.to(x.dtype).expand(batch, -1, -1, -1)


def first_of(context: TextContext | None) -> Tensor | None:
    """A tensor of the context, to read its batch from."""
    parts = () if context is None else (context.pooled, *context.keys[:1])
    return next((part for part in parts if part is not None), None)


class ConditionedUNet(nn.Module):
    """Conditioning and ``forward`` of both networks; a subclass builds the levels and gives ``_denoise``."""

    output_layer: ClassVar[str] = "conv_out"
    end_layers: ClassVar[tuple[str, ...]] = ("conv_in", "conv_out")
    config: Any  # of diffusers' ConfigMixin
    _gradient_checkpointing_func: Callable[..., Any]
    enable_gradient_checkpointing: Callable[..., None]  # of diffusers' ModelMixin

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """What height and width are multiples of: the patch times the strides."""
        raise TypeError("a network without levels has no divisor")

    @property
    def facts(self) -> Facts:
        """Channels, text and sizes, as they are now."""
        return facts_of(type(self).__name__, self.sides_divisor(self.config), self.config)

    def _setup(self, options: "ConditioningOptions") -> None:
        """Builds the modules of time, augmentation level and text. Names are diffusers' (the IF family's)."""
        self.options = options
        self.gradient_checkpointing = False
        width, emb_dim, act = options.sinusoid_dim, options.emb_dim, options.activation
        self.time_embedding = TimestepEmbedding(width, emb_dim, act)
        self.emb_act = activation(act)
        self.class_embedding = TimestepEmbedding(width, emb_dim, act) if options.lowres_channels else None
        self.input_gain: nn.Linear | None = None
        if options.input_skip:
            self.input_gain = nn.Linear(emb_dim, options.in_channels + options.lowres_channels)
            nn.init.zeros_(self.input_gain.weight)
            nn.init.zeros_(self.input_gain.bias)
            nn.init.ones_(self.input_gain.bias[options.in_channels :])
        self.encoder_hid_proj: nn.Linear | None = None
        self.add_embedding: TextPooling | None = None
        self.whitening: TextWhitening | None = None
        if options.text_dim is None:
            return
        if options.text_whitening:
            self.whitening = TextWhitening(options.text_dim)
        if options.text_proj_dim is not None:
            self.encoder_hid_proj = nn.Linear(options.text_dim, options.text_proj_dim)
        if options.text_pooling != "none":
            as_released = options.text_norm == "group"  # that norm marks the IF family, whose arithmetic is kept
            self.add_embedding = TextPooling(
                options.text_dim, emb_dim, options.text_pooling, options.pool_heads, as_released
            )

    def _setup_output(self, width: int, out_channels: int, norm_groups: int) -> None:
        """Builds what follows the last level: the head where there is one, norm, activation, zero convolution."""
        check_positive(out_channels=out_channels)
        options = self.options
        if options.input_skip and (
            out_channels != options.in_channels or options.lowres_channels not in (0, out_channels)
        ):
            raise ValueError(
                f"input_skip adds the {options.in_channels} channels of the input (and the {options.lowres_channels} "
                f"of the low-resolution image) to the {out_channels} of the output; give all the same number"
            )
        head = options.head_channels
        self.conv_head = None if head is None else nn.Conv2d(width, head, 1)
        width = width if head is None else head
        if width % norm_groups:
            raise ValueError(f"head_channels {width} is not divisible by norm_groups {norm_groups}; choose a multiple")
        self.conv_norm_out = nn.GroupNorm(norm_groups, width)
        self.conv_act = activation(options.activation)
        number_layers(self)
        self.conv_out = zero_init(nn.Conv2d(width, out_channels * options.patch_size**2, 3, padding=1))

    def _output(self, x: Tensor) -> Tensor:
        """(B, width, h, w) of the last level -> (B, out_channels, h * patch_size, w * patch_size)."""
        if self.conv_head is not None:
            x = self.conv_head(x)
        out: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return F.pixel_shuffle(out, self.options.patch_size)

    def _levels(self) -> list[Level]:
        """The levels in the order they run."""
        raise TypeError(f"{type(self).__name__} does not say what its levels are")

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        """x (B, C, h, w) after the stem -> (B, C', h, w) of the last level."""
        raise TypeError(f"{type(self).__name__} does not say how it denoises")

    def forward(
        self,
        sample: Tensor | None = None,
        timestep: Tensor | float | None = None,
        context: TextContext | None = None,
        *,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        lowres: Tensor | None = None,
        aug_timestep: Tensor | float | None = None,
        dropout_seeds: Tensor | None = None,
    ) -> Any:
        """The network's only entry point. What it returns depends on what it is given:

        - ``text`` alone (with its mask): the :class:`TextContext`, to be computed once per sample;
        - ``sample, timestep, context``: the denoised output, at each sampling step;
        - ``sample, timestep, text=``: the same in one call, for training;
        - ``sample, timestep``: a network built without text.

        Args:
            sample: (B, in_channels, H, W) noisy image z; H and W divisible by ``divisor``.
            timestep: (B,) or a number in [0, 1000), fractions allowed.
            context: what a call with the text alone returned.
            text: (B, L, text_dim) encoder states.
            text_mask: (B, L), 1 at real tokens; None: all are real. Padding changes nothing.
            lowres: (B, lowres_channels, H, W) low-resolution image, noised and resized to the sample's size.
            aug_timestep: (B,) or a number in [0, 1000): the level of that noise.
            dropout_seeds: (B,) int64, which alone decide what dropout drops of each picture; None: torch's generator
                does. Nothing is dropped in evaluation.

        Returns:
            (B, out_channels, H, W) in the sample's dtype, or a TextContext.

        Raises:
            ValueError: sizes, channels or inputs that do not fit the network.
        """
        self._check_text(text, context)
        if sample is None:
            if text is None:
                raise ValueError("forward was given neither sample nor text; give one of them")
            return self._text_context(text, text_mask)
        if timestep is None:
            raise ValueError("sample was given without timestep; give a number in [0, 1000) or one per image")
        if self.options.text_dim is not None and (text is None) == (context is None):
            raise ValueError("give exactly one of context= and text= (or build the network with text_dim=None)")
        self._check_batch(sample, text=text, context=first_of(context), lowres=lowres, dropout_seeds=dropout_seeds)
        x = self._stem(sample, lowres)
        emb = self._embed_time(self.time_embedding, timestep, x)
        if self.class_embedding is not None:
            if aug_timestep is None:
                raise ValueError("this network has a low-resolution input; give aug_timestep, 0 for a clean one")
            emb = emb + self._embed_time(self.class_embedding, aug_timestep, x)
        pooled, states = None, LevelText()
        if text is not None:
            pooled, states = self._read_text(text, text_mask, sync=False)
        elif context is not None:
            pooled = context.pooled
            states = LevelText(None, tuple(zip(context.keys, context.values, strict=True)), context.mask)
        if pooled is not None:
            emb = emb + pooled.to(emb.dtype)
        # every residual block starts with this activation of the embedding, so it is applied once for all
        emb = self.emb_act(emb)
        out = self._output(self._denoise(x, emb, states, dropout_seeds)).to(sample.dtype)
        return out if self.input_gain is None else out + self._skipped_input(emb, sample, lowres)

    def _check_text(self, text: Tensor | None, context: TextContext | None) -> None:
        width = self.options.text_dim
        if width is None and (text is not None or context is not None):
            raise ValueError("this network was built without text (text_dim=None); call it without text and context")
        if text is None:
            return
        if text.ndim != 3 or text.shape[1] == 0:
            raise ValueError(
                f"text has shape {tuple(text.shape)}; give (B, L, {width}), L at least 1: one zero token is no text"
            )
        if text.shape[-1] != width:
            raise ValueError(f"text has width {text.shape[-1]}, this network expects text_dim {width}")

    def _check_batch(self, sample: Tensor, **given: Tensor | None) -> None:
        """What is given for each picture is given for as many; and pictures are what noise can be taken off."""
        if sample.ndim != 4 or not sample.is_floating_point():
            raise ValueError(
                f"sample has shape {tuple(sample.shape)} and dtype {sample.dtype}; give (B, C, H, W) floats"
            )
        for name, tensor in given.items():
            if tensor is not None and tensor.shape[0] != sample.shape[0]:
                raise ValueError(
                    f"{name} has batch size {tensor.shape[0]}, sample {sample.shape[0]}; give one row for each picture"
                )

    def _text_context(self, text: Tensor, text_mask: Tensor | None) -> TextContext:
        pooled, states = self._read_text(text, text_mask, sync=True)
        pairs = [pair for level in self._levels() for pair in level(None, text=states.states, mask=states.mask)]
        return TextContext(pooled, tuple(k for k, _ in pairs), tuple(v for _, v in pairs), states.mask)

    def _read_text(self, text: Tensor, mask: Tensor | None, sync: bool) -> tuple[Tensor | None, LevelText]:
        """Pooled vector, and the states that attention layers project. ``sync``: the mask's values may be looked at."""
        text = text.to(self._compute_dtype())
        if mask is not None:
            if mask.shape != text.shape[:2]:
                shapes = f"text_mask has shape {tuple(mask.shape)}, text {tuple(text.shape)}"
                raise ValueError(f"{shapes}; give a mask of the text's first two axes, (B, L)")
            text, mask = trim(text, mask.bool(), sync)
        if self.whitening is not None:
            text = self.whitening(text)
        pooled = None if self.add_embedding is None else self.add_embedding(text, mask)
        states = text if self.encoder_hid_proj is None else self.encoder_hid_proj(text)
        return pooled, LevelText(states, (), mask)

    def _compute_dtype(self) -> torch.dtype:
        return self.time_embedding.linear_1.weight.dtype

    def _stem(self, sample: Tensor, lowres: Tensor | None) -> Tensor:
        """Checks sizes, concatenates the low-resolution image, folds patches into channels, sets the compute dtype."""
        options = self.options
        height, width = sample.shape[-2:]
        if height % options.divisor or width % options.divisor:
            raise ValueError(
                f"sample is {height}x{width}; height and width must be multiples of {options.divisor} for this network "
                f"(patch_size {options.patch_size} times the strides); pad or resize it"
            )
        if sample.shape[1] != options.in_channels:
            raise ValueError(f"sample has {sample.shape[1]} channels, this network expects {options.in_channels}")
        given = None if lowres is None else (lowres.shape[1], *lowres.shape[-2:])
        wanted = (options.lowres_channels, height, width) if options.lowres_channels else None
        if given != wanted:
            raise ValueError(f"lowres has (C, H, W) {given}, this network expects {wanted}")
        x = sample if lowres is None else torch.cat([sample, lowres.to(sample.dtype)], dim=1)
        x = F.pixel_unshuffle(x.to(self._compute_dtype()), options.patch_size)
        return torch.cat([x, coordinates(x)], dim=1) if options.coordinates else x

    def _skipped_input(self, emb: Tensor, sample: Tensor, lowres: Tensor | None) -> Tensor:
        """The noisy image, and the low-resolution one, each channel times a gain that depends on the embedding."""
        assert self.input_gain is not None
        inputs = sample if lowres is None else torch.cat([sample, lowres.to(sample.dtype)], dim=1)
        skipped = inputs * self.input_gain(emb).to(sample.dtype)[:, :, None, None]
        return skipped if lowres is None else skipped[:, : sample.shape[1]] + skipped[:, sample.shape[1] :]

    def _embed_time(self, embedding: nn.Module, timestep: Tensor | float, x: Tensor) -> Tensor:
        steps = torch.as_tensor(timestep, device=x.device)
        if steps.ndim > 1 or (steps.ndim == 1 and len(steps) not in (1, len(x))):
            raise ValueError(f"timestep has shape {tuple(steps.shape)}; give a number, or one per image ({len(x)},)")
        steps = steps.expand(len(x))
        if self.options.time_input == "cosine_log_snr":
            steps = cosine_log_snr_coordinate(steps)
        out: Tensor = embedding(sinusoids(steps, self.options.sinusoid_dim).to(x.dtype))
        return out

    def checkpoint_levels(self, levels: Sequence[int]) -> None:
        """Gradient checkpointing of some levels alone; ``enable_gradient_checkpointing`` is that of all.

        Args:
            levels: numbered as in ``attention_levels``: 0 is the first and largest in pixels. A level is its down block
                and its up block; the middle belongs to the last one.

        Raises:
            ValueError: a level that does not exist.
        """
        run = self._levels()
        count = len(run) // 2
        wrong = [level for level in levels if level not in range(count)]
        if wrong:
            raise ValueError(f"levels {wrong} do not exist; this network has levels 0 to {count - 1}")
        for place, level in enumerate(run):
            level.checkpointed = min(place, len(run) - 1 - place, count - 1) in levels
        self.enable_gradient_checkpointing()

    def _run(self, level: Level, x: Tensor, emb: Tensor, skips: Any, text: LevelText, seeds: Tensor | None) -> Any:
        """Runs one level, checkpointed where ``enable_gradient_checkpointing`` asked for it."""
        if self.gradient_checkpointing and level.checkpointed and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(level, x, emb, skips, *text, seeds)
        return level(x, emb, skips, *text, seeds)
