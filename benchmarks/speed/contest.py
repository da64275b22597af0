"""One stage of the IF family, ours beside diffusers': made, compared with float64, and timed in turns."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.speed.agree import Agreement, Wrong, agree
from benchmarks.speed.ceilings import PerRow
from benchmarks.speed.peers import pair, pipelines, prompts, seeded
from benchmarks.speed.report import Row, name_of
from benchmarks.speed.sections import Bench
from benchmarks.speed.work import count_rows, on_meta, weights
from imagen import ImagenPipeline
from imagen.convert.configs import unet_arguments
from unets import BaseUNet

GUIDED = 2  # rows that guidance evaluates of each picture


@dataclass
class Contest:
    """One stage in one dtype, both contestants made and found to agree.

    Attributes:
        config: of the peer's network. mine, theirs: the pipelines.
        agreement: of the two networks with float64.
    """

    config: dict[str, Any]
    dtype: torch.dtype
    ours: BaseUNet
    peer: UNet2DConditionModel
    mine: ImagenPipeline
    theirs: Any
    agreement: Agreement


def contest(bench: Bench, config: dict[str, Any], dtype: torch.dtype) -> Contest:
    """Made anew. Raises: Wrong where the networks differ."""
    ours, peer = pair(config, bench.device, dtype)
    agreement = compare(ours, peer, config, bench)
    mine, theirs = pipelines(ours, peer, config["sample_size"])
    return Contest(config, dtype, ours, peer, mine, theirs, agreement)


def network_inputs(
    config: dict[str, Any], tokens: int, device: torch.device, dtype: torch.dtype, rows: int = 1
) -> dict[str, Tensor]:
    """z, timestep and text, and of stage II the small picture with its noise level."""
    side, generator = config["sample_size"], seeded(device) if device.type != "meta" else None

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    time = torch.full((rows,), 500.0, device=device)
    made = {"z": random(rows, 3, side, side), "time": time, "text": random(rows, tokens, config["encoder_hid_dim"])}
    return made | ({"lowres": random(rows, 3, side, side), "aug": time / 2} if config["in_channels"] == 6 else {})


def our_call(network: nn.Module, given: dict[str, Tensor], context: object = None) -> Tensor:
    """Our network on such a row; with its text's context where that is known."""
    text = {"text": given["text"]} if context is None else {"context": context}
    lowres = {"lowres": given["lowres"], "aug_timestep": given["aug"]} if "lowres" in given else {}
    out: Tensor = network(given["z"], given["time"], **text, **lowres)
    return out


def peer_call(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """diffusers' on the same."""
    z = torch.cat([given["z"], given["lowres"]], 1) if "lowres" in given else given["z"]
    labels = {"class_labels": given["aug"]} if "lowres" in given else {}
    out: Tensor = network(z, given["time"], given["text"], **labels, return_dict=False)[0]
    return out


@torch.no_grad()
def compare(ours: nn.Module, peer: nn.Module, config: dict[str, Any], bench: Bench) -> Agreement:
    """Both networks with the peer's in float64. Raises: Wrong."""
    dtype = next(ours.parameters()).dtype
    given = network_inputs(config, bench.sizes.tokens, bench.device, dtype)
    mine, theirs = our_call(ours, given), peer_call(peer, given)
    exact = copy.deepcopy(peer).double()
    wide = {name: value if name in ("time", "aug") else value.double() for name, value in given.items()}
    return agree(mine, theirs, peer_call(exact, wide))


@cache
def evaluation_work(config: str, tokens: int, dtype: torch.dtype) -> tuple[PerRow, PerRow]:
    """(ours, the peer's) of an evaluation, the configuration as JSON; ours has projected the text before."""
    values, meta = json.loads(config), torch.device("meta")
    given = {rows: network_inputs(values, tokens, meta, dtype, rows) for rows in (1, 2)}
    ours = on_meta(lambda: BaseUNet(**unet_arguments(values, "the peer's configuration")), dtype)
    theirs = on_meta(lambda: UNet2DConditionModel(**values), dtype)
    context = {rows: ours(text=one["text"]) for rows, one in given.items()}
    mine = count_rows(lambda rows: our_call(ours, given[rows], context[rows]))
    return mine, count_rows(lambda rows: peer_call(theirs, given[rows]))


def calls(bench: Bench, fight: Contest, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(ours, the peer's) call of the pipelines for so many prompts: equal steps, guidance, sampler and noise level."""
    sizes, config = bench.sizes, fight.config
    given: dict[str, Any] = prompts(batch, sizes.tokens, config["encoder_hid_dim"], bench.device, fight.dtype)
    second = config["in_channels"] == 6
    given |= {"num_inference_steps": sizes.steps, "guidance_scale": 4.0 if second else 7.0, "output_type": "pt"}
    small = torch.rand(batch, 3, config["sample_size"] // 4, config["sample_size"] // 4, generator=seeded())
    mine: dict[str, Any] = {"image": small} if second else {}
    theirs: dict[str, Any] = {"image": (small * 2 - 1).to(bench.device)} if second else {}
    return (
        lambda: fight.mine(**given, **mine, generator=seeded()).images,
        lambda: fight.theirs(**given, **theirs, generator=seeded(bench.device)).images,
    )


def evaluations(network: nn.Module, call: Callable[[], object]) -> int:
    """How many rows a call has a network evaluate, text alone not counted."""
    rows = 0

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal rows
        sample = args[0] if args else kwargs.get("sample")
        rows += 0 if sample is None else len(sample)

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        call()
    finally:
        hook.remove()
    return rows


def fought(bench: Bench, fight: Contest, batch: int, what: str) -> Row:
    """One row of two networks as they come: counted, warmed up, and then in turns."""
    ours, peer = calls(bench, fight, batch)
    check_evaluations(bench, fight, batch)
    row = duelled(bench, fight, batch, what, warmup=0)  # both were called to be counted
    shared = fight.ours.conv_in.weight.data_ptr() == fight.peer.conv_in.weight.data_ptr()
    row.peak = bench.clock.peak(ours, 0 if shared else weights(fight.peer))
    row.peer_peak = bench.clock.peak(peer, 0 if shared else weights(fight.ours))
    return row


def duelled(bench: Bench, fight: Contest, batch: int, what: str, warmup: int = 1) -> Row:
    """The times, and what bounds them."""
    row = Row(what, name_of(fight.dtype), batch, agreement=fight.agreement)
    row.evaluations = bench.sizes.steps
    works = evaluation_work(json.dumps(fight.config), bench.sizes.tokens, fight.dtype)
    row.work, row.peer_work = (work.call(batch * GUIDED).times(bench.sizes.steps) for work in works)
    row.fought(bench.clock.duel(*calls(bench, fight, batch), bench.sizes.pairs, warmup))
    return row.bounded(bench.ceilings, fight.dtype)


def check_evaluations(bench: Bench, fight: Contest, batch: int) -> None:
    """Both evaluate what was asked for, before either is compiled. Raises: Wrong."""
    wanted = batch * bench.sizes.steps * GUIDED
    ours, peer = calls(bench, fight, batch)
    found = evaluations(fight.ours, ours), evaluations(fight.peer, peer)
    if found != (wanted, wanted):
        raise Wrong(f"ours evaluates {found[0]} rows, the peer {found[1]}; {wanted} were asked for")
