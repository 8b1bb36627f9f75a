"""Link functions: logits (T, E) -> probabilities or scores (T, E). Each works row by row and is increasing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.errors import RoutingError


def softmax(logits: Tensor) -> Tensor:
    """Probabilities that sum to 1 over the experts."""
    return torch.softmax(logits.T, dim=0).T  # over the first dimension it runs for many items at once


def sigmoid(logits: Tensor) -> Tensor:
    """Independent scores in (0, 1); rows do not sum to 1."""
    return torch.sigmoid(logits)


def relu(logits: Tensor) -> Tensor:
    """Gates that are exactly zero below zero (DeepMoE: Deep Mixture of Experts via Shallow Embedding, 2018, arXiv
    1806.01531)."""
    return torch.relu(logits)


def identity(logits: Tensor) -> Tensor:
    """The logits themselves, where they are norms or weights already."""
    return logits


@dataclass(frozen=True)
class Tempered:
    """softmax(logits / temperature): near 0 one expert, at infinity all alike."""

    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RoutingError(f"temperature {self.temperature}", where="Tempered", fix="use a value above 0")

    def __call__(self, logits: Tensor) -> Tensor:
        """(T, E) -> (T, E)."""
        return softmax(logits / self.temperature)


def sparsemax(logits: Tensor) -> Tensor:
    """The nearest point of the probability simplex: sums to 1, with exact zeros for low logits.

    Source: From Softmax to Sparsemax, 2016, arXiv 1602.02068.
    """
    finite = torch.where(logits.isinf(), torch.finfo(logits.dtype).min / 4, logits)
    z = finite.sort(-1, descending=True).values
    z = z - z[..., :1].detach()
    rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    total = z.cumsum(-1)
    support = (1 + rank * z > total).sum(-1, keepdim=True)
    threshold = (total.gather(-1, support - 1) - 1) / support
    return torch.relu(finite - finite.amax(-1, keepdim=True).detach() - threshold)
