"""Training steps to time: ours as the trainer takes them, of random pictures and texts; and the peer's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from benchmarks.speed.peers import SEED, imagen_pytorch, stir
from benchmarks.speed.sizes import Training
from imagen.cascade.training.config.run import RunConfig, StageTrainConfig
from imagen.cascade.training.config.sections import StageConfig
from imagen.cascade.training.inputs.batches import Batch
from imagen.cascade.training.objective import Objective
from imagen.training.config.resumed import Changes, migrate
from imagen.training.config.sections import OptimConfig
from imagen.training.processes import Processes
from imagen.training.task import Loaded
from imagen.training.trainer import Trainer
from unets.network import Network

Step = Callable[[], object]


class RandomTask:
    """A stage's task whose data are random numbers on the device; what the trainer asks of a task in its steps.

    Its objective, its batches' form and all that the trainer does are those of a real run: mixed precision, gradients
    clipped, AdamW, the average of the weights. Left out is what happens beside the steps: loading, grids, files.
    """

    weights = "unet"
    groups: Sequence[str] = ()
    notes: Sequence[str] = ()
    changes = Changes()
    migrate = staticmethod(migrate)

    def __init__(self, config: RunConfig, network: Network, tokens: int) -> None:
        self.config, self.network, self.objective = config, network, Objective(config.stage)
        self.tokens = tokens

    def load(self, device: torch.device, processes: Processes, saved: Mapping[str, Tensor] | None) -> Loaded:
        """The network as it is, and a source of no pictures."""
        facts, size = self.network.facts, self.config.stage.size
        self.device, rows = device, self.config.train.batch_size // self.config.train.accumulation
        self.image = torch.rand(rows, facts.in_channels, size, size, device=device) * 2 - 1
        self.inputs: dict[str, Tensor] = {}
        if facts.text_dim is not None:
            self.inputs["text"] = torch.randn(rows, self.tokens, facts.text_dim, device=device)
        if facts.lowres_channels:
            self.inputs["lowres"] = torch.randn_like(self.image)
            self.inputs["aug_timestep"] = torch.full((rows,), 100.0, device=device)
        source: Any = SimpleNamespace(length=1)
        return Loaded(self.network, source, self.network.end_layers)  # type: ignore[arg-type]

    def batch(self, raw: Mapping[str, Any], step: int, rows: range) -> Batch:
        """New noise and times for the same pictures."""
        noise, times = (
            torch.randn_like(self.image),
            torch.rand(len(self.image), device=self.device, dtype=torch.float64),
        )
        return Batch(self.image, noise, times, self.inputs)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,)."""
        return self.objective(model, batch)  # type: ignore[arg-type]

    def group(self, batch: Batch) -> Tensor:
        """All in one."""
        return torch.zeros(len(batch.image), dtype=torch.long, device=self.device)


def stage(network: Network, size: int) -> StageConfig:
    """A stage of this size: predicts noise, uniform weight, as the paper's."""
    lowres = {"name": "sr256", "lowres_size": size // 4} if network.facts.lowres_channels else {}
    return StageConfig(size=size, **lowres)


def our_step(network: Network, sizes: Training, tokens: int, dtype: torch.dtype, **how: bool) -> Step:
    """A step of our trainer over this network, which is made ready for it: AdamW, clipping, average.

    Args:
        how: ``compile`` and ``channels_last`` of the run's ``train`` section.
    """
    AcceleratorState._reset_state(True)  # one process trains in one precision, unless it forgets
    train = StageTrainConfig(
        steps=10**6,
        batch_size=sizes.batch,
        accumulation=sizes.accumulation,
        mixed_precision="bf16" if dtype == torch.bfloat16 else "no",
        **how,
    )
    folder = Path(tempfile.mkdtemp(prefix="speed-"))
    folder.rmdir()  # nothing is written there
    optim = OptimConfig(kind=sizes.optimizer, warmup=0)
    config = RunConfig(run_dir=str(folder), stage=stage(network, sizes.size), train=train, optim=optim)
    trainer = Trainer(RandomTask(config, network, tokens))  # type: ignore[arg-type]
    trainer.model.train()
    nothing: Any = iter(lambda: {"notes": ()}, None)
    return lambda: trainer._train_step(nothing)


def peer_step(
    sizes: Training, tokens: int, device: torch.device, dtype: torch.dtype, channels_last: bool = False
) -> tuple[Step, nn.Module]:
    """A step of imagen-pytorch's trainer, set to the same work (Adam, clipping, average), and its network.

    Raises:
        NotHere: it is not installed.
    """
    package = imagen_pytorch()
    AcceleratorState._reset_state(True)
    torch.manual_seed(SEED)
    unet = package.Unet(**sizes.arguments)
    stir(unet)
    if channels_last:
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    width = sizes.arguments["text_embed_dim"]
    cascade = package.Imagen(unets=(unet,), image_sizes=(sizes.size,), text_embed_dim=width)
    precision = "bf16" if dtype == torch.bfloat16 else "no"
    trainer = package.ImagenTrainer(cascade, max_grad_norm=1.0, precision=precision, verbose=False).to(device)
    image = torch.rand(sizes.batch, 3, sizes.size, sizes.size, device=device)
    text = torch.randn(sizes.batch, tokens, width, device=device)

    def step() -> None:
        trainer(image, text_embeds=text, unet_number=1, max_batch_size=sizes.batch // sizes.accumulation)
        trainer.update(unet_number=1)

    return step, unet
