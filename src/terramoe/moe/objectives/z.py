"""The router z-loss: keeps logits small, for stable low-precision training."""

from __future__ import annotations

import torch
from torch import Tensor

from terramoe.moe.routing import Routing


def router_z(routing: Routing) -> Tensor:
    """Mean over valid items of logsumexp(logits)^2 (ST-MoE, 2022, arXiv 2202.08906). (log E)^2 for zero logits."""
    valid = routing.valid()
    z = torch.logsumexp(routing.logits, dim=-1).square()
    return torch.where(valid, z, 0.0).sum() / valid.sum().clamp_min(1)
