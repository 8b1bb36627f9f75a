"""What a recipe is: a published method as a choice of parts, with its source and how it is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.routing import Routing

Call = Callable[[nn.Module, Tensor], tuple[Tensor, list[Routing]]]


@dataclass(frozen=True)
class Recipe:
    """A named configuration of the core.

    Attributes:
        name: as on the command line and in the docs.
        build: ``(dim, num_experts, hidden) -> module``; more keyword arguments where the method has more.
        title, year, source: of the paper; source is an arXiv id or DOI.
        equation: what it computes, in one line of plain text.
        objectives: auxiliary losses with the paper's weights.
        control: what changes between steps, or "".
        invariants: property numbers that its tests check (see the docs' catalogue).
        oracle: the independent implementation that it is compared with, or "closed form".
        reconstruction: what we filled in where the sources are silent, or "".
        call: how to run the module on items (T, dim) and get y (T, ...) and its routings.
        routed: False where nothing is learned or selected by a router.
    """

    name: str
    build: Callable[..., nn.Module]
    title: str
    year: int
    source: str
    equation: str
    oracle: str
    invariants: tuple[str, ...] = ()
    objectives: Mapping[str, float] = field(default_factory=dict)
    control: str = ""
    reconstruction: str = ""
    call: Call = field(default=lambda module, x: _as_list(module(x)))
    routed: bool = True


RECIPES: dict[str, Recipe] = {}


def recipe(**facts) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers the decorated function as the recipe of its name, underscores becoming hyphens."""

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        name = build.__name__.replace("_", "-")
        RECIPES[name] = Recipe(name=name, build=build, **facts)
        return build

    return register


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; RoutingError lists the names when there is none."""
    if name not in RECIPES:
        raise RoutingError(f"no recipe '{name}'", where="recipes", fix=f"use one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def with_keys(keys: Callable[[int], Mapping[str, Tensor]]) -> Call:
    """A call that passes example keys for T items."""
    return lambda module, x: _as_list(module(x, keys=keys(x.shape[0])))


def one_sequence(module: nn.Module, x: Tensor) -> tuple[Tensor, list[Routing]]:
    """A call for modules that want sequences (B, T, D): the items are one."""
    y, routing = module(x[None])
    return y[0], [routing] if isinstance(routing, Routing) else []


def cycle(name: str, values: int) -> Callable[[int], dict[str, Tensor]]:
    """Example key: integers 0, 1, ... values - 1, 0, 1 ..."""
    return lambda items: {name: torch.arange(items) % values}


def _as_list(result: tuple[Tensor, object]) -> tuple[Tensor, list[Routing]]:
    y, routing = result
    return y, list(routing) if isinstance(routing, list | tuple) else [routing]
