"""Components of a saved pipeline that we load and check, where diffusers and transformers pass faults over."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary, ref

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from imagen.errors import one_line
from imagen.stages.folder import PICKLES, PIPELINE_CLASS, check_complete, read_index
from imagen.text.encoder import check_loaded, check_tokenizer
from imagen.text.kinds import TextEncoder, read_encoder

#: As the index lists them. A class beside these is left to diffusers.
TEXT_ENCODERS = [["transformers", kind.__name__] for kind in get_args(TextEncoder)]


def is_ours(part: str, options: Mapping[str, Any]) -> bool:
    """Whether the options of ``from_pretrained`` leave a component to us: it is not given, nor placed or quantised."""
    config = options.get("quantization_config")
    quantised = getattr(config, "quant_mapping", None) or getattr(config, "components_to_quantize", None)
    left = config is None or bool(quantised and part not in quantised)  # naming none, it means all
    return left and options.get("device_map") is None and part not in options


def tell_class(folder: Path, kind: type) -> None:
    """Warn where a pipeline was saved by a subclass that ``kind`` is none of: it is loaded without what that adds."""
    saved = read_index(folder)["_class_name"]
    if saved not in (PIPELINE_CLASS, *(base.__name__ for base in kind.__mro__)):
        warnings.warn(
            f"model folder {str(folder)!r} was saved by {saved} and is loaded as {kind.__name__}, without what "
            f"{saved} changes: {saved}.from_pretrained loads it whole",
            stacklevel=3,
        )


def load_parts(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The components of a pipeline folder that are not left to diffusers: text encoder and safety checker.

    Args:
        options: those of ``from_pretrained``; what they name is not loaded.

    Raises:
        ValueError: weights are missing or damaged.
    """
    index = read_index(folder)
    loaders = {
        "text_encoder": (TEXT_ENCODERS, load_encoder),
        "safety_checker": ([["deepfloyd_if", "IFSafetyChecker"]], load_checker),
    }
    return {
        name: load(folder / name, options)
        for name, (listed, load) in loaders.items()
        if index.get(name) in listed and is_ours(name, options)
    }


def check_parts(pipe: Any, folder: Path, options: Mapping[str, Any], networks: Iterable[str]) -> None:
    """What diffusers does not see in the components it loaded from a folder.

    Args:
        networks: names of the components that are networks.

    Raises:
        ValueError: a network's files lack tensors, or the tokenizer is another encoder's.
    """
    pickled = options.get("use_safetensors", True) is not True
    for name in networks:
        if is_ours(name, options) and getattr(pipe, name) is not None:
            check_complete(folder / name, getattr(pipe, name).state_dict(), pickled)
    if pipe.tokenizer is not None and pipe.text_encoder is not None:
        check_tokenizer(pipe.tokenizer, str(folder / "tokenizer"), pipe.text_encoder.config.vocab_size)


def fast_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """What ``dtype="auto"`` means: bfloat16 where a device multiplies it in units of its own, else float32.

    That is a CUDA card which has it (of compute capability 8.0, or a ROCm one) and a CPU with AMX. AVX-512 has
    instructions for it, too (``avx512_bf16``), but they are twice as fast at best, which a network's other work may eat
    up; we had none to measure, so it is float32 there.

    Args:
        device: where networks compute; None: CUDA where it is there, else the CPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    fast = False
    if device.type == "cuda":
        with torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported()  # no processor has AMX without its bfloat16
    return torch.bfloat16 if fast else torch.float32


def named_dtype(dtype: Any) -> Any:
    """A torch dtype for its name ("bfloat16", or "auto" for :func:`fast_dtype`), also in a mapping; anything else as it
    is.

    Raises:
        ValueError: a name that is none.
    """
    if isinstance(dtype, Mapping):
        return {part: named_dtype(one) for part, one in dtype.items()}
    if not isinstance(dtype, str):
        return dtype
    found = fast_dtype() if dtype == "auto" else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; expected float32, bfloat16, float16, float64 or auto")
    return found


def dtype_of(part: str, options: Mapping[str, Any]) -> torch.dtype:
    """The dtype that the options of ``from_pretrained`` mean for a component: one for all, or one for each."""
    dtype = options.get("dtype") or torch.float32
    return dtype.get(part, dtype.get("default", torch.float32)) if isinstance(dtype, Mapping) else dtype


@contextmanager
def float32_kept(parts: Iterable[object], arguments: Iterable[object]) -> Iterator[None]:
    """Within it parts are moved and cast; at its end what transformers loads in float32 whatever is asked is so again.

    That is T5's ``wo`` in float16, which overflows there (transformers #20287). It has the values that it had before.

    Args:
        arguments: those of ``to``.
    """
    dtype = next((given for given in arguments if isinstance(given, torch.dtype)), None)
    kept = [
        (parameter, parameter.data)
        for part in parts
        if isinstance(part, PreTrainedModel)
        for name, parameter in part.named_parameters()
        if type(parameter.data) is torch.Tensor and parameter.is_floating_point()  # not quantised
        if any(word in name for word in _in_float32(part, dtype))
    ]
    try:
        yield
    finally:
        for parameter, before in kept:
            parameter.data = before.to(parameter.device, torch.float32)


def _in_float32(part: PreTrainedModel, dtype: torch.dtype | None) -> set[str]:
    """What in the names of a part's weights says that they are loaded in float32 where ``dtype`` is asked for."""
    words: set[str] = set()
    if dtype == torch.float16:
        words.update(part._keep_in_fp32_modules or ())
    if dtype in (torch.float16, torch.bfloat16):
        words.update(part._keep_in_fp32_modules_strict or ())
    return words


def of_runs(options: Mapping[str, Any], components: Iterable[str]) -> dict[str, Any]:
    """The options of ``from_pretrained`` that act on the folders of runs: ``dtype`` and components.

    Raises:
        ValueError: another one is given.
    """
    own = {"dtype", *components}
    for name, value in options.items():
        if name not in own and value is not (True if name == "use_safetensors" else None):
            raise ValueError(
                f"{name} is for saved pipelines, and this is a run's folder: leave it out, or compose the runs first "
                "(python -m imagen.training.compose)"
            )
    return {name: value for name, value in options.items() if name in own}


#: The pipeline that each network was last made a part of.
_HOLDERS: WeakKeyDictionary[torch.nn.Module, ref[Any]] = WeakKeyDictionary()
SETTINGS_OF_PIPELINES = ("stages", "max_length", "text", "conditions", "presets")


def tell_lost(pipe: Any, networks: Iterable[str], given: bool) -> None:
    """Warn of a pipeline made of another's components alone: the stages would run with sizes that are not theirs.

    Args:
        given: whether it was made with settings of its stages.
    """
    held = [part for part in (getattr(pipe, name) for name in networks) if isinstance(part, torch.nn.Module)]
    before = [_HOLDERS[network]() for network in held if network in _HOLDERS]
    lost = [
        name
        for name in SETTINGS_OF_PIPELINES
        if any(other is not None and other.config[name] != pipe.config[name] for other in before)
    ]
    if lost and not given:
        warnings.warn(
            f"components alone lose {', '.join(lost)} of the pipeline they come from: "
            "use ImagenPipeline.from_pipe(pipe)",
            stacklevel=3,
        )
    _HOLDERS.update({network: ref(pipe) for network in held})


def load_encoder(folder: Path, options: Mapping[str, Any]) -> TextEncoder:
    """A pipeline folder's encoder, dtype explicit, every weight checked (transformers has loaded some silently wrong).

    Args:
        options: those of ``from_pretrained``: dtype, variant, use_safetensors.

    Raises:
        ValueError: weights are missing or damaged.
    """
    variant = options.get("variant")
    variant = variant if variant and any(folder.glob(f"*.{variant}*.safetensors")) else None
    # transformers saves safetensors whatever it is told: where no pickle lies these are meant
    safe = options["use_safetensors"] if any(folder.glob(PICKLES)) else True
    dtype = dtype_of(folder.name, options)
    encoder, info = read_encoder(folder, dtype=dtype, variant=variant, use_safetensors=safe)
    check_loaded(encoder, info, str(folder))
    return encoder.requires_grad_(False).eval()


def load_checker(folder: Path, options: Mapping[str, Any]) -> Any:
    """A pipeline folder's safety checker. transformers 5 cannot load the class that diffusers ships, so we do.

    Args:
        options: those of ``from_pretrained``: dtype, variant.

    Raises:
        ValueError: weights are missing or do not fit.
    """
    from diffusers.pipelines.deepfloyd_if import IFSafetyChecker
    from transformers import CLIPConfig

    checker = IFSafetyChecker(CLIPConfig.from_pretrained(folder))
    variant = options.get("variant")
    files = sorted(folder.glob(f"*.{variant}*.safetensors")) if variant else []
    there, values = sorted(folder.glob("model*.safetensors")), {}
    plain = [file for file in there if re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", file.name)]
    for file in files or plain or there:  # plain ones of other dtypes may lie beside them
        values.update(load_file(file))
    values = {name: value for name, value in values.items() if not name.endswith(".position_ids")}  # a mere count
    try:
        checker.load_state_dict(values)
    except RuntimeError as error:
        raise ValueError(
            f"model folder {str(folder.parent)!r}: safety_checker does not load: {one_line(error)}"
        ) from error
    return checker.to(dtype_of(folder.name, options)).requires_grad_(False).eval()
