"""A device that is not the CPU, for machines that have none, and a spy on the host's waits for it.

torch keeps a key, ``PrivateUse1``, for backends of others, and lets one be written in Python. The tensors here say that
they lie on ``pretend:0``; what they hold lies on the CPU, where every operation is computed. As on CUDA

* tensors of two devices in one operation are an error (but for numbers, in elementwise operations),
* what needs a value or a copy makes the host wait for all that was asked of the device: each is noted, with the line of
  ours or of diffusers that asked (:func:`waits`). A copy to the device with ``non_blocking=True`` does not wait.

It is for a process of its own: :func:`register` renames a backend of torch, for good.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten

#: Copies, whose tensors may lie on two devices.
_TO, _COPY = aten._to_copy.default, aten.copy_.default
#: Indexing, which takes indices from the CPU, and copies them; by a mask it needs to know how many are set.
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
#: Not elementwise by their tags, and take a number from the CPU; elementwise, and take none.
FILLS, TERNARY = (aten.masked_fill_.Tensor, aten.fill_.Tensor), (aten.lerp.Tensor, aten.lerp_.Tensor)
#: Operations whose tag does not tell that they look at values.
LOOKS = (aten._linalg_check_errors.default,)

_noted: list[str] | None = None


class Far(Tensor):
    """A tensor of the pretended device; ``here`` is what it holds."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Far:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made: Far = Tensor._make_wrapper_subclass(cls, here.shape, device=torch.device(NAME, 0), **layout)  # type: ignore
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.here})"

    def tolist(self) -> Any:
        """torch has none for classes of others."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy; use Tensor.cpu() first")

    def untyped_storage(self) -> Any:
        """What files are written from."""
        return self.here.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.cpu().__reduce_ex__(protocol)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Sees what is made on the device without a tensor that lies there."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An operation on what the tensors hold; its results lie where torch's would."""
    given = [*_tensors(args), *_tensors(kwargs.values())]
    far = [value for value in given if type(value) is Far]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if not far and asked != NAME:
        return func(*args, **kwargs)
    near = [value for value in given if type(value) is not Far]
    _check(func, near, kwargs.get("generator"))
    if _noted is not None and _waits(func, args, kwargs, near, asked):
        _note(str(func))
    own = {id(value.here): value for value in far}
    given = _mapped(_held, kwargs) if kwargs else {}
    out = func(*_mapped(_held, args), **({**given, "device": "cpu"} if asked else given))
    if (func is _TO and asked == "cpu") or (func is _COPY and type(args[0]) is not Far):
        return out
    return _mapped(lambda value: own[id(value)] if id(value) in own else Far(value), out)


def _tensors(values: Iterable[Any]) -> list[Any]:
    """The tensors among the arguments of an operation, and in their lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Arguments or results, their tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_mapped(change, one) for one in value)
    return {name: _mapped(change, one) for name, one in value.items()} if isinstance(value, dict) else value


def _held(value: Any) -> Any:
    return value.here if isinstance(value, Far) else value


@cache
def _is(func: Any, *tags: torch.Tag) -> bool:
    return any(tag in func.tags for tag in tags)


def _check(func: Any, near: Sequence[Tensor], generator: Any) -> None:
    """Raises RuntimeError for what CUDA refuses: tensors of two devices, and the CPU's generator."""
    if near and func not in (_TO, _COPY, *INDEXED):
        arrays = [tensor for tensor in near if tensor.ndim or not (_is(func, torch.Tag.pointwise) or func in FILLS)]
        if arrays or func in TERNARY:
            shape = tuple((arrays or near)[0].shape)
            raise RuntimeError(f"{func}: expected all tensors on {NAME}:0, but one {shape} is on cpu")
    if generator is not None and generator._cdata not in _far_generators:
        raise RuntimeError(f"{func}: expected a generator of {NAME}:0 and found one of the cpu")


def _waits(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], near: Sequence[Tensor], asked: str | None
) -> bool:
    """Whether an operation makes the host wait for the device."""
    if func in INDEXED:
        indices = [index for index in args[1] if index is not None]
        filled = len(args) > 2 and args[2].numel() == 1  # of one number masked_fill is made
        masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not filled
        return masks or any(type(index) is not Far for index in indices)
    if func in (_TO, _COPY):
        back = asked not in (None, NAME) if func is _TO else type(args[0]) is not Far
        free = kwargs.get("non_blocking") or (func is _COPY and len(args) > 2 and args[2])
        return back or (bool(near) and not free)
    return _is(func, torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape) or func in LOOKS


def _note(what: str) -> None:
    """Adds a wait, with the innermost line of ours or of diffusers that led to it."""
    assert _noted is not None
    frame, place = sys._getframe(1), "?"
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT / "imagen") or file.is_relative_to(ROOT / "unets") or "diffusers" in file.parts:
            place = f"{'/'.join(file.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"
            break
        frame = frame.f_back
    _noted.append(f"{what} at {place}")


@contextmanager
def waits() -> Iterator[list[str]]:
    """The waits for the device while a `with` block runs."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


_torch_generator = torch.Generator
_far_generators: dict[int, Any] = {}


class _Kind(type(torch.Generator)):  # type: ignore[misc]
    """Of whatever generates numbers torch says that it is a Generator."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _torch_generator)


class FarGenerator(_torch_generator, metaclass=_Kind):
    """torch.Generator, which a backend in Python has none of: that of the pretended device draws as the CPU's does."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != NAME:
            return _torch_generator(device)
        made = super().__new__(cls)
        _far_generators[made._cdata] = made
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


def missing() -> str | None:
    """Why there can be no such device, or None."""
    if hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return None
    return f"torch {torch.__version__} has no backends written in Python"


def register() -> torch.device:
    """Make the device, for the rest of the process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)

    # torch.tensor(values, device=...) makes and fills its tensor beneath the modes

    @torch.library.impl("aten::empty_strided", "privateuseone")
    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return Far(torch.empty_strided(size, stride, dtype=dtype))

    @torch.library.impl("aten::empty.memory_format", "privateuseone")
    def empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        return Far(torch.empty(size, dtype=dtype))

    @torch.library.impl("aten::_copy_from", "privateuseone")
    def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
        if _noted is not None and not (non_blocking and isinstance(target, Far)):
            _note("copy")
        _held(target).copy_(_held(source))
        return target

    torch.Generator = FarGenerator  # type: ignore[misc]
    _Factories().__enter__()
    return torch.device(NAME, 0)
