"""Masked items as zeros, before anything reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.executors.combine import expand_like


def zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Items (T, ..., D) with zeros where mask (T,) is False: they may hold NaN, and 0 * NaN is not 0.

    It must come before routers and norms too, whose gradients multiply an item with 0.
    """
    return x if mask is None else torch.where(expand_like(mask, x).bool(), x, torch.zeros_like(x))
