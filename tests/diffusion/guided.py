"""A network that answers each branch otherwise, and the contract around it with some guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from imagen.diffusion.denoiser import X0Fn, make_x0_fn
from imagen.diffusion.guidance import Branch, Guidance, parse_guidance
from imagen.diffusion.schedules import CosineSchedule, log_snr_from_betas, trained_betas
from imagen.diffusion.thresholding import Thresholding

LOG_SNRS = log_snr_from_betas(trained_betas(CosineSchedule()))


class Network:
    """Another answer to every z and branch; a picture's answer is its own. Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Branch, ...]] = []

    def __call__(self, z: Tensor, timestep: Tensor, branches: tuple[Branch, ...]) -> list[Tensor]:
        self.asked.append(branches)
        turned = {"conditional": z.sin(), "unconditional": z.flip(-1).cos(), "weak": 0.5 * z.flip(-2).sin()}
        return [turned[branch] for branch in branches]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(
    guidance: Guidance | str, scale: float = 4.0, network: Network | None = None, prediction_type: str = "v_prediction"
) -> X0Fn:
    return make_x0_fn(
        network or Network(),
        prediction_type=prediction_type,
        log_snrs=LOG_SNRS,
        guidance=parse_guidance(guidance) if isinstance(guidance, str) else guidance,
        guidance_scale=scale,
        thresholding=Thresholding("none"),
    )


Z, TIMESTEP = noise(3, 3, 4, 4), torch.full((3,), 500.0)
