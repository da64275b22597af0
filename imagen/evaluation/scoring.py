"""Sets of pictures as their features, and the scores of one set beside another, with intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from imagen.disk import read_json
from imagen.evaluation.pictures import PictureSet
from imagen.evaluation.report import note
from imagen.evaluation.sampling import MANIFEST
from imagen.scores.features import STANDARD, FeatureNetwork
from imagen.scores.frechet import Moments, frechet_distance, frechet_of_rows
from imagen.scores.kernel import kernel_distance, kernel_of_rows
from imagen.scores.manifold import manifold, manifold_of_rows
from imagen.scores.resampling import Estimate, half_samples, over_seeds
from imagen.scores.sets import Array, Rows

if TYPE_CHECKING:
    from imagen.scores.encoders import DualEncoder

MANIFOLD = ("precision", "recall", "density", "coverage")
OF_SETS = {"fd": ("fd",), "kd": ("kd",), "manifold": MANIFOLD}
"""Metrics of two sets of features, and the numbers that each gives."""
PAPERS = {"fd": "fid", "kd": "kid"}
"""What papers call a distance in the features of the standard Inception, and of no other network."""
MOST = 5000
"""Rows of a set that its interval is drawn from: of more, intervals are those of so many, made narrower by the root."""


@dataclass
class Features:
    """What was computed of a set of pictures.

    Attributes:
        name: of the set.
        of: (N, D) features by the label of their network.
        clip: (N,) CLIP scores of the pictures with their captions; empty where none was asked for.
        keys: of the pictures.
        per_prompt: pictures of each prompt, in a row, each with a seed of its own; 1 where that is not known.
    """

    name: str
    of: Mapping[str, Array]
    clip: Array = field(default_factory=lambda: np.empty(0))
    keys: Sequence[str] = ()
    per_prompt: int = 1

    @property
    def count(self) -> int:
        """Of the pictures."""
        return len(next(iter(self.of.values()), self.clip))

    def seeds(self) -> list[Rows]:
        """The rows of each seed's pictures, one for each prompt that has all; empty where there is but one seed."""
        each = self.per_prompt
        prompts = self.count // each
        return [] if each < 2 or not prompts else [np.arange(prompts) * each + seed for seed in range(each)]


def per_prompt(name: str) -> int:
    """Pictures that were sampled of each prompt of the set that ``name`` means; 1 where it was not sampled so."""
    told = Path(name) / MANIFEST
    return int(read_json(told).get("per_prompt", 1)) if told.is_file() else 1


def read_features(
    pictures: PictureSet[Any], networks: Sequence[FeatureNetwork], encoder: DualEncoder | None, batch_size: int
) -> Features:
    """Look at every picture once, with all networks.

    Args:
        encoder: of the CLIP scores; None computes none.

    Raises:
        ValueError: no pictures, or one without a caption where there is an encoder.
    """
    from imagen.scores.encoders import clip_score

    parts: dict[str, list[Array]] = defaultdict(list)
    scores, keys = [np.empty(0)], list[str]()
    with tqdm(total=pictures.count, desc=pictures.name, unit=" pictures") as bar:
        for batch in pictures.batches(batch_size):
            shown = [one.picture for one in batch]
            for network in networks:
                parts[network.label].append(network.features(shown, batch_size))
            if encoder is not None:
                bare = next((one.key for one in batch if one.caption is None), None)
                if bare is not None:
                    told = f"{pictures.name!r} has no caption for {bare!r}, and a CLIP score is of both"
                    raise ValueError(f"{told}: give others, or other --metrics than clip")
                texts = encoder.texts([str(one.caption) for one in batch])
                scores.append(clip_score(encoder.images(shown), texts).numpy())
            keys += [one.key for one in batch]
            bar.update(len(batch))
    if pictures.skipped:
        note(pictures.told())
    found = {label: np.concatenate(values) for label, values in parts.items()}
    return Features(pictures.name, found, np.concatenate(scores), keys, per_prompt(pictures.name))


def called(metric: str, label: str) -> str:
    """What a number is called: ``fd[LABEL]``, and ``fid`` where the features are the standard Inception's."""
    if label in STANDARD.values():
        return label.replace("fid", PAPERS.get(metric, f"fid-{metric}"))
    return f"{metric}[{label}]"


def statistic(metric: str, x: Array, y: Array, k: int) -> Callable[[Rows, Rows], Any]:
    """A metric as a function of rows of both sets."""
    if metric == "fd":
        return frechet_of_rows(x, y)
    return kernel_of_rows(x, y) if metric == "kd" else manifold_of_rows(x, y, k)


def whole(metric: str, x: Array, y: Array, k: int) -> Array:
    """The numbers of a metric of all rows of x beside all of y, in bounded memory."""
    if metric == "fd":
        return np.array([frechet_distance(Moments.of(x), Moments.of(y))])
    if metric == "kd":
        return np.array([kernel_distance(x, y)])
    return np.array(list(manifold(x, y, k).to_json().values()))


def few(x: Array) -> Array:
    """At most `MOST` rows, drawn: the first ones may be of one class."""
    return x if len(x) <= MOST else x[np.random.default_rng(0).permutation(len(x))[:MOST]]


def set_scores(metric: str, x: Array, y: Array, k: int, resamples: int) -> dict[str, Estimate]:
    """The numbers of a metric of x beside y, each with its interval.

    Raises:
        ValueError: too few rows.
    """
    names, fewest = OF_SETS[metric], 2 * (k + 1)
    if metric == "manifold" and min(len(x), len(y)) < fewest:
        told = f"manifold with --k {k} needs {fewest} pictures of each set, and there are {len(x)} and {len(y)}"
        raise ValueError(f"{told}: give more, a smaller --k, or --metrics fd kd")
    some = few(x), few(y)
    inside = half_samples(statistic(metric, *some, k), [len(rows) for rows in some], resamples)
    if max(len(x), len(y)) <= MOST:
        return dict(zip(names, inside, strict=True))
    narrower = math.sqrt(min(map(len, some)) / min(len(x), len(y)))
    reaches = [(one.high - one.low) / 2 * narrower for one in inside]
    pairs = zip(whole(metric, x, y, k), reaches, strict=True)
    values = [Estimate(float(v), float(v - r), float(v + r)) for v, r in pairs]
    return dict(zip(names, values, strict=True))


def scores_of(x: Features, y: Mapping[str, Array], metrics: Sequence[str], k: int, resamples: int) -> dict[str, Any]:
    """Every number of a set beside a reference, by what it is called: an :class:`Estimate`."""
    found: dict[str, Any] = {}
    for label, features in x.of.items():
        for metric in metrics:
            if metric in OF_SETS:
                scored = set_scores(metric, features, y[label], k, resamples)
                found |= {called(name, label): value for name, value in scored.items()}
    if "clip" in metrics:
        found["clip"] = half_samples(lambda rows: float(x.clip[rows].mean()), [x.count], resamples)[0]
    return found


def scores_of_seeds(x: Features, y: Mapping[str, Array], metrics: Sequence[str], k: int) -> dict[str, Estimate]:
    """The same over seeds: of each seed's pictures alone, one for each prompt; the mean, and Student's interval."""
    values: dict[str, list[float]] = defaultdict(list)
    for rows in x.seeds():
        for label, features in x.of.items():
            for metric in (one for one in metrics if one in OF_SETS):
                for name, number in zip(OF_SETS[metric], whole(metric, features[rows], y[label], k), strict=True):
                    values[called(name, label)].append(float(number))
        if "clip" in metrics:
            values["clip"].append(float(x.clip[rows].mean()))
    return {name: over_seeds(numbers) for name, numbers in values.items()}


def floor(y: Mapping[str, Array], count: int, metrics: Sequence[str], k: int, resamples: int) -> dict[str, Any]:
    """Truth beside truth: ``count`` rows of the reference, at most half of them, beside its others; nothing, and a
    note, where so few have no interval.
    """
    found: dict[str, Any] = {}
    metrics = [one for one in metrics if one in OF_SETS]
    least = 2 * (k + 1) if "manifold" in metrics else 4
    if metrics and min(count, *(len(features) // 2 for features in y.values())) < least:
        note(f"truth beside truth is left out: it needs {least} pictures, and twice as many of --against")
        return {}
    for label, features in y.items():
        order = np.random.default_rng(0).permutation(len(features))
        some = features[order[: min(count, len(features) // 2)]]
        other = features[order[len(some) :]]
        part = Features("floor", {label: some})
        found |= scores_of(part, {label: other}, metrics, k, resamples)
    return found
