"""Output channels of one convolution as experts: gates scale them, and channels of gate 0 need not be computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe.experts.bank import Bank
from terramoe.moe.routing import Routing


class ChannelBank(Bank):
    """E = channels_out experts; expert c is output channel c of one convolution over images (T, H, W, C).

    Outputs stand beside each other instead of being added: an expert's output (n, H', W', E) is 0 outside its channel,
    so that every executor gives ``gates * conv(x)``. ``run_gated`` gives the same without the zeros. A ReLU link and a
    selector that takes every positive gate make the layer of DeepMoE.

    Args:
        channels: input channels C.
        channels_out: output channels, which are the experts.
        kernel: size of the square kernel.
        stride: as in ``nn.Conv2d``; the padding keeps the size of an odd kernel at stride 1.
        bias: whether a channel has an offset (the gate scales it too).

    Source: DeepMoE: Deep Mixture of Experts via Shallow Embedding, 2018, arXiv 1806.01531.
    """

    def __init__(
        self, channels: int, channels_out: int, kernel: int = 3, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        if min(channels, channels_out, kernel, stride) < 1:
            raise RoutingError(
                f"{channels} to {channels_out} channels with kernel {kernel}",
                where="ChannelBank",
                fix="use at least 1 of each",
            )
        self.num_experts, self.channels, self.stride, self.padding = channels_out, channels, stride, (kernel - 1) // 2
        bound = 1 / math.sqrt(channels * kernel * kernel)
        self.weight_EIKK = nn.Parameter(torch.empty(channels_out, channels, kernel, kernel).uniform_(-bound, bound))
        self.bias_E = nn.Parameter(torch.empty(channels_out).uniform_(-bound, bound)) if bias else None

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One channel in its place among zeros: (n, H, W, C) -> (n, H', W', E)."""
        y = self.run_channels(x, torch.tensor([expert], device=x.device))
        return F.pad(y, (expert, self.num_experts - 1 - expert))

    def run_channels(self, x: Tensor, channels: Tensor) -> Tensor:
        """Only the given output channels (m,): (n, H, W, C) -> (n, H', W', m)."""
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise RoutingError(
                f"items have shape {tuple(x.shape)}, expected (images, height, width, {self.channels})",
                where="ChannelBank",
                fix="give whole images as items, channels last, and build the bank with their channels",
            )
        bias = None if self.bias_E is None else self.bias_E[channels]
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight_EIKK[channels], bias, self.stride, self.padding)
        return y.permute(0, 2, 3, 1)

    def run_gated(self, x: Tensor, gates: Tensor, *, sliced: bool = True) -> Tensor:
        """Images (T, H, W, C), gates (T, E) >= 0 -> gates * conv(x), (T, H', W', E).

        With ``sliced`` a channel whose gate is 0 for every image of the batch is not computed; the result is the same.
        For one image at a time that is all the work there is to save.
        """
        if gates.shape != (x.shape[0], self.num_experts):
            raise RoutingError(
                f"gates of shape {tuple(gates.shape)}, expected {(x.shape[0], self.num_experts)}",
                where="ChannelBank",
                fix="give one gate per image and output channel",
            )
        if not sliced:
            return self.run_channels(x, torch.arange(self.num_experts, device=x.device)) * gates[:, None, None]
        used = (gates != 0).any(0).nonzero().squeeze(1)
        if not used.numel():  # one channel tells the shape, and its gate is 0
            used = used.new_zeros(1)
        y = self.run_channels(x, used) * gates[:, used][:, None, None]
        return y.new_zeros(*y.shape[:-1], self.num_experts).index_copy(-1, used, y)

    def run_routing(self, x: Tensor, routing: Routing) -> Tensor:
        """The same with the gates of a routing record: kept weights, 0 elsewhere."""
        return self.run_gated(x, routing.dense().to(x.dtype))


def freeze_gates(gate: nn.Module) -> list[str]:
    """DeepMoE's second stage: stop training a gate network, so that the sparsity stays while the rest is fine-tuned.

    Returns the names of the parameters that were trained until now. Batch statistics stop too: the module goes into
    evaluation mode (and back, should anybody call ``train()`` on its parent).
    """
    frozen = [name for name, parameter in gate.named_parameters() if parameter.requires_grad]
    gate.requires_grad_(False).eval()
    return frozen
