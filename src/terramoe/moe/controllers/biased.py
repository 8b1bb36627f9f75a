"""A bias on the choice of experts, and the two rules that set it so that the load evens out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import Pairs

Reduce = Callable[[Tensor], Tensor]


class BiasedSelector(nn.Module):
    """Adds a bias to what the inner selector chooses by. Combine weights never see it.

    Args:
        inner: ``(choice, inp) -> Pairs``.
        num_experts: E.
        on: "probs" or "logits", what the bias is added to. An inner selector that needs the other is refused.
    """

    bias: Tensor

    def __init__(
        self, inner: Callable[[Tensor, RouteInput], Pairs], num_experts: int, on: Literal["probs", "logits"] = "probs"
    ) -> None:
        super().__init__()
        if on not in ("probs", "logits"):
            raise RoutingError(f"bias on '{on}'", where="BiasedSelector", fix="use 'probs' or 'logits'")
        if inner.needs not in ("order", on):
            raise RoutingError(
                f"the bias is on {on}, but {type(inner).__name__} needs {inner.needs}",
                where="BiasedSelector",
                fix=f"set on='{inner.needs}'",
            )
        self.inner, self.on = inner, on
        self.register_buffer("bias", torch.zeros(num_experts))

    @property
    def needs(self) -> str:
        """What the layer hands over as choice."""
        return self.on

    @property
    def couples_items(self) -> bool:
        """Whether the choice of an item depends on its batch mates in the same call."""
        return self.inner.couples_items

    def forward(self, choice: Tensor, inp: RouteInput) -> Pairs:
        """Probabilities or logits (T, E) -> pairs of the inner selector for choice + bias."""
        if choice.shape[-1] != self.bias.shape[0]:
            raise RoutingError(
                f"the bias is for {self.bias.shape[0]} experts, the choice has {choice.shape[-1]}",
                where="BiasedSelector",
                fix="build the selector with the number of experts of its layer",
            )
        return self.inner(choice.detach() + self.bias.to(choice.dtype), inp)


class LossFreeBias:
    """bias += rate * sign(mean load - load), then centred (Auxiliary-Loss-Free Load Balancing, 2024, arXiv 2408.15664).

    The load is what was chosen, before capacity. The bias rests only at exact balance and else moves in steps of
    ``rate``. Taking the mean out keeps it from drifting and changes no choice.

    Args:
        selector: what carries the bias.
        rate: size of a step; fitting values follow the scale of the scores (0.001 for sigmoid scores).
        reduce: (E,) counts of this process -> counts of all processes; None: there is one.
    """

    def __init__(self, selector: BiasedSelector, rate: float = 1e-3, reduce: Reduce | None = None) -> None:
        self.selector, self.rate, self.reduce = selector, _positive(rate, "LossFreeBias"), reduce

    @torch.no_grad()
    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Move the bias against the load of this step; nothing moves without a choice."""
        load = _demand(self.selector, routings, self.reduce)
        change = self.rate * torch.sign(load.mean() - load)
        self.selector.bias += (change - change.mean()).to(self.selector.bias)


class DualAscent:
    """lambda <- (1 - damping) lambda + rate (share of load - target), with bias = -lambda on the logits.

    The load target is a constraint, lambda its multiplier (One Must Imagine Experts Happy, 2025, OpenReview
    gsAkhArtfT). Reconstruction: the published summary says that biases are updated in proportion to the load error
    with damping; the formula, its defaults and the uniform target are filled in. Without damping it rests only where
    the load meets the target; with damping the multipliers leak towards 0, at the price of a remaining error.

    Args:
        selector: what carries the bias, ``on="logits"``.
        rate: step per unit of load share, above 0.
        damping: leak per step, 0 to below 1.
        target: (E,) wanted shares of the load, scaled to sum 1; None: all alike.
        reduce: (E,) counts of this process -> counts of all processes; None: there is one.
    """

    def __init__(
        self,
        selector: BiasedSelector,
        rate: float = 1e-2,
        damping: float = 1e-2,
        target: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        if selector.on != "logits":
            raise RoutingError(f"the bias is on {selector.on}", where="DualAscent", fix="use on='logits'")
        if not 0 <= damping < 1:
            raise RoutingError(f"damping is {damping}", where="DualAscent", fix="choose 0 <= damping < 1")
        shape = selector.bias.shape
        target = torch.ones(shape) if target is None else target.detach().float().cpu()
        if target.shape != shape or not (target >= 0).all() or not 0 < float(target.sum()) < float("inf"):
            raise RoutingError(
                f"target {target.tolist()}", where="DualAscent", fix=f"give {shape[0]} shares of at least 0, not all 0"
            )
        self.selector, self.rate, self.damping = selector, _positive(rate, "DualAscent"), damping
        self.target, self.reduce = target / target.sum(), reduce

    @torch.no_grad()
    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Move the multipliers by the error of this step's load; nothing moves without a choice."""
        load = _demand(self.selector, routings, self.reduce)
        total = load.sum()
        error = load / total.clamp_min(1) - self.target.to(load.device)
        bias = self.selector.bias
        moved = (1 - self.damping) * bias - self.rate * error.to(bias)
        bias.copy_(torch.where(total > 0, moved, bias))


def _demand(selector: BiasedSelector, routings: Sequence[Routing], reduce: Reduce | None) -> Tensor:
    """(E,) float64: choices of all routings of this step, of all processes."""
    demand = torch.zeros(selector.bias.shape, dtype=torch.float64, device=selector.bias.device)
    for routing in routings:
        if routing.num_experts != demand.shape[0]:
            raise RoutingError(
                f"a routing over {routing.num_experts} experts for a bias of {demand.shape[0]}",
                where="after_step",
                fix="pass the routings of the layer that the controller belongs to",
            )
        demand += routing.demand().to(demand)
    return demand if reduce is None else reduce(demand)


def _positive(rate: float, where: str) -> float:
    if not 0 < rate < float("inf"):
        raise RoutingError(f"rate is {rate}", where=where, fix="use a finite rate above 0")
    return rate
