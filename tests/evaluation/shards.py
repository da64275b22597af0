"""Samples of a tiny model in shards of two: python -m tests.evaluation.shards FOLDER, alone or as one of several."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from imagen.evaluation.launch import Launch
from imagen.evaluation.sampling import Samples, make_samples
from tests.factories import SENTENCES, tiny_pipeline

WANTED = Samples(
    SENTENCES[:5], per_prompt=2, seed=7, size=16, settings={"num_inference_steps": 40}, shard_size=3
)  # 3 + 3 + 3 + 1 pictures


def main(folder: str) -> None:
    """Make them."""
    torch.set_num_threads(1)
    make_samples(tiny_pipeline(), WANTED, Path(folder), batch_size=2, launch=Launch.of_environment())


if __name__ == "__main__":
    main(*sys.argv[1:])
