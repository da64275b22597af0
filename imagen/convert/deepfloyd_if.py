"""DeepFloyd IF checkpoints (stage I, stage II, or both), as diffusers stores them -> one ImagenPipeline folder.

Tensors keep their names, so the weight files are copied as they are, after every header was checked against the network
that is to read them. What changes is the description: the network's configuration and the pipeline's index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.deepfloyd_if import IFSafetyChecker, IFWatermarker
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, T5Config, T5EncoderModel

from imagen.convert.configs import stage_settings, unet_arguments
from imagen.convert.folder import check_new, copy_component, copy_licences, new_folder
from imagen.convert.weights import Weights, check_weights, copy_weights, read_json, read_weights, write_json
from imagen.errors import one_line
from imagen.pipeline import ImagenPipeline
from imagen.stages.folder import find_folder
from imagen.stages.spec import SAFETY
from unets import BaseUNet

#: Pipeline classes of the released stages -> our slot.
SLOT_OF = {"IFPipeline": "base", "IFSuperResolutionPipeline": "sr256"}
STAGE_NAMES = {"base": "stage I", "sr256": "stage II"}
MAX_LENGTH = 77
TEXT = {"padding": "visible", "null": "empty", "lowercase": True}
DIFFUSERS_STEM = "diffusion_pytorch_model"
#: Parts that our folder and diffusers' hold alike, and the stem of their weights.
SHARED = {
    "tokenizer": None,
    "text_encoder": "model",
    "safety_checker": "model",
    "feature_extractor": None,
    "watermarker": DIFFUSERS_STEM,
}
#: Fetched of a Hub id: the plain weights, or those of a variant with the plain ones of the small parts.
TEXT_FILES = ["*.json", "*.txt", "*.model", "*.md", "LICENSE*", "LICENCE*"]


class Source(NamedTuple):
    """One stage's folder, checked.

    Attributes:
        folder, slot: where it is, and what it becomes.
        unet: the network, a BaseUNet on the meta device. weights: its files.
        scheduler: DDPMScheduler, as released.
        side: of the pictures it makes, in pixels.
    """

    folder: Path
    slot: str
    unet: Any
    weights: Weights
    scheduler: Any
    side: int


def open_source(name: str, variant: str | None = None) -> Source:
    """Find one stage (a folder, or a Hub id) and check its configuration, its tensors and its schedulers.

    Raises:
        ValueError: naming the file, tensor or entry that is missing or wrong, and what was expected.
    """
    folder = find_folder(name, variant, patterns=_patterns(variant))
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind not in SLOT_OF:
        raise ValueError(
            f"{folder}: model_index.json is of a {kind}, expected {' (stage I) or '.join(SLOT_OF)} (stage II)"
        )
    where = folder / "unet" / "config.json"
    config = read_json(where)
    unet = on_meta(BaseUNet, where, **unet_arguments(config, str(where)))
    if bool(unet.config.lowres_channels) != (SLOT_OF[kind] == "sr256"):
        raise ValueError(
            f"{where}: in_channels is {config.get('in_channels')}, which does not fit the {kind} around it"
        )
    weights = read_weights(folder / "unet", DIFFUSERS_STEM, variant)
    if variant is not None and not any(f".{variant}" in file.name for file in weights.files):
        raise ValueError(
            f"{folder / 'unet'} has no {variant} weights, only {weights.files[0].name}: leave --variant out"
        )
    check_weights(weights, shapes(unet))
    scheduler = _scheduler(folder / "scheduler" / "scheduler_config.json")
    if SLOT_OF[kind] == "sr256":
        path = folder / "image_noising_scheduler" / "scheduler_config.json"
        noising = _scheduler(path).config
        if noising.trained_betas is not None or noising.beta_schedule != "squaredcos_cap_v2":
            found = "trained_betas" if noising.trained_betas is not None else repr(noising.beta_schedule)
            raise ValueError(f"{path}: beta_schedule is {found}, expected 'squaredcos_cap_v2'")
    return Source(folder, SLOT_OF[kind], unet, weights, scheduler, int(config["sample_size"]))


def _patterns(variant: str | None) -> list[str]:
    small = [f"{name}/*.safetensors" for name in SAFETY]
    return [*TEXT_FILES, *([f"*.{variant}*.safetensors", *small] if variant else ["*.safetensors"])]


def on_meta(cls: Any, where: Path, *args: Any, **kwargs: Any) -> Any:
    """A module without memory. Raises: ValueError where its configuration contradicts itself."""
    with naming(str(where)), torch.device("meta"):
        return cls(*args, **kwargs)


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Raises: ValueError, ``what`` and the reason in one line, for all that several libraries raise, each its own."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what}: {one_line(error)}") from error


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _scheduler(path: Path) -> Any:
    config = read_json(path)
    if config.get("_class_name") != "DDPMScheduler":
        raise ValueError(f"{path}: _class_name is {config.get('_class_name')!r}, expected 'DDPMScheduler'")
    with naming(str(path)):
        return DDPMScheduler.from_config(config)


class Part(NamedTuple):
    """A component that is copied as it is: its name, its folder, the object for the index, and its weights if any."""

    name: str
    folder: Path
    component: Any
    weights: Weights | None


def _text_parts(sources: Sequence[Source], variant: str | None) -> list[Part]:
    """Tokenizer and text encoder of the first source that has them; without any, a pipeline for ``prompt_embeds``."""
    for folder in (source.folder for source in sources):
        place = folder / "text_encoder"
        if not place.is_dir() or not (folder / "tokenizer").is_dir():
            continue
        config = T5Config.from_dict(read_json(place / "config.json"))
        encoder = on_meta(T5EncoderModel, place / "config.json", config)
        for source in sources:
            if source.unet.config.text_dim != config.d_model:
                raise ValueError(
                    f"{place / 'config.json'}: d_model is {config.d_model}, but the network in {source.folder} reads "
                    f"text of width {source.unet.config.text_dim}"
                )
        weights = read_weights(place, "model", variant)
        check_weights(weights, shapes(encoder), {"encoder.embed_tokens.weight"}, "T5's encoder")
        with naming(f"{folder / 'tokenizer'} cannot be read as a tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        read = Part("text_encoder", place, encoder, weights)
        return [Part("tokenizer", folder / "tokenizer", tokenizer, None), read]
    return []


def _safety_parts(sources: Sequence[Source], without: Collection[str], variant: str | None) -> list[Part]:
    """Safety checker, feature extractor and watermark of the first source that has each."""
    parts = []
    for name in SAFETY:
        places = [source.folder / name for source in sources if (source.folder / name).is_dir()]
        if name in without or not places:
            continue
        place, stem, weights = places[0], SHARED[name], None
        if name == "safety_checker":
            component = on_meta(IFSafetyChecker, place, CLIPConfig.from_dict(read_json(place / "config.json")))
        elif name == "watermarker":
            component = on_meta(IFWatermarker, place)
        else:
            component = CLIPImageProcessor.from_dict(read_json(place / "preprocessor_config.json"))
        if stem is not None:
            stored = read_weights(place, stem, variant)
            # older files store one tensor more, which only counts
            known = {k: v for k, v in stored.tensors.items() if not k.endswith(".position_ids")}
            weights = stored._replace(tensors=known)
            check_weights(weights, shapes(component), what=f"the {name}")
        parts.append(Part(name, place, component, weights))
    return parts


def convert(
    names: Sequence[str], target: Path, variant: str | None = None, without: Collection[str] = ()
) -> tuple[ImagenPipeline, list[str]]:
    """Convert one or two stages; ``target`` appears whole, or not at all.

    Args:
        names: folders or Hub ids, in any order: at most one of each stage.
        variant: of the weights to take, as "fp16"; None takes the plain ones, or the only variant there.
        without: of ``safety_checker``, ``feature_extractor``, ``watermarker``, those to leave behind.

    Returns:
        the pipeline as the folder describes it, its networks on the meta device; and the licence files copied.

    Raises:
        ValueError: naming the file, tensor or entry that is missing or wrong, and what was expected.
    """
    check_new(target)
    sources = sorted(
        (open_source(name, variant) for name in names), key=lambda source: list(STAGE_NAMES).index(source.slot)
    )
    if len({source.slot for source in sources}) != len(sources):
        raise ValueError(f"{' and '.join(map(str, names))} are both {STAGE_NAMES[sources[0].slot]}; give one of each")
    parts = [*_text_parts(sources, variant), *_safety_parts(sources, without, variant)]
    pipe = _describe(sources, parts)
    with new_folder(target) as folder:
        for source in sources:
            place = folder / f"{source.slot}_unet"
            source.unet.save_config(place)
            copy_weights(source.weights, place)
            source.scheduler.save_pretrained(folder / f"{source.slot}_scheduler")
        pipe.save_config(folder)
        index = read_json(folder / "model_index.json")
        for part in parts:
            copy_component(part.folder, folder / part.name, part.weights)
            # its class as the source names it: what the libraries here call it may differ with what else is installed
            entry = read_json(part.folder.parent / "model_index.json").get(part.name)
            index |= {part.name: entry} if isinstance(entry, list) and None not in entry else {}
        write_json(folder / "model_index.json", index)
        licences = copy_licences([source.folder for source in sources], folder)
    return pipe, licences


def _describe(sources: Sequence[Source], parts: Sequence[Part]) -> ImagenPipeline:
    """The pipeline, its networks without memory: what model_index.json says."""
    sides = {source.slot: source.side for source in sources}
    components = {part.name: part.component for part in parts}
    stages = {}
    for source in sources:
        components |= {f"{source.slot}_unet": source.unet, f"{source.slot}_scheduler": source.scheduler}
        lowres = None if source.slot == "base" else sides.get("base", source.side // 4)
        where = str(source.folder / "scheduler" / "scheduler_config.json")
        stages[source.slot] = stage_settings(source.scheduler.config, source.side, lowres, where)
    return ImagenPipeline(**components, stages=stages, text=TEXT, max_length=MAX_LENGTH)  # type: ignore[arg-type]
