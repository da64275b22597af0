"""A level: the part of a network that runs, is checkpointed, sharded and given its text as one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]
Skips = tuple[Tensor, ...]


class LevelText(NamedTuple):
    """What levels get of the text: states (B, L, D) to project, or keys and values projected before; and the mask."""

    states: Tensor | None = None
    keys_values: tuple[KeysValues, ...] = ()
    mask: Tensor | None = None

    def take(self, start: int, count: int) -> LevelText:
        """The part of attention layers start, ..., start + count - 1."""
        return LevelText(self.states, self.keys_values[start : start + count], self.mask)


NO_TEXT = LevelText()


class Level(nn.Module):
    """Base of the parts that a network runs in turn.

    A level is called in two ways. ``level(x, emb, skips, text, seeds)`` runs it; ``level(None, text=text)`` returns the
    keys and values of its attention layers. Both pass through ``forward``, so sharding and offload hooks placed on a
    level see every use of its weights.

    Attributes:
        attentions: its attention layers, in the order they run.
        takes: how many skips of earlier levels it reads, the last ones made.
        checkpointed: whether gradient checkpointing, once enabled for the network, acts on it.
    """

    attentions: nn.ModuleList
    takes = 0
    checkpointed = True

    def forward(
        self,
        x: Tensor | None,
        emb: Tensor | None = None,
        skips: Skips = (),
        text: LevelText = NO_TEXT,
        seeds: Tensor | None = None,
    ) -> tuple[Tensor, Skips] | tuple[KeysValues, ...]:
        """Features x and embedding emb (B, emb_dim), after its activation -> features and the skips made here.

        ``skips`` are those it takes, in the order they were made; ``seeds`` (B,) are dropout's. With x None see above.
        """
        if x is None:
            return tuple(attention(None, text.states, None, text.mask) for attention in self.attentions)
        assert emb is not None, "a level was run without the time embedding"
        return self.run(x, emb, skips, text, seeds)

    def run(self, x: Tensor, emb: Tensor, skips: Skips, text: LevelText, seeds: Tensor | None) -> tuple[Tensor, Skips]:
        """What :meth:`forward` does with features."""
        raise TypeError(f"{type(self).__name__} does not say how it runs")

    def attend(self, index: int, x: Tensor, text: LevelText) -> Tensor:
        """Attention layer ``index`` where the level has attention, else x."""
        if len(self.attentions) == 0:
            return x
        kv = text.keys_values[index] if text.keys_values else None
        out: Tensor = self.attentions[index](x, text.states, kv, text.mask)
        return out
