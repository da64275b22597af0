"""Sizes of stages, when they are stored: those that no call could run are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import tiny_pipeline


@pytest.mark.parametrize(("slot", "changes", "told"), [
    ("base", {"size": 8}, "stage sr256 would start from 16 px, and the stages here make 8, 64 px; give ImagenPipeline"),
    ("sr256", {"size": 48}, "stage sr1024 would start from 32 px, and the stages here make 16, 48 px; give ImagenPip"),
    ("sr256", {"lowres_size": 8}, "stage sr256 would start from 8 px, and the stages here make 16, 64 px"),
    ("sr256", {"lowres_size": None}, "stage sr256: lowres_size is None, but its network starts from a picture; it was"),
    ("base", {"lowres_size": 8}, "stage base: lowres_size is 8, but its network starts from no picture"),
])  # fmt: skip
def test_sizes_that_do_not_meet_are_refused_when_they_are_stored(slot: str, changes: dict[str, Any], told: str) -> None:
    pipe = tiny_pipeline()
    before = pipe.stage_defaults
    with pytest.raises(ValueError, match=f"^{told}"):
        pipe.set_stage_defaults(slot, **changes)
    assert pipe.stage_defaults == before


def test_sizes_of_stages_that_nothing_follows_are_free() -> None:
    pipe = tiny_pipeline(base_unet=None)
    pipe.set_stage_defaults("sr1024", size=96)
    pipe.set_stage_defaults("sr256", lowres_size=8)
    assert [pipe.stage_defaults[slot].size for slot in ("sr256", "sr1024")] == [32, 96]
