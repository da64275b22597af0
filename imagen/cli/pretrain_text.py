"""``python -m imagen.cli.pretrain_text --out runs/shapes/t5``: the shipped demo's T5, from nothing.

Documents are captions of the shapes world's train split. Four in five tell the scene twice: in another caption ("a red
circle above a blue square. a blue square below a red circle") or, three relations in four, place by place ("... above
there is a red circle. below there is a blue square"). Mostly, all of the second telling is hidden. The decoder is one
layer that can look up but not work out, and so are the U-Nets' attention layers: what it can answer from the encoding
of a caption, "what is above?", they can, too.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
from transformers import T5Tokenizer

from imagen.cli.options import call
from imagen.data.shapes.language import Facts, caption, sample_facts
from imagen.disk import occupied
from imagen.errors import run_command
from imagen.text.folders import component_folders
from imagen.text.pretrain import PretrainConfig, pretrain, train_tokenizer

PLACES = {"above": ("above", "below"), "below": ("below", "above")}
PLACES |= {f"to the {a} of": (f"to the {a}", f"to the {b}") for a, b in (("left", "right"), ("right", "left"))}


def tell_places(facts: Facts, rng: np.random.Generator) -> str:
    """ "above there is a red circle. below there is a blue square", in either order."""
    assert facts.relation is not None
    sentences = [
        f"{place} there is {caption(Facts((thing,)))}"
        for place, thing in zip(PLACES[facts.relation], facts.things, strict=True)
    ]
    return ". ".join(sentences if rng.random() < 0.5 else reversed(sentences))


def document(index: int, seed: int = 0) -> str:
    """Document ``index``: one caption, or two tellings of the same facts, none of them held out."""
    rng = np.random.Generator(np.random.Philox(key=[seed + 1, index]))
    facts = sample_facts(rng, "train")
    first = caption(facts, rng)
    if rng.random() < 0.2:
        return first
    by_place = facts.relation is not None and rng.random() < 0.75
    return f"{first}. {tell_places(facts, rng) if by_place else caption(facts, rng)}"


DEMO = PretrainConfig(noise_density=0.25, mean_span=1.5, continuation_share=0.7, decoder_feed_forward=False, steps=6000)


def command(out: Path, t5: PretrainConfig = DEMO) -> None:
    """Train the tokenizer and the T5; a second call with the same ``out`` resumes.

    Args:
        out: folder to write ``tokenizer/``, ``text_encoder/``, ``metrics.jsonl`` and ``state.pt`` to.
        t5: size of the T5 and of its training.
    """
    with occupied(out):
        if t5.init_from is None:
            tokenizer = train_tokenizer(document(i, t5.seed).partition(". ")[0] for i in range(20_000))
        else:
            tokenizer = T5Tokenizer.from_pretrained(component_folders(t5.init_from)[0])
        pretrain(lambda index: document(index, t5.seed), tokenizer, t5, out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    work = partial(call, command, "pretrain_text", arguments)
    return run_command("pretrain_text", work, "; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
