"""Where an encoder and its tokenizer lie on this machine."""

from __future__ import annotations

from pathlib import Path


def component_folders(name_or_path: str | Path) -> tuple[str, str]:
    """(tokenizer, encoder) of a pipeline folder; the same name twice for an encoder's folder or Hub id."""
    path = Path(name_or_path)
    split = path.is_dir() and (path / "text_encoder").is_dir()
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
