"""What a preset and a call say of how the stages of a model sample, before and after the model is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.cascade.presets import FEW_STEPS, IF_PRESETS, read_presets, usual_presets, with_preset
from imagen.diffusion.samplers import resampled
from imagen.diffusion.sampling import SAMPLERS
from imagen.stages.model import find_model
from imagen.stages.spec import StageDefaults
from tests.factories import sample, tiny_pipeline

STAGES = {
    "base": StageDefaults(size=16, num_inference_steps=60, guidance_scale=1.5, threshold_p=0.9),
    "sr256": StageDefaults(size=32, lowres_size=16, num_inference_steps=2, aug_level=0.3, aug_space="upsampled"),
}
OWN = {"fast": {"base": {"sampler": "ddim", "num_inference_steps": 2, "guidance": "interval(low=-3)"}, "sr256": {},
                "sr1024": {"num_inference_steps": 1}}}  # fmt: skip
PROMPT = "a red circle"


@pytest.mark.parametrize("name", IF_PRESETS)
def test_a_preset_sets_what_it_names_in_each_stage_and_nothing_else(name: str) -> None:
    made = with_preset(name, STAGES, {})
    assert list(made) == list(STAGES)
    for slot, stage in made.items():
        assert IF_PRESETS[name][slot].keys() == {"sampler", "num_inference_steps", "guidance_scale"}
        assert stage.to_dict() == {**STAGES[slot].to_dict(), **IF_PRESETS[name][slot]}
    assert made["base"] != made["sr256"]
    assert with_preset(name, {"sr256": STAGES["sr256"]}, {}) == {"sr256": made["sr256"]}, "of the stages that are there"


def test_the_usual_presets_evaluate_less_and_leave_stages_of_few_steps_alone() -> None:
    made = usual_presets(STAGES)
    assert list(made) == ["quality", "balanced", "fast"]
    assert made["quality"] == {"base": {}, "sr256": {}}
    assert made["balanced"] == {"base": {"sampler": FEW_STEPS, "num_inference_steps": 30}, "sr256": {}}
    assert made["fast"] == {"base": {"sampler": FEW_STEPS, "num_inference_steps": 20}, "sr256": {}}
    for steps, balanced, fast in ((20, 16, 8), (10, None, 8), (8, None, None), ("smart100", 50, 33)):
        few = usual_presets({"base": StageDefaults(size=16, num_inference_steps=steps)})
        assert [few[name]["base"].get("num_inference_steps") for name in ("balanced", "fast")] == [balanced, fast]
        assert [few[name]["base"].get("sampler") for name in ("balanced", "fast")] == [
            None if chosen is None else FEW_STEPS for chosen in (balanced, fast)
        ]


def test_a_call_samples_as_its_preset_says_and_its_own_settings_hold(tmp_path: Path) -> None:
    pipe = ImagenPipeline(**{**tiny_pipeline().components, "stages": tiny_pipeline().config["stages"]}, presets=OWN)
    pipe.set_progress_bar_config(disable=True)
    before = dict(pipe.config)
    fast = pipe.settings(preset="fast")
    assert (fast["base"].sampler, fast["base"].num_inference_steps, fast["sr1024"].steps) == ("ddim", 2, 1)
    assert fast["base"].guidance == "interval(low=-3, high=inf)+cfg"
    assert fast["sr256"] == pipe.settings()["sr256"]
    assert pipe.settings(preset="fast", num_inference_steps={"base": 3})["base"].num_inference_steps == 3
    named: dict[str, Any] = {"sampler": {"base": "ddim"}, "guidance": {"base": "interval(low=-3)"},
                             "num_inference_steps": {"base": 2, "sr1024": 1}}  # fmt: skip
    made = sample(pipe, PROMPT, preset="fast").images
    assert torch.equal(made, sample(pipe, PROMPT, **named).images)
    assert dict(pipe.config) == before
    pipe.save_pretrained(tmp_path)
    again = ImagenPipeline.from_pretrained(tmp_path)
    assert again.presets == pipe.presets == read_presets(find_model(tmp_path).presets, again.stage_defaults)
    assert list(again.presets) == ["fast"]
    assert ImagenPipeline.from_pipe(again).presets == again.presets
    part = ImagenPipeline.from_pretrained(tmp_path, sr1024_unet=None, sr1024_scheduler=None)
    assert part.settings(preset="fast").keys() == {16, 32}


def test_every_model_has_three_presets_and_quality_changes_nothing(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    assert list(pipe.presets) == ["quality", "balanced", "fast"]
    assert pipe.settings(preset="quality").slots == pipe.settings().slots
    assert torch.equal(sample(pipe, PROMPT, preset="quality").images, sample(pipe, PROMPT).images)
    pipe.save_pretrained(tmp_path)
    assert find_model(tmp_path).presets.keys() == {"quality", "balanced", "fast"}


@pytest.mark.parametrize(("presets", "told"), [
    ({"fast": {"bas": {}}}, "preset 'fast': unknown key 'bas'; did you mean 'base'"),
    ({"fast": {"base": {"steps": 3}}}, "preset 'fast' of base: unknown key 'steps'"),
    ({"fast": {"base": {"num_inference_steps": 0}}}, "preset 'fast' of base: num_inference_steps is 0"),
    ({"fast": {"base": {"sampler": "plms"}}}, "preset 'fast' of base: sampler is 'plms'; expected one of ddpm"),
    ({"fast": 3}, "preset 'fast' is 3; expected settings by slot"), ([], "presets is .*; expected settings"),
    ({5: {}}, "preset 5: a name is text, in YAML in quotes"), ({"": {}}, "preset '': a name is text"),
    ({"fast": {"base": None}}, "preset 'fast' of base is None; expected settings by name"),
])  # fmt: skip
def test_presets_that_no_stage_could_sample_by_are_told(presets: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}"):
        read_presets(presets, STAGES)
    with pytest.raises(ValueError, match=f"^{told}"):
        ImagenPipeline(presets=presets)


def test_what_is_no_preset_and_a_stage_beyond_one_are_named() -> None:
    with pytest.raises(ValueError, match=f"preset 'best' is unknown; choose one of fast, {', '.join(IF_PRESETS)}"):
        with_preset("best", STAGES, OWN)
    beyond = {**STAGES, "sr1024": StageDefaults(size=64, lowres_size=32)}
    for name in IF_PRESETS:
        with pytest.raises(ValueError, match=f"preset '{name}' .* says nothing of sr1024; use quality, balanced"):
            with_preset(name, beyond, usual_presets(STAGES))
    with pytest.raises(ValueError, match="preset 'fast' says nothing of sr1024; give its settings one by one"):
        with_preset("fast", beyond, usual_presets(STAGES))


def test_the_presets_are_those_of_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    told = {}
    for line in page.partition("| `--preset` |")[2].partition("\n\n")[0].splitlines()[2:]:
        name, *stages = (entry.strip(" `") for entry in line.strip("|").split("|")[:3])
        found = [re.match(r"([\w+]+), `?(\w+)`?(?: steps)?(?:, guidance (\d+))?$", stage) for stage in stages]
        told[name] = [(match[1], match[2], float(match[3] or 0)) for match in found if match]
    scales = {slot: settings["guidance_scale"] for slot, settings in IF_PRESETS["if"].items()}
    for name, preset in IF_PRESETS.items():
        expected = [(one["sampler"], str(one["num_inference_steps"]), one["guidance_scale"]) for one in preset.values()]
        assert [
            (one[0], one[1], one[2] or scales[slot]) for one, slot in zip(told[name], scales, strict=True)
        ] == expected
    assert told.keys() == IF_PRESETS.keys()
    assert all(guidance for _, _, guidance in told["if"]), "the table says it"


# --- samplers of a call -----------------------------------------------------------------------------------------------


def test_another_sampler_has_the_schedule_and_no_setting_that_is_not_its_own() -> None:
    own = type(tiny_pipeline().base_scheduler).from_config(tiny_pipeline().base_scheduler.config, gamma=0.3)
    for name in ("ddim", "dpm++", "ddpm"):
        made = resampled(own, name)
        assert type(made) is SAMPLERS[name]
        assert "gamma" not in made.config
        assert made.config.prediction_type == "v_prediction"
        torch.testing.assert_close(made.alphas_cumprod, own.alphas_cumprod)


def test_a_call_samples_by_what_it_names_and_leaves_the_stage_as_it_was() -> None:
    pipe, prompt = tiny_pipeline(), "a red circle"
    before = (pipe.base_scheduler, pipe.sr256_scheduler, pipe.config["stages"])
    asked = sample(pipe, prompt, size=32, sampler={"base": "dpm++(use_exponential_sigmas)", 32: "ddim"}).images
    assert (pipe.base_scheduler, pipe.sr256_scheduler, pipe.config["stages"]) == before
    pipe.base_scheduler = resampled(before[0], "dpm++(use_exponential_sigmas)")
    pipe.sr256_scheduler = resampled(before[1], "ddim")
    assert torch.equal(asked, sample(pipe, prompt, size=32).images)
    pipe.base_scheduler = before[0]
    assert not torch.equal(asked, sample(pipe, prompt, size=32).images), "the first stage's own sampler is another"
    stored = tiny_pipeline()
    stored.set_stage_defaults("base", sampler="dpm++ ( use_exponential_sigmas = true )")
    stored.set_stage_defaults("sr256", sampler="ddim")
    assert stored.stage_defaults["base"].sampler == "dpm++(use_exponential_sigmas)"
    assert torch.equal(asked, sample(stored, prompt, size=32).images)
    with pytest.raises(ValueError, match=r"^stage sr256: sampler 'ddim\(gamma=1\)': .* has no option 'gamma'$"):
        sample(pipe, prompt, size=32, sampler={32: "ddim(gamma=1)"})


def test_a_preset_of_the_models_own_stands_before_one_of_ifs_of_that_name() -> None:
    own = {"few-step": {"base": {"num_inference_steps": 2}, "sr256": {}}}
    assert with_preset("few-step", STAGES, own)["base"].num_inference_steps == 2
    assert with_preset("few-step", STAGES, own)["sr256"] == STAGES["sr256"]
    assert with_preset("fewest-step", STAGES, own) == with_preset("fewest-step", STAGES, {})


def test_a_preset_need_say_nothing_of_stages_that_do_not_run() -> None:
    own = {"quick": {"base": {"num_inference_steps": 2}}}
    for name in ("quick", "if"):
        stages = {**STAGES, "sr1024": StageDefaults(size=64, lowres_size=32)}
        size = 16 if name == "quick" else 32
        made = with_preset(name, stages, own, size)
        assert made["base"] != stages["base"]
        assert made["sr1024"] == stages["sr1024"]
        for larger in (size + 1, None):
            stages["sr1024"] = StageDefaults(size=size + 1, lowres_size=size)
            with pytest.raises(ValueError, match=f"^preset '{name}' .*says nothing of sr"):
                with_preset(name, stages, own, larger)


@pytest.mark.parametrize("name", [["fast"], {"base": "fast"}, 5, True])
def test_what_is_no_name_of_a_preset_is_told(name: Any) -> None:
    with pytest.raises(ValueError, match="^preset .* is unknown; choose one of"):
        with_preset(name, STAGES, {})


def test_a_preset_for_the_first_stage_will_do_where_the_others_do_not_run() -> None:
    pipe = tiny_pipeline()
    pipe.register_to_config(presets={"quick": {"base": {"num_inference_steps": 2}}})
    assert pipe.settings(preset="quick", size=16)["base"].num_inference_steps == 2
    assert len(sample(pipe, PROMPT, preset="quick", size=16).images) == 1
    with pytest.raises(ValueError, match="says nothing of sr256"):
        pipe.settings(preset="quick")


def test_the_presets_that_are_shown_are_a_copy() -> None:
    pipe = tiny_pipeline()
    steps = pipe.settings(preset="fast")["base"].num_inference_steps
    pipe.presets["fast"]["base"]["num_inference_steps"] = steps + 1
    pipe.presets["fast"]["base"]["foo"] = 3
    assert pipe.settings(preset="fast")["base"].num_inference_steps == steps
