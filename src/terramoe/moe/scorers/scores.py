"""What a scorer returns, and how it takes its items."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput


class Scores(NamedTuple):
    """Logits (T, E); with noise also their mean and standard deviation, which the load objective needs."""

    logits: Tensor
    clean: Tensor | None = None
    noise_std: Tensor | None = None


def checked_features(inp: RouteInput, dim: int, where: str) -> Tensor:
    """(T, D) features of the items in float32 or better; RoutingError unless they have ``dim`` channels."""
    check_width(inp, dim, where)
    return inp.features()


def check_width(inp: RouteInput, dim: int, where: str) -> None:
    """RoutingError unless the items have ``dim`` channels."""
    if inp.x.shape[-1] != dim:
        raise RoutingError(
            f"items have {inp.x.shape[-1]} channels, the router expects {dim}",
            where=where,
            fix="build the layer with the width of its input",
        )
