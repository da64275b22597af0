"""Building the network that a configuration describes, with its mistakes told in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from imagen.cascade.adapters import attach
from imagen.cascade.training.config.parsing import check_unet_arguments
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.config.sections import LossConfig
from imagen.cascade.training.inputs.source import named_conditions
from imagen.cascade.training.inputs.texts import Texts
from imagen.cascade.training.start.origin import no_network, of_stage, unet_section
from imagen.conditions.text import Words
from imagen.errors import ConfigError, config_errors, require
from imagen.stages.folder import network_folder
from imagen.training.loader import make_loader
from imagen.training.state.ema import trained_state
from unets.contract import Facts, facts, network_class
from unets.network import Network

CAPTIONS = 2048


def make_unet(config: RunConfig, device: str | torch.device = "cpu") -> Network:
    """A freshly initialised network in float32; initialisation depends on train.seed alone.

    Raises:
        ConfigError: an unknown argument, a value that the constructor refuses, or channels that do not fit the stage.
    """
    with config_errors("unet."):
        cls: Any = network_class(config.unet.get("kind"))
    check_unet_arguments(config.unet, cls.__init__)
    arguments = {key: value for key, value in config.unet.items() if key != "kind"}
    torch.manual_seed(config.train.seed)
    with config_errors("unet: ", also=TypeError), torch.device(device):
        unet: Network = cls(**arguments)
    check_fit(config, unet.facts)
    return unet


def check_fit(config: RunConfig, unet: Facts) -> None:
    """Raises ConfigError where the network's inputs and outputs do not fit the stage, or its strides the pictures."""
    stage, unit, width, given = config.stage, unet.divisor, unet.text_dim, config.data.embedding
    channels, out, low = unet.in_channels, unet.out_channels, unet.lowres_channels
    for section, data in config.pictures.items():
        require(
            data.kind != "shapes" or channels == 3,
            f"unet.in_channels {channels}, but the pictures of {section}.kind shapes have three channels: set it to 3, "
            f"or {section} to other pictures",
        )
        name, side = (f"{section}.crop", data.crop) if data.crop else ("stage.size", stage.size)
        require(
            side % unit == 0, f"{name} {side} is not a multiple of {unit}, the network's stride: change one of them"
        )
    if stage.lowres_size is None:
        require(not low, f"unet.lowres_channels {low}: {stage.name} has no low-res input, use 0")
    else:
        require(low > 0, f"unet.lowres_channels is 0: {stage.name} needs the low-res picture's channels, usually 3")
    require(
        low in (0, channels) or config.data.conditioning is not None,
        f"unet.lowres_channels {low}, but the low-res picture is the picture itself, made smaller: set it to "
        f"unet.in_channels ({channels}), or data.conditioning to other pictures",
    )
    cell = config.sampling.lowres_consistency
    require(
        not cell or low == channels,
        f"sampling.lowres_consistency {cell}: pictures of {channels} channels are made from {low}, which gives no "
        "colours to keep; leave it out",
    )
    require(
        config.reads_text or width is None,
        f"unet.text_dim {width}, but text.encoder is null: give an encoder's folder (or data.embedding), or "
        "text_dim null",
    )
    source = f"text.encoder {config.text.encoder!r}" if given is None else f"data.embedding {given!r}"
    require(not config.reads_text or width is not None, f"unet.text_dim is null: {source} needs its width there")
    _check_named(config, unet)
    if unet.learns_variance:
        require(
            not config.train.drop_variance,
            f"train.drop_variance is true, but unet.out_channels is {out}: set it to {channels}",
        )
    else:
        require(
            out == channels,
            f"unet.out_channels {out} with in_channels {channels}: give as many, or twice as many for a learned "
            "variance",
        )
        weight = stage.loss.vlb_weight
        require(
            weight == LossConfig.vlb_weight,
            f"stage.loss.vlb_weight {weight} has no effect: this network learns no variance (unet.out_channels {out}); "
            "leave it out",
        )


def _check_named(config: RunConfig, unet: Facts) -> None:
    """Raises ConfigError where the network reads a condition by name that the configuration lacks, or the reverse."""
    given = {condition.name: condition for condition in named_conditions(config)}
    read = [(option, name) for option in ("classes", "extra_channels") for name in getattr(unet, option)]
    for option, name in read:
        require(name in given, f"unet.{option} has {name!r}, but nothing gives it: add conditions.{name}, or drop it")
    for name, condition in given.items():
        option, count = condition.needs(unet.in_channels)
        built = getattr(unet, option).get(name)
        require(
            built is not None,
            f"conditions.{name} is given, but the network does not read it: set unet.{option}.{name} to {count}",
        )
        require(built == count, f"unet.{option}.{name} is {built}, but conditions.{name} gives {count}: set it to that")


def set_checkpointing(unet: Network, levels: bool | tuple[int, ...]) -> None:
    """Turn on what train.gradient_checkpointing says. Raises ConfigError for a level that the network lacks."""
    if levels is True:
        unet.enable_gradient_checkpointing()
    elif levels:
        with config_errors(f"train.gradient_checkpointing {list(levels)}: "):
            unet.checkpoint_levels(levels)


def prepare_unet(config: RunConfig, saved: Mapping[str, Tensor] | None) -> Network:
    """The network that a run trains, on the CPU: new, from train.init_from, or as it was saved.

    Args:
        saved: what is trained of it, of a resume point.

    Raises:
        ConfigError: train.init_from does not fit, or lora.targets names no layer of the network.
    """
    start, lora = config.train.init_from, config.lora
    unet = make_unet(config, device="cpu" if lora.rank is None else "meta")
    assert isinstance(unet, torch.nn.Module)
    if start is not None and (saved is None or lora.rank is not None):
        folder = of_stage(start, config.stage.name)
        load_initial(unet, folder, config.train.drop_variance, getattr(torch, lora.base_dtype))
    if config.train.dtype == "float64":
        torch.nn.Module.to(unet, torch.float64)
    if lora.rank is not None:
        torch.manual_seed(config.train.seed)
        with config_errors("lora: "):
            attach(unet, lora.rank, lora.scale, lora.targets)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(getattr(torch, config.train.dtype))
    if saved is not None:
        load_trained(unet, saved)
    return unet


def load_trained(unet: Network, saved: Mapping[str, Tensor]) -> None:
    """Put back what :func:`imagen.training.state.ema.trained_state` gave. Raises: ConfigError where it does not fit."""
    here = trained_state(unet)
    odd = sorted(here.keys() ^ saved.keys()) or [name for name in here if here[name].shape != saved[name].shape]
    if odd:
        raise ConfigError(f"the resume point does not fit this network: {odd[0]} differs; use another run_dir")
    unet.load_state_dict(saved, strict=False)


def load_initial(unet: Network, folder: str, drop_variance: bool, dtype: torch.dtype) -> None:
    """Start `unet` from an exported stage (a run, its model, its unet folder, or a network in a pipeline folder).

    It may have further classes, whose tables stay as they are, and further extra_channels, which start without effect
    (:func:`unets.conditions.grown`); not where it is without memory, which is for adapters of the network as it was.

    Args:
        drop_variance: take the first half of its output's channels, which is all but the learned variance.
        dtype: of the weights, where `unet` is without memory ("meta"); else they take those of `unet`.

    Raises:
        ConfigError: nothing there, or weights that do not fit.
    """
    root = network_folder(folder)
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise no_network(folder)
    without_memory = next(unet.parameters()).is_meta
    tensors = {n: v.to(dtype) if without_memory else v for file in files for n, v in load_file(file).items()}
    if drop_variance:
        tensors.update(first_half(tensors, unet, folder))
    section = unet_section(root)
    try:
        if section:
            known, ours = facts(section), unet.facts
            tensors = unet.grown(tensors, known)
            if without_memory and (known.classes, known.extra_channels) != (ours.classes, ours.extra_channels):
                raise ValueError("an adapter is for the network as it is; leave out further classes and extra_channels")
        unet.load_state_dict(tensors, assign=without_memory)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ConfigError(f"train.init_from {folder!r} does not fit this unet: {first}") from error


def first_half(tensors: Mapping[str, Tensor], unet: Network, folder: str) -> dict[str, Tensor]:
    """The output layer without the channels of a learned variance. Raises: ConfigError where it has none."""
    output = unet.output_layer
    rows = len(unet.state_dict()[f"{output}.weight"])
    there = len(tensors.get(f"{output}.weight", ()))
    if there != 2 * rows:
        raise ConfigError(
            f"train.drop_variance is true, but train.init_from {folder!r} learned no variance (its output layer has "
            f"{there} rows, {2 * rows} were expected): set it false"
        )
    return {f"{output}.{part}": tensors[f"{output}.{part}"][:rows].clone() for part in ("weight", "bias")}


def fit_whitening(unet: Network, config: RunConfig, source: Any, texts: Texts) -> None:
    """Fit `unet.whitening`, where there is one, to the tokens of the first :data:`CAPTIONS` captions or all there are.

    The same on every process: each reads the whole of the first batches by itself.

    Raises:
        ConfigError: too few tokens for the width of the text.
    """
    if unet.whitening is None:
        return
    most = min(CAPTIONS, config.train.steps * config.train.batch_size)
    count, read, total, products = 0, 0, torch.zeros(()), torch.zeros(())
    batches = iter(make_loader(config, source, 0, 0, 1, texts.tokenized))
    while read < most:
        words = Words.of(next(batches))
        read += len(words)
        encoded, mask = texts(words)
        tokens = encoded[mask.bool()].double()
        count, total, products = count + len(tokens), total + tokens.sum(dim=0), products + tokens.T @ tokens
    mean = total / count  # a text has one token at least
    remedy = "give more or longer captions" if read >= CAPTIONS else "raise train.steps or train.batch_size"
    if count < 2 * len(mean):
        raise ConfigError(
            f"unet.text_whitening is fitted to the tokens of the first captions: {read} captions have {count}, and "
            f"text of width {len(mean)} needs {2 * len(mean)}; {remedy}, or set unet.text_whitening false"
        )
    with config_errors(f"unet.text_whitening: what text.encoder {config.text.encoder!r} makes of the captions: "):
        unet.whitening.fit(count, mean, products / count - torch.outer(mean, mean))
