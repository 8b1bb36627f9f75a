"""A bank of convolution experts: whole images are the items, and each goes to a few of the experts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe.experts.bank import Bank


class ConvBank(Bank):
    """E two-dimensional convolutions with stacked weights; items are images (T, H, W, C), channels last.

    An expert that no image chose is not computed. Each expert starts as its own ``nn.Conv2d`` would.

    Args:
        num_experts: E.
        channels: input channels C.
        channels_out: output channels.
        kernel: size of the square kernel.
        stride, padding, dilation, groups: as in ``nn.Conv2d``; the padding keeps the size of an odd kernel at stride 1
            unless given.
        bias: whether each expert has an offset per output channel.

    Raises:
        RoutingError: a count below 1, groups that do not divide the channels, or items that are no such images.

    Sources: DeepMoE, 2018, arXiv 1806.01531; Soft Conditional Computation (CondConv), 2019, arXiv 1904.04971.
    """

    def __init__(
        self,
        num_experts: int,
        channels: int,
        channels_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if min(num_experts, channels, channels_out, kernel, stride, dilation, groups) < 1:
            raise RoutingError(
                f"{num_experts} experts from {channels} to {channels_out} channels with kernel {kernel}",
                where="ConvBank",
                fix="use at least 1 of each",
            )
        if channels % groups or channels_out % groups:
            raise RoutingError(
                f"{groups} groups do not divide {channels} and {channels_out} channels",
                where="ConvBank",
                fix="use a number of groups that divides both",
            )
        self.num_experts, self.channels, self.channels_out, self.kernel = num_experts, channels, channels_out, kernel
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = dilation * (kernel - 1) // 2 if padding is None else padding
        fan_in = channels // groups * kernel * kernel
        bound = 1 / math.sqrt(fan_in)
        weight = torch.empty(num_experts, channels_out, channels // groups, kernel, kernel)
        self.weight_EOIKK = nn.Parameter(weight.uniform_(-bound, bound))
        self.bias_EO = nn.Parameter(torch.empty(num_experts, channels_out).uniform_(-bound, bound)) if bias else None

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, H, W, C) -> (n, H', W', C_out)."""
        return self._convolve(x, self.weight_EOIKK[expert], None if self.bias_EO is None else self.bias_EO[expert])

    def run_all(self, x: Tensor) -> Tensor:
        """Every expert on every image: (T, H, W, C) -> (E, T, H', W', C_out), in one convolution."""
        if self.groups > 1:  # stacked output channels would fall into other groups
            return super().run_all(x)
        bias = None if self.bias_EO is None else self.bias_EO.flatten()
        y = self._convolve(x, self.weight_EOIKK.flatten(0, 1), bias)
        return y.unflatten(-1, (self.num_experts, self.channels_out)).movedim(-2, 0)

    def merge(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mixture weights (E,) -> kernel (C_out, C / groups, K, K) and offset of the one convolution equal to it."""
        if len(weights) != self.num_experts:
            raise RoutingError(
                f"{len(weights)} weights for {self.num_experts} experts",
                where="ConvBank.merge",
                fix="give one weight per expert",
            )
        kernel = torch.einsum("e,eoikl->oikl", weights, self.weight_EOIKK)
        return kernel, None if self.bias_EO is None else weights @ self.bias_EO

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise RoutingError(
                f"items have shape {tuple(x.shape)}, expected (images, height, width, {self.channels})",
                where="ConvBank",
                fix="give whole images as items, channels last, and build the bank with their channels",
            )
        # Channels-last images seen as (T, C, H, W) are the memory format that convolutions run best on.
        image = x.permute(0, 3, 1, 2)
        y = F.conv2d(image, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y.permute(0, 2, 3, 1)
