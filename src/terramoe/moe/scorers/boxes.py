"""A gate that is fixed beforehand: how far inside overlapping boxes an item lies.

Along each axis, with centre c, half width h and overlap o of a box, m(u) = clip((h + o - |u - c|) / (2 o), 0, 1); the
weight of a box is the product over the axes, divided by the sum over the boxes. The rule is ours, for a gate that is
only said to weigh by the distance to the centre of the region (Using neural network ensembles for the operational
retrieval of ozone total columns, 2004, DOI 10.1109/IGARSS.2004.1368589).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from terramoe.errors import ConfigError
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers.scores import Scores

Axis = tuple[int, Sequence[float], float, float]  # column, centres in rising order, half width, overlap


class BoxScorer(nn.Module):
    """Logits are the logarithms of the boxes' weights: minus infinity where a box does not hold the row."""

    def __init__(self, axes: Sequence[Axis]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, inp: RouteInput) -> Scores:
        """(T, columns) -> (T, E)."""
        return Scores(box_weights(inp.x, self.axes).log())


def box_weights(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """Rows (n, columns) -> (n, E) weights of the boxes, the last axis running fastest; rows sum to 1."""
    weights = x.new_ones(len(x), 1)
    for column, centres, half, overlap in axes:
        weights = (weights[:, :, None] * axis_weights(x[:, column], centres, half, overlap)[:, None]).flatten(1)
    return weights


def axis_weights(u: Tensor, centres: Sequence[float], half: float, overlap: float) -> Tensor:
    """(n,) -> (n, centres), rows of sum 1; overlap 0 gives all to the nearest centre; beyond the outermost
    centres the outermost boxes go on."""
    middle = torch.tensor(centres, dtype=u.dtype, device=u.device)
    distance = (u.clamp(float(middle[0]), float(middle[-1]))[:, None] - middle).abs()
    if overlap == 0:  # ties go to the lower
        return nn.functional.one_hot(distance.argmin(dim=1), len(centres)).to(u.dtype)
    inside = ((half + overlap - distance) / (2 * overlap)).clamp(0, 1)
    return inside / inside.sum(dim=1, keepdim=True)


def check_axis(axis: Axis) -> None:
    """ConfigError unless the boxes along the axis leave no gap."""
    try:
        column, centres, half, overlap = axis
        rising = len(centres) > 0 and all(a < b for a, b in pairwise(centres))
        widest = max((b - a for a, b in pairwise(centres)), default=0.0)
        holds = isinstance(column, int) and rising and half > 0 and overlap >= 0
        covered = overlap == 0 or widest < 2 * (half + overlap)
    except (TypeError, ValueError):
        holds, covered = False, True
    if not holds:
        raise ConfigError(
            f"axis {axis!r}", where="BoxScorer", fix="give (column, centres in rising order, half width, overlap)"
        )
    if not covered:
        raise ConfigError(f"axis {axis!r} leaves a gap", where="BoxScorer", fix="use wider boxes or overlaps")
