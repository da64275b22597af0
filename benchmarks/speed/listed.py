"""The sections, most valuable first."""

from __future__ import annotations

from benchmarks.speed import sampling, training
from benchmarks.speed.sections import Section

SECTIONS = (
    Section("sampling", "Stage I, ours and diffusers' IFPipeline", sampling.eager, 60),
    Section("imagen-pytorch", "A training step, ours and imagen-pytorch's", training.imagen_pytorch_step, 40),
    Section(
        "train-small",
        "A training step of the small base network (on a card 325 million parameters)",
        training.small,
        25,
    ),
    Section("train-large", "A training step of the large base network (on a card the paper's)", training.large, 45),
    Section("efficient", "A training step of EfficientUNet and of ADM's upsampler", training.efficient, 40),
    Section("memory-1024", "Memory of the 1024 px network (on a card the paper's)", sampling.high, 15),
    Section("compiled-blocks", "Stage I, ours compiled by blocks", sampling.compiled_blocks, 120),
    Section("train-compiled", "A compiled training step", training.small_compiled, 120),
    Section("compiled", "Stage I, both compiled whole", sampling.compiled_whole, 240),
    Section("second-stage", "Stage II, ours and diffusers' IFSuperResolutionPipeline", sampling.second_stage, 40),
    Section("channels-last", "Stage I, both in channels-last layout", sampling.channels_last, 30),
    Section("drift", "Pictures in less than float32", sampling.drift, 30),
    Section("train-large-compiled", "A compiled training step of the large base network", training.large_compiled, 150),
    Section("text", "Stage I with its text", sampling.with_text, 40),
)
