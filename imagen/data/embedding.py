"""Texts that were encoded before training, as they lie beside the pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .decode import Unusable


def read_embedding(raw: Any, longest: int, width: int) -> Tensor:
    """The encoding of one text: (L, width) float32, L <= longest.

    Args:
        raw: a ``.npy`` file or its bytes, or the numbers: an array, or a list of lists.

    Raises:
        Unusable: none there, not a ``.npy`` file, of another shape, too long, or with numbers that are not finite.
    """
    if raw is None:
        raise Unusable("has no embedding")
    try:
        if isinstance(raw, Path):
            raw = raw.read_bytes()
        values = np.load(io.BytesIO(raw), allow_pickle=False) if isinstance(raw, bytes) else np.asarray(raw)
    except OSError as error:
        raise Unusable(f"embedding cannot be read: {error.strerror or 'it is no .npy file'}") from error
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Unusable(f"embedding is no .npy file of numbers: {reason}") from error
    if not isinstance(values, np.ndarray) or not np.issubdtype(values.dtype, np.floating):
        raise Unusable(f"embedding holds {getattr(values, 'dtype', type(values).__name__)}; expected floats")
    if values.ndim != 2 or values.shape[1] != width or not 0 < len(values) <= longest:
        raise Unusable(f"embedding has shape {values.shape}; expected (1 to {longest} tokens, {width})")
    if not np.isfinite(values).all():
        raise Unusable("embedding holds numbers that are not finite")
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
