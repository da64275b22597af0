"""The caller's callback as the sampling loop calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from imagen.diffusion.loop import LoopState

TENSORS = ("z", "x0")
"""What ``callback_on_step_end`` may ask for."""


def step_callback(
    pipe: Any, callback: Callable[..., dict[str, Any] | None] | None, names: Sequence[str]
) -> Callable[[LoopState], None]:
    """The caller's callback with its tensors (``names``), for the loop; it also carries a request to stop.

    Raises:
        ValueError: a tensor that no step has; when called, a callback's answer that is none.
    """
    unknown = [name for name in names if name not in TENSORS]
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs names {unknown[0]!r}; expected some of {', '.join(TENSORS)}"
        )

    def after_step(state: LoopState) -> None:
        if callback is not None:
            tensors = {name: getattr(state, name) for name in names}
            changed = callback(pipe, state.step, state.timestep, tensors)
            changed = {} if changed is None else changed
            if not isinstance(changed, Mapping) or not isinstance(changed.get("z", state.z), Tensor):
                found = type(changed.get("z") if isinstance(changed, Mapping) else changed).__name__
                raise ValueError(f'callback_on_step_end returned a {found}; expected None or {{"z": a tensor}}')
            if any(value is not tensors.get(name) for name, value in changed.items() if name != "z"):
                raise ValueError(f"callback_on_step_end returned {sorted(changed)}; only z can be replaced")
            state.z = changed.get("z", state.z)
        state.stop = pipe.interrupt

    return after_step
