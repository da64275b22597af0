"""Building the network that a configuration describes, with its mistakes told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from imagen.training.config import RunConfig
from imagen.training.errors import ConfigError
from imagen.training.parsing import check_unet_arguments, check_unet_kind


def unet_class(kind: str) -> Any:
    """BaseUNet or EfficientUNet."""
    import unets

    return getattr(unets, kind)


def make_unet(config: RunConfig, device: str | torch.device = "cpu") -> Any:
    """A freshly initialised network in float32; initialisation depends on train.seed alone.

    Raises:
        ConfigError: an unknown argument, a value that the constructor refuses, or channels that do not fit the stage.
    """
    check_unet_kind(config.unet)
    cls = unet_class(config.unet["kind"])
    check_unet_arguments(config.unet, cls.__init__)
    arguments = {key: value for key, value in config.unet.items() if key != "kind"}
    torch.manual_seed(config.train.seed)
    try:
        with torch.device(device):
            unet = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"unet: {' '.join(str(error).split())}") from error
    check_fit(config, unet.config)
    return unet


def check_fit(config: RunConfig, unet: Any) -> None:
    """Raises ConfigError where the network's inputs do not fit the stage."""
    stage = config.stage
    if stage.lowres_size is None and unet.lowres_channels:
        raise ConfigError(f"unet.lowres_channels {unet.lowres_channels}: {stage.name} has no low-res input, use 0")
    if stage.lowres_size is not None and not unet.lowres_channels:
        raise ConfigError(f"unet.lowres_channels is 0: {stage.name} needs the low-res picture's channels, usually 3")
    if not config.text.used and unet.text_dim is not None:
        raise ConfigError(
            f"unet.text_dim {unet.text_dim}, but text.encoder is null: give a T5 folder, or text_dim null"
        )
    if config.text.used and unet.text_dim is None:
        raise ConfigError(f"unet.text_dim is null: text.encoder {config.text.encoder!r} needs its width there")
    if unet.out_channels != unet.in_channels:
        raise ConfigError(
            f"unet.out_channels {unet.out_channels} differs from in_channels {unet.in_channels}: "
            "a learned variance is not trained here"
        )


def check_size(config: RunConfig, unet: Any) -> None:
    """Raises ConfigError where the network's strides do not divide the training pictures."""
    for section, data in (("data", config.data), ("validation.data", config.validation.data)):
        crop = None if data is None else data.crop
        side = crop or config.stage.size
        if side % unet.options.divisor:
            name = f"{section}.crop" if crop else "stage.size"
            raise ConfigError(
                f"{name} {side} is not a multiple of {unet.options.divisor}, the network's stride: change one of them"
            )


def set_checkpointing(unet: Any, levels: bool | tuple[int, ...]) -> None:
    """Turn on what train.gradient_checkpointing says. Raises ConfigError for a level that the network lacks."""
    if isinstance(levels, bool):
        if levels:
            unet.enable_gradient_checkpointing()
        return
    try:
        unet.checkpoint_levels(levels)
    except ValueError as error:
        raise ConfigError(f"train.gradient_checkpointing {list(levels)}: {error}") from error


def load_initial(unet: Any, folder: str) -> None:
    """Start `unet` from an exported stage (run/model, its unet folder, or a network in a pipeline folder).

    Raises:
        ConfigError: nothing there, or weights that do not fit.
    """
    from safetensors.torch import load_file

    root = Path(folder)
    root = root / "unet" if (root / "unet").is_dir() else root
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"train.init_from {folder!r} holds no exported network: give a run/model folder")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(load_file(file))
    try:
        unet.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ConfigError(f"train.init_from {folder!r} does not fit this unet: {first}") from error
