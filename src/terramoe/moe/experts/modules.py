"""A bank made of any list of modules; they may differ in size and kind."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts.bank import Bank


class ModuleBank(Bank):
    """Experts are the given modules, each mapping (n, ..., D) to (n, ..., D_out)."""

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.num_experts = len(self.experts)
        if self.num_experts == 0:
            raise RoutingError("no experts were given", where="ModuleBank", fix="give at least one module")

    def run(self, expert: int, x: Tensor) -> Tensor:
        """Apply one module: (n, ..., D) -> (n, ..., D_out)."""
        return self.experts[expert](x)

    def expert_parameters(self, expert: int) -> int:
        """Number of scalars in one expert's parameters."""
        return sum(p.numel() for p in self.experts[expert].parameters())
