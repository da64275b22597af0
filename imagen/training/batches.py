"""From what the loader gives to what the objective needs: the training device, the noise, the text."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imagen.conditions.text import null_text
from imagen.errors import ConfigError
from imagen.training.cached import open_cache, read_cache
from imagen.training.config import RunConfig
from imagen.training.objective import Batch, Objective
from imagen.training.randomness import Draws, draw_noise, row_seeds

if TYPE_CHECKING:
    from imagen.text.cache.store import TextCache


@dataclass(frozen=True)
class Words:
    """The texts of a batch: captions, and (B, L, D) with a mask (B, L) where they come encoded."""

    captions: Sequence[str]
    embedding: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Words:
        """Those of a collated batch."""
        return cls(raw["caption"], raw.get("embedding"), raw.get("embedding_mask"))

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, rows: slice) -> Words:
        if self.embedding is None or self.mask is None:
            return Words(self.captions[rows])
        return Words(self.captions[rows], self.embedding[rows], self.mask[rows])


class Texts:
    """Words -> (B, L, D) float32 and a mask, without gradients: as they come encoded, from the frozen encoder, or from
    a cache of what it made, which loads no encoder; None where there is nothing of these.

    Raises:
        ConfigError: no encoder or cache there, of another width than the network's, or a grid's prompt or, when called,
            a caption that the cache lacks.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.encoder: Any = None
        self.cache: TextCache | None = None
        self._told_of_cuts = False
        if config.text.cache is not None:
            self.cache = open_cache(config)
        elif config.text.encoder is not None:
            self._load(config.text.encoder, config)
        else:
            return
        width, expected = self._width(), config.unet.get("text_dim")
        if expected is not None and width != expected:
            raise ConfigError(
                f"unet.text_dim {expected} differs from the encoder's width {width}: set unet.text_dim {width}"
            )

    def _load(self, encoder: str, config: RunConfig) -> None:
        from imagen.text.encoder import load_text_encoder
        from imagen.text.kinds import check_max_length

        try:
            dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.text.dtype]
            self.tokenizer, self.encoder = load_text_encoder(encoder, dtype)
            check_max_length(config.text.max_length, self.encoder.config)
        except ValueError as error:
            raise ConfigError(f"text.encoder: {error}") from error
        self.encoder.to(self.device)

    def _width(self) -> int:
        from imagen.text.kinds import text_width

        return text_width(self.encoder.config) if self.cache is None else self.cache.manifest.identity.width

    def __call__(self, words: Words) -> tuple[Tensor, Tensor] | None:
        """(B, L, D) and (B, L), or None when training without text."""
        if words.embedding is not None and words.mask is not None:
            return words.embedding.to(self.device), words.mask.to(self.device)
        captions = words.captions
        if self.cache is not None:
            return read_cache(self.cache, captions, self.device, self.config)
        if self.encoder is None:
            return None
        from imagen.text.encoder import as_read, encode

        text = self.config.text
        captions = [as_read(caption, text.lowercase) for caption in captions]
        encoded = encode(self.tokenizer, self.encoder, captions, text.max_length, padding=text.padding)
        if encoded[1].shape[1] >= text.max_length and not self._told_of_cuts:  # most batches are not so long
            self._tell_of_cuts(captions)
        return encoded

    def _tell_of_cuts(self, captions: Sequence[str]) -> None:
        """Warn of the first caption that is longer than text.max_length."""
        from imagen.text.encoder import token_count

        limit = self.config.text.max_length
        for caption in captions:
            if len(caption.encode()) + 2 <= limit:  # a token has a byte at the least, but for the first and the last
                continue
            if (count := token_count(self.tokenizer, caption)) > limit:
                self._told_of_cuts = True
                warnings.warn(
                    f"a caption of {count} tokens is cut at text.max_length {limit}: {caption[:60]!r}...; further ones "
                    "are cut without a word",
                    stacklevel=3,
                )
                return

    def null(self, count: int, dim: int) -> tuple[Tensor, Tensor]:
        """The text of the unconditional half of guidance: (count, L, dim) and (count, L)."""
        empty = self(Words([""] * count)) if self.config.text.unconditional == "empty" else None
        return null_text(count, dim, self.device) if empty is None else empty


def lowres_of(raw: Mapping[str, Any]) -> Tensor | None:
    """What pictures of a collated batch start from, where they come with it: their pair, or themselves made small."""
    return raw.get("conditioning", raw.get("lowres"))


class BatchMaker:
    """Callable: loader batch, its draws and rows -> `Batch` on the device, in the dtype of the weights."""

    def __init__(self, config: RunConfig, objective: Objective, texts: Texts, device: torch.device) -> None:
        self.config, self.objective, self.texts, self.device = config, objective, texts, device
        self.dtype = {"float32": torch.float32, "float64": torch.float64}[config.train.dtype]
        self.generator = torch.Generator(device)

    def _noise(self, shape: Sequence[int], purpose: str, step: int, rows: range) -> Tensor:
        return draw_noise(shape, self.config.train.seed, purpose, step, rows, self.generator).to(self.dtype)

    def __call__(self, raw: Mapping[str, Any], draws: Draws, step: int, rows: range) -> Batch:
        """`rows` are the positions of this micro-batch in the global batch of `step`."""
        image = raw["image"].to(self.device, self.dtype, non_blocking=True)
        words = Words.of(raw)
        if self.config.text.unconditional == "empty":  # encoded as any other, then nothing is left to drop
            gone = draws.drop.tolist()
            words = Words(["" if drop else caption for caption, drop in zip(words.captions, gone, strict=True)])
            draws = replace(draws, drop=torch.zeros_like(draws.drop))
        text = self.texts(words)
        lowres = None
        if self.config.stage.lowres_size is not None:
            given = lowres_of(raw)
            lowres = self.objective.make_lowres(image) if given is None else given.to(self.device, self.dtype)
        return Batch(
            image=image,
            text=None if text is None else text[0].to(self.dtype),
            text_mask=None if text is None else text[1],
            lowres=lowres,
            **self._drawn(image, lowres, draws, step, rows),
        )

    def redrawn(self, batch: Batch, draws: Draws, step: int, rows: range) -> Batch:
        """The pictures and texts of `batch` with all that is random as at `step`."""
        return replace(batch, **self._drawn(batch.image, batch.lowres, draws, step, rows))

    def _drawn(self, image: Tensor, lowres: Tensor | None, draws: Draws, step: int, rows: range) -> dict[str, Any]:
        lowres_noise = None
        if lowres is not None:
            lowres_noise = self._noise(self.objective.lowres_noise_shape(lowres, image), "lowres", step, rows)
        return {
            "noise": self._noise(image.shape[1:], "image", step, rows),
            "t": draws.t.to(self.device),
            "drop": draws.drop.to(self.device),
            "aug_level": draws.aug_level.to(self.device),
            "lowres_noise": lowres_noise,
            "dropout_seeds": row_seeds(self.config.train.seed, "network", step, rows).to(self.device),
        }
