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
from unets import BaseUNet, TextContext

GUIDED = 2  # rows that guidance evaluates of each picture
TIME = 500.0


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
    config: dict[str, Any], tokens: int, device: torch.device, dtype: torch.dtype, rows: int = GUIDED
) -> dict[str, Tensor]:
    """z, text, and of stage II the small picture."""
    side, generator = config["sample_size"], seeded(device) if device.type != "meta" else None

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, device=device, generator=generator).to(dtype)

    made = {"z": random(3, side, side), "text": random(tokens, config["encoder_hid_dim"])}
    return made | ({"lowres": random(3, side, side)} if config["in_channels"] == 6 else {})


def project(network: nn.Module, given: dict[str, Tensor]) -> TextContext:
    """What our pipeline asks our network once for each sample."""
    text = given["text"].to(torch.promote_types(given["text"].dtype, torch.float32))
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    context: TextContext = network(text=text, text_mask=mask)
    return context.select(torch.arange(len(mask), device=mask.device))


def our_call(network: nn.Module, given: dict[str, Tensor], context: TextContext) -> Tensor:
    """Our network as our pipeline calls it: shapes and dtypes are those that were compiled for, if any were."""
    z, rows = given["z"], len(given["z"])
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    time = torch.full((rows,), TIME, device=z.device, dtype=z.dtype)
    lowres = {"lowres": given["lowres"].to(z), "aug_timestep": (time / 2).float()} if "lowres" in given else {}
    out: Tensor = network(z, time, context=context, **lowres)
    return out


def peer_call(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """diffusers' as its pipelines call it."""
    z, labels = given["z"], {}
    time = torch.tensor(int(TIME), device=z.device)
    if "lowres" in given:
        z = torch.cat([z, given["lowres"]], 1)
        labels = {"class_labels": torch.full((len(z),), int(TIME / 2), device=z.device)}
    text = {"encoder_hidden_states": given["text"], "cross_attention_kwargs": None}
    out: Tensor = network(z, time, **labels, **text, return_dict=False)[0]
    return out


@torch.no_grad()
def compare(ours: nn.Module, peer: nn.Module, config: dict[str, Any], bench: Bench) -> Agreement:
    """Both networks, compiled ones too, with the peer's in float64. Raises: Wrong."""
    dtype = next(ours.parameters()).dtype
    given = network_inputs(config, bench.sizes.tokens, bench.device, dtype)
    mine, theirs = our_call(ours, given, project(ours, given)).to(dtype), peer_call(peer, given)
    exact = copy.deepcopy(peer)
    exact._compiled_call_impl = None
    wide = {name: value.double() for name, value in given.items()}
    return agree(mine, theirs, peer_call(exact.double(), wide))


@cache
def evaluation_work(config: str, tokens: int, dtype: torch.dtype) -> tuple[PerRow, PerRow]:
    """(ours, the peer's) of an evaluation, the configuration as JSON; ours has projected the text before."""
    values, meta = json.loads(config), torch.device("meta")
    given = {rows: network_inputs(values, tokens, meta, dtype, rows) for rows in (1, 2)}
    ours = on_meta(lambda: BaseUNet(**unet_arguments(values, "the peer's configuration")), dtype)
    theirs = on_meta(lambda: UNet2DConditionModel(**values), dtype)
    context = {rows: project(ours, one) for rows, one in given.items()}
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
    row = duelled(bench, fight, batch, what)
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
    """Both evaluate what was asked for, which is looked at before either is compiled. Raises: Wrong."""
    wanted = batch * bench.sizes.steps * GUIDED
    ours, peer = calls(bench, fight, batch)
    found = evaluations(fight.ours, ours), evaluations(fight.peer, peer)
    if found != (wanted, wanted):
        raise Wrong(f"ours evaluates {found[0]} rows, the peer {found[1]}; {wanted} were asked for")
