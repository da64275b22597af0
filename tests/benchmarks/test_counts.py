"""Operations, bytes, floors and agreement, against closed forms."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from benchmarks.speed.agree import LIMITS, Wrong, agree, distance
from benchmarks.speed.ceilings import Ceilings, PerRow, Work, measure_ceilings, product_rate
from benchmarks.speed.clock import Clock
from benchmarks.speed.contest import (
    check_evaluations,
    compare,
    contest,
    evaluation_work,
    network_inputs,
    our_call,
    peer_call,
    project,
)
from benchmarks.speed.peers import pair, stir
from benchmarks.speed.sections import Bench
from benchmarks.speed.sizes import CARD, CPU, QUICK, Sizes, Training
from benchmarks.speed.training import forward_work, whole_step
from benchmarks.speed.work import count, count_rows, on_meta, parameters, step_work
from imagen.convert.configs import unet_arguments
from unets import BaseUNet, EfficientUNet
from unets.blocks import ResnetBlock

CPU_CLOCK = Clock(torch.device("cpu"))


def test_a_products_operations_and_bytes_are_counted_once() -> None:
    net = on_meta(lambda: nn.Linear(6, 5, bias=False))
    work = count(lambda: net(torch.empty(7, 6, device="meta")))
    assert work.flops == 2 * 7 * 6 * 5
    assert work.traffic == 4 * (7 * 6 + 6 * 5 + 7 * 5)


def test_attentions_scores_are_not_moved() -> None:
    query, key = torch.empty(2, 50, 4, device="meta"), torch.empty(2, 4, 50, device="meta")
    work = count(lambda: torch.bmm(query, key))
    assert work.flops == 2 * 2 * 50 * 50 * 4
    assert work.traffic == 4 * 2 * (2 * 50 * 4), "queries and keys, not the 50 x 50 products"


def test_weights_are_read_once_a_call_and_all_else_with_its_rows() -> None:
    net = on_meta(lambda: nn.Linear(6, 5, bias=False))

    def call(rows: int) -> object:
        return net(torch.empty(rows, 6, device="meta"))

    assert count_rows(call).call(16) == count(lambda: call(16))


def test_a_training_step_is_three_forwards_of_every_part() -> None:
    assert step_work(Work(2.0, 5.0)) == Work(6.0, 15.0)
    forward = PerRow(Work(1.0, 10.0), Work(2.0, 12.0))
    assert whole_step(forward, Training({}, 8, 8, 2)) == Work(3 * 8.0, 2 * 3 * (10.0 + 3 * 2.0))


def test_the_floor_is_what_takes_longer_of_operations_and_bytes() -> None:
    ceilings = Ceilings({torch.bfloat16: 100.0, torch.float32: 10.0}, copy=50.0)
    assert ceilings.floor(Work(200.0, 50.0), torch.bfloat16) == (2.0, "FLOPs")
    assert ceilings.floor(Work(200.0, 500.0), torch.bfloat16) == (10.0, "bytes")
    assert ceilings.floor(Work(200.0, 500.0), torch.float32) == (20.0, "FLOPs")


def test_ceilings_are_positive_and_a_wrong_product_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_ceilings(CPU_CLOCK, 64, 2**16, (torch.float32,))
    assert found.products[torch.float32] > 0
    assert found.copy > 0
    monkeypatch.setattr(torch, "mm", lambda left, right, out: out.copy_(left @ right * 1.01))
    with pytest.raises(Wrong, match=r"the product of two 32 x 32 matrices in torch.float32 is off by 1.0e-02"):
        product_rate(CPU_CLOCK, 32, torch.float32)


def test_agreement_is_judged_by_float64_and_by_the_peers_own_rounding() -> None:
    reference = torch.randn(1000, dtype=torch.float64)
    near, off = (reference * (1 + error) for error in (1e-3, 3e-2))
    fine = agree(near.bfloat16(), near.bfloat16(), reference)
    assert fine.counts
    assert fine.limit == LIMITS[torch.bfloat16] == 1e-2
    rounding = agree(off.bfloat16(), off.bfloat16(), reference)
    assert not rounding.counts, "both are as far off: no mistake, and no comparison that counts"
    with pytest.raises(Wrong, match="ours is off by 3.0e-02"):
        agree(off.bfloat16(), near.bfloat16(), reference)
    assert not agree(off.bfloat16(), None, reference).counts, "without a peer nobody says how much is rounding"
    with pytest.raises(Wrong, match=r"1.0e-01 allowed"):
        agree((reference * 1.2).bfloat16(), None, reference)
    broken = near.bfloat16().clone()
    broken[3] = float("nan")
    assert distance(broken, reference) == float("inf")
    with pytest.raises(Wrong):
        agree(broken, broken, reference)


def test_a_wrong_network_is_found_out_before_anything_is_timed() -> None:
    bench = Bench(CPU_CLOCK, QUICK)
    ours, peer = pair(QUICK.one, bench.device, torch.float32)
    assert compare(ours, peer, QUICK.one, bench).counts
    wrong = copy.deepcopy(ours)
    wrong.mid_block.resnets[0].conv1.weight.data.mul_(1.1)
    with pytest.raises(Wrong):
        compare(wrong, peer, QUICK.one, bench)


@pytest.mark.parametrize("config", [QUICK.one, QUICK.two], ids=["stage I", "stage II"])
def test_both_networks_share_their_random_weights_and_nothing_in_them_is_zero(config: dict[str, object]) -> None:
    ours, peer = pair(config, torch.device("cpu"), torch.float32)
    theirs = dict(peer.named_parameters())
    for name, weight in ours.named_parameters():
        assert weight.data_ptr() == theirs[name].data_ptr(), name
        assert weight.ndim == 1 or weight.any(), name
    given = network_inputs(config, 5, torch.device("cpu"), torch.float32, rows=2)
    assert distance(our_call(ours, given, project(ours, given)), peer_call(peer, given)) < 1e-5


def test_ours_has_its_text_projected_before_and_is_otherwise_the_peers_work() -> None:
    mine, theirs = evaluation_work(json.dumps(QUICK.one), QUICK.tokens, torch.float32)
    assert 0.9 * theirs.one.flops < mine.one.flops < theirs.one.flops


def test_contestants_that_evaluate_other_numbers_of_rows_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(CPU_CLOCK, QUICK)
    fight = contest(bench, QUICK.one, torch.float32)
    check_evaluations(bench, fight, 2)
    steps = 2 * QUICK.steps
    monkeypatch.setattr(fight.theirs, "scheduler", OneStepLess.from_config(fight.theirs.scheduler.config))
    with pytest.raises(Wrong, match=f"ours evaluates {2 * steps} rows, the peer {2 * steps - 4}; {2 * steps} were"):
        check_evaluations(bench, fight, 2)


class OneStepLess(DDPMScheduler):
    """A sampler that does not do what it is asked."""

    def set_timesteps(self, num_inference_steps: int, **given: object) -> None:
        super().set_timesteps(num_inference_steps - 1, **given)


def test_stirring_leaves_no_zeros_and_makes_branches_small() -> None:
    network = BaseUNet(**QUICK.small.arguments)
    assert not network.conv_out.weight.any()
    stir(network)
    blocks = [block for block in network.modules() if isinstance(block, ResnetBlock)]
    assert network.conv_out.weight.std() > 0.01
    for block in blocks:
        drawn = (3 * block.conv2.weight[0].numel()) ** -0.5
        assert 0.1 * drawn < block.conv2.weight.std() < 0.3 * drawn
    assert blocks[0].conv1.weight.std() > 0.5 * (3 * blocks[0].conv1.weight[0].numel()) ** -0.5


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [CARD, CPU], ids=["card", "cpu"])
def test_adms_upsampler_has_as_many_parameters_and_more_to_do(sizes: Sizes) -> None:
    ours = parameters(on_meta(lambda: EfficientUNet(**sizes.efficient.arguments)))
    peer = parameters(on_meta(lambda: BaseUNet(**sizes.glide)))
    assert peer == pytest.approx(ours, rel=0.05)
    forward = forward_work(lambda: BaseUNet(**sizes.glide), sizes.efficient.size, sizes.tokens)
    assert (
        forward.one.flops
        > forward_work(lambda: EfficientUNet(**sizes.efficient.arguments), sizes.efficient.size, sizes.tokens).one.flops
    )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [CARD, CPU, QUICK], ids=["card", "cpu", "quick"])
def test_every_network_can_be_built(sizes: Sizes) -> None:
    for config in (sizes.one, sizes.two):
        ours = on_meta(lambda config=config: BaseUNet(**unet_arguments(config, "the sizes")))
        peer = on_meta(lambda config=config: UNet2DConditionModel(**config))
        assert parameters(ours) == parameters(peer)
        assert ours.facts.text_dim == config["encoder_hid_dim"]
    for arguments in (sizes.large.arguments, sizes.small.arguments, sizes.glide, sizes.matched):
        assert parameters(on_meta(lambda arguments=arguments: BaseUNet(**arguments))) > 0
    high = on_meta(lambda: EfficientUNet(**sizes.high))
    assert all(side % high.divisor == 0 for sides in sizes.sides for side in sides)
    for training in (sizes.large, sizes.small, sizes.efficient, sizes.theirs):
        assert training.batch % training.accumulation == 0
    if sizes is CARD:
        large, small = (on_meta(lambda one=one: BaseUNet(**one.arguments)) for one in (sizes.large, sizes.small))
        assert round(parameters(large) / 1e6) == 2438, "the paper's"
        assert round(parameters(small) / 1e6) == 325
        assert round(parameters(ours) / 1e6) == 461
