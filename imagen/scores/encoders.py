"""Encoders of pictures and texts into one space: CLIP (Radford et al. 2021), SigLIP (Zhai et al. 2023) and their kin,
by folder or Hub id, through transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from imagen.errors import one_line
from imagen.scores.hub import muted, short_name


class DualEncoder:
    """Pictures and texts -> unit vectors; the nearer, the better one tells the other.

    Attributes:
        name: the last part of the folder or Hub id it came from, as scores are named by it.
        scale: what cosines are multiplied by before a softmax over texts (CLIP) or a sigmoid (SigLIP).
        dim: of the vectors.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, name: str) -> None:
        self.model, self.tokenizer, self.processor, self.name = model.eval(), tokenizer, processor, name
        self.scale = float(model.logit_scale.detach().exp())
        self.config = model.config
        self.longest = longest_text(model.config)
        self.dim = int(self.texts([""]).shape[1])

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu") -> DualEncoder:
        """From a folder or Hub id: CLIP, SigLIP or another model of transformers with features of both.

        Raises:
            ValueError: nothing there, or no such model, tokenizer or image processor, or a damaged one.
        """
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        told = f"{str(name)!r} is no encoder of pictures and texts that can be read"
        try:
            with muted():
                how: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below
                model, info = AutoModel.from_pretrained(name, dtype=torch.float32, **how)
                tokenizer = AutoTokenizer.from_pretrained(name)
                processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        except Exception as error:  # a damaged file has as many kinds as there are readers
            said = one_line(error)
            raise ValueError(f"{told} ({said[:300]}); give a folder or Hub id of a CLIP or SigLIP") from error
        if not all(hasattr(model, one) for one in ("get_image_features", "get_text_features", "logit_scale")):
            raise ValueError(f"{told}: it holds a {type(model).__name__}; give a folder or Hub id of a CLIP or SigLIP")
        if missing := sorted({*info["missing_keys"], *(str(key[0]) for key in info["mismatched_keys"])}):
            raise ValueError(f"{told}: its weights lack {missing[0]} of the right shape, {len(missing)} in all")
        return cls(model.to(device), tokenizer, processor, short_name(name))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        found: torch.device = self.model.device
        return found

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        """(N, D) float32 unit vectors of pictures, prepared as the encoder's own processor does it; on the CPU.

        Raises:
            ValueError: no pictures, or vectors that are not finite.
        """
        self._check_any(pictures, "pictures")
        found = []
        for some in _parts(pictures, batch_size):
            shown = self.processor(images=[picture.convert("RGB") for picture in some], return_tensors="pt")
            found.append(_unit(self.model.get_image_features(pixel_values=shown["pixel_values"].to(self.device))))
        return self._joined(found, "pictures")

    @torch.no_grad()
    def texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """(N, D) float32 unit vectors of texts, on the CPU; texts longer than the encoder reads are cut, with a
        warning.

        Raises:
            ValueError: no texts, or vectors that are not finite.
        """
        self._check_any(texts, "texts")
        self._warn_of_cuts(texts)
        found = []
        for some in _parts(texts, batch_size):
            tokens = {name: ids.to(self.device) for name, ids in text_tokens(self.tokenizer, some, self.config).items()}
            found.append(_unit(self.model.get_text_features(**tokens)))
        return self._joined(found, "texts")

    def _check_any(self, given: Sequence[Any], what: str) -> None:
        if not len(given):
            raise ValueError(f"there are no {what} for {self.name!r} to encode; give one at least")

    def _joined(self, found: Sequence[Tensor], what: str) -> Tensor:
        vectors = torch.cat(list(found))
        if not vectors.isfinite().all():  # no comparison with them is true, and every ranking would look like one
            raise ValueError(f"{self.name!r} makes vectors of {what} that are not finite: its weights are damaged")
        return vectors

    def _warn_of_cuts(self, texts: Sequence[str]) -> None:
        lengths = [len(ids) for ids in self.tokenizer(list(texts), verbose=False)["input_ids"]]
        cut = sum(length > self.longest for length in lengths)
        if cut:
            told = f"{cut} of {len(texts)} texts are longer than the {self.longest} tokens that {self.name} reads"
            warnings.warn(f"{told}, and are cut", stacklevel=4)  # behind torch's decorator


def longest_text(config: Any) -> int:
    """Tokens that the model of this config reads at most."""
    return int(config.text_config.max_position_embeddings)


def text_tokens(tokenizer: Any, texts: Sequence[str], config: Any) -> dict[str, Tensor]:
    """Texts as the model of this config reads them: ``input_ids`` and, but for SigLIP, ``attention_mask``, (B, L)."""
    padded = str(config.model_type).startswith("siglip")  # trained on texts of one length, whose padding it reads
    padding = "max_length" if padded else "longest"
    longest = longest_text(config)
    found = tokenizer(list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt")
    names = ("input_ids",) if padded else ("input_ids", "attention_mask")
    return {name: found[name] for name in names}


def clip_score(images: Tensor, texts: Tensor) -> Tensor:
    """(N,) float64: 100 max(cos, 0) of each picture (N, D) and its own text (N, D), as papers report it (Hessel et al.
    2021, arXiv:2104.08718, with 100 in place of 2.5). Raises: ValueError, not as many of each.
    """
    return similarity(images, texts).clamp(min=0)


def similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(N,) float64: 100 cos of each picture (N, D) and its own text (N, D), below 0 too: by it pictures are ranked, so
    that there is a best one among bad ones.

    Raises:
        ValueError: not as many of each.
    """
    if images.shape != texts.shape:
        raise ValueError(
            f"vectors are {tuple(images.shape)} and {tuple(texts.shape)}; expected a text for each picture"
        )
    return 100 * (images.double() * texts.double()).sum(dim=1)


def _unit(features: Any) -> Tensor:
    """Vectors of length 1, whatever transformers wraps them in."""
    found: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(found.float(), dim=1).cpu()


def _parts(things: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(things), size):
        yield things[start : start + size]
