"""What diffusers asks of a model beside its forward: attention backends by name, and outputs by name."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor, nn

from .attention import TokenAttention


@dataclass
class NetworkOutput(BaseOutput):
    """What ``return_dict=True`` returns, as diffusers' ``UNet2DConditionOutput``.

    Attributes:
        sample: (B, out_channels, H, W), the network's output.
    """

    sample: Tensor


def answer(out: Tensor, return_dict: bool | None) -> Tensor | tuple[Tensor] | NetworkOutput:
    """The output as it is asked for: None the tensor itself; as in diffusers, True by name and False in a tuple."""
    if return_dict is None:
        return out
    return NetworkOutput(out) if return_dict else (out,)


class BackendsMixin(nn.Module):
    """The attention backends of diffusers, for networks whose attention is :class:`TokenAttention`.

    In front of diffusers' ``ModelMixin`` among the bases, which acts on its own attention alone.
    """

    def set_attention_backend(self, backend: str) -> None:
        """Lets this network attend by one of diffusers' backends, such as "native", "flex" or "_native_math".

        This network alone: diffusers' own makes it the backend of all other models too. "native" is torch's
        ``scaled_dot_product_attention``, as it is without a call.

        Raises:
            ValueError: no such backend. RuntimeError: it needs a package or a device that is not there.
        """
        from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

        if not isinstance(backend, str):
            raise ValueError(f"backend is {backend!r}; expected a name, as native: reset_attention_backend() undoes it")
        active, _ = _AttentionBackendRegistry.get_active_backend()
        try:
            super().set_attention_backend(backend)  # type: ignore[misc]
        finally:
            _AttentionBackendRegistry.set_active_backend(active)
        self._set_backend(AttentionBackendName(backend.lower()))

    def reset_attention_backend(self) -> None:
        """Back to what is active: that of the context manager ``attention_backend``, of the environment, "native"."""
        super().reset_attention_backend()  # type: ignore[misc]
        self._set_backend(None)

    def _set_backend(self, backend: str | None) -> None:
        for layer in self.modules():
            if isinstance(layer, TokenAttention):
                layer.set_backend(backend)
