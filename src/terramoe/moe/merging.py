"""Merging experts in parameter space: one feed-forward call with the weighted mean of the experts' parameters.

Equal to mixing the experts' outputs only where the experts are linear or one weight is 1 and the others 0; hence
``merged`` is not among the executors, which all compute one function. Shapes: S sets of weights (segments, tasks),
E experts, n items in a set, B sequences, T items each.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe.executors.combine import expand_like
from terramoe.moe.experts import StackedFFN
from terramoe.moe.experts.fused import Weights
from terramoe.moe.layer import MoELayer
from terramoe.moe.routing import RouteInput, Routing


def merge_experts(bank: StackedFFN, weights: Tensor) -> Weights:
    """Parameters of S merged experts: w_in (S, D, H), b_in (S, H), w_out (S, H, O), b_out (S, O). Differentiable.

    Args:
        bank: E experts.
        weights: (S, E); a row that is one-hot gives that expert's own parameters.

    Raises:
        RoutingError: weights of another shape, or a bank whose parameters are not stacked.
    """
    if not isinstance(bank, StackedFFN):
        raise RoutingError(
            f"the parameters of a {type(bank).__name__} are not stacked", where="merge_experts", fix="use a StackedFFN"
        )
    if weights.ndim != 2 or weights.shape[1] != bank.num_experts:
        raise RoutingError(
            f"weights have shape {tuple(weights.shape)}, expected (S, {bank.num_experts})",
            where="merge_experts",
            fix="give one row of expert weights for each merged expert",
        )
    return Weights(*(None if p is None else torch.tensordot(weights.to(p.dtype), p, 1) for p in bank.weights()))


def run_merged(bank: StackedFFN, x: Tensor, weights: Tensor) -> Tensor:
    """Items (S, n, D), n of them for each row of weights (S, E) -> (S, n, O): one feed-forward call per row."""
    merged = merge_experts(bank, weights)
    bank.check_width(x)
    return _affine(bank.activation.plain(_affine(x, merged.w_in, merged.b_in)), merged.w_out, merged.b_out)


def merged(x: Tensor, routing: Routing, bank: StackedFFN) -> Tensor:
    """Items (T, ..., D) -> (T, ..., O) by one merged expert; to be called like an executor.

    The cost is that of a single expert whatever the number chosen. For routings that do not depend on the item: a
    task, a sensor, an attribute vector (Uni-Perceiver-MoE, 2022, arXiv 2206.04674; SMEAR, 2023, arXiv 2306.03745).
    Masked items give 0. RoutingError where items have different weights.
    """
    weights = shared_weights(routing)
    if routing.mask is not None:  # a masked item may hold NaN
        x = torch.where(expand_like(routing.mask, x).bool(), x, torch.zeros_like(x))
    y = run_merged(bank, x.reshape(1, -1, x.shape[-1]), weights[None])
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y if routing.mask is None else y * expand_like(routing.mask, y)


def shared_weights(routing: Routing) -> Tensor:
    """(E,): the weights that all valid items of a routing share. RoutingError where they differ. Differentiable."""
    valid = routing.valid()
    weights = routing.dense()[valid]
    if weights.shape[0] == 0:
        return routing.dense().sum(0)  # zeros, still tied to the router
    # Equal logits may give weights that differ in the last place: kernels work on the last few items one by one.
    rounding = 16 * torch.finfo(weights.dtype).eps * weights[:1].abs().max()
    if not ((weights - weights[:1]).abs() <= rounding).all():  # so that NaN is refused
        raise RoutingError(
            "the items of this routing have different weights",
            where="merged",
            fix="route by something that all items share (a task, a sensor), or use an executor",
        )
    # The value of the first row, exactly, with the gradient of the mean: each row takes its share.
    return weights[0].detach() + (weights - weights.detach()).mean(0)


class SegmentMergedFFN(nn.Module):
    """Lory: experts merged once per segment by what the previous segment held (2024, arXiv 2405.03133).

    The mean of segment s - 1 is routed, and the experts merged with those weights work on segment s, so that no item
    sees a later segment. The first segment is routed by its own mean, without a gradient through its weights.
    Reconstruction: the stop-gradient is on the weights (the router learns nothing from first segments), and holds in
    evaluation too, where it changes nothing; a mean counts valid items only.

    Args:
        layer: its router decides and its bank, a StackedFFN, is merged; its executor is not used. For the published
            method the selector is ``All``.
        segment_length: items in a segment; the last one may be shorter.
    """

    def __init__(self, layer: MoELayer, segment_length: int) -> None:
        super().__init__()
        if segment_length < 1:
            raise RoutingError(f"segments of {segment_length} items", where="SegmentMergedFFN", fix="use at least 1")
        self.layer, self.segment_length = layer, segment_length

    def forward(
        self, x: Tensor, routing: Routing | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, Routing]:
        """Items (B, T, D) -> (B, T, O) and the routing of the B x ceil(T / segment_length) segments, row by row.

        Args:
            x: sequences.
            routing: use this decision; one with B rows merges once per sequence (``route_whole`` of a prompt).
            mask: (B, T) bool; False items count in no mean and give 0.

        Raises:
            RoutingError: no items, a routing of neither size, shapes that do not fit.
        """
        self._check(x, mask)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0)
        batch, length = x.shape[:2]
        segments = -(-length // self.segment_length)
        if routing is None:
            routing = self._route_segments(x, mask, segments)
        if routing.num_items not in (batch, batch * segments):
            raise RoutingError(
                f"the given routing has {routing.num_items} rows for {batch} sequences of {segments} segments",
                where="SegmentMergedFFN",
                fix=f"give a routing of {batch * segments} segments or {batch} whole sequences",
            )
        rows = routing.num_items // batch  # weights per sequence
        size = length if rows == 1 else self.segment_length
        padded = F.pad(x, (0, 0, 0, rows * size - length)).reshape(batch * rows, size, -1)
        y = run_merged(self.layer.bank, padded, routing.dense())
        y = y.reshape(batch, rows * size, -1)[:, :length]
        return (y if mask is None else y.masked_fill(~mask[..., None], 0)), routing

    def route_whole(self, x: Tensor, mask: Tensor | None = None) -> Routing:
        """Sequences (B, T, D) -> one decision for each, by its mean: at inference, the prompt's."""
        self._check(x, mask)
        means, valid = _means(x if mask is None else x.masked_fill(~mask[..., None], 0), mask, x.shape[1])
        return self.layer.route(RouteInput(means.flatten(0, 1), valid.flatten()))

    def _route_segments(self, x: Tensor, mask: Tensor | None, segments: int) -> Routing:
        means, valid = _means(x, mask, self.segment_length)
        # Segment s is decided by s - 1; where that holds nothing valid, there is nothing to route by.
        means = torch.cat([means[:, :1].detach(), means[:, : segments - 1]], dim=1)
        valid = torch.cat([valid[:, :1], valid[:, : segments - 1]], dim=1)
        routing = self.layer.route(RouteInput(means.flatten(0, 1), valid.flatten()))
        first = routing.item % segments == 0
        return replace(routing, weight=torch.where(first, routing.weight.detach(), routing.weight))

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim != 3 or 0 in x.shape:
            raise RoutingError(
                f"items have shape {tuple(x.shape)}, expected (B, T, D) with at least one item",
                where="SegmentMergedFFN",
                fix="give whole sequences, items in their order",
            )
        if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
            raise RoutingError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)} for items {tuple(x.shape[:2])}",
                where="SegmentMergedFFN.mask",
                fix="give one bool per item, (B, T)",
            )


def _means(x: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Means over the valid items of each segment: (B, T, D), 0 where masked -> (B, S, D) and whether any was valid."""
    valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    segments = -(-x.shape[1] // length)
    missing = segments * length - x.shape[1]
    x = F.pad(x.to(torch.promote_types(x.dtype, torch.float32)), (0, 0, 0, missing))
    counts = F.pad(valid, (0, missing)).reshape(x.shape[0], segments, length).sum(-1)
    sums = x.reshape(x.shape[0], segments, length, -1).sum(2)
    return sums / counts.clamp_min(1)[..., None], counts > 0


def _affine(x: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
    y = x @ weight.to(x.dtype)
    return y if offset is None else y + offset.to(x.dtype)[:, None]
