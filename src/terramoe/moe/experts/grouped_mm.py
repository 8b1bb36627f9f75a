"""The fast path of the feed-forward bank on a GPU: PyTorch's grouped matrix multiplication over sorted rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from terramoe.moe.experts.activations import Activation
from terramoe.moe.experts.fused import Weights
from terramoe.moe.sorting import SortedPairs, combine_rows, take_rows


def grouped_ffn(x: Tensor, weight: Tensor, weights: Weights, pairs: SortedPairs, activation: Activation) -> Tensor:
    """Items (T, ..., D) and the record's weights (N,) -> (T, ..., O)."""
    rows = take_rows(x, pairs)
    per_expert = torch.tensor(pairs.counts, device=x.device) * x.shape[1:-1].numel()
    flat = rows.reshape(-1, x.shape[-1])
    hidden = activation.plain(_matmul(flat, weights.w_in, weights.b_in, per_expert))
    y = _matmul(hidden, weights.w_out, weights.b_out, per_expert)
    return combine_rows(y.reshape(*rows.shape[:-1], y.shape[-1]), weight, pairs)


def _matmul(x: Tensor, w: Tensor, b: Tensor | None, per_expert: Tensor) -> Tensor:
    """Rows (M, D) sorted by expert, w (E, D, H) -> (M, H). ``grouped_mm`` where it runs, one product each elsewhere."""
    if hasattr(F, "grouped_mm") and x.dtype == torch.bfloat16 and _aligned(x, w):
        y = F.grouped_mm(x, w, offs=per_expert.cumsum(0).to(torch.int32))
    else:
        parts = x.split(per_expert.tolist())
        y = torch.cat([part @ w[e] for e, part in enumerate(parts)])
    return y if b is None else y + b.repeat_interleave(per_expert, dim=0, output_size=x.shape[0])


def _aligned(x: Tensor, w: Tensor) -> bool:
    """grouped_mm wants rows of whole 16-byte units."""
    return x.shape[0] > 0 and all(n * x.element_size() % 16 == 0 for n in (x.shape[1], w.shape[2]))
