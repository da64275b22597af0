"""A compiled pipeline: the same pictures in few graphs, whatever is done with it; and what cannot be compiled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch._dynamo.testing import CompileCounter

from imagen import ImagenPipeline
from imagen.cascade.speed import _kept, check_compiler
from tests.factories import Calls, redraw, sample, seeded, tiny_pipeline
from tests.test_adapters_several import adapter
from unets import DiT, TextContext

LAYOUT = {"channels_last": False}
WITHOUT = dict.fromkeys(f"{slot}_{part}" for slot in ("sr256", "sr1024") for part in ("unet", "scheduler"))


def small(**changes: Any) -> ImagenPipeline:
    """A base stage of a DiT, which is one graph."""
    dit = DiT(patch_size=4, width=16, depth=2, head_dim=8, mlp_ratio=2, text_dim=16)
    return tiny_pipeline(**{**WITHOUT, "base_unet": redraw(dit, 1), **changes})


def equal(pipe: ImagenPipeline, other: ImagenPipeline, *args: Any, **call: Any) -> bool:
    return torch.equal(sample(pipe, *args, **call).images, sample(other, *args, **call).images)


@pytest.fixture
def counter() -> CompileCounter:
    torch.compiler.reset()
    return CompileCounter()


def test_no_call_makes_another_graph(counter: CompileCounter) -> None:
    """Two networks of one shape of block each, in calls that are guided."""
    weak = redraw(DiT(patch_size=4, width=8, depth=3, head_dim=8, mlp_ratio=2, text_dim=16), 2)
    pipe, plain = (small(base_weak_unet=weak), small(base_weak_unet=redraw(DiT.from_config(weak.config), 2)))
    pipe.compile(backend=counter)
    auto = {"guidance": "auto"}
    for prompts, call in (
        (["a red circle", "a small blue star"], auto),
        (["a red circle", "a small blue star"], {"num_inference_steps": 3}),
        ("a red circle", {"num_images_per_prompt": 3, **auto}),
        ("two green circle", {"guidance_scale": 1.5}),
        ("a red circle", {"height": 16, "width": 32, "negative_prompt": "a small green star"}),
    ):
        assert equal(pipe, plain, prompts, **call)
    assert counter.frame_count == 4  # of each network one more for texts without padding


@pytest.mark.slow
def test_a_compiled_cascade_makes_the_same_pictures_to_rounding(counter: CompileCounter) -> None:
    pipe, plain = tiny_pipeline(), tiny_pipeline()
    pipe.compile(backend=counter)
    call = {"num_inference_steps": 1, "size": 32}
    torch.testing.assert_close(sample(pipe, "a star", **call).images, sample(plain, "a star", **call).images)
    assert counter.frame_count > 8, "beyond the limit of torch, which leaves the rest as it is"


def test_weights_are_laid_out_channels_last_and_stored_as_before(tmp_path: Path, counter: CompileCounter) -> None:
    """On a CPU; only by a call."""
    pipe, plain = tiny_pipeline(**WITHOUT), tiny_pipeline(**WITHOUT)
    layouts = [pipe.base_unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)]
    for wanted in (False, None):
        pipe.compile(backend=counter, channels_last=wanted)
        layouts.append(pipe.base_unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last))
    assert layouts == [False, False, True]
    for each, folder in ((pipe, tmp_path / "compiled"), (plain, tmp_path / "plain")):
        each.save_pretrained(folder)
    weights = "base_unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "compiled" / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()


def test_adapters_act_as_before_and_later_ones_too(counter: CompileCounter) -> None:
    pipe, plain = tiny_pipeline(**WITHOUT), tiny_pipeline(**WITHOUT)
    pipe.load_lora_weights(adapter(1), adapter_name="one")
    pipe.compile(backend=counter, **LAYOUT)
    plain.load_lora_weights(adapter(1), adapter_name="one")
    call = {"num_inference_steps": 1}
    assert equal(pipe, plain, "a star", **call)
    for each in (pipe, plain):
        each.load_lora_weights(adapter(2), adapter_name="two", scale=0.5)
        each.set_adapters(["one", "two"], [0.25, 2.0])
    assert equal(pipe, plain, "a star", **call)


@dataclass(frozen=True)
class Towards:
    """A step down the gradient, through the network, of the squared distance to grey."""

    @property
    def gradient(self) -> bool:
        return True

    branches = ("conditional",)

    def start(self) -> Any:
        def guide(step: Any) -> torch.Tensor:
            x0 = step.x0(step.evaluate("conditional")[0])
            (gradient,) = torch.autograd.grad(x0.square().sum(), step.z)
            return x0 - gradient

        return guide


def test_callbacks_offload_gradients_and_shared_networks(
    counter: CompileCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, plain = small(), small()
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.compile(backend=counter)
    pipe.compile(backend=counter)  # takes the first one's place
    seen: list[int] = []

    def cut(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        pipe._guidance_scale = 2.0
        return {"z": tensors["z"] * 0.5}

    other = ImagenPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    for each in (pipe, other):
        assert equal(each, plain, "a star", callback_on_step_end=cut)
    assert seen == [0, 1] * 4
    assert 0 < counter.frame_count <= 2
    monkeypatch.setattr("imagen.cascade.runner.parse_guidance", lambda text: Towards())
    call = {"guidance_scale": 2.0}
    torch.testing.assert_close(sample(pipe, "a star", **call).images, sample(plain, "a star", **call).images)


def test_it_is_compiled_in_another_dtype_too(counter: CompileCounter) -> None:
    pipe, plain = small(), small()
    pipe.compile(backend=counter)
    for each in (pipe, plain):
        each.to(torch.bfloat16)
    assert equal(pipe, plain, "a star")
    assert counter.frame_count > 0


@pytest.mark.parametrize("whole", [True, False])
def test_cuda_graphs_are_told_where_a_network_is_called_again(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, plain, marks = small(), small(), [0]
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    pipe.compile(backend="eager", mode="reduce-overhead", whole=whole)
    for times in (1, 2):
        with Calls(pipe.base_unet) as calls:
            assert equal(pipe, plain, "a star")
        assert sum(marks) == times * (len(calls.samples) + len(calls.texts)) == times * 3
    pipe.compile(backend="eager")
    marks.clear()
    sample(pipe, "a star")
    assert not marks


def test_what_a_cuda_graph_made_is_copied_for_the_next_call_overwrites_it() -> None:
    buffer = torch.zeros(2)

    def compiled(value: float) -> TextContext:
        return TextContext(buffer.fill_(value), (buffer,), (buffer,), None)

    call = _kept(compiled)
    with torch.no_grad():
        first, second = call(1.0), call(2.0)
    assert [context.keys[0].tolist() for context in (first, second)] == [[1.0, 1.0], [2.0, 2.0]]
    assert isinstance(first, TextContext)
    assert call(3.0).pooled is buffer, "copies would keep gradients from where they belong"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda pipe: pipe.register_modules(base_unet=None), {}, "compile: this pipeline has no network"),
        (
            lambda pipe: setattr(pipe, "base_unet", torch.compile(pipe.base_unet, backend="eager")),
            {},
            r"compile: base_unet is wrapped by torch.compile; .* \(pipe.base_unet = pipe.base_unet._orig_mod\)",
        ),
        (
            lambda pipe: cpu_offload(pipe.base_unet, torch.device("cpu")),
            {},
            r"compile: the layers of base_unet are offloaded one by one; use enable_model_cpu_offload\(\)",
        ),
        (lambda pipe: None, {"mode": "fastest"}, "compile: torch.compile takes no such argument: .*fastest"),
        (lambda pipe: None, {"fast": True}, "compile: torch.compile takes no such argument: .*'fast'"),
        (lambda pipe: None, {"backend": "nvcc"}, "compile: torch.compile takes no such argument: .*nvcc"),
    ],
)
def test_what_cannot_be_compiled_is_told_in_a_line(change: Any, arguments: dict[str, Any], message: str) -> None:
    pipe = small()
    change(pipe)
    with pytest.raises(ValueError, match=message) as told:
        pipe.compile(**arguments)
    assert "\n" not in str(told.value)
    if arguments:
        assert all(module._compiled_call_impl is None for module in pipe.base_unet.modules())


def test_without_a_compiler_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    pipe, told = small(), r"^compile: no C\+\+ compiler is here, .* \(.*apt install g\+\+\), name .* CXX"
    # not by monkeypatch, which hides the setting for the whole process when it takes its own back
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(ValueError, match=told):
        pipe.compile()
    pipe.compile(backend="eager")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ValueError, match="compile: triton is not here or does not know this card; pip install triton"):
        check_compiler(torch.device("cuda"))


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_what_inductor_makes_draws_the_same_pictures(whole: bool) -> None:
    torch.compiler.reset()
    pipe, plain = small(), small()
    pipe.compile(whole=whole)
    for prompts in ("a red circle", ["a small blue star", "a red star"]):
        expected = sample(plain, prompts, generator=seeded(1)).images
        torch.testing.assert_close(sample(pipe, prompts, generator=seeded(1)).images, expected, atol=1e-4, rtol=1e-4)
