"""How well can one attention layer read from a T5's states which object stands where?

    python -m benchmarks.text_places pretrained/shapes [MODEL ...] [--steps 3000]

The states of captions like "a red circle above a small blue square" are frozen. A query vector for each of the four
places attends to them, once, with two heads, and two linear layers name colour and shape of what stands there: about as
much as an attention layer of a U-Net can do at one cell. Trained on captions of the train split, judged on the held-out
one, where a caption counts only if both colours and both shapes are right. Guessing gets 0.02 %. With ``--whiten`` the
states are made uncorrelated first, as the demo's base stage does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagen.data import ShapesDataset
from imagen.data.shapes.language import COLORS, SHAPES, Facts
from imagen.text.encoder import encode, load_text_encoder
from unets.conditioning import TextWhitening

PLACES = {"above": (0, 1), "below": (1, 0), "to the left of": (2, 3), "to the right of": (3, 2)}
TRAIN, TEST, BATCH, HEADS, WIDTH = 6000, 1500, 128, 2, 128


class Reader(nn.Module):
    """A place's query attends to the text; colour and shape are read from what it finds."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Embedding(4, WIDTH)
        self.key, self.value = nn.Linear(dim, WIDTH), nn.Linear(dim, WIDTH)
        self.color, self.shape = nn.Linear(WIDTH, len(COLORS)), nn.Linear(WIDTH, len(SHAPES))

    def forward(self, text: Tensor, mask: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """text (B, L, D), mask (B, L) bool, place (B,) -> logits of colours and of shapes."""
        text, batch = self.norm(text), len(text)
        query, key, value = (
            x.view(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for x in (self.query(place)[:, None], self.key(text), self.value(text))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        found = found.transpose(1, 2).reshape(batch, WIDTH)
        return self.color(found), self.shape(found)


def answers(facts: Facts) -> list[list[int]]:
    """(place, colour, shape) of both objects."""
    assert facts.relation is not None
    colors, shapes = list(COLORS), list(SHAPES)
    return [
        [place, colors.index(thing.color), shapes.index(thing.shape)]
        for place, thing in zip(PLACES[facts.relation], facts.things, strict=True)
    ]


def captions(model: Path, split: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, L, D), mask (N, L) and answers (N, 2, 3) of so many captions."""
    tokenizer, encoder = load_text_encoder(str(model), torch.float32)
    data = ShapesDataset(64, seed=7, split=split, category="relation")  # type: ignore[arg-type]
    scenes = [data.scene(number)[:2] for number in range(count)]
    text, mask = encode(tokenizer, encoder, [caption for _, caption in scenes], 64)
    return text, mask.bool(), torch.tensor([answers(facts) for facts, _ in scenes])


def measure(model: Path, steps: int, whiten: bool) -> float:
    """Share of held-out captions with all four facts right, after so many steps."""
    (text, mask, truth), (test, test_mask, test_truth) = (
        captions(model, "train", TRAIN),
        captions(model, "heldout", TEST),
    )
    if whiten:
        tokens, whitening = text[mask], TextWhitening(text.shape[-1])
        whitening.fit(len(tokens), tokens.mean(dim=0), torch.cov(tokens.T))
        text, test = whitening(text), whitening(test)
    torch.manual_seed(0)
    reader = Reader(text.shape[-1])
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        rows = torch.randint(TRAIN, (BATCH,))
        wanted = truth[rows, step % 2]
        color, shape = reader(text[rows], mask[rows], wanted[:, 0])
        loss = F.cross_entropy(color, wanted[:, 1]) + F.cross_entropy(shape, wanted[:, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    right = torch.ones(TEST, dtype=torch.bool)
    with torch.no_grad():
        for wanted in test_truth.unbind(1):
            color, shape = reader(test, test_mask, wanted[:, 0])
            right &= (color.argmax(1) == wanted[:, 1]) & (shape.argmax(1) == wanted[:, 2])
    return right.float().mean().item()


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "models", nargs="+", type=Path, metavar="MODEL", help="folder with text_encoder/ and tokenizer/"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--whiten", action="store_true")
    args = parser.parse_args()
    for model in args.models:
        print(f"{model}  {100 * measure(model, args.steps, args.whiten):.0f} %", flush=True)


if __name__ == "__main__":
    main()
