"""Where an encoder and its tokenizer lie on this machine, and which ones they are, told without loading either."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
STATE = "state.pt"  # in a folder that a text encoder is pre-trained into, beside what comes of it at the end
WEIGHTS = (("model.safetensors", "model-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*.bin"))


def component_folders(name_or_path: str | Path) -> tuple[str, str]:
    """(tokenizer, encoder) of a pipeline folder; the same name twice for an encoder's folder or Hub id.

    Raises:
        ValueError: it is being pre-trained, and that has not ended.
    """
    path = Path(name_or_path)
    split = path.is_dir() and (path / "text_encoder").is_dir()
    if not split and (path / STATE).is_file():
        raise ValueError(
            f"the text encoder in {str(path)!r} is not finished: give the same pretrain_text command once more, and "
            "it goes on"
        )
    return (str(path / "tokenizer"), str(path / "text_encoder")) if split else (str(path), str(path))


def local_folder(name_or_path: str | Path) -> Path | None:
    """The folder of an encoder given by folder or Hub id; None for a Hub id that was never downloaded."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name_or_path), local_files_only=True))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Fingerprint:
    """What decides a caption's embedding, up to rounding.

    Attributes:
        encoder: SHA-256 (hex) over the encoder's config and weight files, by name.
        tokenizer: the same over the tokenizer's files.
        max_length: captions are cut at this many tokens.
    """

    encoder: str
    tokenizer: str
    max_length: int


def fingerprint(folder: Path, max_length: int) -> Fingerprint:
    """Hash an encoder's folder; a few seconds for every ten gigabytes, and no more memory than a read buffer.

    The files count as they are: the same weights saved anew, in another dtype or in other shards, are another encoder.

    Args:
        folder: a T5 or CLIP folder with its tokenizer, or a pipeline folder with ``tokenizer/`` and ``text_encoder/``.

    Raises:
        ValueError: no weights or no tokenizer there.
    """
    tokenizer_folder, encoder_folder = (Path(path) for path in component_folders(folder))
    found = [[path for pattern in kind for path in encoder_folder.glob(pattern)] for kind in WEIGHTS]
    weights = next((paths for paths in found if paths), [])
    texts = [tokenizer_folder / name for name in TOKENIZER_FILES if (tokenizer_folder / name).is_file()]
    config = encoder_folder / "config.json"
    if not weights or not texts or not config.is_file():
        raise ValueError(
            f"no text encoder with its tokenizer in {str(folder)!r}: give a folder or Hub id of a T5 or a CLIP"
        )
    return Fingerprint(_hash([config, *weights]), _hash(texts), max_length)


def _hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    whole = hashlib.sha256()
    for path in sorted(paths):  # of one folder
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.name} {content}\n".encode())
    return whole.hexdigest()
