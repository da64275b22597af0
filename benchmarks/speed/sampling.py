"""Sampling: our pipeline beside diffusers' IFPipeline and IFSuperResolutionPipeline, with the same weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from benchmarks.speed.agree import Agreement, Wrong, agree
from benchmarks.speed.contest import GUIDED, calls, check_evaluations, compare, contest, duelled, fought
from benchmarks.speed.peers import compiled, stir
from benchmarks.speed.report import Aim, Row, name_of
from benchmarks.speed.sections import Bench
from benchmarks.speed.work import activations, on_meta, weights
from unets import EfficientUNet


def eager(bench: Bench) -> Iterator[Row]:
    """Stage I as it comes."""
    for dtype in bench.sizes.dtypes:
        fight = contest(bench, bench.sizes.one, dtype)
        for batch in bench.sizes.batches:
            yield fought(bench, fight, batch, "stage I, eager")


def channels_last(bench: Bench) -> Iterator[Row]:
    """Both networks in the layout that convolutions of cards like."""
    dtype = bench.sizes.dtypes[0]
    fight = contest(bench, bench.sizes.one, dtype)
    for network in (fight.ours, fight.peer):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fight.agreement = compare(fight.ours, fight.peer, fight.config, bench)
    for batch in bench.sizes.batches[:2]:
        yield fought(bench, fight, batch, "stage I, channels last")


def compiled_whole(bench: Bench) -> Iterator[Row]:
    """Both networks compiled alike; the first call, which compiles, is told apart. Ours has a row before the peer's
    compiling begins, which may take what is left of the time."""
    sizes = bench.sizes
    fight = contest(bench, sizes.one, sizes.dtypes[0])
    check_evaluations(bench, fight, 1)
    ours, peer = calls(bench, fight, 1)
    before = ours()
    how = compiled(fight.mine, fight.ours, True, sizes.compile)
    first = bench.clock.once(ours)
    told = [f"{how}; first call {first:.0f} s", f"our pictures from eager ones: {drifted(ours(), before)}"]
    alone = Row("stage I, ours compiled whole", name_of(fight.dtype), 1, evaluations=sizes.steps, notes=told)
    alone.ours = bench.clock.measure(ours, sizes.pairs)
    yield alone
    fight.peer.compile(**sizes.compile)
    first_peer = bench.clock.once(peer)
    fight.agreement = compare(fight.ours, fight.peer, fight.config, bench)
    row = duelled(bench, fight, 1, "stage I, compiled whole", warmup=2)
    row.notes += [*told, f"the peer's first call {first_peer:.0f} s"]
    yield row


def compiled_blocks(bench: Bench) -> Iterator[Row]:
    """Ours by ``pipe.compile`` beside the peer as it comes; what the compiled blocks cost in the first call."""
    sizes = bench.sizes
    fight = contest(bench, sizes.one, sizes.dtypes[0])
    how = {name: value for name, value in sizes.compile.items() if name != "mode"}
    check_evaluations(bench, fight, 1)
    ours = calls(bench, fight, 1)[0]
    before = ours()
    told = compiled(fight.mine, fight.ours, False, how)
    first = bench.clock.once(ours)
    fight.agreement = compare(fight.ours, fight.peer, fight.config, bench)
    row = duelled(bench, fight, 1, "stage I, ours compiled, the peer eager")
    row.notes += [f"{told}; first call {first:.0f} s", f"our pictures from eager ones: {drifted(ours(), before)}"]
    yield row


def drifted(made: Tensor, reference: Tensor) -> str:
    """How far pictures in [0, 1] are from others."""
    off = (made.to(reference) - reference).abs()
    return f"mean {off.mean():.1e}, largest {off.max():.1e}"


def second_stage(bench: Bench) -> Iterator[Row]:
    """Stage II as it comes."""
    fight = contest(bench, bench.sizes.two, bench.sizes.dtypes[0])
    for batch in bench.sizes.batches[:2]:
        yield fought(bench, fight, batch, "stage II, eager")


def with_text(bench: Bench) -> Iterator[Row]:
    """A random T5 by itself, and stage I with it: both contestants pay the same for their text."""
    bench.need_card()
    sizes, dtype = bench.sizes, bench.sizes.dtypes[0]
    with torch.device(bench.device):
        encoder = T5EncoderModel(T5Config(**sizes.t5)).to(dtype).eval().requires_grad_(False)
    tokens = torch.ones(2, sizes.tokens, dtype=torch.long, device=bench.device)  # a prompt, and the empty one
    read = torch.no_grad()(lambda: encoder(input_ids=tokens).last_hidden_state)
    if not torch.isfinite(read()).all():
        raise Wrong("the random T5 says numbers that are not finite")
    alone = Row("T5 alone, a prompt and the empty one", name_of(dtype), 1, peak=bench.clock.peak(read))
    alone.ours = bench.clock.measure(read, sizes.pairs * 2)
    yield alone
    fight = contest(bench, sizes.one, dtype)
    ours, peer = calls(bench, fight, 1)
    row = Row("T5 and stage I, eager", name_of(dtype), 1, agreement=fight.agreement)
    yield row.fought(bench.clock.duel(lambda: (read(), ours()), lambda: (read(), peer()), sizes.pairs))


def drift(bench: Bench) -> Iterator[Row]:
    """How far our pictures in bfloat16 are from those in float32: same weights, same noise."""
    reference = calls(bench, contest(bench, bench.sizes.one, torch.float32), 1)[0]()
    for dtype in (torch.bfloat16, torch.float16) if bench.clock.cuda else (torch.bfloat16,):
        fight = contest(bench, bench.sizes.one, dtype)
        made = calls(bench, fight, 1)[0]()
        row = Row(f"our pictures in {name_of(dtype)}", name_of(dtype), 1, agreement=fight.agreement)
        row.notes.append(f"from those in float32: {drifted(made, reference)}")
        yield row


@torch.no_grad()
def high(bench: Bench) -> Iterator[Row]:
    """The paper's 1024 px network: memory of a guided step, which is to grow as the pixels do, and stay small."""
    sizes, dtype, meta = bench.sizes, torch.bfloat16, torch.device("meta")
    described = on_meta(lambda: EfficientUNet(**sizes.high), dtype)
    own = weights(described)
    network, agreement = high_on_card(bench, dtype) if bench.clock.cuda else (None, None)
    first: float | None = None
    for sides in sizes.sides:
        made = activations(described, high_inputs(sizes.high, sides, sizes.tokens, meta, dtype))
        row = Row(f"{sides[1]} x {sides[0]} px, a guided step of one picture", name_of(dtype), 1, agreement=agreement)
        row.notes.append(f"by calculation {(own + made) / 1e9:.2f} GB, {own / 1e9:.2f} of them weights")
        if network is not None:
            step = partial(network, **high_inputs(sizes.high, sides, sizes.tokens, bench.device, dtype))
            row.peak = bench.clock.peak(step)
            row.ours = bench.clock.measure(step, sizes.pairs)
        peak = row.peak or own + made
        per_pixel = (peak - own) / (sides[0] * sides[1])
        first = first or per_pixel
        row.aimed(Aim("GB", sizes.most_bytes / 1e9, most=True), peak / 1e9)
        yield row.aimed(Aim("memory a pixel over the first's", 1.1, most=True), per_pixel / first)


def high_on_card(bench: Bench, dtype: torch.dtype) -> tuple[EfficientUNet, Agreement]:
    """The network with random weights, none zeros, and how far it is from itself in float64 at the first size."""
    with torch.device(bench.device):
        network = EfficientUNet(**bench.sizes.high).to(dtype).eval()
    stir(network)
    given = high_inputs(bench.sizes.high, bench.sizes.sides[0], bench.sizes.tokens, bench.device, dtype)
    wide = {name: value if "timestep" in name else value.double() for name, value in given.items()}
    return network, agree(network(**given), None, copy.deepcopy(network).double()(**wide))


def high_inputs(
    arguments: dict[str, Any], sides: tuple[int, int], tokens: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the network is called with, of these sides."""
    width = arguments.get("text_dim", 4096)
    picture = torch.randn(GUIDED, 3, *sides, device=device, dtype=dtype)
    time = torch.zeros(GUIDED, device=device)
    text = torch.randn(GUIDED, tokens, width, device=device, dtype=dtype)
    return {"sample": picture, "timestep": time, "text": text, "lowres": picture.clone(), "aug_timestep": time}
