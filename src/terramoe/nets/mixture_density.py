"""A mixture density head: the features of a row give a mixture of Gaussians over its targets.

Mixture density networks, 1994, Neural Computing Research Group report NCRG/94/004. Shapes: B rows, D targets, K
components. The head returns one packed tensor (B, P); ``unpack`` gives its meaning, and the functions here answer.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError

Covariance = Literal["full", "diagonal"]


class Mixture(NamedTuple):
    """A Gaussian mixture for each row.

    Attributes:
        log_weight: (B, K), whose exponentials sum to 1. mean: (B, K, D).
        factor: (B, K, D, D) lower triangle L with the covariance L L', or (B, K, D) standard deviations.
    """

    log_weight: Tensor
    mean: Tensor
    factor: Tensor


class MixtureDensityHead(nn.Module):
    """A linear map from features to the packed parameters of the mixture.

    The covariance of a component is B B' + ``floor`` I with B lower triangular, so that no direction has less variance
    than ``floor`` and a target far away costs no more than its squared distance over it. It is factorised in float64,
    where that cannot fail as it does in float32 once B is large.

    Args:
        width: of the features. targets: D. components: K. covariance: "full" or "diagonal" (B is diagonal).
        floor: least variance, in the (scaled) unit of the targets, squared.

    Raises:
        ConfigError: a setting that cannot be.
    """

    def __init__(
        self, width: int, targets: int, components: int = 5, covariance: Covariance = "full", floor: float = 1e-3
    ) -> None:
        super().__init__()
        if min(width, targets, components) < 1 or floor <= 0 or covariance not in ("full", "diagonal"):
            raise ConfigError(
                f"{width} features, {targets} targets, {components} components, {covariance!r}, floor {floor}",
                where="MixtureDensityHead",
                fix="use at least 1 of each, 'full' or 'diagonal', and a floor above 0",
            )
        self.targets, self.components, self.covariance, self.floor = targets, components, covariance, floor
        scales = targets * (targets + 1) // 2 if covariance == "full" else targets
        self.sizes = (components, components * targets, components * scales)
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, P) packed."""
        return self.linear(features)

    def unpack(self, packed: Tensor) -> Mixture:
        """(B, P) -> the mixture."""
        weight, mean, scale = packed.split(self.sizes, dim=-1)
        shape = (-1, self.components, self.targets)
        scale = scale.reshape(len(packed), self.components, -1)
        if self.covariance == "diagonal":
            factor = (scale.square() + self.floor).sqrt()
        else:
            row, column = torch.tril_indices(self.targets, self.targets, device=packed.device)
            root = packed.new_zeros(*scale.shape[:2], self.targets**2, dtype=torch.float64)
            root = root.index_copy(2, row * self.targets + column, scale.double())
            root = root.view(*scale.shape[:2], self.targets, self.targets)
            identity = torch.eye(self.targets, dtype=root.dtype, device=root.device)
            factor = torch.linalg.cholesky(root @ root.mT + self.floor * identity).to(packed.dtype)
        return Mixture(torch.log_softmax(weight, -1), mean.reshape(shape), factor)


def log_density(mixture: Mixture, target: Tensor) -> Tensor:
    """(B, D) targets -> (B,) logarithm of the mixture's density there."""
    away = target[:, None] - mixture.mean
    if mixture.factor.ndim == 4:
        white = torch.linalg.solve_triangular(mixture.factor, away[..., None], upper=False)[..., 0]
        diagonal = mixture.factor.diagonal(dim1=-2, dim2=-1)
    else:
        white, diagonal = away / mixture.factor, mixture.factor
    size = target.shape[-1]
    each = -0.5 * white.square().sum(-1) - diagonal.log().sum(-1) - 0.5 * size * math.log(2 * math.pi)
    return torch.logsumexp(mixture.log_weight + each, dim=-1)


def variances(mixture: Mixture) -> Tensor:
    """(B, K, D) variances of the targets in each component: the diagonal of L L' (not of L' L, which differs)."""
    squared = mixture.factor.square()
    return squared.sum(-1) if mixture.factor.ndim == 4 else squared


def mixture_mean(mixture: Mixture) -> Tensor:
    """(B, D) mean of the mixture."""
    return (mixture.log_weight.exp()[..., None] * mixture.mean).sum(1)


def mixture_variance(mixture: Mixture) -> Tensor:
    """(B, D) variance of the mixture: mean of the components' variances plus variance of their means."""
    weight = mixture.log_weight.exp()[..., None]
    between = (weight * (mixture.mean - mixture_mean(mixture)[:, None]).square()).sum(1)
    return (weight * variances(mixture)).sum(1) + between


def likeliest_mean(mixture: Mixture) -> Tensor:
    """(B, D) mean of the component of largest weight, the first one on ties."""
    best = mixture.log_weight.argmax(-1)
    return mixture.mean[torch.arange(len(best), device=best.device), best]
