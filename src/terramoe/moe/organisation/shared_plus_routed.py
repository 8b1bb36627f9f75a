"""A shared expert beside the routed ones: what all items need is learned once, the rest by specialists."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.layer import MoELayer
from terramoe.moe.organisation.masking import zero_masked
from terramoe.moe.routing import Routing


class SigmoidGate(nn.Module):
    """``sigmoid(x w)``: one weight in (0, 1) for each row, in float32 or better; D channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (..., D) -> weights (..., 1)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return torch.sigmoid(nn.functional.linear(x, self.linear.weight.to(x.dtype)))


class SharedPlusRouted(nn.Module):
    """``y = gate(x) * shared(x) + layer(x)``; every item passes the shared expert.

    Without a gate as in DeepSeekMoE (2024, arXiv 2401.06066); with ``SigmoidGate`` as in Qwen2-MoE (Qwen2 Technical
    Report, 2024, arXiv 2407.10671) and Time-MoE (2024, arXiv 2409.16040). Several shared experts that are added up
    are one expert of their joint hidden width.

    Args:
        shared: (T, ..., D) -> (T, ..., D_out).
        layer: the routed experts, with the same output shape.
        gate: (T, ..., D) -> (T, ..., 1), or None for the weight 1.
    """

    def __init__(self, shared: nn.Module, layer: MoELayer, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.shared, self.layer, self.gate = shared, layer, gate

    def forward(
        self,
        x: Tensor,
        routing: Routing | None = None,
        *,
        mask: Tensor | None = None,
        group: Tensor | None = None,
        keys: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Routing]:
        """Items (T, ..., D) -> (T, ..., D_out) and the routing of the routed experts; arguments as for MoELayer.

        An item that capacity dropped still has its shared part; a masked item gives 0.

        Raises:
            RoutingError: as MoELayer; shared and routed outputs of different shape.
        """
        x = zero_masked(x, mask if routing is None else routing.mask)
        routed, routing = self.layer(x, routing, mask=mask, group=group, keys=keys)
        shared = self.shared(x)
        if shared.shape != routed.shape:
            raise RoutingError(
                f"the shared expert gives {tuple(shared.shape)}, the routed ones {tuple(routed.shape)}",
                where="SharedPlusRouted",
                fix="build both with the same output width",
            )
        if self.gate is not None:
            shared = self.gate(x).to(shared.dtype) * shared
        return zero_masked(shared, routing.mask) + routed, routing
