"""The kinds of text encoder: a T5's encoder (the paper's, section 2.1), or the text tower of a CLIP.

Both stay the classes of ``transformers``, so that saved models name those. They are called alike and answer alike, with
the states of the final layer behind its norm; what differs stands here. CLIP is Radford et al. 2021 (arXiv:2103.00020,
section 2.4): causal attention, learned positions and so a longest text, and a tokenizer that lower-cases by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedConfig, T5EncoderModel

from imagen.checks import check_int

TextEncoder: TypeAlias = T5EncoderModel | CLIPTextModel
CLIP_TYPES = ("clip_text_model", "clip")  # model_type of the tower alone, and of both towers


def encoder_class(name_or_path: str | Path, **kwargs: Any) -> type[TextEncoder]:
    """The class for what lies in a folder or Hub id: CLIP's tower for a CLIP, whole or not, and T5's for all else.

    Args:
        kwargs: of ``from_pretrained`` (``revision``, ``cache_dir``, ``local_files_only``).

    Raises:
        OSError: nothing there, or a ``config.json`` that is none.
    """
    stored: Mapping[str, Any] = PreTrainedConfig.get_config_dict(name_or_path, **kwargs)[0]
    return CLIPTextModel if stored.get("model_type") in CLIP_TYPES else T5EncoderModel


def read_encoder(name_or_path: str | Path, **options: Any) -> tuple[TextEncoder, dict[str, Any]]:
    """The encoder in a folder or Hub id, and what transformers says of its weights; check that, it raises for little.

    Its own report is for people, names every weight of a whole CLIP's other tower, and is left out.

    Args:
        options: of ``from_pretrained``.

    Raises:
        OSError, ValueError: nothing there that can be read.
    """
    told = logging.getLogger("transformers.modeling_utils")
    before = told.disabled
    told.disabled = True  # a level set here would make transformers look at, and report, how the layers are sharded
    try:
        encoder, info = encoder_class(name_or_path, **options).from_pretrained(
            name_or_path, output_loading_info=True, **options
        )
    finally:
        told.disabled = before
    return encoder, info


def encoder_config(folder: str | Path) -> PreTrainedConfig:
    """The encoder's config from its folder, of a whole CLIP that of its text tower. Raises: OSError, as above."""
    config: PreTrainedConfig = encoder_class(folder).config_class.from_pretrained(folder)
    return config


def text_width(config: PreTrainedConfig) -> int:
    """D of an encoder's states."""
    return int(config.hidden_size)  # T5's d_model, too: transformers knows it by both names


def longest_text(config: PreTrainedConfig | None) -> int | None:
    """Most tokens that an encoder can read, CLIP's positions; None for a T5, whose are relative, or for no encoder."""
    return int(config.max_position_embeddings) if isinstance(config, CLIPTextConfig) else None


def check_max_length(max_length: int, config: PreTrainedConfig | None) -> int:
    """The length, if the encoder of this config can read texts of it; None: there is no encoder to ask.

    Raises:
        ValueError: below 1 or no whole number, or more than :func:`longest_text`.
    """
    length, longest = check_int("max_length", max_length, 1), longest_text(config)
    if longest is not None and length > longest:
        raise ValueError(f"max_length {length} is more than the {longest} positions of the text encoder: set {longest}")
    return length
