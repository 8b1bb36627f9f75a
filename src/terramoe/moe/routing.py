"""The two records that every part of the routing core reads or writes.

Shapes: T items, E experts, N (item, expert) pairs, D channels. Items are rows: ``x`` is (T, D), or (T, ..., D) when
an item is itself a window or a sequence; channels always come last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from terramoe.errors import RoutingError


@dataclass(frozen=True)
class RouteInput:
    """What a router may look at.

    Attributes:
        x: items, (T, D) or (T, ..., D).
        mask: (T,) bool; False marks padding or nodata, which is never routed. None: all items count.
        group: (T,) integer ids; capacity is counted inside a group. None: all items are one group.
        keys: anything else a router may use (sensor, season, latitude ...), each with first dimension T.
    """

    x: Tensor
    mask: Tensor | None = None
    group: Tensor | None = None
    keys: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.x.ndim < 2:
            raise RoutingError(
                f"items have shape {tuple(self.x.shape)}, expected (T, D) or (T, ..., D)",
                where="RouteInput.x",
                fix="put items first and channels last",
            )
        for name, tensor in {"mask": self.mask, "group": self.group, **self.keys}.items():
            if tensor is not None and tensor.shape[:1] != self.x.shape[:1]:
                raise RoutingError(
                    f"'{name}' has {tuple(tensor.shape)} but there are {self.x.shape[0]} items",
                    where=f"RouteInput.{name}",
                    fix="give one row per item",
                )

    def features(self) -> Tensor:
        """(T, D): the item itself, or its mean over the inner dimensions, in float32 or better; 0 where masked."""
        x = self.rows()
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def rows(self) -> Tensor:
        """``features`` in the type of the items."""
        x = self.x.flatten(1, -2).mean(1) if self.x.ndim > 2 else self.x
        if self.mask is not None:  # nodata may be NaN, and a zero gradient times NaN would still spoil the router
            x = torch.where(self.mask[:, None], x, 0)
        return x

    def key(self, name: str, asker: str) -> Tensor:
        """The key ``name``; RoutingError names the scorer that asked for it when it is missing."""
        if name not in self.keys:
            raise RoutingError(
                f"the key '{name}' is missing (given: {sorted(self.keys) or 'none'})",
                where=asker,
                fix=f"pass keys={{'{name}': tensor}} to the layer",
            )
        return self.keys[name]


@dataclass(frozen=True)
class Routing:
    """One routing decision for T items: which experts, in which order, with which weight.

    The N rows stand rank-major, then item-minor: all first choices in item order, then all second choices, and so
    on. Top-k, a variable number of experts, balanced assignment and expert choice are all this record.

    Attributes:
        logits: (T, E) what the selector saw (noise included).
        probs: (T, E) after the link function.
        item, expert, rank: (N,) int64.
        weight: (N,) combine weight, differentiable.
        kept: (N,) bool; False where capacity dropped the pair.
        slot: (N,) int64 place in the expert's buffer (-1 where dropped), or None without capacity.
        mask: (T,) bool, False where the item was never to be routed, or None.
        clean_logits, noise_std: (T, E) mean and standard deviation of noisy logits, or None without noise.
        keys: what the router was told besides the items, as objectives by sensor, task or season need it.
        fixed_k: k where the rows are exactly every item times k choices (dropped ones included), else None.
    """

    logits: Tensor
    probs: Tensor
    item: Tensor
    expert: Tensor
    rank: Tensor
    weight: Tensor
    kept: Tensor
    slot: Tensor | None = None
    mask: Tensor | None = None
    clean_logits: Tensor | None = None
    noise_std: Tensor | None = None
    keys: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    fixed_k: int | None = None

    @property
    def num_items(self) -> int:
        return self.logits.shape[0]

    @property
    def num_experts(self) -> int:
        return self.logits.shape[1]

    @property
    def num_choices(self) -> int:
        """The largest number of experts that one item chose (k for top-k)."""
        if self.fixed_k is not None:
            return self.fixed_k
        return int(self.rank.max()) + 1 if self.rank.numel() else 0

    def valid(self) -> Tensor:
        """(T,) bool: items that were to be routed."""
        return self.mask if self.mask is not None else torch.ones_like(self.logits[:, 0], dtype=torch.bool)

    def demand(self) -> Tensor:
        """(E,) int64: pairs that chose each expert, before capacity."""
        return torch.bincount(self.expert, minlength=self.num_experts)

    def load(self) -> Tensor:
        """(E,) int64: pairs that each expert really computes, after capacity."""
        return torch.bincount(self.expert[self.kept], minlength=self.num_experts)

    def importance(self) -> Tensor:
        """(E,): sum of the combine weights that each expert was given, before capacity. Differentiable."""
        return self.weight.new_zeros(self.num_experts).index_add(0, self.expert, self.weight)

    def dense(self) -> Tensor:
        """(T, E): combine weights, 0 where an expert was not chosen or the pair was dropped. Differentiable."""
        weight = torch.where(self.kept, self.weight, torch.zeros_like(self.weight))
        if self.fixed_k is None:
            return weight.new_zeros(self.logits.shape).index_put((self.item, self.expert), weight)
        # scatter, because its backward is a gather and not the slow general index_put; (E, T) in memory
        rows = (self.fixed_k, -1)
        return weight.new_zeros(self.logits.shape[::-1]).scatter(0, self.expert.view(rows), weight.view(rows)).T

    def item_entropy(self) -> Tensor:
        """(T,): entropy of the router's distribution for each item, in nats."""
        p = self.probs / self.probs.sum(-1, keepdim=True).clamp_min(torch.finfo(self.probs.dtype).tiny)
        return torch.special.entr(p).sum(-1)

    def entropy(self) -> Tensor:
        """Scalar: mean item entropy over valid items, in nats (0 without items)."""
        valid = self.valid()
        return torch.where(valid, self.item_entropy(), 0.0).sum() / valid.sum().clamp_min(1)

    def dropped(self) -> Tensor:
        """Scalar: share of the chosen pairs that capacity dropped."""
        return (~self.kept).sum() / max(self.kept.numel(), 1)

    def dropped_items(self) -> Tensor:
        """(T,) bool: valid items all of whose pairs were dropped."""
        reached = torch.zeros_like(self.valid()).index_fill(0, self.item[self.kept], True)
        return self.valid() & ~reached

    def top_expert(self) -> Tensor:
        """(T,) int64: the expert with the greatest kept weight, -1 where no expert was reached."""
        weight = self._kept_weight()
        top = weight.argmax(-1)
        return torch.where(weight.amax(-1) > -torch.inf, top, -1)

    def top_weight(self) -> Tensor:
        """(T,): the greatest kept weight, 0 where no expert was reached."""
        top = self._kept_weight().amax(-1)
        return torch.where(top > -torch.inf, top, 0.0)

    def margin(self) -> Tensor:
        """(T,): gap between the two largest probabilities (the largest itself with one expert)."""
        if self.num_experts == 1:
            return self.probs[:, 0]
        top = self.probs.topk(2, dim=-1).values
        return top[:, 0] - top[:, 1]

    def detach(self) -> Routing:
        """The same record without gradients, for statistics and maps."""
        tensors = {name: value.detach() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, keys={name: value.detach() for name, value in self.keys.items()})

    def _kept_weight(self) -> Tensor:
        """(T, E) weights of kept pairs, -inf elsewhere (a kept weight may itself be 0)."""
        empty = torch.full_like(self.logits, -torch.inf)
        weight = self.weight.detach().to(empty.dtype)
        return empty.index_put((self.item[self.kept], self.expert[self.kept]), weight[self.kept])
