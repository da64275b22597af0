"""What a call runs and with how many pictures, before anything is sampled: shapes, numbers, seeds, callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imagen import ImagenPipeline
from imagen.cascade.adapters import attach
from imagen.cascade.plan import join, plan
from imagen.cascade.route import Wish, cropped, entry_side
from imagen.cascade.runner import Stage
from imagen.cascade.running import RunningMixin, step_callback
from imagen.cascade.seeds import picture_seeds, stage_generator
from imagen.cascade.variance import drop_variance, first_rows
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.stages.spec import StageDefaults
from tests.factories import WIDTH, sample, seeded, tiny_base, tiny_pipeline, tiny_sr

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipe() -> ImagenPipeline:
    return tiny_pipeline()


# --- numbers of prompts, pictures and conditions ----------------------------------------------------------------------


def text(count: int, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    return torch.ones(count, 2, width), torch.ones(count, 2, dtype=torch.bool)


class Other:
    """A condition of so many pictures."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count


def joined(
    stages: Sequence[Stage], prompt: Any, negative: Any = None, others: Sequence[Any] = (), pictures: int = 0
) -> Any:
    asked: list[int] = []

    def null(width: int) -> tuple[Tensor, Tensor]:
        asked.append(width)
        return 2 * text(1)[0], text(1)[1]

    conditions, count = join(stages, prompt, negative, others, pictures, CPU, null)
    return conditions, count, asked


@pytest.mark.parametrize(
    ("prompts", "pictures", "conditions", "count"),
    [(1, 0, [], 1), (3, 0, [], 3), (1, 3, [], 3), (3, 1, [1, 3], 3), (1, 1, [1, 3], 3), (3, 3, [3, 1], 3)],
)
def test_whatever_is_one_serves_all(
    pipe: ImagenPipeline, prompts: int, pictures: int, conditions: list[int], count: int
) -> None:
    others = [Other(name, number) for name, number in zip(("label", "mask"), conditions, strict=False)]
    made, found, _ = joined(list(pipe._stages().values()), text(prompts), None, others, pictures)
    assert found == count
    assert len(made[0]) == count
    assert made[1:] == others


@pytest.mark.parametrize(
    ("prompts", "pictures", "conditions", "message"),
    [
        (2, 3, [], "2 prompts for 3 pictures to start from; give one, or one for each"),
        (3, 2, [], "2 pictures to start from for 3 prompts"),
        (1, 1, [3, 2], "2 masks for 3 labels"),
        (2, 1, [1, 3], "2 prompts for 3 masks"),
    ],
)
def test_other_numbers_are_refused(
    pipe: ImagenPipeline, prompts: int, pictures: int, conditions: list[int], message: str
) -> None:
    others = [Other(name, number) for name, number in zip(("label", "mask"), conditions, strict=False)]
    with pytest.raises(ValueError, match=message):
        joined(list(pipe._stages().values()), text(prompts), None, others, pictures)


def with_scales(pipe: ImagenPipeline, *scales: float) -> list[Stage]:
    stages = list(pipe._stages().values())
    return [
        stage._replace(settings=StageDefaults(**{**stage.settings.to_dict(), "guidance_scale": scale}))
        for stage, scale in zip(stages, scales, strict=True)
    ]


@pytest.mark.parametrize(("scales", "guided"), [((1, 1, 3), True), ((3, 1, 1), True), ((1, 1, 1), False)])
def test_the_null_is_made_where_a_stage_is_guided(
    pipe: ImagenPipeline, scales: tuple[float, ...], guided: bool
) -> None:
    (made,), _, asked = joined(with_scales(pipe, *scales), text(2))
    assert asked == ([WIDTH] if guided else [])
    assert made.negative[0].shape[-1] == WIDTH
    assert made.negative[0].max() == (2 if guided else 0)
    (given,), _, asked = joined(with_scales(pipe, *scales), text(2), text(1))
    assert asked == []
    assert torch.equal(given.negative[0], text(1)[0])


def test_stages_without_text_take_none() -> None:
    bare = tiny_pipeline(
        **{f"{slot}_unet": make(text_dim=None) for slot, make in (("base", tiny_base), ("sr256", tiny_sr))},
        sr1024_unet=None,
    )
    stages = list(bare._stages().values())
    assert joined(stages, None, None, [Other("label", 2)])[1] == 2
    for given, name in (((text(1), None), "prompt"), ((None, text(1)), "negative_prompt")):
        with pytest.raises(ValueError, match=f"^{name} is given but no stage that runs reads text"):
            joined(stages, *given)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "nearest"), [(1, 12), (18, 24), (16, 12), (40, 36)])
def test_a_side_divides_what_every_stage_needs(height: int, nearest: int) -> None:
    """96 px in steps of 4, from 32 px in steps of 2, each of which is three: multiples of 4, 6 and 3."""
    parts = {"base_unet": tiny_base(text_dim=None), "sr256_unet": tiny_sr(text_dim=None), "sr1024_unet": None}
    stages = tiny_pipeline(**parts, stages={"base": {"size": 32}, "sr256": {"size": 96, "lowres_size": 32}})._stages()
    made, _ = plan(stages, None, Wish(height=nearest, width=48))
    assert [stage.shape for stage in made] == [(nearest // 3, 16), (nearest, 48)]
    message = f"={height} is not a multiple of 12, which these stages need; the nearest is {nearest}"
    for shape in ({"height": height, "width": 48}, {"height": 48, "width": height}):
        with pytest.raises(ValueError, match=message):
            plan(stages, None, Wish(**shape))


@pytest.mark.parametrize(
    ("height", "width", "aspect", "kept"),
    [
        (30, 40, (1, 1), (30, 30)),
        (30, 40, (1, 2), (20, 40)),
        (30, 40, (64, 32), (30, 15)),
        (40, 30, (2, 1), (40, 20)),
        (1, 100, (3, 1), (1, 1)),
        (100, 1, (1, 3), (1, 1)),
        (10, 10, (3, 2), (10, 7)),
    ],
)
def test_the_largest_part_of_a_shape(height: int, width: int, aspect: tuple[int, int], kept: tuple[int, int]) -> None:
    assert cropped(height, width, aspect) == kept


@pytest.mark.parametrize(
    ("size", "aspect", "picture", "side"),
    [
        (None, (1, 1), (40, 30), 30),
        (64, (64, 32), (32, 16), 32),
        (None, (64, 32), (32, 16), 128),
        (None, (256, 512), (64, 128), 64),
        (None, (256, 512), (63, 128), 63),
        (None, (256, 512), (64, 127), 63),
    ],
)
def test_a_picture_of_another_shape_fills_what_its_square_would(
    size: int | None, aspect: tuple[int, int], picture: tuple[int, int], side: int
) -> None:
    stages = {"base": StageDefaults(size=64), "sr256": StageDefaults(size=256, lowres_size=64)}
    assert entry_side(stages, size, aspect, picture) == side


def test_a_pipeline_without_stages_says_so_also_where_a_picture_is_given() -> None:
    with pytest.raises(ValueError, match="this pipeline has no stage"):
        ImagenPipeline()(image=torch.zeros(3, 8, 8))


def test_stored_settings_are_changed_for_one_stage_and_unknown_ones_are_told() -> None:
    pipe = tiny_pipeline()
    before = pipe.stage_defaults
    pipe.set_stage_defaults("sr256", threshold="static", aug_level=0.4)
    after = pipe.stage_defaults
    assert {slot: after[slot] for slot in ("base", "sr1024")} == {slot: before[slot] for slot in ("base", "sr1024")}
    assert after["sr256"].to_dict() == {**before["sr256"].to_dict(), "threshold": "static", "aug_level": 0.4}
    with pytest.raises(ValueError, match="stage is 'sr64'; expected one of base, sr256, sr1024"):
        pipe.set_stage_defaults("sr64", aug_level=0.1)
    with pytest.raises(ValueError, match="stage sr256: aug_level is 2"):
        pipe.set_stage_defaults("sr256", aug_level=2)
    with pytest.raises(ValueError, match="settings: unknown key 'steps'"):
        pipe.settings(steps=3)
    assert pipe.stage_defaults == after


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_one_generator_is_drawn_from_once_whatever_the_number_of_pictures() -> None:
    states = []
    for count in (1, 100):
        generator = seeded(3)
        seeds = picture_seeds(generator, count)
        states.append(generator.get_state())
        assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(*states)
    torch.manual_seed(3)
    assert picture_seeds(None, 100) == seeds, "without one, torch's own is drawn from"


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_holds_one_for_each_picture(kind: Any) -> None:
    seeds = picture_seeds(kind(seeded(seed) for seed in (1, 2, 3)), 3)
    assert seeds == [picture_seeds(seeded(seed), 1)[0] for seed in (1, 2, 3)]
    with pytest.raises(ValueError, match="generator holds a int; expected torch.Generator"):
        picture_seeds([seeded(1), seeded(2), 3], 3)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="generator is a list of 3 for 2 pictures"):
        picture_seeds([seeded(1), seeded(2), seeded(3)], 2)


def test_seeds_and_slots_meet_nowhere() -> None:
    drawn = {(seed, slot): stage_generator(seed, slot).initial_seed() for seed in (0, 1, 2**62) for slot in "ab"}
    assert len({*drawn.values()}) == 6
    assert all(stage_generator(*key).initial_seed() == seed for key, seed in drawn.items())


# --- callbacks --------------------------------------------------------------------------------------------------------


def stepped(answer: Any, interrupt: bool = False) -> Any:
    state = SimpleNamespace(z=torch.zeros(1), x0=torch.ones(1), step=3, timestep=7.0, stop=None)
    given: list[Any] = []

    def callback(*args: Any) -> Any:
        given.append(args)
        return answer(state) if callable(answer) else answer

    owner = SimpleNamespace(interrupt=interrupt)
    step_callback(owner, callback, ("z", "x0"), [])(state)
    assert given == [(owner, 3, 7.0, {"z": given[0][3]["z"], "x0": state.x0})]
    return state


def test_an_answer_may_be_nothing_or_another_z_beside_what_was_given() -> None:
    for answer in (None, {}):
        assert stepped(answer).z.item() == 0
    replaced = stepped(lambda state: {"z": torch.full((1,), 5.0), "x0": state.x0})
    assert (replaced.z.item(), replaced.x0.item()) == (5, 1)
    for wrong in (lambda state: {"x0": state.x0 + 1}, {"x": None, "y": torch.zeros(1)}):
        with pytest.raises(ValueError, match="only z can be replaced"):
            stepped(wrong)
    with pytest.raises(ValueError, match="tensor_inputs names 'eps'; expected some of z, latents, x0, prompt_embeds"):
        step_callback(None, None, ("z", "x0", "eps"), [])


@pytest.mark.parametrize("interrupt", [True, False])
def test_a_request_to_stop_is_carried_with_a_callback_and_without(interrupt: bool) -> None:
    assert stepped(None, interrupt).stop is interrupt
    state = SimpleNamespace(stop=None)
    step_callback(SimpleNamespace(interrupt=interrupt), None, ("z",), [])(state)  # type: ignore[arg-type]
    assert state.stop is interrupt


def test_a_stage_that_ends_may_be_the_last(pipe: ImagenPipeline) -> None:
    def stop(pipe: ImagenPipeline, size: int, images: Any) -> None:
        pipe._interrupt = size == 32

    assert list(sample(pipe, "a red circle", num_inference_steps=1, callback_on_stage_end=stop).stages) == [16, 32]


def test_steps_of_a_list_are_counted(pipe: ImagenPipeline) -> None:
    running = RunningMixin()
    assert (running.num_timesteps, running.guidance_scale, running.stage) == (None, None, None)
    settings = StageDefaults(size=8, num_inference_steps="fast27", guidance_scale=2.0)
    running._stage, running._guidance_scale = pipe._stages()["base"]._replace(settings=settings), 2.0
    assert (running.num_timesteps, running.guidance_scale, running.stage) == (27, 2.0, "base")


# --- variances -----------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_the_first_rows_of_a_layer_answer_as_they_did(bias: bool) -> None:
    for layer, x in (
        (nn.Linear(4, 6, bias=bias), torch.randn(2, 4)),
        (nn.Conv2d(4, 6, 3, bias=bias), torch.randn(2, 4, 5, 5)),
    ):
        layer.weight.requires_grad_(False)
        cut = first_rows(layer, 2)
        torch.testing.assert_close(cut(x), layer(x)[:, :2])
        assert [getattr(cut, name, 2) for name in ("out_features", "out_channels")] == [2, 2]
        assert not cut.weight.requires_grad
        assert cut.bias is None or cut.bias.requires_grad
        assert len(layer.weight) == 6


@torch.no_grad()
def test_a_variance_is_dropped_in_the_stage_named_and_its_scheduler_told() -> None:
    learned = make_scheduler("ddpm", CosineSchedule(), "epsilon")
    learned = type(learned).from_config(learned.config, variance_type="learned_range")
    ddim = make_scheduler("ddim", CosineSchedule(), "epsilon")
    networks = {"base_unet": tiny_base(out_channels=6), "sr256_unet": tiny_sr(out_channels=6)}
    pipe = tiny_pipeline(**networks, base_scheduler=learned, sr256_scheduler=ddim, sr1024_unet=None)
    low = {"lowres": torch.rand(1, 3, 16, 16), "aug_timestep": torch.zeros(1)}
    z, read = torch.randn(1, 3, 16, 16), torch.randn(1, 2, WIDTH)
    before = pipe.sr256_unet(z, torch.tensor([5.0]), text=read, **low)
    drop_variance(pipe, "sr256")
    torch.testing.assert_close(pipe.sr256_unet(z, torch.tensor([5.0]), text=read, **low), before[:, :3])
    assert pipe.sr256_scheduler is ddim, "which never read one"
    assert pipe.base_unet.config.out_channels == 6
    drop_variance(pipe)
    assert (pipe.base_unet.config.out_channels, pipe.base_scheduler.config.variance_type) == (3, "fixed_small")
    assert type(pipe.base_scheduler) is type(learned)
    for slot in ("base", "sr1024"):
        with pytest.raises(ValueError, match=f"stage '{slot}' has no learned variance to drop"):
            drop_variance(pipe, slot)
    with pytest.raises(ValueError, match="stage is 'sr64'"):
        drop_variance(pipe, "sr64")
    adapted = tiny_base(out_channels=6)
    attach(adapted, 2, 4.0, [adapted.output_layer])
    with pytest.raises(ValueError, match="the adapter of stage 'base' changes its output layer; merge or unload it"):
        drop_variance(tiny_pipeline(base_unet=adapted))
