"""Weighing: how a chosen pair gets its combine weight. ``(probs, logits, pairs) -> weight (N,)``.

``raw`` is the safe default: with one expert per item, ``renormalised`` and ``softmax_selected`` give the constant 1,
so that no task gradient reaches the router (a defect of several released systems).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.moe.selectors.pairs import Pairs


def raw(probs: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """The probability itself (Switch Transformers, 2021, arXiv 2101.03961)."""
    return pairs.take(probs)


def renormalised(probs: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """Probabilities divided by their sum over the item's chosen experts (GShard, 2020, arXiv 2006.16668)."""
    chosen = pairs.take(probs)
    return chosen / pairs.total(chosen, probs.shape[0]).clamp_min(torch.finfo(chosen.dtype).tiny)


def softmax_selected(probs: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """Softmax over the chosen logits only (noisy top-k gating, 2017, arXiv 1701.06538).

    Equal to ``renormalised`` when the link is softmax, and stable for large logits.
    """
    chosen = pairs.take(logits)
    top = torch.full_like(logits[:, 0], -torch.inf).scatter_reduce(0, pairs.item, chosen.detach(), "amax")
    exp = torch.exp(chosen - top[pairs.item])
    return exp / pairs.total(exp, logits.shape[0])


def ones(probs: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """Weight 1 for every chosen expert: the outputs are summed, and the router gets no task gradient."""
    return probs.new_ones(pairs.item.shape)


@dataclass(frozen=True)
class Scaled:
    """Another weighing times a constant (the routed scaling factor of DeepSeek-V3, 2024, arXiv 2412.19437)."""

    inner: Callable[[Tensor, Tensor, Pairs], Tensor]
    factor: float

    def __call__(self, probs: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
        """(probs, logits, pairs) -> weight (N,)."""
        return self.inner(probs, logits, pairs) * self.factor


def sigmoid_of_logit(probs: Tensor, logits: Tensor, pairs: Pairs) -> Tensor:
    """sigmoid of the chosen logit (BASE Layers, 2021, arXiv 2103.16716)."""
    return torch.sigmoid(pairs.take(logits))
