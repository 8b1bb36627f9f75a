"""Where the masks of ToMoE (2025, arXiv 2501.15316) come from: a small network over the layers, and a draw.

Shapes: L layers, E experts, H neurons of a layer's FFN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError

TEMPERATURE, OFFSET = 0.4, 3.0  # of the source; the offset starts all masks open
MEDIAN = -math.log(math.log(2))  # of the Gumbel distribution


class MaskNetwork(nn.Module):
    """A bidirectional GRU over the layers of a model gives the mask logits of every expert.

    Its inputs are fixed random vectors, one per layer and expert; LayerNorm, GELU and a linear map of its own decode
    each layer's states.

    Args:
        neurons: H of each FFN, in the order of the layers.
        num_experts: E.
        width: of the states, a multiple of 4.
    """

    def __init__(self, neurons: Sequence[int], num_experts: int, *, width: int = 128) -> None:
        super().__init__()
        if not neurons or min(*neurons, num_experts) < 1 or width < 4 or width % 4:
            raise RoutingError(
                f"{num_experts} experts of FFNs with {list(neurons)} neurons, states of width {width}",
                where="MaskNetwork",
                fix="use at least one layer, expert and neuron, and a width that is a multiple of 4",
            )
        self.register_buffer("inputs", torch.randn(len(neurons), num_experts, width // 4))
        self.gru = nn.GRU(width // 4, width // 2, bidirectional=True)
        self.decoders = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, n, bias=False)) for n in neurons
        )

    def forward(self) -> list[Tensor]:
        """Logits (E, H) for each layer."""
        states, _ = self.gru(self.inputs)  # (L, E, width): the layers are the sequence
        return [decode(state) for decode, state in zip(self.decoders, states, strict=True)]


def sample_masks(
    logits: Tensor,
    *,
    temperature: float = TEMPERATURE,
    offset: float = OFFSET,
    hard: bool = True,
    noise: bool = True,
) -> Tensor:
    """Gumbel-sigmoid: ``sigmoid((logits + g + offset) / temperature)``, rounded with a straight-through gradient.

    Args:
        logits: (..., H).
        temperature, offset: as in the source.
        hard: 0 or 1, with the gradient of the unrounded value.
        noise: draw g from the Gumbel distribution, as while training. Else g is its median, so that a mask is open
            where most draws are. # code: draws here too.
    """
    if not temperature > 0:
        raise RoutingError(f"temperature {temperature}", where="sample_masks", fix="use a value above 0")
    gumbel = torch.full_like(logits, MEDIAN)
    if noise:  # code: one Gumbel draw; a binary choice would take the difference of two
        gumbel = -torch.empty_like(logits).exponential_().clamp_min(torch.finfo(logits.dtype).tiny).log()
    soft = torch.sigmoid((logits + gumbel + offset) / temperature)
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach()) if hard else soft
