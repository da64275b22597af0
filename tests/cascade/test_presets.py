"""What a preset says of the stages of a model, before and after the model is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imagen.cascade.presets import GUIDANCE, PRESETS, apply_preset, with_preset
from imagen.diffusion.sampling import SAMPLERS
from imagen.stages.spec import StageDefaults
from tests.factories import tiny_pipeline

STAGES = {
    "base": StageDefaults(size=16, num_inference_steps=3, guidance_scale=1.5, threshold_p=0.9),
    "sr256": StageDefaults(size=32, lowres_size=16, num_inference_steps=2, aug_level=0.3, aug_space="upsampled"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_names_in_each_stage_and_nothing_else(name: str) -> None:
    made = with_preset(name, STAGES)
    assert list(made) == list(STAGES)
    for slot, stage in made.items():
        named = {"num_inference_steps": PRESETS[name][1][slot], "guidance_scale": GUIDANCE[slot]}
        assert stage.to_dict() == {**STAGES[slot].to_dict(), **named}
    assert PRESETS[name][0] in SAMPLERS
    assert PRESETS[name][1].keys() == GUIDANCE.keys()
    assert made["base"] != made["sr256"]
    assert with_preset(name, {"sr256": STAGES["sr256"]}) == {"sr256": made["sr256"]}, "of the stages that are there"


@pytest.mark.parametrize("name", PRESETS)
def test_the_settings_foretold_are_those_applied(name: str) -> None:
    pipe = tiny_pipeline(sr1024_unet=None, sr1024_scheduler=None)
    foretold = with_preset(name, pipe.stage_defaults)
    apply_preset(pipe, name)
    assert pipe.stage_defaults == foretold
    for slot in foretold:
        assert type(getattr(pipe, f"{slot}_scheduler")) is SAMPLERS[PRESETS[name][0]]


def test_what_is_no_preset_and_a_stage_beyond_one_are_named() -> None:
    with pytest.raises(ValueError, match=f"preset 'best' is unknown; choose one of {', '.join(PRESETS)}"):
        with_preset("best", STAGES)
    beyond = {**STAGES, "sr1024": StageDefaults(size=64, lowres_size=32)}
    for name in PRESETS:
        with pytest.raises(ValueError, match=f"preset '{name}' .* says nothing of sr1024; use --steps"):
            with_preset(name, beyond)


def test_the_presets_are_those_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    told = {}
    for line in page.partition("| `--preset` |")[2].partition("\n\n")[0].splitlines()[2:]:
        name, *stages = (entry.strip(" `") for entry in line.strip("|").split("|")[:3])
        found = [re.match(r"([\w+]+), `?(\w+)`?(?: steps)?(?:, guidance (\d+))?$", stage) for stage in stages]
        told[name] = [(match[1], match[2], float(match[3] or 0)) for match in found if match]
    for name, (sampler, steps) in PRESETS.items():
        expected = [(sampler, str(steps[slot]), guidance) for slot, guidance in GUIDANCE.items()]
        assert [
            (one[0], one[1], one[2] or GUIDANCE[slot]) for one, slot in zip(told[name], GUIDANCE, strict=True)
        ] == expected
    assert told.keys() == PRESETS.keys()
    assert all(guidance for _, _, guidance in told["if"]), "the table says it"
