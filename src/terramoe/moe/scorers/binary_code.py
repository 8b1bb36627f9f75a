"""DSelect-k: a differentiable choice of at most k experts by binary codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores, checked_features


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
    """0 below -gamma/2, 1 above gamma/2, a cubic between; once continuously differentiable."""
    cubic = -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5
    return torch.where(t <= -gamma / 2, 0.0, torch.where(t >= gamma / 2, 1.0, cubic))


class BinaryCodeScorer(nn.Module):
    """Mixture weights q = sum_j softmax(w)_j r(z_j), returned as log q, so that a softmax link restores q / sum(q).

    r(z)_i is the product over the bits b of expert i's code of S(z_b) or 1 - S(z_b), S being the smooth step. At most
    k experts have weight once every |z| is at least gamma / 2, and not before. q sums to 1 when E is a power of two;
    otherwise some mass falls on codes that no expert has (``code_mass``, which an objective may keep up).
    Source: DSelect-k: Differentiable Selection in the Mixture of Experts, 2021, arXiv 2106.03760.

    Args:
        num_experts: E.
        k: number of codes.
        dim: channels of the item for a choice per item; None for one choice for all items (per task).
        gamma: width of the smooth step.
    """

    def __init__(self, num_experts: int, k: int, *, dim: int | None = None, gamma: float = 1.0) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise RoutingError(f"k = {k} with {num_experts} experts", where="BinaryCodeScorer", fix="choose k in 1..E")
        self.num_experts, self.k, self.dim, self.gamma = num_experts, k, dim, gamma
        self.bits = max(1, math.ceil(math.log2(num_experts)))
        codes = torch.arange(num_experts)[:, None] >> torch.arange(self.bits) & 1
        self.register_buffer("codes", codes.bool(), persistent=False)
        spread = gamma / 100
        if dim is None:
            self.z = nn.Parameter(torch.empty(k, self.bits).uniform_(-spread, spread))
            self.w = nn.Parameter(torch.empty(k).uniform_(-0.05, 0.05))
        else:
            self.z = nn.Linear(dim, k * self.bits)
            self.w = nn.Linear(dim, k)
            nn.init.uniform_(self.z.bias, -spread, spread)
            nn.init.uniform_(self.z.weight, -spread, spread)

    def selectors(self, inp: RouteInput) -> tuple[Tensor, Tensor]:
        """r (T, k, E), each selector's weights, and softmax(w) (T, k). Their entropy is what DSelect-k regularises."""
        x = inp.features() if self.dim is None else checked_features(inp, self.dim, "BinaryCodeScorer")
        if self.dim is None:
            z, w = self.z.expand(x.shape[0], -1, -1), self.w.expand(x.shape[0], -1)
        else:
            with torch.autocast(x.device.type, enabled=False):
                z, w = self.z(x).unflatten(-1, (self.k, self.bits)), self.w(x)
        step = smooth_step(z, self.gamma)[..., None, :]
        return torch.where(self.codes, step, 1 - step).prod(-1), w.softmax(-1)

    def code_mass(self, inp: RouteInput) -> Tensor:
        """(T,) sum of q; below 1 where codes without an expert got some."""
        r, w = self.selectors(inp)
        return (r.sum(-1) * w).sum(-1)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with x (T, D) or (T, ..., D) -> log q (T, E), -inf where an expert is off."""
        r, w = self.selectors(inp)
        return Scores(_safe_log((r * w[..., None]).sum(1)))


def _safe_log(q: Tensor) -> Tensor:
    """log q, -inf at 0 with a zero gradient there. NaN stays NaN, so that the layer can name the item."""
    positive = ~(q <= 0)
    return torch.where(positive, torch.where(positive, q, 1.0).log(), -torch.inf)
