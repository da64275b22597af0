"""Training steps: of our own networks against the card's product rate, and beside the peers'."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.agree import Agreement, agree
from benchmarks.speed.ceilings import PerRow, Work
from benchmarks.speed.peers import HELPED, SEED, imagen_pytorch, stir
from benchmarks.speed.report import Aim, Row, name_of
from benchmarks.speed.sections import Bench
from benchmarks.speed.sizes import Training
from benchmarks.speed.steps import Step, our_step, peer_step
from benchmarks.speed.work import count_rows, on_meta, parameters, step_work
from unets import BaseUNet, EfficientUNet


def network_inputs(network: Any, size: int, tokens: int, device: torch.device, rows: int = 1) -> dict[str, Tensor]:
    """What our network is called with while it trains."""
    facts = network.facts
    picture = torch.randn(rows, facts.in_channels, size, size, device=device)
    made = {"sample": picture, "timestep": torch.full((rows,), 500.0, device=device)}
    if facts.text_dim is not None:
        made["text"] = torch.randn(rows, tokens, facts.text_dim, device=device)
    if facts.lowres_channels:
        made |= {"lowres": torch.randn_like(picture), "aug_timestep": torch.zeros(rows, device=device)}
    return made


def made_on(build: Callable[[], nn.Module], device: torch.device) -> Any:
    """A network with random weights, none of them zeros, on the device."""
    torch.manual_seed(SEED)
    with torch.device(device):
        network = build()
    stir(network)
    return network


@torch.no_grad()
def checked(network: Any, size: int, bench: Bench) -> Agreement:
    """The network as training computes it with itself in float64. Raises: Wrong."""
    given, dtype = network_inputs(network, size, bench.sizes.tokens, bench.device), bench.sizes.train_dtype
    with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
        out = network(**given).to(dtype)
    exact = copy.deepcopy(network).double()
    wide = {name: value if "timestep" in name else value.double() for name, value in given.items()}
    return agree(out, None, exact(**wide))


def forward_work(build: Callable[[], nn.Module], size: int, tokens: int) -> PerRow:
    """Of a forward."""
    network, meta = on_meta(build), torch.device("meta")
    return count_rows(lambda rows: network(**network_inputs(network, size, tokens, meta, rows)))


def peer_forward_work(sizes: Training, tokens: int) -> PerRow:
    """The same of imagen-pytorch's network."""
    package, width = imagen_pytorch(), sizes.arguments["text_embed_dim"]
    with torch.device("meta"):
        network = package.Unet(**sizes.arguments).eval()

        def call(rows: int) -> None:
            picture, text = torch.empty(rows, 3, sizes.size, sizes.size), torch.empty(rows, tokens, width)
            network(picture, torch.empty(rows), text_embeds=text)

        return count_rows(call)


def whole_step(forward: PerRow, sizes: Training) -> Work:
    """What a step does, part by part."""
    return step_work(forward.call(sizes.batch // sizes.accumulation)).times(sizes.accumulation)


def stepped(bench: Bench, build: Callable[[], nn.Module], sizes: Training, **how: bool) -> tuple[Row, Step]:
    """Our step, made and checked, with what it must do and the memory of its second call, others' left out."""
    before, dtype = bench.clock.held(), bench.sizes.train_dtype
    network = made_on(build, bench.device)
    agreement = checked(network, sizes.size, bench)
    step = our_step(network, sizes, bench.sizes.tokens, dtype, **how)
    first = bench.clock.once(step)
    row = Row(f"{parameters(network) / 1e6:.0f} million parameters", name_of(dtype), sizes.batch, agreement=agreement)
    row.parameters = parameters(network)
    row.work = whole_step(forward_work(build, sizes.size, bench.sizes.tokens), sizes)
    row.peak = bench.clock.peak(step, before)
    row.notes.append(
        f"{sizes.size} px, {sizes.accumulation} parts a step, nothing recomputed, {sizes.optimizer} and average"
    )
    row.notes += [f"compiled, first step {first:.0f} s"] if how.get("compile") else []
    return row, step


def alone(bench: Bench, sizes: Training, aim: float | None, compile: bool = False) -> Iterator[Row]:
    """A base network of ours: the share of the measured product rate at which it does its model FLOPs."""
    row, step = stepped(bench, lambda: BaseUNet(**sizes.arguments), sizes, compile=compile)
    row.ours = bench.clock.measure(step, bench.sizes.pairs)
    row.bounded(bench.ceilings, bench.sizes.train_dtype)
    yield row if aim is None else row.aimed(Aim("share of the product rate", aim), row.share)


def large(bench: Bench) -> Iterator[Row]:
    """The paper's base network."""
    return alone(bench, bench.sizes.large, 0.4)


def small(bench: Bench) -> Iterator[Row]:
    """configs/small's."""
    return alone(bench, bench.sizes.small, 0.3)


def small_compiled(bench: Bench) -> Iterator[Row]:
    """The same, compiled."""
    return alone(bench, bench.sizes.small, None, bench.sizes.compile_training)


def large_compiled(bench: Bench) -> Iterator[Row]:
    """The paper's, compiled."""
    return alone(bench, bench.sizes.large, 0.4, bench.sizes.compile_training)


def efficient(bench: Bench) -> Iterator[Row]:
    """The paper's claim (2 to 3 times the steps a second): EfficientUNet and ADM's upsampler, equal parameters."""
    sizes = bench.sizes.efficient
    row, ours = stepped(bench, lambda: EfficientUNet(**sizes.arguments), sizes)
    other, peer = stepped(bench, lambda: BaseUNet(**bench.sizes.glide), sizes)
    row.what = f"EfficientUNet, {row.what}; ADM's upsampler, {other.what}"
    row.matched = "parameters"
    row.peer_parameters = other.parameters
    row.peer_work, row.peer_peak = other.work, other.peak
    row.fought(bench.clock.duel(ours, peer, bench.sizes.pairs)).bounded(bench.ceilings, bench.sizes.train_dtype)
    yield row.aimed(Aim("steps a second over ADM's", 2.0), row.ratio)


def imagen_pytorch_step(bench: Bench) -> Iterator[Row]:
    """A step beside imagen-pytorch's: same levels and attention, FLOPs within a tenth, its trainer and ours.

    As both come, and both channels last: an option of our trainer's, and of torch's for its network.
    """
    forward = peer_forward_work(bench.sizes.theirs, bench.sizes.tokens)
    for channels_last in (False, True):
        yield beside_imagen_pytorch(bench, forward, channels_last)


def beside_imagen_pytorch(bench: Bench, forward: PerRow, channels_last: bool) -> Row:
    """One row; ``forward`` is the work of its network."""
    sizes, arguments, dtype = bench.sizes.theirs, bench.sizes.matched, bench.sizes.train_dtype
    own = replace(sizes, arguments=arguments)
    row, ours = stepped(bench, lambda: BaseUNet(**arguments), own, channels_last=channels_last)
    before = bench.clock.held()
    peer, unet = peer_step(sizes, bench.sizes.tokens, bench.device, dtype, channels_last)
    bench.clock.once(peer)
    row.peer_peak = bench.clock.peak(peer, before)
    row.peer_work = whole_step(forward, sizes)
    layout = "both channels last" if channels_last else "as they come"
    row.what = f"ours, {row.what}; imagen-pytorch, {parameters(unet) / 1e6:.0f} million; {layout}"
    row.notes += [f"levels {sizes.arguments['dim_mults']}, attention on {arguments['attention_levels']}", HELPED]
    row.fought(bench.clock.duel(ours, peer, bench.sizes.pairs)).bounded(bench.ceilings, dtype)
    row.aimed(Aim("steps a second over the peer's", 2.0 if bench.clock.cuda else 1.5), row.ratio)
    share = row.peak / row.peer_peak if row.peak and row.peer_peak else None
    return row.aimed(Aim("of the peer's memory", 0.7, most=True), share)
