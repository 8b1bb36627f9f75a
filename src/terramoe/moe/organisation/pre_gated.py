"""Pre-gated layers: the experts of a layer are chosen one layer ahead, so that they can be fetched meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.executors.combine import expand_like
from terramoe.moe.layer import MoELayer
from terramoe.moe.organisation.masking import zero_masked
from terramoe.moe.routing import RouteInput, Routing

Prefetch = Callable[[int, Routing], None]


class PreGatedStack(nn.Module):
    """L residual MoE layers ``h <- h + layer(norm(h))``; layer l + 1 is routed on what layer l sees.

    Layer 0 is routed on its own input, so that two decisions are made there and none at the last layer (Pre-gated
    MoE, 2023, arXiv 2308.12066). The scorer of a layer stays with its layer.

    Args:
        layers: equal input and output width; all but the first are routed one layer ahead.
        norms: one module per layer, applied before it; None for none.
        prefetch: called with (layer index, routing) as soon as a layer's experts are known; for all layers but the
            first that is before the layer before it runs.
    """

    def __init__(
        self, layers: Sequence[MoELayer], norms: Sequence[nn.Module] | None = None, prefetch: Prefetch | None = None
    ) -> None:
        super().__init__()
        norms = [nn.Identity() for _ in layers] if norms is None else norms
        if len(layers) != len(norms) or not layers:
            raise RoutingError(
                f"{len(layers)} layers and {len(norms)} norms", where="PreGatedStack", fix="give one norm per layer"
            )
        self.layers, self.norms, self.prefetch = nn.ModuleList(layers), nn.ModuleList(norms), prefetch

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        group: Tensor | None = None,
        keys: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Items (T, ..., D) -> (T, ..., D) and the routings of layers 0 to L - 1. A masked item keeps its value."""
        routings: list[Routing] = []
        given, x = x, zero_masked(x, mask)
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            seen = norm(x)
            while len(routings) < min(index + 2, len(self.layers)):  # two decisions at layer 0, then one, then none
                self._decide(routings, RouteInput(seen, mask, group, keys or {}))
            x = x + layer(seen, routings[index])[0]
        return (x if mask is None else torch.where(expand_like(mask, x).bool(), x, given)), routings

    def _decide(self, routings: list[Routing], inp: RouteInput) -> None:
        index = len(routings)
        routings.append(self.layers[index].route(inp))
        if self.prefetch is not None:
            self.prefetch(index, routings[-1])
