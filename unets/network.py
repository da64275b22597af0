"""What all networks share: conditioning, the modes and checks of ``forward``, and the order in which levels run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree

from .adapters import Adaptable
from .attention import zero_init
from .blocks import activation
from .conditioning import (
    TextPooling,
    TextWhitening,
    TimestepEmbedding,
    cosine_log_snr_coordinate,
    sinusoids,
    steps_of,
    trim,
)
from .conditions import checked, class_tables, grown
from .contract import Facts, TextContext, facts_of, registered
from .hosting import BackendsMixin, answer
from .level import NO_TEXT, Level, LevelText, Skips
from .options import Options, by_name

# torch.export takes any named tuple, but stores an exported graph only where the named tuple has a name of its own
_pytree._register_namedtuple(TextContext, serialized_type_name="unets.TextContext")


def first_of(context: TextContext | None) -> Tensor | None:
    """A tensor of the context, to read its batch from."""
    parts = () if context is None else (context.pooled, *context.keys[:1])
    return next((part for part in parts if part is not None), None)


class Network(Adaptable, BackendsMixin):
    """A network of :data:`unets.NETWORKS`, which is also diffusers' ModelMixin and ConfigMixin.

    Whoever trains, samples, counts, exports or stores a network knows it by what is public here. A subclass builds the
    levels and gives ``_levels``, ``_denoise``, ``sides_divisor`` and the names of its layers. Its constructor takes
    plain values, all with defaults and kept by ``@register_to_config``, among them in_channels, out_channels,
    lowres_channels and text_dim. A new network returns zeros, or what it skips from input to output. Padding of the
    text changes nothing, and no picture depends on the others of its batch: dropout, too, is a function of each
    picture's seed.

    Attributes:
        config: the constructor's arguments.
        whitening: the map that makes encoder states uncorrelated, to be fitted before training; None: there is none.
        input_layer: name of the convolution or linear map that reads the pictures.
        output_layer: name of the one whose rows are the output's numbers, channel by channel: the first half of them
            makes the first half of the channels.
        end_layers: names of the layers at input and output, tables of classes among them; the Muon optimizer trains the
            matrices of all others.
    """

    input_layer: ClassVar[str]
    output_layer: ClassVar[str]
    end_layers: ClassVar[tuple[str, ...]]
    # of diffusers' mixins, as far as it is used
    config: Any
    dtype: torch.dtype
    register_to_config: Callable[..., None]
    save_config: Callable[..., None]
    enable_gradient_checkpointing: Callable[..., None]
    _gradient_checkpointing_func: Callable[..., Any]

    @staticmethod
    def sides_divisor(arguments: Mapping[str, Any]) -> int:
        """What height and width are multiples of, for all of the constructor's arguments."""
        raise TypeError("this network does not say what it divides sides by")

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> Any:
        """As diffusers', for a configuration of this network: another's keys would be passed over.

        Raises:
            ValueError: it is another network's.
        """
        held = config.get("_class_name") if isinstance(config, Mapping) else None
        if held in registered() and held not in [kind.__name__ for kind in cls.__mro__]:
            raise ValueError(
                f"this is a {held}, not a {cls.__name__}: load it with {held}.from_pretrained or .from_config"
            )
        return super().from_config(config, **kwargs)  # type: ignore[misc]

    @property
    def facts(self) -> Facts:
        """Channels, text and sizes, as they are now."""
        return facts_of(type(self).__name__, self.sides_divisor(self.config), self.config)

    def _setup(self, options: Options) -> None:
        """Builds the modules of time, augmentation level, classes and text. Names are diffusers' (the IF family's)."""
        self.options, self.divisor = options, self.sides_divisor(self.config)
        self.gradient_checkpointing = False
        width, emb_dim, act = options.sinusoid_dim, options.emb_dim, options.activation
        self.time_embedding = TimestepEmbedding(width, emb_dim, act)
        self.emb_act = activation(act)
        self.class_embedding = TimestepEmbedding(width, emb_dim, act) if options.lowres_channels else None
        self.class_tables = class_tables(options.classes, emb_dim)
        self.input_gain: nn.Linear | None = None
        if options.input_skip:
            self.input_gain = zero_init(nn.Linear(emb_dim, options.in_channels + options.lowres_channels))
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

    def _levels(self) -> list[Level]:
        """The levels in the order they run."""
        raise TypeError(f"{type(self).__name__} does not say what its levels are")

    def _denoise(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None) -> Tensor:
        """x (B, C, h, w) after the stem -> (B, out_channels, h * patch_size, w * patch_size)."""
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
        conditions: Mapping[str, Tensor] | None = None,
        return_dict: bool | None = None,
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
            conditions: for each name of the option ``classes`` (B,) int64, from 0 to its number, which is no class; for
                each of ``extra_channels`` (B, C, H, W) of the sample's size.
            return_dict: as in diffusers, True an output with ``.sample`` and False a tuple of one; None: the tensor
                itself. A TextContext, which is a named tuple, stays what it is.

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
        named = checked(self.options, conditions, sample)
        x = self._stem(sample, lowres, named)
        emb = self._embed_time(self.time_embedding, timestep, x)
        if self.class_embedding is not None:
            if aug_timestep is None:
                raise ValueError("this network has a low-resolution input; give aug_timestep, 0 for a clean one")
            emb = emb + self._embed_time(self.class_embedding, aug_timestep, x)
        for name, table in self.class_tables.items():
            emb = emb + table(named[name]).to(emb.dtype)
        pooled, states = None, NO_TEXT
        if text is not None:
            pooled, states = self._read_text(text, text_mask, sync=False)
        elif context is not None:
            pooled = context.pooled
            states = LevelText(None, tuple(zip(context.keys, context.values, strict=True)), context.mask)
        if pooled is not None:
            emb = emb + pooled.to(emb.dtype)
        # every residual block starts with this activation of the embedding, so it is applied once for all
        emb = self.emb_act(emb)
        out = self._denoise(x, emb, states, dropout_seeds).to(sample.dtype)
        out = out if self.input_gain is None else out + self._skipped_input(emb, sample, lowres)
        return answer(out, return_dict)

    def _check_text(self, text: Tensor | None, context: TextContext | None) -> None:
        width = self.options.text_dim
        if width is None and (text is not None or context is not None):
            raise ValueError("this network was built without text (text_dim=None); call it without text and context")
        if text is not None and (text.ndim != 3 or text.shape[1] == 0 or text.shape[-1] != width):
            raise ValueError(
                f"text has shape {tuple(text.shape)}; give (B, L, {width}), L at least 1: one zero token is no text"
            )

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
        pairs = [pair for level in self._levels() for pair in level(None, text=states)]
        return TextContext(pooled, tuple(k for k, _ in pairs), tuple(v for _, v in pairs), states.mask)

    def _read_text(self, text: Tensor, mask: Tensor | None, sync: bool) -> tuple[Tensor | None, LevelText]:
        """Pooled vector, and the states that attention layers project. ``sync``: the mask's values may be looked at."""
        text = text.to(self._compute_dtype())
        if mask is not None:
            if mask.shape != text.shape[:2]:
                shapes = f"text_mask has shape {tuple(mask.shape)}, text {tuple(text.shape)}"
                raise ValueError(f"{shapes}; give a mask of the text's first two axes, (B, L)")
            text, mask = trim(text, mask.bool(), sync)  # of a mask on the CPU without waiting for the text's device
            mask = None if mask is None else mask.to(text.device, non_blocking=True)
        if self.whitening is not None:
            text = self.whitening(text)
        pooled = None if self.add_embedding is None else self.add_embedding(text, mask)
        states = text if self.encoder_hid_proj is None else self.encoder_hid_proj(text)
        return pooled, LevelText(states, (), mask)

    def _compute_dtype(self) -> torch.dtype:
        return self.time_embedding.linear_1.weight.dtype

    def _stem(self, sample: Tensor, lowres: Tensor | None, named: Mapping[str, Tensor]) -> Tensor:
        """Checks sizes, concatenates all pictures, folds patches into channels, sets the compute dtype."""
        options = self.options
        height, width = sample.shape[-2:]
        if height % self.divisor or width % self.divisor:
            raise ValueError(
                f"sample is {height}x{width}; height and width must be multiples of {self.divisor} for this network "
                f"(patch_size {options.patch_size} times the strides); pad or resize it"
            )
        if sample.shape[1] != options.in_channels:
            raise ValueError(f"sample has {sample.shape[1]} channels, this network expects {options.in_channels}")
        given = None if lowres is None else (lowres.shape[1], *lowres.shape[-2:])
        wanted = (options.lowres_channels, height, width) if options.lowres_channels else None
        if given != wanted:
            raise ValueError(f"lowres has (C, H, W) {given}, this network expects {wanted}")
        further = [] if lowres is None else [lowres]
        further += [named[name] for name in by_name(options.extra_channels)]
        x = torch.cat([sample, *(picture.to(sample.dtype) for picture in further)], dim=1)
        return F.pixel_unshuffle(x.to(self._compute_dtype()), options.patch_size)

    def _skipped_input(self, emb: Tensor, sample: Tensor, lowres: Tensor | None) -> Tensor:
        """The noisy image, and the low-resolution one, each channel times a gain that depends on the embedding."""
        assert self.input_gain is not None
        inputs = sample if lowres is None else torch.cat([sample, lowres.to(sample.dtype)], dim=1)
        skipped = inputs * self.input_gain(emb).to(sample.dtype)[:, :, None, None]
        return skipped if lowres is None else skipped[:, : sample.shape[1]] + skipped[:, sample.shape[1] :]

    def _embed_time(self, embedding: nn.Module, timestep: Tensor | float, x: Tensor) -> Tensor:
        steps = steps_of(timestep, x)
        if self.options.time_input == "cosine_log_snr":
            steps = cosine_log_snr_coordinate(steps)
        out: Tensor = embedding(sinusoids(steps, self.options.sinusoid_dim).to(x.dtype))
        return out

    def grown(self, weights: Mapping[str, Tensor], trained: Facts) -> dict[str, Tensor]:
        """See :func:`unets.conditions.grown`."""
        return grown(weights, trained, self.state_dict(), self.input_layer, self.options)

    def checkpoint_levels(self, levels: Sequence[int]) -> None:
        """Gradient checkpointing of some levels alone; ``enable_gradient_checkpointing`` is that of all.

        Args:
            levels: numbered in the order they run; of a U-Net as in ``attention_levels``: 0 is the first and largest in
                pixels, its down block and its up block; the middle belongs to the last one.

        Raises:
            ValueError: a level that does not exist.
        """
        numbers = self._level_numbers()
        wrong = [level for level in levels if level not in numbers]
        if wrong:
            raise ValueError(f"levels {wrong} do not exist; this network has levels 0 to {max(numbers)}")
        for number, level in zip(numbers, self._levels(), strict=True):
            level.checkpointed = number in levels
        self.enable_gradient_checkpointing()

    def _level_numbers(self) -> list[int]:
        """What ``checkpoint_levels`` calls each level, in the order they run."""
        return list(range(len(self._levels())))

    def _run_levels(self, x: Tensor, emb: Tensor, text: LevelText, seeds: Tensor | None, skips: Skips = ()) -> Tensor:
        """Runs the levels in turn, each with its part of the text; skips are taken last made, first taken."""
        start = 0
        for level in self._levels():
            part = text.take(start, len(level.attentions))
            start += len(level.attentions)
            rest = len(skips) - level.takes
            x, made = self._run(level, x, emb, skips[rest:], part, seeds)
            skips = skips[:rest] + made
        return x

    def _run(self, level: Level, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> Any:
        """Runs one level, checkpointed where ``enable_gradient_checkpointing`` asked for it."""
        if self.gradient_checkpointing and level.checkpointed and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(level, x, emb, skips, text, seeds)
        return level(x, emb, skips, text, seeds)
