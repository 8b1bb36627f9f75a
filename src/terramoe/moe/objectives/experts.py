"""Objectives on the experts and the router's weights themselves: experts that differ, columns that are orthogonal."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.objectives.reductions import at_least_float32


def router_orthogonality(weight: Tensor) -> Tensor:
    """Entry-wise L1 norm of R^T R - I (Load Balancing Mixture of Experts with Similarity Preserving Routers, 2025,
    arXiv 2506.14038), neither averaged nor scaled.

    0 if and only if the experts' router vectors are orthonormal, which needs D >= E. It looks at no data.

    Args:
        weight: (E, D), as ``nn.Linear`` keeps it: R^T.
    """
    weight = at_least_float32(weight)
    with torch.autocast(weight.device.type, enabled=False):
        gram = weight @ weight.T
    return (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs().sum()


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Centred kernel alignment of two outputs, linear kernel: 0 to 1, and 1 for equal outputs.

    Unchanged by rotation, shift and common scale of the channels (Similarity of Neural Network Representations
    Revisited, 2019, arXiv 1905.00414). 0 where an output does not vary over the items.

    Args:
        a, b: (n, ..., D_a) and (n, ..., D_b), the outputs of two experts for the same n items.
    """
    a, b = (_centred_unit(x) for x in _as_rows(a, b))
    with torch.autocast(a.device.type, enabled=False):
        shared, own_a, own_b = (m.square().sum() for m in (a.T @ b, a.T @ a, b.T @ b))
    return _cosine(shared, own_a, own_b)


def rbf_cka(a: Tensor, b: Tensor, sigma: float = 0.8) -> Tensor:
    """Centred kernel alignment with the kernel exp(-|x - y|^2 / (2 sigma^2)): 0 to 1, and 1 for equal outputs.

    Unchanged by rotation and shift, not by scale: outputs much wider than ``sigma`` all look alike, near 1. It takes
    n x n x D memory.

    Args:
        a, b: (n, ..., D_a) and (n, ..., D_b), the outputs of two experts for the same n items.
        sigma: width, in the units of the outputs.
    """
    if not sigma > 0:
        raise RoutingError(f"sigma is {sigma}", where="rbf_cka", fix="use a width above 0")
    kernels = []
    for x in _as_rows(a, b):
        squared = (x[:, None] - x[None]).square().sum(-1)  # exact zeros on the diagonal, unlike |x|^2 - 2 x y + |y|^2
        kernel = torch.exp(squared / (-2 * sigma**2))
        kernels.append(_centred(_centred(kernel).T))
    k, q = kernels
    return _cosine((k * q).sum(), k.square().sum(), q.square().sum())


def expert_similarity_hinge(
    a: Tensor, b: Tensor, *, threshold: float = 0.5, kernel: Literal["linear", "rbf"] = "rbf", sigma: float = 0.8
) -> Tensor:
    """The alignment of two experts' outputs where it is above ``threshold``, else 0 (SimSMoE, 2024, arXiv 2406.15883).

    It jumps at the threshold, as published. Run both experts on the items that chose both (``PairCounter`` tells
    which experts), on detached items.
    """
    if kernel not in ("linear", "rbf"):
        raise RoutingError(f"kernel '{kernel}'", where="expert_similarity_hinge", fix="use 'linear' or 'rbf'")
    similarity = linear_cka(a, b) if kernel == "linear" else rbf_cka(a, b, sigma)
    return torch.where(similarity > threshold, similarity, 0.0)


def output_correlation(outputs: Tensor) -> Tensor:
    """Mean squared correlation of the outputs of two different experts: 0 when uncorrelated, 1 when proportional.

    Each channel is centred over the items, and items and channels together are the sample. 0 for a single expert.
    Reconstruction: decorrelation of experts is a common idea without one published form.

    Args:
        outputs: (E, n, ..., D), every expert on the same items.
    """
    experts = outputs.shape[0]
    rows = at_least_float32(outputs).flatten(2, -2) if outputs.ndim > 3 else at_least_float32(outputs)
    flat = (rows - rows.mean(1, keepdim=True)).flatten(1)
    norm = flat.square().sum(1, keepdim=True)
    unit = flat * torch.where(norm > 0, norm, 1.0).rsqrt()
    with torch.autocast(outputs.device.type, enabled=False):
        squared = (unit @ unit.T).square()
    return (squared.sum() - squared.diagonal().sum()) / max(experts * (experts - 1), 1)


def _as_rows(a: Tensor, b: Tensor) -> list[Tensor]:
    """Both as (n, D) in float32 or better; RoutingError where they are not for the same items."""
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != b.shape[0]:
        raise RoutingError(
            f"outputs have shapes {tuple(a.shape)} and {tuple(b.shape)}",
            where="centred kernel alignment",
            fix="run both experts on the same items, items first",
        )
    return [at_least_float32(x).flatten(1) for x in (a, b)]


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _centred_unit(x: Tensor) -> Tensor:
    """Centred rows of norm 1 in all; 0 where the rows differ by rounding only. The scale takes no gradient."""
    centred = _centred(x)
    norm, whole = centred.detach().norm(), x.detach().norm()
    varies = norm > 8 * torch.finfo(x.dtype).eps * whole
    return torch.where(varies, centred / torch.where(varies, norm, 1.0), 0.0)


def _cosine(shared: Tensor, own_a: Tensor, own_b: Tensor) -> Tensor:
    """shared / sqrt(own_a own_b), 0 where one of them is 0. The roots are taken apart, so that none overflows."""
    filled = (own_a > 0) & (own_b > 0)
    norm = torch.where(filled, own_a, 1.0).sqrt() * torch.where(filled, own_b, 1.0).sqrt()
    return torch.where(filled, shared / norm, 0.0)
