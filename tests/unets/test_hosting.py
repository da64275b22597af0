"""What users of diffusers expect of a model: attention backends that act or refuse, and outputs by name."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend

from tests.unets.helpers import draw, image_inputs, make, run
from unets.attention import TokenAttention, sdpa, xformers_attention

MATH = AttentionBackendName._NATIVE_MATH


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of diffusers' backends that ran, those that a test can run on a CPU."""
    ran: list[str] = []

    def noting(name: str, real: Any) -> Any:
        return lambda **given: ran.append(name) or real(**given)

    backends = _AttentionBackendRegistry._backends
    for name in (MATH, AttentionBackendName.FLEX):
        monkeypatch.setitem(backends, name, noting(name.value, backends[name]))
    return ran


@pytest.fixture(autouse=True)
def _nothing_stays_active() -> Iterator[None]:
    before, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    assert _AttentionBackendRegistry.get_active_backend()[0] is before


def layers(unet: Any) -> int:
    return sum(isinstance(module, TokenAttention) for module in unet.modules())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "efficient_cross", "dit"])
@pytest.mark.parametrize("backend", ["_native_math", "flex"])
def test_a_backend_acts_on_every_layer_until_it_is_reset(kind: str, backend: str, calls: list[str]) -> None:
    unet, other = make(kind), make(kind)
    expected = run(unet)
    assert calls == []
    unet.set_attention_backend(backend.upper())
    assert torch.allclose(run(unet), expected, rtol=1e-9)
    assert calls == [backend] * layers(unet)
    run(other)
    assert len(calls) == layers(unet), "another network was switched as well"
    unet.reset_attention_backend()
    assert torch.equal(run(unet), expected)
    assert len(calls) == layers(unet)
    with attention_backend("_native_math"):
        run(unet)
    assert calls[layers(unet) :] == ["_native_math"] * layers(unet), "it listens to the context again"


@torch.no_grad()
def test_a_network_whose_xformers_is_off_listens_to_the_context(calls: list[str]) -> None:
    unet = make("dit")
    unet.disable_xformers_memory_efficient_attention()
    with attention_backend("_native_math"):
        run(unet)
    assert calls == ["_native_math"] * layers(unet)


@torch.no_grad()
def test_the_context_manager_acts_on_networks_without_a_backend_of_their_own(calls: list[str]) -> None:
    unet, own = make("dit"), make("dit")
    own.set_attention_backend("native")
    expected = run(unet)
    with attention_backend("_native_math"):
        assert torch.allclose(run(unet), expected, rtol=1e-12)
        assert calls == ["_native_math"] * layers(unet)
        assert torch.equal(run(own), expected)
        assert torch.equal(run(copy.deepcopy(own)), expected)
        own.set_attention_backend("native")  # of this network alone: what is active for all others stays
        calls.clear()
        run(unet)
        assert calls == ["_native_math"] * layers(unet)
    assert torch.equal(run(unet), expected)
    assert len(calls) == layers(unet)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["_native_math", "native"])
def test_a_network_with_a_backend_is_compiled(backend: str) -> None:
    unet = make("dit", depth=1)
    expected = run(unet)
    unet.set_attention_backend(backend)
    torch.compiler.reset()
    assert torch.allclose(run(torch.compile(unet, backend="eager", fullgraph=True)), expected, rtol=1e-12)


@torch.no_grad()
def test_what_a_backend_cannot_take_is_said_in_one_line() -> None:
    unet = make("dit").to(torch.bfloat16)
    unet.set_attention_backend("_native_flash")
    said = (
        r"^attention backend '_native_flash' cannot attend to torch\.bfloat16 on cpu with a mask .*: `attn_mask` is "
        r'not supported .*; choose another, such as set_attention_backend\("native"\)$'
    )
    with pytest.raises(ValueError, match=said):
        run(unet)
    unet.float()
    with pytest.raises(ValueError, match=r"'_native_flash' cannot attend to torch\.float32 .*bfloat16 or float16"):
        unet(**image_inputs(unet), text=draw(3, 2, 3, 24))
    unet.set_attention_backend("_native_efficient")  # torch itself finds no kernel for it, in several lines
    with pytest.raises(ValueError, match=r"^attention backend '_native_efficient' cannot attend to [^\n]*$"):
        run(unet)
    unet.set_attention_backend("_native_flash")
    with pytest.raises(ValueError, match="backend is None; expected a name"):
        unet.set_attention_backend(None)
    with pytest.raises(ValueError, match="backend='fast'` must be one of"):
        unet.set_attention_backend("fast")
    with pytest.raises(ValueError, match="'_native_flash' cannot"):  # it stays what it was
        run(unet)


def test_xformers_is_asked_our_way_which_masks_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def instead(*given: Any) -> torch.Tensor:
        asked.append(given)
        return sdpa(*given)

    assert xformers_attention is not instead
    monkeypatch.setattr("unets.attention.xformers_attention", instead)
    unet = make("dit")
    expected = run(unet)
    for layer in (module for module in unet.modules() if isinstance(module, TokenAttention)):
        layer.set_backend("xformers")
    assert torch.equal(run(unet), expected)
    assert len(asked) == layers(unet)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_outputs_by_name(kind: str) -> None:
    unet = make(kind)
    given, text = image_inputs(unet), draw(3, 2, 3, 24)
    context = unet(text=text)
    expected = unet(**given, context=context)
    assert isinstance(expected, torch.Tensor)
    named = unet(**given, context=context, return_dict=True)
    assert torch.equal(named.sample, expected)
    assert torch.equal(named[0], expected)
    (alone,) = unet(**given, context=context, return_dict=False)
    assert torch.equal(alone, expected)
    for kept in (True, False):
        assert type(unet(text=text, return_dict=kept)) is type(context)


@torch.no_grad()
@pytest.mark.parametrize("kept", [True, False])
def test_outputs_by_name_of_compiled_and_exported_networks(kept: bool) -> None:
    unet = make("dit", depth=1)
    expected = run(unet)
    torch.compiler.reset()
    assert torch.equal(run(torch.compile(unet, backend="eager", fullgraph=True), return_dict=kept)[0], expected)
    given = {**image_inputs(unet), "text": draw(3, 2, 3, 24), "return_dict": kept}
    program = torch.export.export(unet, (), given)
    assert torch.allclose(program.module()(**given)[0], unet(**{**given, "return_dict": None}), rtol=1e-12)
