"""The folder on disk: the manifest, shards, and random access to them by caption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagen.disk import filling, sync, write_text
from imagen.text.folders import Fingerprint

FORMAT_VERSION = 1
KEY_BYTES = 16  # of SHA-256: among a billion captions, two share a key with a probability near 1e-21
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class MissingCaption(ValueError):
    """A caption that the cache does not hold."""


def caption_key(caption: str) -> bytes:
    """The 16 bytes under which a caption is stored; every character counts."""
    return hashlib.sha256(caption.encode("utf-8")).digest()[:KEY_BYTES]


@dataclass(frozen=True)
class Identity:
    """What all embeddings of a cache have in common.

    Attributes:
        encoder: the folder or Hub id as it was given, for people and for composing a pipeline later.
        compute_dtype: dtype the encoder computed in.
        dtype: dtype of the stored embeddings, a key of ``DTYPES``.
        width: D.
    """

    encoder: str
    fingerprint: Fingerprint
    compute_dtype: str
    dtype: str
    width: int

    def differences(self, other: Identity) -> list[str]:
        """Why embeddings of ``other`` may not stand beside ours, one entry each; another name alone is no reason."""
        ours, theirs = (asdict(one) | asdict(one.fingerprint) for one in (self, other))
        told = {name: f"the {name}'s files differ" for name in ("encoder", "tokenizer")}
        values = {"max_length": "max_length", "compute_dtype": "compute dtype", "dtype": "stored dtype"}
        told |= {name: f"{words} {ours[name]} there, {theirs[name]} here" for name, words in values.items()}
        return [words for name, words in told.items() if ours[name] != theirs[name]]


@dataclass(frozen=True)
class Manifest:
    """cache.json: who encoded what, and how much of it is there.

    Attributes:
        shards: how many shards, from number 0 on, belong to the cache; files with higher numbers are work going on.
        complete: a command has finished: every caption that it was given is in these shards.
        captions, tokens, bytes, cut: of these shards; cut captions had more than ``max_length`` tokens.
    """

    identity: Identity
    shards: int = 0
    complete: bool = False
    captions: int = 0
    tokens: int = 0
    bytes: int = 0
    cut: int = 0

    def write(self, folder: Path) -> None:
        """Write cache.json whole, or leave the old one."""
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"
        write_text(folder / "cache.json", text)
        sync(folder)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read cache.json.

        Raises:
            ValueError: none there, damaged, or of a newer format.
        """
        path = folder / "cache.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("format_version")
            if version > FORMAT_VERSION:
                raise ValueError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: update imagen")
            identity = values.pop("identity")
            return cls(Identity(**{**identity, "fingerprint": Fingerprint(**identity["fingerprint"])}), **values)
        except FileNotFoundError:
            raise ValueError(
                f"there is no text cache in {str(folder)!r}: write one with python -m imagen.text.cache"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): remove the folder and encode again") from error


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"captions-{number:05d}.safetensors"


def write_shard(path: Path, embeddings: Sequence[Tensor], keys: Sequence[bytes], cut: int) -> None:
    """Write a shard whole or not at all.

    Args:
        embeddings: (tokens, D) of each of n captions, without padding; they are stored one after the other.
        keys: theirs, in rising order.
        cut: how many of them had more tokens than are kept.
    """
    tensors = {
        "embeddings": torch.cat(list(embeddings)),
        "offsets": torch.tensor([0, *map(len, embeddings)]).cumsum(0),
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), KEY_BYTES),
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with filling(partial):
        save_file(tensors, partial, {"cut": str(cut)})  # one entry: the order of several is left to chance
        sync(partial)
        partial.replace(path)
    sync(path.parent)


class Shard:
    """One shard, opened: the tables in memory, the embeddings mapped from the file and read where they are asked for.

    Attributes:
        keys: (n,) of 16 bytes each; offsets: (n + 1,) int64, caption i has the tokens offsets[i] to offsets[i + 1].

    Raises:
        ValueError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            self.embeddings = file.get_slice("embeddings")
            self.offsets: NDArray[np.int64] = file.get_tensor("offsets").numpy()
            keys = file.get_tensor("keys").numpy()
            self.cut = int(file.metadata()["cut"])
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is missing or damaged ({error}): give the python -m imagen.text.cache command again"
            ) from error
        self.keys: NDArray[np.bytes_] = np.ascontiguousarray(keys).view(f"S{KEY_BYTES}")[:, 0]
        self.bytes = path.stat().st_size

    def key_bytes(self) -> list[bytes]:
        """The keys as :func:`caption_key` gives them; numpy takes the zeros off their end."""
        return [key.ljust(KEY_BYTES, b"\0") for key in self.keys.tolist()]


class TextCache:
    """A finished cache: captions -> embeddings, as the encoder would give them, without an encoder.

    Shards are mapped into memory and read by caption, so processes on one machine share what the system keeps of them,
    and a forked loader may read, too. The index takes about 40 bytes a caption and process.

    Raises:
        ValueError: no finished cache there, a newer format, a missing or damaged shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        if not self.manifest.complete:
            raise ValueError(
                f"the text cache in {str(folder)!r} is not finished: give its python -m imagen.text.cache command again"
            )
        self._shards = [Shard(shard_path(self.folder, number)) for number in range(self.manifest.shards)]
        keys = np.concatenate([shard.keys for shard in self._shards])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards])

    def _find(self, captions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Positions in the index, and whether that is truly the caption's."""
        wanted = np.array([caption_key(caption) for caption in captions])
        place = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return place, self._keys[place] == wanted

    def missing(self, captions: Sequence[str]) -> list[str]:
        """Those of ``captions`` that the cache lacks."""
        there = self._find(captions)[1].tolist() if captions else []
        return [caption for caption, found in zip(captions, there, strict=True) if not found]

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The embeddings of B captions.

        Returns:
            embeddings (B, L, D) float32, zero where padded, L the longest of these captions; mask (B, L) bool.

        Raises:
            MissingCaption: naming the first caption that is not in the cache.
            ValueError: no captions.
        """
        if not captions:
            raise ValueError("captions is empty; expected at least one")
        for caption in self.missing(captions):
            raise MissingCaption(f"the text cache in {str(self.folder)!r} lacks the caption {caption!r}")
        rows = [self._tokens(int(self._order[place])) for place in self._find(captions)[0]]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return padded.to(device).float(), mask.to(device)

    def _tokens(self, caption: int) -> Tensor:
        """(tokens, D) in the stored dtype of the caption at a position in the concatenated shards."""
        number = int(np.searchsorted(self._ends, caption, side="right"))
        shard = self._shards[number]
        place = caption - int(self._ends[number]) + len(shard.keys)
        return shard.embeddings[int(shard.offsets[place]) : int(shard.offsets[place + 1])]
