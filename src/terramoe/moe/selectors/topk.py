"""Top-k and all: each item chooses a fixed number of experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.selectors.pairs import Pairs, pairs_from_choices


def ordered_top(scores: Tensor, k: int) -> Tensor:
    """(T, k) indices of the k largest scores of each row, largest first, ties to the lower index.

    ``torch.topk`` leaves the order of ties open. ``argmax`` does not, and for the few experts that an item uses k
    passes of it are also faster on a CPU.
    """
    if k > 4:
        return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :k]
    scores, columns = scores.detach(), []
    for _ in range(k):
        columns.append(scores.argmax(-1))
        scores = scores.scatter(1, columns[-1][:, None], -torch.inf)
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class TopK:
    """Each item chooses its k best experts (Outrageously Large Neural Networks, 2017, arXiv 1701.06538)."""

    k: int
    couples_items = False

    def __call__(self, choice: Tensor, mask: Tensor | None = None) -> Pairs:
        """Scores (T, E) -> pairs. RoutingError when k is not in 1..E."""
        experts = choice.shape[-1]
        if not 1 <= self.k <= experts:
            raise RoutingError(
                f"k = {self.k} with {experts} experts", where="selector TopK", fix=f"choose k in 1..{experts}"
            )
        return pairs_from_choices(ordered_top(choice, self.k), mask)


@dataclass(frozen=True)
class All:
    """Every item uses every expert: the dense mixture (Adaptive Mixtures of Local Experts, 1991)."""

    couples_items = False

    def __call__(self, choice: Tensor, mask: Tensor | None = None) -> Pairs:
        """Scores (T, E) -> T x E pairs, ranked by score."""
        return pairs_from_choices(ordered_top(choice, choice.shape[-1]), mask)
