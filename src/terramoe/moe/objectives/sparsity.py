"""Objectives that ask for few open gates and few active neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.objectives.reductions import at_least_float32, mean_over
from terramoe.moe.routing import Routing


def gate_l1(routing: Routing) -> Tensor:
    """Sum of |gate| over the experts, mean over valid items (Deep Mixture of Experts via Shallow Embedding, 2018,
    arXiv 1806.01531).

    For links that may close a gate, such as relu. Under softmax it is the constant 1 and moves nothing.
    """
    return mean_over(routing.valid(), routing.probs.abs().sum(-1))


def hoyer_square(activations: Tensor) -> Tensor:
    """(sum |a|)^2 / sum a^2 over the last dimension, mean over the rows: 1 (one active neuron) to d (all alike).

    Unchanged by the scale of a row. A row of zeros counts as 0. Exploiting Activation Sparsity with Dense to
    Dynamic-k Mixture-of-Experts Conversion, 2023, arXiv 2310.04361.

    Args:
        activations: (..., d), the hidden activations of a feed-forward block.
    """
    a = at_least_float32(activations)
    largest = a.detach().abs().amax(-1, keepdim=True)
    a = a / torch.where(largest > 0, largest, 1.0)  # the value does not depend on it, and squares stay in range
    squares = a.square().sum(-1)
    return (a.abs().sum(-1).square() / torch.where(squares > 0, squares, 1.0)).mean()
