"""What every bank of experts offers to the executors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing
from terramoe.moe.sorting import combine_rows, sort_pairs, take_rows


class Bank(nn.Module):
    """E functions of the same input and output shape. A subclass must give ``run``; the rest follows from it.

    Whatever else is here may be overridden by something faster; ``run_each`` exists only where the weights of single
    rows can be gathered.
    """

    num_experts: int

    def run(self, expert: int, x: Tensor) -> Tensor:
        """Apply one expert to its rows: (n, ..., D) -> (n, ..., D_out)."""
        raise RoutingError("this bank defines no experts", where=type(self).__name__, fix="override Bank.run")

    def run_sorted(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows sorted by expert, ``counts[e]`` of them for expert e: (N, ..., D) -> (N, ..., D_out)."""
        parts = [self.run(e, rows) for e, rows in enumerate(x.split(list(counts))) if rows.shape[0]]
        return torch.cat(parts) if parts else self.run(0, x)

    def run_all(self, x: Tensor) -> Tensor:
        """Every expert on every row: (T, ..., D) -> (E, T, ..., D_out)."""
        return torch.stack([self.run(e, x) for e in range(self.num_experts)])

    def run_each(self, x: Tensor, expert: Tensor) -> Tensor:
        """Row i by expert ``expert[i]``, with gathered weights: (N, ..., D) -> (N, ..., D_out)."""
        raise RoutingError(
            "the weights of this bank cannot be gathered row by row",
            where=type(self).__name__,
            fix="use the executor 'loop', 'grouped' or 'dense'",
        )

    def run_padded(self, x: Tensor) -> Tensor:
        """Rows already dealt to experts: (E, C, ..., D) -> (E, C, ..., D_out)."""
        return torch.stack([self.run(e, rows) for e, rows in enumerate(x)])

    def run_routed(self, x: Tensor, routing: Routing) -> Tensor:
        """Items (T, ..., D) -> sums of their experts' outputs with the routing's weights (T, ..., D_out); 0 if none."""
        pairs = sort_pairs(routing)
        return combine_rows(self.run_sorted(take_rows(x, pairs), pairs.counts), routing.weight, pairs)

    def expert_parameters(self, expert: int) -> int:
        """Number of scalars in one expert's parameters; equal shares unless a subclass knows better."""
        return sum(p.numel() for p in self.parameters()) // self.num_experts
