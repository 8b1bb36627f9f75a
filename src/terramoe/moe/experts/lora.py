"""A bank of low-rank updates: E LoRA experts beside one (usually frozen) linear layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts.bank import Bank
from terramoe.moe.products import many_by_few
from terramoe.moe.routing import Routing

# The one-product path multiplies with all E*R rows and moves each item once; the sorted path multiplies with k*R rows
# and moves each item k times. On a CPU the first wins while E*R is at most this many times k.
DENSE_ROWS_PER_CHOICE = 40


class LoRABank(Bank):
    """E experts ``x -> scale * B_e (A_e x)`` with A_e (R, D) and B_e (D_out, R), B zero at the start: the output is 0.

    Few experts of low rank are run without sorting: ``h = A_all x`` for all E*R rows in one product, ``h`` times the
    item's weight for its expert (0 where not chosen), and one product with all of B. Every weight must then be finite,
    also those of experts that nobody chose.

    Args:
        num_experts: E.
        dim: input channels D.
        dim_out: output channels.
        rank: R of each expert.
        alpha: numerator of the scale; twice the rank unless given.
        shared_a: one A for all experts, as in HydraLoRA (2024, arXiv 2404.19245).
        rs_scaling: scale alpha / sqrt(R), else alpha / R.

    Raises:
        RoutingError: a count below 1; rows of another width.

    Sources: LoRA, 2021, arXiv 2106.09685; A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv
    2312.03732.
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        dim_out: int,
        rank: int,
        alpha: float | None = None,
        *,
        shared_a: bool = False,
        rs_scaling: bool = True,
    ) -> None:
        super().__init__()
        if min(num_experts, dim, dim_out, rank) < 1:
            raise RoutingError(
                f"{num_experts} experts of rank {rank} from {dim} to {dim_out} channels",
                where="LoRABank",
                fix="use at least 1 of each",
            )
        self.num_experts, self.dim, self.dim_out, self.rank = num_experts, dim, dim_out, rank
        self.shared_a = shared_a
        self.scale = (2 * rank if alpha is None else alpha) / (math.sqrt(rank) if rs_scaling else rank)
        self.a_ERD = nn.Parameter(torch.empty(1 if shared_a else num_experts, rank, dim))
        self.b_ERO = nn.Parameter(torch.zeros(num_experts, rank, dim_out))
        bound = 1 / math.sqrt(dim)
        nn.init.uniform_(self.a_ERD, -bound, bound)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, ..., D) -> (n, ..., D_out)."""
        self.check_width(x)
        return (x @ self._a(expert).T) @ (self.b_ERO[expert] * self.scale)

    def run_all(self, x: Tensor) -> Tensor:
        """Every expert on every row: (T, ..., D) -> (E, T, ..., D_out)."""
        self.check_width(x)
        hidden = x.reshape(-1, self.dim) @ self.a_ERD.mT  # (E or 1, rows, R)
        return (hidden @ (self.b_ERO * self.scale)).reshape(self.num_experts, *x.shape[:-1], self.dim_out)

    def run_each(self, x: Tensor, expert: Tensor) -> Tensor:
        """Row i by expert ``expert[i]``: (N, ..., D) -> (N, ..., D_out). Holds N copies of the weights."""
        self.check_width(x)
        rows = x.flatten(1, -2) if x.ndim > 2 else x[:, None]  # (N, rows, D)
        hidden = rows @ (self.a_ERD[0].T if self.shared_a else self.a_ERD[expert].mT)
        return (hidden @ (self.b_ERO[expert] * self.scale)).reshape(*x.shape[:-1], self.dim_out)

    def run_padded(self, x: Tensor) -> Tensor:
        """Rows already dealt to experts: (E, C, ..., D) -> (E, C, ..., D_out)."""
        self.check_width(x)
        hidden = x.reshape(self.num_experts, -1, self.dim) @ self.a_ERD.mT
        return (hidden @ (self.b_ERO * self.scale)).reshape(*x.shape[:-1], self.dim_out)

    def run_routed(self, x: Tensor, routing: Routing) -> Tensor:
        """Items (T, ..., D) -> weighted sums (T, ..., D_out), by the cheaper of two ways."""
        self.check_width(x)
        choices = max(1, routing.item.numel()) / max(1, routing.num_items)
        if self.num_experts * self.rank > DENSE_ROWS_PER_CHOICE * choices:
            return super().run_routed(x, routing)
        if routing.fixed_k is None or not bool(routing.kept.all()):  # an item that nobody takes may hold NaN
            reached = x.new_zeros(x.shape[0], dtype=torch.bool).index_fill_(0, routing.item[routing.kept], True)
            x = torch.where(reached.view(-1, *[1] * (x.ndim - 1)), x, 0)
        return self.run_dense(x, routing.dense().T)

    def run_dense(self, x: Tensor, weight_ET: Tensor) -> Tensor:
        """Items (T, ..., D), weights (E, T) with 0 where an expert was not chosen -> (T, ..., D_out). No sorting."""
        rows = x.reshape(-1, self.dim)
        hidden = many_by_few(rows, self.a_ERD.flatten(0, 1).T)
        if self.shared_a:
            hidden = hidden.repeat(1, self.num_experts)
        # Each weight stands R times beside the next: a product with ones does that faster than an expanded copy.
        spread_EF = torch.eye(self.num_experts, dtype=x.dtype, device=x.device).repeat_interleave(self.rank, dim=1)
        weight_TF = (weight_ET * self.scale).to(x.dtype).T @ spread_EF
        hidden = (hidden.unflatten(0, (x.shape[0], x.shape[1:-1].numel())) * weight_TF[:, None]).flatten(0, 1)
        return many_by_few(hidden, self.b_ERO.flatten(0, 1)).view(*x.shape[:-1], self.dim_out)

    def merge(self, weights: Tensor | Sequence[float]) -> Tensor:
        """Mixture weights (E,) -> their update (D_out, D) to add to ``nn.Linear.weight``; its rank is at most E*R."""
        weights = torch.as_tensor(weights, dtype=self.b_ERO.dtype, device=self.b_ERO.device)
        if weights.shape != (self.num_experts,):
            raise RoutingError(
                f"weights of shape {tuple(weights.shape)} for {self.num_experts} experts",
                where="LoRABank.merge",
                fix="give one weight per expert",
            )
        a_ERD = self.a_ERD.expand(self.num_experts, -1, -1)
        return torch.einsum("ero,erd->od", self.b_ERO * (weights * self.scale)[:, None, None], a_ERD)

    def check_width(self, x: Tensor) -> None:
        """RoutingError unless x (..., D) has this bank's input width."""
        if x.shape[-1] != self.dim:
            raise RoutingError(
                f"items have {x.shape[-1]} channels, the experts expect {self.dim}",
                where="LoRABank",
                fix="build the bank with the width of its input",
            )

    def _a(self, expert: int) -> Tensor:
        return self.a_ERD[0 if self.shared_a else expert]
