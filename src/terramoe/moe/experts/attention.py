"""Attention experts: each expert is one head's query and output projection; keys and values are shared."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing
from terramoe.moe.sorting import SortedPairs, combine_rows, sort_pairs, take_rows


class AttentionExperts(nn.Module):
    """Attention in which every token chooses its heads. Not a bank: each expert is split in two around the attention.

    ``map`` projects every (token, expert) pair to a query, the queries attend to the sequence's shared keys and
    values, and ``reduce`` projects the pairs' results back and adds them up with the weights of the same routing.

    Args:
        num_experts: E.
        dim: channels D of a token.
        head_dim: width of a head; all experts have the same.

    Raises:
        RoutingError: a count below 1; tokens of another width; a routing for other tokens or experts.

    Sources: Mixture of Attention Heads, 2022, arXiv 2210.05144; Mod-Squad, 2022, arXiv 2212.08066.
    """

    def __init__(self, num_experts: int, dim: int, head_dim: int) -> None:
        super().__init__()
        if min(num_experts, dim, head_dim) < 1:
            raise RoutingError(
                f"{num_experts} experts of width {head_dim} over {dim} channels",
                where="AttentionExperts",
                fix="use at least 1 of each",
            )
        self.num_experts, self.dim, self.head_dim = num_experts, dim, head_dim
        bound_in, bound_out = 1 / math.sqrt(dim), 1 / math.sqrt(head_dim)
        self.query_EDH = nn.Parameter(torch.empty(num_experts, dim, head_dim).uniform_(-bound_in, bound_in))
        self.output_EHD = nn.Parameter(torch.empty(num_experts, head_dim, dim).uniform_(-bound_out, bound_out))
        self.key_value = nn.Linear(dim, 2 * head_dim)

    def forward(self, x: Tensor, routing: Routing, mask: Tensor | None = None) -> Tensor:
        """Sequences (B, S, D), a routing for their B*S tokens in order, mask (B, S) of tokens that may be attended to.

        Returns (B, S, D), 0 where a token reached no expert. A sequence without any token to attend to gives 0 too.
        """
        self._check(x, routing)
        batch, length, _ = x.shape
        if mask is not None:  # a masked token may hold NaN, and 0 * NaN is not 0
            x = torch.where(mask[..., None], x, 0)
        key, value = self.key_value(x).chunk(2, dim=-1)
        queries = self.map(x.flatten(0, 1), routing)  # (slots, B*S, head)
        slots = queries.shape[0]
        queries = queries.view(slots, batch, length, -1).transpose(0, 1)  # heads of one sequence share key and value
        seen = None
        if mask is not None:  # a fully masked sequence attends to all its tokens, and its result is dropped
            seen = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        result = F.scaled_dot_product_attention(queries, key[:, None], value[:, None], seen)
        y = self.reduce(result.transpose(0, 1).reshape(slots, batch * length, -1), routing).view_as(x)
        return y if mask is None else y * mask.any(1).to(y.dtype)[:, None, None]

    def map(self, x: Tensor, routing: Routing) -> Tensor:
        """Tokens (T, D) -> queries (k, T, head): place (r, t) is the choice of rank r of token t, 0 without one."""
        pairs = sort_pairs(routing)
        queries = _run_sorted(take_rows(x, pairs), self.query_EDH, pairs)
        table = queries.new_zeros(max(1, routing.num_choices) * x.shape[0], self.head_dim)
        table = table.index_copy(0, _place(routing, pairs), queries)
        return table.unflatten(0, (max(1, routing.num_choices), x.shape[0]))

    def reduce(self, heads: Tensor, routing: Routing) -> Tensor:
        """Results (k, T, head) where ``map`` put their queries -> (T, D): sums with the routing's weights."""
        pairs = sort_pairs(routing)
        rows = heads.flatten(0, 1).index_select(0, _place(routing, pairs))
        return combine_rows(_run_sorted(rows, self.output_EHD, pairs), routing.weight, pairs)

    def _check(self, x: Tensor, routing: Routing) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise RoutingError(
                f"tokens have shape {tuple(x.shape)}, expected (sequences, tokens, {self.dim})",
                where="AttentionExperts",
                fix="give sequences of tokens, channels last",
            )
        tokens = x.shape[0] * x.shape[1]
        if routing.num_items != tokens or routing.num_experts != self.num_experts:
            raise RoutingError(
                f"the routing is for {routing.num_items} items and {routing.num_experts} experts, "
                f"there are {tokens} tokens and {self.num_experts} experts",
                where="AttentionExperts",
                fix="route the flattened tokens (B*S, D) over as many experts",
            )


def _run_sorted(rows: Tensor, weights: Tensor, pairs: SortedPairs) -> Tensor:
    """Rows (P, D) sorted by expert, one product with each expert's matrix (E, D, H) that has rows -> (P, H)."""
    parts = [part @ weights[e] for e, part in enumerate(rows.split(pairs.counts)) if part.shape[0]]
    return torch.cat(parts) if parts else rows @ weights[0]


def _place(routing: Routing, pairs: SortedPairs) -> Tensor:
    """Place of each sorted pair in the (rank, token) table."""
    return routing.rank.index_select(0, pairs.row) * routing.num_items + pairs.item
