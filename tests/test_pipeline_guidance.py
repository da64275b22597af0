"""The guidance of a call: chosen by a setting, with a weaker network where it asks for one."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch

from imagen import ImagenPipeline
from tests.factories import Calls, sample, tiny_base, tiny_pipeline, tiny_sr


def test_the_guidance_of_a_call_and_of_a_stage_is_what_the_runner_uses():
    """Outside of its interval a guidance costs one evaluation; everywhere inside it changes nothing."""
    pipe, rows = tiny_pipeline(), []
    pipe.base_unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])) if args else None)
    plain = sample(pipe, "a red circle", size=16, guidance_scale=3)
    everywhere = sample(pipe, "a red circle", size=16, guidance_scale=3, guidance="interval(low=-100)")
    assert torch.equal(plain.images, everywhere.images)
    assert set(rows) == {2}
    rows.clear()
    pipe.set_stage_defaults("base", guidance="interval(low=99)+cfg")
    nowhere = sample(pipe, "a red circle", size=16, guidance_scale=3)
    assert set(rows) == {1}
    off = sample(pipe, "a red circle", size=16, guidance_scale=1)
    torch.testing.assert_close(nowhere.images, off.images, atol=1e-5, rtol=0)
    assert not torch.equal(nowhere.images, plain.images)
    with pytest.raises(ValueError, match=r"guidance 'apgg': 'apgg' is unknown; did you mean 'apg'"):
        sample(pipe, "a red circle", guidance="apgg")


def test_autoguidance_leads_away_from_the_weaker_network(tmp_path):
    pipe = tiny_pipeline(base_weak_unet=tiny_base(seed=9))
    asked = {"prompt": "a red circle", "size": 16, "guidance_scale": 2.0, "num_inference_steps": 1}
    made = sample(pipe, guidance={"base": "auto"}, **asked)
    networks = []
    for unet in (pipe.base_unet, pipe.base_weak_unet):  # one step: x0 of either is affine in its answer
        alone = tiny_pipeline(base_unet=unet)
        alone.set_stage_defaults("base", threshold="none")
        networks.append(sample(alone, **{**asked, "guidance_scale": 1}).images)
    pipe.set_stage_defaults("base", threshold="none")
    made = sample(pipe, guidance={"base": "auto"}, **asked)
    inside = ((2 * networks[0] - networks[1] - 0.5).abs() < 0.49) & (networks[0] < 1) & (networks[0] > 0)
    inside &= (networks[1] < 1) & (networks[1] > 0)  # what was not clamped on the way out
    assert inside.float().mean() > 0.05
    torch.testing.assert_close(made.images[inside], (2 * networks[0] - networks[1])[inside], atol=1e-4, rtol=0)

    pipe.save_pretrained(tmp_path)
    again = ImagenPipeline.from_pretrained(tmp_path)
    # what is read lies elsewhere in memory, by which some processors' products round
    torch.testing.assert_close(sample(again, guidance={"base": "auto"}, **asked).images, made.images, atol=1e-5, rtol=0)
    with pytest.raises(
        ValueError, match="stage base: guidance 'auto' needs a weaker network, and base_weak_unet is empty"
    ):
        sample(tiny_pipeline(), guidance={"base": "auto"}, **asked)


@pytest.mark.parametrize(
    ("weak", "told"),
    [
        ({"text_dim": None}, "text_dim None, base_unet 16"),
        ({"classes": {"label": 3}}, "label 3, base_unet None"),
        ({"extra_channels": {"mask": 4}}, "mask 4, base_unet None"),
    ],
)
def test_a_weaker_network_reads_what_the_stages_own_reads(weak, told):
    pipe = tiny_pipeline(base_weak_unet=tiny_base(seed=9, **weak))
    with pytest.raises(ValueError, match=re.escape(f"base_weak_unet has {told}; expected the same")):
        sample(pipe, "a red circle", size=16, guidance={"base": "auto"}, guidance_scale=2.0)


@pytest.mark.parametrize("scales", [[3.0, 1.0], [1.0, 3.0]])
def test_one_guided_stage_is_enough_for_the_null_text(scales):
    """Where the null is the encoding of an empty prompt, it is that of a negative prompt "", whichever stage asks."""
    pipe = tiny_pipeline(text={"null": "empty"})
    asked = {"size": 32, "guidance_scale": scales}
    made = sample(pipe, "a red circle", **asked).images
    assert torch.equal(made, sample(pipe, "a red circle", negative_prompt="", **asked).images)
    assert not torch.equal(made, sample(tiny_pipeline(), "a red circle", **asked).images), "the nulls are too alike"


def test_autoguidance_needs_nothing_to_be_dropped():
    """It compares two networks, not one with a text and without, so that networks without text are guided, too."""
    bare = {"tokenizer": None, "text_encoder": None}
    pipe = tiny_pipeline(base_unet=tiny_base(text_dim=None), base_weak_unet=tiny_base(9, text_dim=None), **bare)
    pipe.set_stage_defaults("base", guidance="auto")
    with Calls(pipe.base_weak_unet) as calls:
        off, guided = (sample(pipe, size=16, guidance_scale=scale).images for scale in (1.0, 2.0))
    assert len(calls.samples) == 2, "two steps with guidance, and none without"
    assert not torch.equal(off, guided)
    pipe.set_stage_defaults("base", guidance="cfg")
    with Calls(pipe.base_unet) as calls:
        assert torch.equal(sample(pipe, size=16, guidance_scale=2.0).images, off), "here there is nothing to leave out"
    assert {len(call["z"]) for call in calls.samples} == {1}


@pytest.mark.parametrize(
    ("inputs", "passed"),
    [({"classes": {"label": 3}}, {"label": 1}), ({"extra_channels": {"mask": 4}}, {})],
)
def test_a_weaker_network_is_given_what_it_reads_and_no_more(inputs, passed):
    pipe = tiny_pipeline(base_unet=tiny_base(**inputs), base_weak_unet=tiny_base(9))
    asked = {"prompt": "a red circle", "size": 16, "guidance": "auto", "guidance_scale": 2.0, **passed}
    with Calls(pipe.base_unet) as strong, Calls(pipe.base_weak_unet) as weak:
        sample(pipe, **asked)
    assert all(
        call["conditions"].keys() == {*inputs.get("classes", {}), *inputs.get("extra_channels", {})}
        for call in strong.samples
    )
    assert weak.samples
    assert not any("conditions" in call for call in weak.samples)


@pytest.mark.parametrize("slot", ["sr256", "sr1024"])
def test_a_super_resolution_stage_has_a_weaker_network_of_its_own_which_sees_the_same_picture(slot):
    """The low-res picture with its noise, the level of that noise, z and time: all that the other one is given."""
    weak = {f"{name}_weak_unet": tiny_sr(seed) for seed, name in ((8, "sr256"), (9, "sr1024"))}
    pipe = tiny_pipeline(base_weak_unet=tiny_base(7), **weak)
    networks = {name: getattr(pipe, name) for name in (f"{slot}_unet", "base_weak_unet", *weak)}
    with contextlib.ExitStack() as stack:
        calls = {name: stack.enter_context(Calls(network)).samples for name, network in networks.items()}
        made = sample(pipe, "a red circle", guidance={slot: "auto"}, guidance_scale=2.0).stages
    own = calls.pop(f"{slot}_weak_unet")
    strong = calls.pop(f"{slot}_unet")
    assert {name: len(others) for name, others in calls.items()} == dict.fromkeys(calls, 0)
    assert len(own) == len(strong) == 2
    for ours, theirs in zip(own, strong, strict=True):
        assert ours.keys() == theirs.keys() >= {"z", "timestep", "lowres", "aug_timestep"}
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "context")
    plain = sample(pipe, "a red circle", guidance_scale={slot: 1.0}, guidance={slot: "auto"}).stages
    assert not torch.equal(made[slot], plain[slot])


@pytest.mark.parametrize("name", ["in_channels", "out_channels", "lowres_channels", "text_dim"])
def test_a_weaker_network_of_other_inputs_or_outputs_is_told_before_anything_runs(name):
    options = {"in_channels": {"in_channels": 4, "out_channels": 4}, "out_channels": {"out_channels": 6}}
    weak = tiny_sr(8, **options.get(name, {name: {"lowres_channels": 1, "text_dim": 8}.get(name)}))
    pipe = tiny_pipeline(sr256_weak_unet=weak)
    with Calls(pipe.base_unet) as calls, pytest.raises(ValueError, match=f"sr256_weak_unet has {name} .*, sr256_unet"):
        sample(pipe, "a red circle", guidance={"sr256": "auto"})
    assert not calls.samples
