"""Link functions: logits (T, E) -> probabilities or scores (T, E). Each works row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(logits: Tensor) -> Tensor:
    """Probabilities that sum to 1 over the experts."""
    return torch.softmax(logits.T, dim=0).T  # over the first dimension it runs for many items at once


def sigmoid(logits: Tensor) -> Tensor:
    """Independent scores in (0, 1); rows do not sum to 1."""
    return torch.sigmoid(logits)
