"""Schedules: knobs that follow the step alone. All go monotonically from one value to another and then stay."""

from __future__ import annotations

import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from terramoe.errors import RoutingError
from terramoe.moe.controllers.tempered import TemperedLink
from terramoe.moe.layer import MoELayer
from terramoe.moe.routing import Routing


@dataclass(frozen=True)
class Ramp:
    """A value that goes from ``start`` (step 0) to ``end`` (step ``steps`` and after).

    Args:
        start, end: both finite; either may be the larger.
        steps: length in steps, at least 1.
        shape: "linear", "cosine" (slow at both ends), or "step" (``start`` until the last moment, then ``end``).
    """

    start: float
    end: float
    steps: int
    shape: Literal["linear", "cosine", "step"] = "linear"

    def __post_init__(self) -> None:
        if self.steps < 1 or not math.isfinite(self.start) or not math.isfinite(self.end):
            raise RoutingError(
                f"from {self.start} to {self.end} in {self.steps} steps",
                where="Ramp",
                fix="use finite values and at least one step",
            )
        if self.shape not in ("linear", "cosine", "step"):
            raise RoutingError(f"shape '{self.shape}'", where="Ramp", fix="use 'linear', 'cosine' or 'step'")

    def __call__(self, step: int) -> float:
        """The value at a step, which is exactly ``start`` and ``end`` at the ends."""
        done = min(max(step, 0), self.steps) / self.steps
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.shape == "step":
            done = float(done >= 1)
        return self.end if done == 1 else self.start + (self.end - self.start) * done


class KSchedule:
    """The number of experts per item, rounded to whole numbers with halves up.

    Growing from 1 to E with a frozen random router: Sparse MoE as the New Dropout, 2023, arXiv 2303.01610.

    Args:
        layer: the layer; its selector, or the innermost one that wrappers hold, has a field ``k``.
        ramp: between whole numbers in 1..E.
    """

    def __init__(self, layer: MoELayer, ramp: Ramp) -> None:
        owner, name = _innermost(layer)
        if not hasattr(getattr(owner, name), "k"):
            raise RoutingError(
                f"{type(getattr(owner, name)).__name__} has no k", where="KSchedule", fix="use a selector such as TopK"
            )
        if not all(1 <= k <= layer.num_experts and k == int(k) for k in (ramp.start, ramp.end)):
            raise RoutingError(
                f"k from {ramp.start} to {ramp.end} with {layer.num_experts} experts",
                where="KSchedule",
                fix=f"use whole numbers in 1..{layer.num_experts}",
            )
        self.layer, self.ramp = layer, ramp
        self.after_step(-1, ())

    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Set k for the next step."""
        owner, name = _innermost(self.layer)
        setattr(owner, name, replace(getattr(owner, name), k=math.floor(self.ramp(step + 1) + 0.5)))


class TemperatureSchedule:
    """The temperature of a link; from high to low it leads from dense to sparse gates (EvoMoE, 2021, arXiv 2112.14397).

    Args:
        link: the link of a layer.
        ramp: between values above 0.
    """

    def __init__(self, link: TemperedLink, ramp: Ramp) -> None:
        if min(ramp.start, ramp.end) <= 0:
            raise RoutingError(
                f"temperature from {ramp.start} to {ramp.end}",
                where="TemperatureSchedule",
                fix="use temperatures above 0",
            )
        self.link, self.ramp = link, ramp
        self.after_step(-1, ())

    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Set the temperature for the next step."""
        self.link.set(self.ramp(step + 1))


class CapacitySchedule:
    """The capacity factor of a layer (adaptive capacity: Tutel, 2022, arXiv 2206.03382).

    Args:
        layer: a layer whose capacity has a field ``factor``.
        ramp: between factors above 0.
    """

    def __init__(self, layer: MoELayer, ramp: Ramp) -> None:
        if not hasattr(layer.capacity, "factor"):
            raise RoutingError(
                "the layer has no capacity factor", where="CapacitySchedule", fix="give the layer a FixedCapacity"
            )
        if min(ramp.start, ramp.end) <= 0:
            raise RoutingError(
                f"factor from {ramp.start} to {ramp.end}", where="CapacitySchedule", fix="use factors above 0"
            )
        self.layer, self.ramp = layer, ramp
        self.after_step(-1, ())

    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Set the capacity factor for the next step."""
        self.layer.capacity = replace(self.layer.capacity, factor=self.ramp(step + 1))


class LossWeightSchedule:
    """The weight of one objective.

    Args:
        weights: the table that the training loop reads, by name of the objective.
        name: the entry to change.
        ramp: between weights.
    """

    def __init__(self, weights: MutableMapping[str, float], name: str, ramp: Ramp) -> None:
        if name not in weights:
            raise RoutingError(
                f"no objective '{name}' among {sorted(weights)}", where="LossWeightSchedule", fix="name one of these"
            )
        self.weights, self.name, self.ramp = weights, name, ramp
        self.after_step(-1, ())

    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Set the weight for the next step."""
        self.weights[self.name] = self.ramp(step + 1)


def _innermost(layer: MoELayer) -> tuple[object, str]:
    """Who holds the innermost selector, and under which name: the layer itself, or the last of its wrappers."""
    owner, name = layer, "selector"
    while hasattr(getattr(owner, name), "inner"):
        owner, name = getattr(owner, name), "inner"
    return owner, name
