"""Saved stages and a text encoder, loaded and put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen.cascade.parts import dtype_of
from imagen.errors import ConfigError, config_errors, require
from imagen.stages.folder import SavedStage
from imagen.stages.load import load_network, load_scheduler
from imagen.text.encoder import load_text_encoder
from imagen.text.kinds import check_max_length, text_width


def assemble(
    stages: Mapping[str, SavedStage], options: Mapping[str, Any], text: str | None = None, remedy: str = "--text"
) -> dict[str, Any]:
    """What ImagenPipeline is made with, of saved stages in the order of the cascade.

    Args:
        options: those of ``from_pretrained`` that act here: ``dtype``, and components in place of the stored ones.
        text: folder or Hub id of a text encoder; None takes the one that the stages were trained with.
        remedy: what to give where the encoder is not the right one.

    Raises:
        ConfigError: a part that does not load, sizes that do not meet, or different text encoders.
    """
    made = {**_text_parts(stages, options, text, remedy), **options}
    made.pop("dtype", None)
    before: Any = None
    for slot, stage in stages.items():
        unet, scheduler = f"{slot}_unet", f"{slot}_scheduler"
        with config_errors(f"stage {slot}: "):
            if unet not in options:
                made[unet] = load_network(stage.unet, dtype_of(unet, options))
            if scheduler not in options:
                made[scheduler] = load_scheduler(stage.scheduler)
        if made[unet] is not None:
            _check_meets(slot, made[unet], before, made.get("text_encoder"), remedy)
        before = made[unet]
    return {
        "stages": {slot: stage.defaults for slot, stage in stages.items()},
        "max_length": max(stage.max_length for stage in stages.values()),
        "text": next(iter(stages.values())).text.to_dict(),
        "conditions": {name: stored for stage in stages.values() for name, stored in stage.conditions.items()},
        **made,
    }


def _text_parts(
    saved: Mapping[str, SavedStage], options: Mapping[str, Any], text: str | None, remedy: str
) -> dict[str, Any]:
    """Tokenizer and text encoder of the stages, none for stages without text. Raises: ConfigError where they differ."""
    if {"tokenizer", "text_encoder"} <= options.keys():
        return {}
    trained = {stage.encoder for stage in saved.values() if stage.encoder is not None}
    one = text is not None or len(trained) <= 1
    require(one, f"the stages were trained with different encoders ({', '.join(sorted(trained))}): pass {remedy}")
    source = text or next(iter(trained), None)
    if source is None:
        return {}
    lost = text is None and Path(source).is_absolute() and not Path(source).is_dir()
    require(
        not lost, f"the text encoder of the stages is not at {source!r} any more: say with {remedy} where it is now"
    )
    with config_errors(f"{remedy}: "):
        tokenizer, encoder = load_text_encoder(source, dtype_of("text_encoder", options))
        check_max_length(max(stage.max_length for stage in saved.values()), encoder.config)
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def _check_meets(slot: str, unet: Any, before: Any, encoder: Any, remedy: str) -> None:
    """Raises ConfigError where a network does not fit the text encoder, or the network of the stage before it."""
    width = unet.config.text_dim
    if width is not None and encoder is not None and (found := text_width(encoder.config)) != width:
        raise ConfigError(f"the text encoder has width {found}, {slot} needs {width}: pass {remedy}")
    if before is not None and unet.config.lowres_channels != before.config.in_channels:
        raise ConfigError(
            f"{slot} starts from {unet.config.lowres_channels} channels but the stage before it makes "
            f"{before.config.in_channels}: train one anew"
        )
