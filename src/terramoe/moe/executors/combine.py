"""The last step that executors share: weigh the experts' outputs and add them up per item."""

from __future__ import annotations

from torch import Tensor


def expand_like(weight: Tensor, y: Tensor) -> Tensor:
    """Weights (N,) shaped and typed so that they multiply y (N, ..., D)."""
    return weight.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def combine(y: Tensor, item: Tensor, weight: Tensor, num_items: int) -> Tensor:
    """Sum of ``weight[i] * y[i]`` into row ``item[i]``: (N, ..., D) -> (T, ..., D). Rows nobody reached are 0."""
    return y.new_zeros(num_items, *y.shape[1:]).index_add(0, item, expand_like(weight, y) * y)
