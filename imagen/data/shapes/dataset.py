"""The shapes world as a source of samples: endless, deterministic in (seed, index), at any stage's resolution."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import cos, gcd, pi, sin
from typing import get_args

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from imagen.checks import check_choice, check_int

from ..fields import ClassName, Kind, Label
from ..records import NOTHING
from ..sources import Sample
from ..transforms import to_tensor
from .language import COLORS, SHAPES, Category, Facts, Split, caption, sample_facts
from .layout import Scene, place
from .render import LEAST_PERIOD, PERIOD, WHOLE, Window, render
from .variations import vary

ON_OBJECT = 0.9  # share of crops aimed at an object
FACTS = {"shape": SHAPES, "color": tuple(COLORS)}  # what labels may say, and their words in order
PATTERN_CELLS = 8  # an eighth of the picture holds whole periods of every pattern


class ShapesDataset(Dataset[Sample]):
    """Endless captioned pictures of a split; the same index is the same scene and caption at every size.

    For a super-resolution stage, ``lowres_size`` is the previous stage's picture size, and ``sample.lowres`` shows the
    same window **rendered** at that resolution. It is not the large picture made small: below 3 px a period is drawn as
    the mean of its two tones, which is what a base stage can know, while a reduced stripe would leave a trace that
    tells the patterns apart. So at 64 → 256 only the caption says which pattern to draw.

    Args:
        size: side of the whole picture in pixels.
        seed: with the index, decides everything; at least 0.
        split: ``"train"`` or ``"heldout"`` (every caption holds a combination that ``train`` never has).
        crop: side in pixels of a square window of the picture; None gives the whole picture. Nine crops in ten are
            aimed at an object. The caption still tells the whole picture.
        lowres_size: side of the whole picture at the previous stage; must divide ``size``. A crop's corner then falls
            on a low-res pixel, and where the low-res picture cannot show patterns on an eighth of the picture, so that
            patterns have the same phase in every window.
        category: ``"single"``, ``"relation"``, ``"counting"`` or ``"background"`` only; None mixes them.
        fields: what samples hold beside picture and caption, by name: a word of :data:`FACTS`, about the first object
            that the caption names.
        kinds: of the fields; without, each is the word's place among those of its fact.
        variations: so many scenes in a row belong together: all but the first differ from it in one fact each
            (:func:`imagen.data.shapes.variations.vary`); 1: every scene is drawn alone.

    Raises:
        ValueError: sizes that do not fit each other, a negative seed, or a field that no scene has.
    """

    length = None  # no end

    def __init__(
        self,
        size: int,
        seed: int = 0,
        split: Split = "train",
        crop: int | None = None,
        lowres_size: int | None = None,
        category: Category | None = None,
        fields: Mapping[str, str] = NOTHING,
        kinds: Mapping[str, Kind] = NOTHING,
        variations: int = 1,
    ) -> None:
        self.variations = check_int("variations", variations, 1)
        if size < 1 or seed < 0:
            raise ValueError(f"size is {size} and seed is {seed}; expected size >= 1 and seed >= 0")
        check_choice("split", split, get_args(Split))
        if lowres_size is not None and (lowres_size < 1 or size % lowres_size):
            raise ValueError(f"lowres_size is {lowres_size}; expected a divisor of size, which is {size}")
        self.size, self.seed, self.split, self.category = size, seed, split, category
        self.facts: dict[str, tuple[str, Label]] = {}
        for name, fact in fields.items():
            kind = kinds.get(name) or Label(names=FACTS.get(fact, (fact,)))
            if fact not in FACTS or not isinstance(kind, Label):
                raise ValueError(
                    f"field {name!r} is {fact!r} and a {type(kind).__name__}; the shapes world has a Label, "
                    f"{' or '.join(map(repr, FACTS))}"
                )
            self.facts[name] = (fact, kind)
        self.lowres_size = lowres_size
        self.crop = size if crop is None else crop
        self.cells = self._grid()
        if not 0 < self.crop <= size or (self.crop * self.cells) % size:
            raise ValueError(
                f"crop is {crop}; expected a multiple of {max(1, size // self.cells)} up to size, which is {size}: a "
                "crop covers whole low-res pixels, and whole periods of patterns that the low-res picture cannot show"
            )

    def _grid(self) -> int:
        """On how many cells per side of the picture the crops' corners lie."""
        if self.crop == self.size:
            return 1
        if self.lowres_size is None:
            return self.size
        return gcd(PATTERN_CELLS, self.lowres_size) if self.lowres_size * PERIOD < LEAST_PERIOD else self.lowres_size

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        if index < 0:
            raise ValueError(f"index is {index}; expected at least 0")
        key = np.array([self.seed, zlib.crc32(f"{self.split}/{self.category}".encode())], np.uint64)
        counter = np.array([0, stream, index, 0], np.uint64)  # Philox counts in the first word: streams never meet
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def scene(self, index: int) -> tuple[Facts, str, Scene]:
        """Facts, caption and scene of an index: independent of sizes and crops."""
        rng, first = self._rng(index, 0), index - index % self.variations
        facts = sample_facts(self._rng(first, 0) if index != first else rng, self.split, self.category)
        if index != first:
            facts = vary(facts, rng, self.split)
        return facts, caption(facts, rng), place(facts, rng)

    def window(self, index: int, scene: Scene) -> Window:
        """The part of the picture that the sample shows, as (x0, y0, x1, y1) in units of the picture's side."""
        if self.crop == self.size:
            return WHOLE
        rng = self._rng(index, 1)
        side, objects = self.crop / self.size, scene.objects
        x, y = rng.uniform(0, 1 - side, 2)
        if rng.random() < ON_OBJECT:  # the window holds a point of the object's disc, more often of its edge
            thing = objects[int(rng.integers(len(objects)))]
            angle, radius = rng.uniform(0, 2 * pi), thing.radius * rng.uniform(0.3, 1.0)
            x = thing.x + radius * cos(angle) - side * rng.random()
            y = thing.y + radius * sin(angle) - side * rng.random()
        last = self.cells - self.crop * self.cells // self.size
        x0, y0 = (min(max(int(corner * self.cells), 0), last) / self.cells for corner in (x, y))
        return (x0, y0, x0 + side, y0 + side)

    def __getitem__(self, index: int) -> Sample:
        """The sample of an index (>= 0): image (3, crop, crop), lowres (3, crop · lowres_size / size, same) or None,
        and fields.
        """
        facts, text, scene = self.scene(index)
        window = self.window(index, scene)
        lowres = None
        if self.lowres_size is not None:
            lowres = _shown(scene, self.crop * self.lowres_size // self.size, window)
        fields = {}
        for name, (fact, kind) in self.facts.items():
            word = getattr(facts.things[0], fact)
            fields[name] = kind.read(ClassName(FACTS[fact].index(word), word), name)
        return Sample(
            f"shapes/{self.split}/{self.seed}/{index}", _shown(scene, self.crop, window), text, lowres, fields=fields
        )


def _shown(scene: Scene, size: int, window: Window) -> Tensor:
    """(3, size, size) float32 in [-1, 1]."""
    return to_tensor(render(scene, size, window) * np.float32(2) - np.float32(1))
