"""What tells the user nothing is not said: by a training in bfloat16, by a pipeline whose scheduler is swapped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TRAINED = """
import torch
from unets import BaseUNet
sizes = {"model_channels": 8, "channel_mult": (1, 1), "num_res_blocks": 1, "head_dim": 8, "norm_groups": 4}
unet = BaseUNet(**sizes, attention_levels=(1,), text_dim=8, qk_norm=True)
mask = torch.ones(1, 3, dtype=torch.bool)
with torch.autocast("cpu", dtype=torch.bfloat16):
    out = unet(torch.zeros(1, 3, 8, 8), torch.zeros(1), text=torch.ones(1, 3, 8), text_mask=mask)
(out if torch.is_tensor(out) else out[0]).square().mean().backward()
"""

SWAPPED = """
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from imagen.diffusion.sampling import ImagenDDPMScheduler
ours = ImagenDDPMScheduler.from_pretrained("pretrained/shapes/base_scheduler")
for cls in (DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler):
    swapped = cls.from_config(ours.config)
    assert swapped.config.trained_betas == ours.config.trained_betas
    assert ImagenDDPMScheduler.from_config(swapped.config).config.prediction_type == ours.config.prediction_type
"""


def said(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "always::UserWarning", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_mixed_precision_mixes_no_dtypes_within_a_norm() -> None:
    assert "Mismatch dtype" not in said(TRAINED)


def test_a_scheduler_of_ours_may_be_swapped_without_a_word() -> None:
    assert "config attributes" not in said(SWAPPED)
