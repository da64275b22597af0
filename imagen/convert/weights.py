"""Weights in safetensors files, single or sharded: found, checked against a network tensor by tensor, and copied.

Only headers are read for the checks, so a checkpoint of any size is judged in milliseconds and a few megabytes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from imagen.errors import one_line

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
FLOATS = ("F16", "BF16", "F32", "F64")


class Entry(NamedTuple):
    """What a header says of one tensor: the file it lies in, its dtype ("F16") and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Weights(NamedTuple):
    """The weights of one component.

    Attributes:
        folder: the component's.
        stem: file name up to the first dot, "model" (transformers) or "diffusion_pytorch_model" (diffusers).
        files: one, or the shards in order.
        tensors: what the headers say, by name.
    """

    folder: Path
    stem: str
    files: list[Path]
    tensors: dict[str, Entry]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: ValueError if it is missing, or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; download the checkpoint again, whole") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({one_line(error)}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object; download it again")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as the libraries do."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_weights(folder: Path, stem: str, variant: str | None = None) -> Weights:
    """Find a component's weights and read their headers.

    Args:
        variant: take these ("fp16"), if the component has them; None takes the plain ones, or the only variant there.

    Raises:
        ValueError: no safetensors (or only pickles), a missing shard, a file that is damaged or no safetensors.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; expected a folder with {stem}.safetensors")
    files, index = _find(folder, stem, variant)
    tensors: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in tensors:
                raise ValueError(f"{file}: tensor {name!r} is also in {tensors[name].file.name}; expected it once")
            tensors[name] = entry
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise ValueError(f"{folder / str(shard)}: tensor {name!r} is missing; the index says it is there")
    return Weights(folder, stem, files, tensors)


def _find(folder: Path, stem: str, variant: str | None) -> tuple[list[Path], Mapping[str, str]]:
    """The files, and what an index says of them (empty for a single file)."""
    named = [path.name.removeprefix(stem).split(".")[1] for path in folder.glob(f"{stem}.*.safetensors")]
    # an index says it, too: model.safetensors.index.fp16.json, as transformers and older diffusers name it
    indexed = [path.name.split(".")[-2] for path in folder.glob(f"{stem}.safetensors.index.*.json")]
    present = sorted({*(name.split("-")[0] for name in named), *indexed})
    plain = (folder / f"{stem}.safetensors").exists() or (folder / f"{stem}.safetensors.index.json").exists()
    if variant in present or (variant is None and not plain and len(present) == 1):
        kind = f".{variant or present[0]}"
    elif plain:
        kind = ""
    else:
        raise ValueError(_nothing(folder, stem, present))
    single = folder / f"{stem}{kind}.safetensors"
    indices = [folder / f"{stem}.safetensors.index{kind}.json", folder / f"{stem}{kind}.safetensors.index.json"]
    index = next((path for path in indices if path.exists()), None)
    if index is None:
        return [single], {}
    if single.exists():
        raise ValueError(f"{folder} holds both {single.name} and {index.name}; remove the one that is not meant")
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or any(Path(str(name)).name != name for name in mapping.values()):
        raise ValueError(f"{index}: weight_map names no files beside it; download it again")
    shards = [folder / shard for shard in sorted(set(mapping.values()))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(f"{missing[0]} is missing; {index.name} names it")
    return shards, mapping


def _nothing(folder: Path, stem: str, variants: list[str]) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if variants:
        return f"{folder} holds the variants {', '.join(variants)} and not the one asked for; choose with --variant"
    if pickles:
        return f"{folder / pickles[0]} is a pickle, which is not opened here; expected {stem}.safetensors beside it"
    return f"{folder} holds no weights; expected {stem}.safetensors"


def _read_header(file: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file says it holds; its length is checked against them."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
            return {name: Entry(file, s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (OSError, SafetensorError, ValueError) as error:
        with file.open("rb") as raw:
            start = raw.read(64)
        if start.startswith((b"PK\x03\x04", b"\x80")):
            raise ValueError(f"{file} is a pickle, which is not opened here; expected safetensors") from error
        if start.startswith(b"version https://git-lfs"):
            raise ValueError(f"{file} is a Git LFS pointer, not the weights; fetch them (git lfs pull)") from error
        raise ValueError(f"{file} is no whole safetensors file ({one_line(error)}); download it again") from error


def check_weights(
    weights: Weights, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = (), what: str = "the network"
) -> None:
    """Compare what is stored with what a network wants, name by name and shape by shape.

    Args:
        expected: the network's tensors; ``optional`` names those that a file may leave out (tied ones).
        what: whose tensors they are, for the message.

    Raises:
        ValueError: naming the first tensor that is missing, is too many, or has another shape or no float dtype.
    """
    missing = [name for name in expected if name not in weights.tensors and name not in optional]
    if missing:
        raise ValueError(
            f"{weights.folder}: tensor {missing[0]!r} is missing ({len(missing)} in all); {what} needs it with shape "
            f"{expected[missing[0]]}"
        )
    for name, (file, dtype, shape) in weights.tensors.items():
        if name not in expected:
            raise ValueError(f"{file}: tensor {name!r} of shape {shape} has no place in {what}")
        if shape != expected[name]:
            raise ValueError(f"{file}: tensor {name!r} has shape {shape}, expected {expected[name]}")
        if dtype not in FLOATS:
            raise ValueError(f"{file}: tensor {name!r} has dtype {dtype}, expected one of {', '.join(FLOATS)}")


def copy_weights(weights: Weights, folder: Path) -> None:
    """Copy the files as they are, under the plain names (no variant) that ``from_pretrained`` looks for."""
    if len(weights.files) == 1:
        shutil.copyfile(weights.files[0], folder / f"{weights.stem}.safetensors")
        return
    names: dict[Path, str] = {}
    for number, file in enumerate(weights.files, 1):
        names[file] = f"{weights.stem}-{number:05d}-of-{len(weights.files):05d}.safetensors"
        shutil.copyfile(file, folder / names[file])
    size = sum(math.prod(entry.shape) * int(entry.dtype.lstrip("BF")) // 8 for entry in weights.tensors.values())
    places = {name: names[entry.file] for name, entry in sorted(weights.tensors.items())}
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(folder / f"{weights.stem}.safetensors.index.json", index)
