"""Whether a tensor that was handed out came back changed, asked without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Handed:
    """A tensor given to somebody who may change it in place or give back another.

    Comparing values would synchronise with the device. torch counts the changes in place of a tensor and of its views;
    one through ``z.data`` or ``z.numpy()`` is not counted and goes unseen.

    Args:
        z: what is given out, as ``self.z``: a copy of a tensor made in inference mode, of which nothing is counted.
    """

    def __init__(self, z: Tensor) -> None:
        if z.is_inference():
            with torch.inference_mode(False):
                z = z.clone()
        self.z, self._version = z, z._version

    def changed(self, z: Tensor) -> bool:
        """Whether ``z``, which came back, is another tensor or was changed.

        Raises:
            ValueError: it has another shape.
        """
        if z.shape != self.z.shape:
            raise ValueError(f"the callback made z {tuple(z.shape)}; expected {tuple(self.z.shape)}, as it was")
        return z is not self.z or z._version != self._version
