"""The words that choose between kinds of the same thing, each list once.

Configuration, storage, command line and the code that acts on a word read it here. No torch, so that a misspelt word is
told before anything heavy is imported. (Lists of timesteps and guidances have modules without torch of their own.)
"""

from __future__ import annotations

from typing import Literal

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""What a network predicts, in diffusers' words (:mod:`imagen.diffusion.parameterization`)."""

ScheduleKind = Literal["cosine", "linear", "cosine_discrete"]
"""Noise schedules (:func:`imagen.diffusion.schedules.make_schedule`)."""

WeightingKind = Literal["uniform", "min_snr", "clamped_snr", "sigmoid"]
"""Weights of the loss (:class:`imagen.diffusion.losses.LossWeighting`)."""

ThresholdKind = Literal["none", "static", "dynamic"]
"""What keeps x0 estimates in [-1, 1] (:class:`imagen.diffusion.thresholding.Thresholding`)."""

ResizeMode = Literal["auto", "area", "bicubic", "bilinear", "bilinear_corners", "nearest"]
"""Resampling (:func:`imagen.diffusion.augmentation.resize`)."""

AugSpace = Literal["lowres", "upsampled"]
"""Where noise is added to the low-res picture (:func:`imagen.diffusion.augmentation.augment_lowres`)."""

SamplerKind = Literal["ddpm", "ddim", "dpm++", "unipc", "euler", "heun"]
"""Step rules by name (:data:`imagen.diffusion.sampling.SAMPLERS`)."""
