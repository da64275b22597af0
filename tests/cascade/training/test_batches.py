"""From a loader's batch to the network's arguments, whatever conditions a stage has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from imagen.cascade.training.inputs.batches import BatchMaker, draw_batch
from imagen.conditions.condition import Draw, Given
from imagen.data import Want

SEED, STEP = 3, 5
RAW = {"image": torch.zeros(4, 3, 2, 2), "label": torch.tensor([4, 5, 6, 7])}


class Label:
    """A condition that the network knows by a name of its own."""

    def wants(self, want: Want) -> Want:
        return want

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> Tensor:
        return raw["label"]

    def inputs(self, part: Tensor, draw: Draw) -> Given:
        return Given({}, named={"label": torch.where(draw.drop, 0, part)})


class Level:
    """One that is drawn, and an argument of its own."""

    wants = Label.wants

    def batch(self, raw: Mapping[str, Any], image: Tensor, drop: Tensor) -> None:
        return None

    def inputs(self, part: None, draw: Draw) -> Given:
        return Given({"level": draw.level, "grain": draw.noise("grain", (3, 2, 2))})


def make(*conditions: Any) -> BatchMaker:
    return BatchMaker(conditions, SEED, torch.float64, torch.device("cpu"))


def test_each_condition_gives_the_network_its_arguments() -> None:
    draws = draw_batch(SEED, STEP, 4, 0.5, True)
    batch = make(Label(), Level())(RAW, draws, STEP, range(4))
    assert batch.image.dtype == batch.noise.dtype == torch.float64
    assert batch.inputs.keys() == {"dropout_seeds", "conditions", "level", "grain"}
    assert torch.equal(batch.inputs["conditions"]["label"], torch.where(draws.drop, 0, RAW["label"]))
    assert torch.equal(batch.inputs["level"], draws.aug_level)
    assert torch.equal(batch.t, draws.t)
    assert batch.t.dtype == torch.float64
    assert make()(RAW, draws, STEP, range(4)).inputs.keys() == {"dropout_seeds"}


def test_a_micro_batch_is_its_rows_of_the_batch_and_what_is_read_serves_other_draws() -> None:
    draws, other = (draw_batch(SEED, step, 4, 0.5, True) for step in (STEP, STEP + 1))
    maker = make(Label(), Level())
    whole = maker(RAW, draws, STEP, range(4))
    part = maker({name: value[2:] for name, value in RAW.items()}, draws.rows(range(2, 4)), STEP, range(2, 4))
    for name in ("dropout_seeds", "level", "grain"):
        assert torch.equal(part.inputs[name], whole.inputs[name][2:])
    assert torch.equal(part.noise, whole.noise[2:])
    assert not (whole.noise == whole.inputs["grain"]).any(), "each purpose has noise of its own"
    again = maker.redrawn(whole, other, STEP + 1, range(4))
    assert torch.equal(again.image, whole.image)
    assert not (again.noise == whole.noise).any()
    assert not (again.inputs["grain"] == whole.inputs["grain"]).any()
    assert torch.equal(maker.redrawn(again, draws, STEP, range(4)).noise, whole.noise)
