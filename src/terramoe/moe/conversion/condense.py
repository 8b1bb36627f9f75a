"""Condensation: matrices of experts replaced by their best approximations of a lower rank.

Shapes: E experts, D in, H hidden, O out, R rank. The given modules are left as they are. Sources: RingMoE, 2025, arXiv
2504.03166; The approximation of one matrix by another of lower rank, 1936, DOI 10.1007/BF02288367.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts import Bank, ModuleBank, StackedFFN
from terramoe.moe.experts.activations import get_activation


class Factors(NamedTuple):
    """Matrices (..., D, R) and (..., R, H) whose product approximates (..., D, H).

    ``error`` (...,) is the Frobenius norm of the difference: the root of the sum of the squared singular values that
    were left out.
    """

    left: Tensor
    right: Tensor
    error: Tensor


@torch.no_grad()
def low_rank(matrix: Tensor, rank: int) -> Factors:
    """The best approximation of rank ``rank`` of each matrix (..., D, H); the singular values go to the left half.

    Raises:
        RoutingError: not a matrix, not finite, or a rank outside 1..min(D, H).
    """
    _check(matrix)
    _check_rank(rank, min(matrix.shape[-2:]), "low_rank")
    u, s, vh = torch.linalg.svd(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), full_matrices=False)
    left, right = u[..., :rank] * s[..., None, :rank], vh[..., :rank, :]
    return Factors(left.to(matrix.dtype), right.to(matrix.dtype), s[..., rank:].square().sum(-1).sqrt())


@torch.no_grad()
def rank_for_energy(matrix: Tensor, energy: float) -> int:
    """The least rank, at least 1, that holds a share ``energy`` of the squared singular values of every (..., D, H).

    ``energy`` = 1 gives the numerical rank.
    """
    _check(matrix)
    if not 0 < energy <= 1:
        raise RoutingError(f"energy {energy}", where="rank_for_energy", fix="use 0 < energy <= 1")
    values = torch.linalg.svdvals(matrix.double()).reshape(-1, min(matrix.shape[-2:]))
    noise = values[:, :1] * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    squares = torch.where(values > noise, values, 0).square()
    left_out = squares.flip(-1).cumsum(-1).flip(-1)  # what rank r leaves out stands at place r
    enough = left_out <= (1 - energy) * left_out[:, :1]
    needed = torch.where(enough.any(-1), enough.int().argmax(-1), values.shape[-1])
    return max(1, int(needed.max()))


class LowRankFFN(Bank):
    """E experts ``x -> act(x U1 V1 + b1) U2 V2 + b2``: a ``StackedFFN`` whose matrices are products of rank R.

    Args:
        bank: the experts to approximate.
        rank: R, at most the least width of either matrix.

    ``errors`` (E, 2) are the Frobenius errors of the two matrices of each expert.
    """

    errors: Tensor

    def __init__(self, bank: StackedFFN, rank: int) -> None:
        super().__init__()
        if not isinstance(bank, StackedFFN):
            raise RoutingError(f"cannot condense a {type(bank).__name__}", where="LowRankFFN", fix="use a StackedFFN")
        w = bank.weights()
        _check_rank(rank, min(*w.w_in.shape[1:], *w.w_out.shape[1:]), "LowRankFFN")
        first, second = low_rank(w.w_in.detach(), rank), low_rank(w.w_out.detach(), rank)
        self.num_experts, self.dim, self.hidden, self.rank = bank.num_experts, bank.dim, bank.hidden, rank
        self.activation = get_activation(bank.activation_name)
        self.left_in_EDR, self.right_in_ERH = nn.Parameter(first.left), nn.Parameter(first.right.contiguous())
        self.left_out_EHR, self.right_out_ERO = nn.Parameter(second.left), nn.Parameter(second.right.contiguous())
        self.b_in_EH = None if w.b_in is None else nn.Parameter(w.b_in.detach().clone())
        self.b_out_EO = None if w.b_out is None else nn.Parameter(w.b_out.detach().clone())
        self.register_buffer("errors", torch.stack([first.error, second.error], dim=-1))

    def run(self, expert: int, x: Tensor) -> Tensor:
        """One expert: (n, ..., D) -> (n, ..., O)."""
        if x.shape[-1] != self.dim:
            raise RoutingError(
                f"items have {x.shape[-1]} channels, the experts expect {self.dim}",
                where="LowRankFFN",
                fix="build the bank with the width of its input",
            )
        hidden = x @ self.left_in_EDR[expert] @ self.right_in_ERH[expert]
        hidden = self.activation.plain(hidden if self.b_in_EH is None else hidden + self.b_in_EH[expert])
        y = hidden @ self.left_out_EHR[expert] @ self.right_out_ERO[expert]
        return y if self.b_out_EO is None else y + self.b_out_EO[expert]


def condense_linear(linear: nn.Linear, rank: int) -> nn.Sequential:
    """Two linear layers (in -> R without offset, R -> out) in place of one: R (in + out) + out scalars."""
    factors = low_rank(linear.weight.detach().T, rank)  # x W^T = (x left) right
    down = nn.Linear(linear.in_features, rank, bias=False).to(linear.weight)
    up = nn.Linear(rank, linear.out_features, bias=linear.bias is not None).to(linear.weight)
    with torch.no_grad():
        down.weight.copy_(factors.left.T)
        up.weight.copy_(factors.right.T)
        if linear.bias is not None:
            up.bias.copy_(linear.bias)
    return nn.Sequential(down, up).train(linear.training)


def condense_bank(bank: Bank, rank: int) -> Bank:
    """A bank of the same experts with matrices of rank R: for a ``StackedFFN``, or a ``ModuleBank`` of ``nn.Linear``.

    Raises:
        RoutingError: a rank outside 1..least width, or a bank of another kind.
    """
    if isinstance(bank, ModuleBank) and all(type(expert) is nn.Linear for expert in bank.experts):
        return ModuleBank(condense_linear(expert, rank) for expert in bank.experts).train(bank.training)
    return LowRankFFN(bank, rank).train(bank.training)


def join_linear(bank: ModuleBank, weights: Tensor, rank: int) -> nn.Sequential:
    """Two linear layers (in -> E R -> out) that equal the sum over E condensed linear experts times ``weights`` (E,).

    The factors of all experts stand side by side, so that with R = width / E the whole has the size of one expert.
    Reconstruction: RingMoE concatenates truncated matrices of feed-forward experts, and the publication does not say
    how the hidden units of the two matrices are matched; for linear experts the concatenation is an identity.

    Raises:
        RoutingError: experts that are no linear layers of one shape, weights of another number, an impossible rank.
    """
    experts = list(bank.experts) if isinstance(bank, ModuleBank) else []
    linear = all(type(expert) is nn.Linear for expert in experts)
    if not experts or not linear or len({expert.weight.shape for expert in experts}) > 1:
        raise RoutingError(
            f"cannot join a {type(bank).__name__}", where="join_linear", fix="use a ModuleBank of equal nn.Linear"
        )
    if weights.shape != (len(experts),):
        raise RoutingError(
            f"weights of shape {tuple(weights.shape)} for {len(experts)} experts",
            where="join_linear",
            fix="give one weight per expert",
        )
    parts = [condense_linear(expert, rank) for expert in experts]
    biased = any(expert.bias is not None for expert in experts)
    down = nn.Linear(experts[0].in_features, rank * len(parts), bias=False).to(experts[0].weight)
    up = nn.Linear(rank * len(parts), experts[0].out_features, bias=biased).to(experts[0].weight)
    with torch.no_grad():
        weights = weights.to(up.weight)
        down.weight.copy_(torch.cat([part[0].weight for part in parts]))
        up.weight.copy_(torch.cat([w * part[1].weight for w, part in zip(weights, parts, strict=True)], dim=1))
        if biased:
            offsets = [w * e.bias for w, e in zip(weights, experts, strict=True) if e.bias is not None]
            up.bias.copy_(sum(offsets))
    return nn.Sequential(down, up).train(bank.training)


def rank_parameters(rows: int, columns: int, rank: int) -> int:
    """Scalars of two factors of rank ``rank``: rank x (rows + columns). Fewer than the matrix has only below
    rows x columns / (rows + columns)."""
    return rank * (rows + columns)


def _check(matrix: Tensor) -> None:
    if matrix.ndim < 2 or 0 in matrix.shape or not matrix.is_floating_point() or not bool(matrix.isfinite().all()):
        raise RoutingError(
            f"a {matrix.dtype} tensor of shape {tuple(matrix.shape)}",
            where="condense",
            fix="give finite real matrices (..., D, H)",
        )


def _check_rank(rank: int, most: int, where: str) -> None:
    if not 1 <= rank <= most:
        raise RoutingError(f"rank {rank}", where=where, fix=f"use 1 to {most}")
