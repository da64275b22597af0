"""Reference statistics kept in a file, and given only to the network and the preprocessing they were made with.

A distance of sets depends on the feature network and on how pictures were resized for it as much as on the pictures
(Parmar et al. 2022, arXiv:2104.11222), and nothing in the numbers tells. So the file says what was done, and whoever
does something else is refused. One safetensors file: ``features`` (N, D) float32, which is what networks compute in,
``mean`` (D,) and ``cov`` (D, D) float64, and in its header one entry of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagen.disk import whole
from imagen.scores.features import FeatureNetwork
from imagen.scores.frechet import Moments
from imagen.scores.sets import Array, check_features

FORMAT = 1
"""Of the file; a reader refuses a higher one."""
ENTRY = "statistics"
AGAIN = "make the statistics again"


@dataclass(frozen=True, eq=False)
class Reference:
    """What is kept of a set of pictures.

    Attributes:
        features: (N, D) float64, for the kernel distance, precision and recall, and neighbours.
        moments: their mean and covariance, for the Frechet distance.
        label: of the network they were made with.
        made_of: what the pictures were, in words.
    """

    features: Array
    moments: Moments
    label: str
    made_of: str


def save_statistics(path: str | Path, features: Array, network: FeatureNetwork, made_of: str = "") -> None:
    """Keep the features of a set of pictures, whole or not at all.

    Args:
        features: (N, D) of ``network``, at least two rows.
        made_of: what the pictures are, such as "5000 pictures of data/val", for whoever reads the file.

    Raises:
        ValueError: no such features, or another width than the network's.
        OSError: the file cannot be written.
    """
    rows = check_features("features", features, least=2)
    if rows.shape[1] != network.dim:
        raise ValueError(
            f"features are {rows.shape}, and {network.label!r} makes {network.dim}: give the network's own"
        )
    moments = Moments.of(rows)
    said = {
        "format": FORMAT,
        "label": network.label,
        "made_of": made_of,
        "count": len(rows),
        "preprocessing": network.preprocessing,
    }
    tensors = {"features": rows.astype(np.float32), "mean": moments.mean, "cov": np.ascontiguousarray(moments.cov)}
    with whole(Path(path)) as partial:
        save_file(tensors, partial, {ENTRY: json.dumps(said)})


def load_statistics(path: str | Path, network: FeatureNetwork) -> Reference:
    """What `save_statistics` kept, for features of the same network and preprocessing.

    Args:
        network: what the other set's features are made with.

    Raises:
        ValueError: no such file, a damaged or a newer one, or one of another network or preprocessing, naming what
            differs.
    """
    if not Path(path).is_file():
        raise ValueError(f"no statistics at {str(path)!r}: there is no such file; {AGAIN}")
    try:
        with safe_open(path, framework="np") as file:
            said = json.loads(file.metadata()[ENTRY])
            _check_said(path, said, network)
            features, mean, cov = (file.get_tensor(name) for name in ("features", "mean", "cov"))
        rows, moments = check_features("features", features, least=2), Moments(mean, cov, int(said["count"]))
        if rows.shape != (said["count"], network.dim) or mean.shape != (network.dim,):
            raise ValueError(f"features are {rows.shape}, mean {mean.shape}; expected {said['count']} of {network.dim}")
        return Reference(rows, moments, str(said["label"]), str(said["made_of"]))
    except _Other:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"statistics {str(path)!r} are damaged or none ({_brief(error)}); {AGAIN}") from error


class _Other(ValueError):
    """A file that is whole, of something else."""


def _check_said(path: str | Path, said: Mapping[str, Any], network: FeatureNetwork) -> None:
    """Refuse what was made otherwise. Raises: ValueError, naming what differs, and the values of the first."""
    if said["format"] > FORMAT:
        raise _Other(f"statistics {str(path)!r} have format {said['format']}, newer than {FORMAT}: update imagen")
    kept, now = dict(said["preprocessing"]), network.preprocessing
    differing = sorted(key for key in kept.keys() | now.keys() if kept.get(key) != now.get(key))
    if differing:
        first, rest = differing[0], ", ".join(differing[1:])
        raise _Other(
            f"statistics {str(path)!r} were made with {said['label']!r}, whose {first} was {kept.get(first)!r}; that "
            f"of {network.label!r} is {now.get(first)!r}{f' ({rest} differ, too)' if rest else ''}: {AGAIN}, or give "
            "that network"
        )


def _brief(error: Exception) -> str:
    """An error's message in one line; a KeyError's alone says little."""
    told = " ".join(str(error).split())
    return f"it lacks {told}" if isinstance(error, KeyError) else told or type(error).__name__
