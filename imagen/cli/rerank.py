"""The best of several: pictures of a prompt are made up to the first stage alone, a CLIP scores them, and the seed of
the best one is kept. A picture depends on nothing but its seed, so the command with that seed makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from imagen.cli.record import Picture

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline
    from imagen.scores.encoders import DualEncoder


def candidates(pictures: Sequence[Picture], count: int, seed: int) -> list[list[Picture]]:
    """``count`` candidates for each picture, with seeds that count up from ``seed`` over all of them."""
    return [
        [Picture(one.prompt, seed + number * count + index) for index in range(count)]
        for number, one in enumerate(pictures)
    ]


def stop_after_first(pipe: Any, size: int, images: Any) -> None:
    """A ``callback_on_stage_end`` that leaves the later stages out."""
    pipe._interrupt = True


def choose(
    pipe: ImagenPipeline,
    encoder: DualEncoder,
    groups: Sequence[Sequence[Picture]],
    make: Callable[[Sequence[Picture], Callable[..., None]], Any],
    batch_size: int,
) -> list[Picture]:
    """The best of each group by the CLIP score of its first stage's picture with its prompt, and how it was chosen.

    Args:
        groups: the candidates for each picture.
        make: pictures and a ``callback_on_stage_end`` -> what the pipeline returns.
        batch_size: candidates made at once.
    """
    every = [one for group in groups for one in group]
    scores: list[float] = []
    shown = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(disable=True)  # one bar for all of them
    with tqdm(total=len(every), desc="candidates", unit=" pictures") as bar:
        for start in range(0, len(every), batch_size):
            batch = every[start : start + batch_size]
            made: list[Image.Image] = next(iter(make(batch, stop_after_first).stages.slots.values()))
            scores += score(encoder, made, [str(one.prompt) for one in batch])
            bar.update(len(batch))
    pipe.set_progress_bar_config(**shown)
    found, start = [], 0
    for group in groups:
        own = scores[start : start + len(group)]
        best = max(range(len(group)), key=own.__getitem__)
        rounded = [round(one, 3) for one in own]
        told = {"best_of": len(group), "rerank": encoder.name, "clip_scores": rounded, "clip_score": rounded[best]}
        found.append(group[best]._replace(chosen=told))
        start += len(group)
    return found


def score(encoder: DualEncoder, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """What pictures are ranked by: how near each is to its prompt."""
    from imagen.scores.encoders import similarity

    scores: list[float] = similarity(encoder.images(pictures), encoder.texts(prompts)).tolist()
    return scores
