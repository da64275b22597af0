"""``python -m imagen.cli.pretrain_text --out runs/small/t5 --data.kind folder --data.path my_pictures``: a small T5 of
the captions of any source, or without a source of the shipped demo's documents, from nothing.

Documents are captions, epoch by epoch. The demo's are captions of the shapes world's train split; four in five tell the
scene twice: in another caption ("a red circle above a blue square. a blue square below a red circle") or, three
relations in four, place by place ("... above there is a red circle. below there is a blue square"). Mostly, all of the
second telling is hidden. The decoder is one layer that can look up but not work out, and so are the U-Nets' attention
layers: what it can answer from the encoding of a caption, "what is above?", they can, too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import T5Tokenizer

from imagen.cli.options import call
from imagen.cli.text_cache import file_captions
from imagen.data import ShapesDataset, Want, make_source
from imagen.data.config import DataConfig
from imagen.data.order import sample_index
from imagen.data.shapes.language import Facts, caption, sample_facts
from imagen.disk import occupied
from imagen.errors import require, run_command
from imagen.text.folders import component_folders
from imagen.text.pretrain import SPELLING, WIDE_SPELLING, PretrainConfig, pretrain, train_tokenizer

SHAPES = DataConfig()

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


DEFAULT = PretrainConfig(
    noise_density=0.25, mean_span=1.5, continuation_share=0.7, decoder_feed_forward=False, steps=1500
)


def own_captions(data: DataConfig, file: Path | None) -> list[str]:
    """The captions of a source other than the shapes world, or the lines of a file, without the empty ones.

    Raises:
        ValueError: there are none, they cannot be read, or both or neither are named.
    """
    if file is not None:
        require(data == SHAPES, f"--captions {file} and a data section: give one of the two")
        where, found = f"--captions {file}", file_captions(str(file))
    else:
        told = "data.kind shapes takes no other key of data here: for captions of your own give --data.kind folder, "
        require(data.kind != "shapes", f"{told}table, hub or shards as well")
        source = make_source(data, Want(size=64))
        assert not isinstance(source, ShapesDataset)
        where, found = f"data.path {data.path!r}", chain.from_iterable(source.captions())
    captions = [text for text in found if text.strip()]
    require(bool(captions), f"{where} has no captions, or empty ones alone: a T5 has nothing to learn there")
    return captions


def command(out: Path, t5: PretrainConfig = DEFAULT, data: DataConfig = SHAPES, captions: Path | None = None) -> None:
    """Train the tokenizer and the T5; a second call with the same ``out`` resumes.

    Args:
        out: folder to write ``tokenizer/``, ``text_encoder/``, ``metrics.jsonl`` and ``state.pt`` to.
        t5: size of the T5 and of its training.
        data: the source whose captions are the documents, as in a configuration; the shapes world has the demo's.
        captions: a UTF-8 file, a caption a line, in place of a source.
    """
    own = [] if data == SHAPES and captions is None else own_captions(data, captions)
    tell, sentences, spelling = partial(document, seed=t5.seed), own, WIDE_SPELLING
    if own:
        tell = partial(shuffled, own, seed=t5.seed)
    else:
        sentences, spelling = [tell(i).partition(". ")[0] for i in range(20_000)], SPELLING
    with occupied(out):
        if t5.init_from is None:
            tokenizer = train_tokenizer(sentences, spelling)
        else:
            tokenizer = T5Tokenizer.from_pretrained(component_folders(t5.init_from)[0])
        told = f"{len(own):,} captions, {len({*own}):,} different ones" if own else "captions of the shapes world"
        print(f"{told}; a tokenizer of {len(tokenizer):,} pieces", flush=True)
        pretrain(tell, tokenizer, t5, out, sha256("\n".join(own).encode()).hexdigest())
    print(f"pretrain_text: done, {t5.steps:,} steps; next: text.encoder {out} and unet.text_dim {t5.d_model}")


def shuffled(texts: Sequence[str], index: int, seed: int) -> str:
    """Document ``index`` of ``texts`` read epoch by epoch, each in an order of its own."""
    return texts[sample_index(seed, index, 0, 1, len(texts)) % len(texts)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    work = partial(call, command, "pretrain_text", arguments)
    return run_command("pretrain_text", work, "; the same command goes on from the last step saved, if one was")


if __name__ == "__main__":
    sys.exit(main())
