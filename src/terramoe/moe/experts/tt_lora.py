"""Low-rank updates held as tensor trains: fewer parameters than LoRA of the same reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts.bank import Bank


class TTLoRABank(Bank):
    """E experts ``x -> alpha * W_e x``, each W_e (D_out, D) a tensor train, 0 at the start.

    D = i_1 ... i_p and D_out = o_1 ... o_q are split into factors. An expert has p + q cores, first those of the input,
    then those of the output; core c has shape (r_{c-1}, s_c, r_c), with r_0 = r_{p+q} = 1. Rows are contracted with
    one core after the other; W_e itself is never built.

    Args:
        num_experts: E.
        in_shape: factors of D.
        out_shape: factors of D_out.
        rank: rank between two cores, cut where fewer suffice for any matrix.
        alpha: factor of the update.

    Raises:
        RoutingError: a count or factor below 1; rows of another width.

    Source: TT-LoRA MoE, 2025, arXiv 2504.21190. Reconstruction: cores start normal with a variance that keeps the
    scale of the row, but for the last, which is 0; ranks are cut at the two unfoldings' sizes.
    """

    def __init__(
        self, num_experts: int, in_shape: Sequence[int], out_shape: Sequence[int], rank: int, alpha: float = 1.0
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        if not self.in_shape or not self.out_shape or min(num_experts, rank, *self.in_shape, *self.out_shape) < 1:
            raise RoutingError(
                f"{num_experts} experts of rank {rank} over {self.in_shape} to {self.out_shape}",
                where="TTLoRABank",
                fix="use at least 1 of each, and at least one factor on either side",
            )
        self.num_experts, self.alpha = num_experts, alpha
        self.dim, self.dim_out = math.prod(self.in_shape), math.prod(self.out_shape)
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(num_experts, *shape))
            for shape in core_shapes((*self.in_shape, *self.out_shape), rank)
        )
        for place, core in enumerate(self.cores):
            summed = core.shape[1] * (core.shape[2] if place < len(self.in_shape) else 1)
            nn.init.normal_(core, std=1 / math.sqrt(summed))
        nn.init.zeros_(self.cores[-1])

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, ..., D) -> (n, ..., D_out)."""
        self.check_width(x)
        rows = contract(x.reshape(-1, self.dim), [core[expert] for core in self.cores], len(self.in_shape))
        return (rows * self.alpha).reshape(*x.shape[:-1], self.dim_out)

    def delta(self, expert: int) -> Tensor:
        """The update (D_out, D) of one expert, to add to ``nn.Linear.weight``."""
        return self.alpha * matrix_of([core[expert] for core in self.cores], len(self.in_shape))

    def merge(self, weights: Tensor | Sequence[float]) -> Tensor:
        """Mixture weights (E,) -> the mixture's update (D_out, D)."""
        if len(weights) != self.num_experts:
            raise RoutingError(
                f"{len(weights)} weights for {self.num_experts} experts",
                where="TTLoRABank.merge",
                fix="give one weight per expert",
            )
        return sum(weight * self.delta(expert) for expert, weight in enumerate(weights))

    @torch.no_grad()
    def set_delta(self, expert: int, delta: Tensor) -> None:
        """Make one expert the nearest train (``tt_svd``) to an update (D_out, D); exact where the rank suffices."""
        if delta.shape != (self.dim_out, self.dim):
            raise RoutingError(
                f"an update of shape {tuple(delta.shape)}, expected {(self.dim_out, self.dim)}",
                where="TTLoRABank.set_delta",
                fix="give a matrix of output by input channels",
            )
        ranks = [core.shape[-1] for core in self.cores[:-1]]
        for core, value in zip(
            self.cores, tt_svd(delta / self.alpha, self.in_shape, self.out_shape, ranks), strict=True
        ):
            core[expert].copy_(value)

    def check_width(self, x: Tensor) -> None:
        """RoutingError unless x (..., D) has this bank's input width."""
        if x.shape[-1] != self.dim:
            raise RoutingError(
                f"items have {x.shape[-1]} channels, the experts expect {self.dim}",
                where="TTLoRABank",
                fix="choose in_shape with the width of the input as its product",
            )


def core_shapes(sizes: Sequence[int], rank: int) -> list[tuple[int, int, int]]:
    """Shapes (r_{c-1}, s_c, r_c) of a train over ``sizes``; one expert has the sum of their products as parameters."""
    ranks = [min(rank, math.prod(sizes[:c]), math.prod(sizes[c:])) for c in range(len(sizes) + 1)]
    return [(ranks[c], size, ranks[c + 1]) for c, size in enumerate(sizes)]


def contract(x: Tensor, cores: Sequence[Tensor], num_in: int) -> Tensor:
    """Rows (n, D) through the cores (r, s, r') of one train, the first ``num_in`` over the input: (n, D_out)."""
    state = x[:, None]  # (n, r, what is left of the input)
    for core in cores[:num_in]:
        size = core.shape[1]
        state = torch.einsum("nrsm,rst->ntm", state.unflatten(2, (size, state.shape[2] // size)), core)
    state = state.transpose(1, 2)  # (n, output so far = 1, r)
    for core in cores[num_in:]:
        state = torch.einsum("nor,rst->nost", state, core).flatten(1, 2)
    return state.squeeze(2)


def matrix_of(cores: Sequence[Tensor], num_in: int) -> Tensor:
    """The matrix (D_out, D) of one train."""
    left = cores[0].new_ones(1, 1)
    for place, core in enumerate(cores):
        left = torch.einsum("ar,rst->ast", left, core).reshape(-1, core.shape[2])
        if place == num_in - 1:
            dim = left.shape[0]
    return left.reshape(dim, -1).T


def tt_svd(delta: Tensor, in_shape: Sequence[int], out_shape: Sequence[int], ranks: Sequence[int]) -> list[Tensor]:
    """Cores of the matrix (D_out, D) by singular value decompositions from left to right, ``ranks`` between them.

    Source: Tensor-Train Decomposition, 2011, DOI 10.1137/090752286.
    """
    sizes = (*in_shape, *out_shape)
    rest, rank, cores = delta.T.contiguous(), 1, []
    for size, most in zip(sizes[:-1], ranks, strict=True):
        u, s, v = torch.linalg.svd(rest.reshape(rank * size, -1), full_matrices=False)
        keep = min(most, s.numel())
        cores.append(u[:, :keep].reshape(rank, size, keep))
        rest, rank = s[:keep, None] * v[:keep], keep
    return [*cores, rest.reshape(rank, sizes[-1], 1)]
