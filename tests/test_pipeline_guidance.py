"""The guidance of a call: chosen by a setting, with a weaker network where it asks for one."""

from __future__ import annotations

import pytest
import torch

from imagen import ImagenPipeline
from tests.factories import sample, tiny_base, tiny_pipeline


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
    assert torch.equal(sample(again, guidance={"base": "auto"}, **asked).images, made.images)
    with pytest.raises(
        ValueError, match="stage base: guidance 'auto' needs a weaker network, and base_weak_unet is empty"
    ):
        sample(tiny_pipeline(), guidance={"base": "auto"}, **asked)
    pipe.register_modules(base_weak_unet=tiny_base(text_dim=None))
    with pytest.raises(ValueError, match="base_weak_unet has text_dim None, base_unet 16; expected the same"):
        sample(pipe, guidance={"base": "auto"}, **asked)
