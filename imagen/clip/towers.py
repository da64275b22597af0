"""A CLIP to be trained: its two towers, new or from a folder, with tokenizer and image processor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from imagen.clip.config import ClipConfig, TowerConfig
from imagen.errors import ConfigError, config_errors
from imagen.scores.encoders import DualEncoder

LARGEST_SCALE = 100.0  # Radford et al. 2021, section 2.5
START, END = "<|startoftext|>", "<|endoftext|>"


class Towers(nn.Module):
    """Pictures and texts -> their unit vectors, and the scale of their cosines.

    Args:
        clip: a CLIPModel of transformers, or another model with features of both and a ``logit_scale``.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor, **tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """((B, D), (B, D), scalar) of pictures (B, 3, H, W), prepared, and the tokens of their texts (B, L)."""
        shown = self.clip.get_image_features(pixel_values=images).pooler_output
        told = self.clip.get_text_features(**tokens).pooler_output
        exact = torch.promote_types(shown.dtype, torch.float32)
        return normalize(shown.to(exact), dim=1), normalize(told.to(exact), dim=1), self.clip.logit_scale.exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Keep the scale at most 100."""
        self.clip.logit_scale.clamp_(max=math.log(LARGEST_SCALE))

    @property
    def ends(self) -> tuple[str, ...]:
        """Names of the layers at input and output."""
        names = {name for name, _ in self.named_modules()}
        usual = ("embeddings", "projection", "head", "patch_embed")
        return tuple(sorted(name for name in names if name.rpartition(".")[2].endswith(usual)))


class Clip(NamedTuple):
    """What a folder of transformers' holds of a CLIP."""

    model: Any
    tokenizer: Any
    processor: Any

    def save(self, folder: Path, weights: bool = True) -> None:
        """Write it, as AutoModel, AutoTokenizer, AutoImageProcessor and AutoProcessor read it; or all but weights."""
        (self.model if weights else self.model.config).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.model.config.model_type == "clip":
            from transformers import CLIPProcessor

            CLIPProcessor(self.processor, self.tokenizer).save_pretrained(folder)  # type: ignore[no-untyped-call]

    @classmethod
    def empty(cls, folder: Path) -> Clip:
        """What was saved without weights, which are yet to be loaded. Raises: ConfigError."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

        with config_errors(f"{str(folder)!r}, which the run began from, cannot be read: ", also=OSError):
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            return cls(model, tokenizer, AutoImageProcessor.from_pretrained(folder, backend="pil"))

    @property
    def side(self) -> int:
        """Of the pictures it sees, in pixels."""
        size = self.model.config.vision_config.image_size
        return int(size)

    @property
    def dim(self) -> int:
        """Of the common space."""
        config = self.model.config
        return int(getattr(config, "projection_dim", None) or config.text_config.hidden_size)

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation), (3, 1, 1) each, that colours in [0, 1] are normalised by."""
        processor = self.processor
        mean, std = processor.image_mean, processor.image_std
        return torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)


def begun_from(name: str) -> Clip:
    """The model in a folder or Hub id, to go on from. Raises: ConfigError."""
    with config_errors("clip.init_from: "):
        found = DualEncoder.load(name)
    return Clip(found.model, found.tokenizer, found.processor)


def new_clip(config: ClipConfig, tokenizer: Any, seed: int) -> Clip:
    """A CLIP with weights drawn from `seed`; its logit scale begins at 1 / 0.07."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    text = {
        **_tower(config.text, config.projection),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": config.max_length,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    vision = {**_tower(config.image, config.projection), **sizes}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.projection))
    side = config.image_size
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return Clip(model, tokenizer, processor)


def _tower(config: TowerConfig, projection: int) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu",
        "projection_dim": projection,
    }


def train_tokenizer(captions: Iterable[str], config: ClipConfig) -> Any:
    """CLIP's lower-cased byte pair encoding, of these captions: every byte, alone and at a word's end, then pairs.

    Raises:
        ConfigError: there is no caption.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    bare = {piece: number for number, piece in enumerate([*letters, *(f"{one}</w>" for one in letters), START, END])}
    encoding = CLIPTokenizer(vocab=bare, merges=[])._tokenizer
    trainer = BpeTrainer(
        vocab_size=len(bare) + config.vocabulary,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        min_frequency=2,
        show_progress=False,
    )
    told = list(captions)
    if not any(text.strip() for text in told):
        raise ConfigError("data has no captions, or empty ones alone: a CLIP has no text to tell pictures by")
    encoding.train_from_iterator(told, trainer)
    merges = [tuple(pair) for pair in _merges(encoding)]
    vocabulary = {**bare}
    for pair in merges:
        vocabulary.setdefault("".join(pair), len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=config.max_length)


def _merges(encoding: Any) -> list[list[str]]:
    """Pairs in the order in which they were learnt."""
    found: list[list[str]] = json.loads(encoding.to_str())["model"]["merges"]
    return found
