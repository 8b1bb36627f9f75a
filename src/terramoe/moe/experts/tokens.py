"""Token experts: each expert is a learned table of tokens of low rank; an image gets a mixture of the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts.bank import Bank
from terramoe.moe.routing import Routing


class TokenBank(Bank):
    """E tables ``A_e B_e`` of m tokens, with A_e (m, R_e) and B_e (R_e, D); the ranks R_e may differ.

    Items are images in any form (T, ...). The router looks at them, the experts do not: expert e gives each image
    the same table (m, D), so a layer gives image t its table ``sum_e weight[t, e] A_e B_e``, (T, m, D). What attends
    to the tables is the system's.

    Every rank starts with entries of the same spread. The default run mixes all tables in one product, so every
    parameter must be finite, also those of experts that nobody chose.

    Args:
        num_experts: E.
        tokens: m.
        dim: channels D of a token.
        ranks: R_e of each expert, or one for all.
        std: spread of a table's entries at the start.

    Raises:
        RoutingError: a count below 1, another number of ranks.

    Sources: Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain Generalized Semantic
    Segmentation (Rein), 2024, arXiv 2312.04265; experts of different ranks: Land-MoE, 2025, arXiv 2505.14088.
    Reconstruction: the start, and that tables are mixed before they are attended to.
    """

    def __init__(
        self, num_experts: int, tokens: int, dim: int, ranks: int | Sequence[int], *, std: float = 0.02
    ) -> None:
        super().__init__()
        ranks = (ranks,) * num_experts if isinstance(ranks, int) else tuple(ranks)
        if min(num_experts, tokens, dim, *ranks, len(ranks)) < 1 or len(ranks) != num_experts:
            raise RoutingError(
                f"{num_experts} experts of {tokens} tokens and {dim} channels with ranks {ranks}",
                where="TokenBank",
                fix="use at least 1 of each and one rank per expert",
            )
        self.num_experts, self.tokens, self.dim, self.ranks = num_experts, tokens, dim, ranks
        self.a = nn.ParameterList(nn.Parameter(torch.randn(tokens, rank) / math.sqrt(rank)) for rank in ranks)
        self.b = nn.ParameterList(nn.Parameter(std * torch.randn(rank, dim)) for rank in ranks)

    def table(self, expert: int) -> Tensor:
        """The tokens (m, D) of one expert."""
        return self.a[expert] @ self.b[expert]

    def tables(self) -> Tensor:
        """All tokens, (E, m, D)."""
        return torch.stack([self.table(e) for e in range(self.num_experts)])

    def mix(self, weights: Tensor) -> Tensor:
        """Weights (T, E) -> the tables of T images (T, m, D)."""
        if weights.ndim != 2 or weights.shape[1] != self.num_experts:
            raise RoutingError(
                f"weights of shape {tuple(weights.shape)} for {self.num_experts} experts",
                where="TokenBank.mix",
                fix="give one weight per image and expert",
            )
        tables = self.tables()
        return torch.tensordot(weights.to(tables.dtype), tables, 1)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert's table for each image: (n, ...) -> (n, m, D)."""
        return self.table(expert).expand(x.shape[0], -1, -1)

    def run_all(self, x: Tensor) -> Tensor:
        """Every expert's table for each image: (T, ...) -> (E, T, m, D)."""
        return self.tables()[:, None].expand(-1, x.shape[0], -1, -1)

    def run_each(self, x: Tensor, expert: Tensor) -> Tensor:
        """Image i with the table of expert ``expert[i]``: (N, ...) -> (N, m, D)."""
        return self.tables()[expert]

    def run_padded(self, x: Tensor) -> Tensor:
        """Images already dealt to experts: (E, C, ...) -> (E, C, m, D)."""
        return self.tables()[:, None].expand(-1, x.shape[1], -1, -1)

    def run_routed(self, x: Tensor, routing: Routing) -> Tensor:
        """Images (T, ...) -> their mixed tables (T, m, D), without sorting; 0 for an image that reached no expert."""
        return self.mix(routing.dense())

    def expert_parameters(self, expert: int) -> int:
        """Number of scalars in one expert's parameters: R_e (m + D)."""
        return self.ranks[expert] * (self.tokens + self.dim)
