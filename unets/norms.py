"""Group norm that keeps the dtype of what it norms."""

import math

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` (Wu & He 2018), whose statistics are float32's and whose output has the dtype of its input.

    Autocast has accelerators norm in float32 and hand that on: the activation behind it, the block's modulation and
    what is kept for the gradient then take twice the memory and time. A CPU's autocast leaves group norm alone, and
    its kernel takes float32 weights beside a picture in bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...) -> the same shape and dtype."""
        if x.dtype == self.weight.dtype or x.device.type == "cpu":
            return super().forward(x)
        return self.in_dtype_of(x)

    def in_dtype_of(self, x: Tensor) -> Tensor:
        """The norm of x, in its dtype, whatever autocast has others do."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        # not F.group_norm, which autocast takes for its own
        sizes = len(x), x.shape[1], math.prod(x.shape[2:])
        normed: Tensor = torch.native_group_norm(x.contiguous(), weight, bias, *sizes, self.num_groups, self.eps)[0]
        return normed
