"""``python -m imagen.cli.pretrain_text --out runs/shapes/t5``: the shipped demo's T5, from nothing.

Documents are captions of the shapes world's train split. Four in five hold two captions of one scene, said
differently ("a red circle above a blue square. a blue square below a red circle"): what is hidden in one can be told
from the other, so that the objective rewards knowing which colour belongs to which object and where each stands.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from imagen.data.shapes.language import caption, sample_facts
from imagen.text.pretrain import PretrainConfig, pretrain, train_tokenizer


def document(index: int, seed: int = 0) -> str:
    """Document ``index``: one caption, or two of the same facts, none of them held out."""
    rng = np.random.Generator(np.random.Philox(key=[seed + 1, index]))
    facts = sample_facts(rng, "train")
    first = caption(facts, rng)
    return first if rng.random() < 0.2 else f"{first}. {caption(facts, rng)}"


DEMO = PretrainConfig(noise_density=0.25, mean_span=1.5, steps=4000)


def main(out: Path, t5: PretrainConfig = DEMO) -> None:
    """Train the tokenizer and the T5; a second call with the same ``out`` resumes.

    Args:
        out: folder to write ``tokenizer/``, ``text_encoder/``, ``metrics.jsonl`` and ``state.pt`` to.
        t5: size of the T5 and of its training.
    """
    tokenizer = train_tokenizer(document(i, t5.seed).partition(". ")[0] for i in range(20_000))
    pretrain(lambda index: document(index, t5.seed), tokenizer, t5, out)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
