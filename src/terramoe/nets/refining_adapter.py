"""Tokens that read a few low-level features, which queries pick."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.nets.vit import MLP


class RefiningAdapter(nn.Module):
    """Each query picks the one low-level feature that fits it best; the tokens read what was picked.

    What is picked goes through an MLP and a gate for each query that looks at the image as a whole. The choice is hard;
    its gradient is that of the softmax, so that the queries are trained.

    Args:
        dim: width D of the tokens. low_dim: width W of the low-level features. queries: Q.

    Raises:
        ConfigError: a count below 1.

    Source: the Attribute-refined Adapter of SpectralX, 2026 (ISPRS J. 239, 774-792), arXiv 2508.01731. Reconstruction:
    the gradient of the choice, and how the tokens read.
    """

    def __init__(self, dim: int, low_dim: int, queries: int) -> None:
        super().__init__()
        if min(dim, low_dim, queries) < 1:
            raise ConfigError(
                f"{queries} queries, widths {dim} and {low_dim}", where="RefiningAdapter", fix="use at least 1 of each"
            )
        self.queries = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.key, self.value = nn.Linear(low_dim, dim), nn.Linear(low_dim, dim)
        self.norm, self.mlp = nn.LayerNorm(dim), MLP(dim, dim)
        self.gate = nn.Linear(dim, queries)
        self.scale = nn.Parameter(torch.tensor(0.01))

    def forward(self, x: Tensor, valid: Tensor, low: Tensor, low_valid: Tensor) -> Tensor:
        """x (B, N, D) and valid (B, N) bool, low (B, S, W) and low_valid (B, S) bool -> (B, N, D)."""
        seen = low_valid | ~low_valid.any(1, keepdim=True)
        score = (self.queries @ self.key(low).mT / x.shape[-1] ** 0.5).masked_fill(~seen[:, None], -torch.inf)
        soft = score.softmax(-1)  # (B, Q, places)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        picked = (hard + soft - soft.detach()) @ self.value(low)  # forward hard, backward soft
        picked = picked + self.mlp(self.norm(picked))
        keep = valid[..., None]
        context = torch.where(keep, x, 0).sum(1) / keep.sum(1).clamp_min(1)
        picked = picked * torch.sigmoid(self.gate(context))[..., None]
        read = torch.softmax(x @ picked.mT / x.shape[-1] ** 0.5, dim=-1) @ picked
        return x + self.scale * read
