"""Top-k and all: each item chooses a fixed number of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices

# Above this k one full sort costs less than k passes over the scores.
_MOST_PASSES = 8


def ordered_top(scores: Tensor, k: int) -> Tensor:
    """(T, k) indices of the k largest scores of each row, largest first, ties to the lower index.

    ``torch.topk`` leaves the order of ties open and is slow on short rows. Here each pass finds the maximum over the
    experts with plain comparisons, which a CPU runs for many items at once.
    """
    scores = scores.detach()
    if k > _MOST_PASSES:
        return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :k]
    columns, left = [], scores.T.contiguous()  # (E, T): the items lie side by side in memory
    if k > 1:  # a copy: what was taken becomes -inf below, and must differ from the rest
        left = left.clamp_min(torch.finfo(left.dtype).min)
    for rank in range(k):
        top = _first_maximum(left)
        columns.append(top)
        if rank + 1 < k:
            left.scatter_(0, top[None], -torch.inf)
    return torch.stack(columns).T


def _first_maximum(left: Tensor) -> Tensor:
    """(E, T) -> (T,): the row of each column's maximum, the first of equal ones; any row where a column holds NaN."""
    experts = left.shape[0]
    if not torch.compiler.is_compiling() and experts <= 16 and left.numel() <= 2**16:
        return left.max(0).indices  # fewest calls, but slow where rows are long
    is_top = torch.empty_like(left)  # comparisons are faster into floating-point numbers than into bool
    torch.eq(left, left.amax(0), out=is_top)
    countdown = torch.arange(experts - 1, -1, -1, device=left.device, dtype=left.dtype)[:, None]
    return (experts - 1 - is_top.mul_(countdown).amax(0)).to(torch.int64)


@dataclass(frozen=True)
class TopK:
    """Each item chooses its k best experts (Outrageously Large Neural Networks, 2017, arXiv 1701.06538)."""

    k: int
    needs = "order"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> pairs. RoutingError when k is not in 1..E."""
        return pairs_from_choices(ordered_top(choice, self.checked_k(choice.shape[-1])), inp.mask)

    def checked_k(self, experts: int, where: str = "selector TopK") -> int:
        """k, or RoutingError when there are fewer experts."""
        if not 1 <= self.k <= experts:
            raise RoutingError(f"k = {self.k} with {experts} experts", where=where, fix=f"choose k in 1..{experts}")
        return self.k


@dataclass(frozen=True)
class All:
    """Every item uses every expert: the dense mixture (Adaptive Mixtures of Local Experts, 1991)."""

    needs = "order"
    couples_items = False

    def __call__(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Scores (T, E) -> T x E pairs, ranked by score."""
        return pairs_from_choices(ordered_top(choice, choice.shape[-1]), inp.mask)
