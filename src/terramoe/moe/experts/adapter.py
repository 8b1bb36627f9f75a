"""Bottleneck adapters as experts: small feed-forward nets that add nothing at the start."""

from __future__ import annotations

import torch
from torch import nn

from terramoe.moe.experts.ffn import StackedFFN


class AdapterBank(StackedFFN):
    """E adapters ``x -> act(x W_down + b) W_up`` of a narrow hidden width; W_up and its offset start at 0.

    ``h + layer(h)`` is then h itself at the start, whatever the routing. Source: Parameter-Efficient Transfer Learning
    for NLP, 2019, arXiv 1902.00751.

    Args:
        num_experts: E.
        dim: channels D.
        bottleneck: hidden width.
        activation: as in ``StackedFFN``.
        bias: whether the two matrices have offsets.
    """

    def __init__(
        self, num_experts: int, dim: int, bottleneck: int, activation: str = "gelu", *, bias: bool = True
    ) -> None:
        super().__init__(num_experts, dim, bottleneck, activation=activation, bias=bias)
        with torch.no_grad():
            nn.init.zeros_(self.w_out_EHD)
            if self.b_out_ED is not None:
                nn.init.zeros_(self.b_out_ED)
