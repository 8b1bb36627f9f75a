"""Soft MoE: every expert works on a few slots, and each slot is a soft mean of all items of a sequence.

Shapes: B sequences (or images), T items each, D channels, E experts, S = E x slots_per_expert slots, expert-major.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe.experts import Bank


@dataclass(frozen=True)
class SlotRouting:
    """The continuous counterpart of ``Routing``: no pairs, but two matrices.

    Attributes:
        dispatch: (B, T, S) share of each item in a slot; sums to 1 over the valid items.
        combine: (B, T, S) share of each slot's output in an item; sums to 1 over the slots.
        slots_per_expert: the slots of expert e are ``e * slots_per_expert`` and those that follow.

    Masked items have 0 in both.
    """

    dispatch: Tensor
    combine: Tensor
    slots_per_expert: int

    @property
    def num_experts(self) -> int:
        return self.dispatch.shape[-1] // self.slots_per_expert

    def to_slots(self, x: Tensor) -> Tensor:
        """Items (B, T, D) -> slots (B, S, D)."""
        return self.dispatch.to(x.dtype).transpose(1, 2) @ x

    def from_slots(self, y: Tensor) -> Tensor:
        """Outputs of the slots (B, S, D_out) -> items (B, T, D_out)."""
        return self.combine.to(y.dtype) @ y

    def expert_weight(self) -> Tensor:
        """(B, T, E): the share of each expert in an item's output, for maps and statistics."""
        return self.combine.unflatten(-1, (self.num_experts, self.slots_per_expert)).sum(-1)

    def detach(self) -> SlotRouting:
        """The same record without gradients."""
        return replace(self, dispatch=self.dispatch.detach(), combine=self.combine.detach())


class SoftMoELayer(nn.Module):
    """Soft MoE (From Sparse to Soft Mixtures of Experts, 2023, arXiv 2308.00951).

    ``logits = X Phi``; dispatch is their softmax over the items, combine their softmax over the slots. Every item
    reaches every expert, nothing is dropped, and an output depends on all items of its sequence.

    Args:
        dim: channels D of an item.
        bank: the experts.
        slots_per_expert: slots of each expert.
        normalise: scale items and slot vectors to length 1 for the logits, and multiply the latter by one learned
            factor (section 2.3 of the paper), so that logits do not grow with D. False: the plain product.
    """

    def __init__(self, dim: int, bank: Bank, slots_per_expert: int = 1, *, normalise: bool = True) -> None:
        super().__init__()
        if min(dim, slots_per_expert) < 1:
            raise RoutingError(
                f"{dim} channels and {slots_per_expert} slots per expert",
                where="SoftMoELayer",
                fix="use at least 1 of each",
            )
        self.dim, self.bank, self.slots_per_expert = dim, bank, slots_per_expert
        self.phi_DS = nn.Parameter(torch.randn(dim, bank.num_experts * slots_per_expert) / math.sqrt(dim))
        self.scale = nn.Parameter(torch.ones(())) if normalise else None

    def route(self, x: Tensor, mask: Tensor | None = None) -> SlotRouting:
        """Items (B, T, D) and mask (B, T) bool -> the two matrices, in float32 or better; no expert is run."""
        self._check(x, mask)
        return self._route(self._clean(x, mask), mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, SlotRouting]:
        """Items (B, T, D) -> (B, T, D_out) and the routing.

        Args:
            x: items of B sequences, all of T items.
            mask: (B, T) bool; False marks padding or nodata: it enters no slot and its output is 0.

        Raises:
            RoutingError: a shape that does not fit, an empty sequence, NaN in an item that is not masked.
        """
        self._check(x, mask)
        x = self._clean(x, mask)
        routing = self._route(x, mask)
        slots = routing.to_slots(x).unflatten(1, (self.bank.num_experts, self.slots_per_expert))
        y = self.bank.run_padded(slots.transpose(0, 1).flatten(1, 2))  # (E, B * slots, D_out)
        y = y.unflatten(1, (x.shape[0], self.slots_per_expert)).transpose(0, 1).flatten(1, 2)
        return routing.from_slots(y), routing

    def _route(self, x: Tensor, mask: Tensor | None) -> SlotRouting:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            phi = self.phi_DS.to(x.dtype)
            if self.scale is not None:
                x, phi = F.normalize(x, dim=-1), self.scale.to(x.dtype) * F.normalize(phi, dim=0)
            logits = x @ phi
            combine = logits.softmax(-1)
            if mask is None:
                return SlotRouting(logits.softmax(1), combine, self.slots_per_expert)
            # The lowest float, not -inf: in a sequence without valid items the softmax would be NaN.
            hidden = ~mask[..., None]
            dispatch = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(1)
            return SlotRouting(dispatch.masked_fill(hidden, 0), combine.masked_fill(hidden, 0), self.slots_per_expert)

    @staticmethod
    def _clean(x: Tensor, mask: Tensor | None) -> Tensor:
        """Zeros for masked items: they may hold NaN, and 0 * NaN is not 0."""
        return x if mask is None else x.masked_fill(~mask[..., None], 0)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim or 0 in x.shape:
            raise RoutingError(
                f"items have shape {tuple(x.shape)}, expected (B, T, {self.dim}) with at least one item",
                where="SoftMoELayer",
                fix="give the items of one image or sequence as one row of the batch",
            )
        if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
            raise RoutingError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)} for items {tuple(x.shape[:2])}",
                where="SoftMoELayer.mask",
                fix="give one bool per item, (B, T)",
            )
        if torch.compiler.is_compiling():  # a traced graph cannot raise on values
            return
        bad = x.detach().isnan().any(-1) & (True if mask is None else mask)
        if bad.any():
            raise RoutingError(
                f"{int(bad.sum())} of {bad.numel()} items hold NaN",
                where="SoftMoELayer",
                fix="pass mask= with False for nodata items; in training, lower the learning rate",
            )
