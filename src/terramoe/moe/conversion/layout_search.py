"""Search for the layout of an MoE network: how many experts in each layer, and how wide.

One super-layer per place is trained at its largest size; a layout uses its first experts and their first hidden units,
so that layouts are scored without training each. Source: AutoMoE: Heterogeneous Mixture-of-Experts with Adaptive
Computation for Efficient Neural Machine Translation, 2022, arXiv 2210.07535. The given modules are left as they are.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe.conversion.prune import prune_experts
from terramoe.moe.experts import StackedFFN
from terramoe.moe.layer import MoELayer


@dataclass(frozen=True)
class LayerLayout:
    """Experts of one layer and the hidden width of each."""

    experts: int
    hidden: int


Layout = tuple[LayerLayout, ...]


@dataclass(frozen=True)
class SearchSpace:
    """What the layers of a layout may be.

    Attributes:
        layers: number of layers.
        experts: counts that a layer may have; 1 is a dense layer.
        hidden: hidden widths that a layer may have.
    """

    layers: int
    hidden: tuple[int, ...]
    experts: tuple[int, ...] = (1, 2, 3, 4, 5, 6)

    def __post_init__(self) -> None:
        choices = (*self.experts, *self.hidden)
        whole = all(type(value) is int and value >= 1 for value in choices)
        if self.layers < 1 or not self.experts or not self.hidden or not whole:
            raise RoutingError(
                f"{self.layers} layers, experts {self.experts}, hidden {self.hidden}",
                where="SearchSpace",
                fix="use at least 1 layer and whole numbers of at least 1",
            )

    def options(self) -> list[LayerLayout]:
        """All layers that are possible, each once, from the smallest."""
        return [LayerLayout(e, h) for e in sorted(set(self.experts)) for h in sorted(set(self.hidden))]


@dataclass(frozen=True)
class SearchResult:
    """The best layout found, its score and cost, and the best score after each generation (never falling)."""

    layout: Layout
    score: float
    cost: float
    history: tuple[float, ...]


def search(
    space: SearchSpace,
    score: Callable[[Layout], float],
    cost: Callable[[Layout], float],
    budget: float,
    *,
    generations: int = 10,
    population: int = 32,
    seed: int = 0,
) -> SearchResult:
    """Evolution under a budget: the better half are parents, their children are crossed and mutated.

    Only feasible layouts are scored, and each once. The same arguments give the same result; ties go to the layout
    found first. Reconstruction: half parents, uniform crossing of two parents, then one layer drawn anew.

    Args:
        space: what a layout may be.
        score: layout -> number, greater is better; -inf is allowed, NaN is not.
        cost: layout -> number (parameters, operations, seconds), asked once for each layout. A layout is feasible at
            cost <= budget. Where random layouts are not, the cheapest one is tried: the smallest options, changed layer
            by layer while that lowers the cost. If the cost is a sum over layers, it is feasible wherever any is.
        budget: most cost.
        generations: rounds after the first population.
        population: layouts kept per round.
        seed: of all draws.

    Raises:
        RoutingError: nothing feasible was found, a population below 2, generations below 0, or a score of NaN.
    """
    if population < 2 or generations < 0:
        raise RoutingError(
            f"{generations} generations of {population} layouts",
            where="search",
            fix="use a population of at least 2 and no negative number of generations",
        )
    rng, options = np.random.default_rng(seed), space.options()
    known: dict[Layout, float] = {}  # scores of feasible layouts, in the order found
    price = functools.cache(lambda layout: float(cost(layout)))  # a measured cost must not change its mind

    def admit(layout: Layout) -> None:
        if layout not in known and price(layout) <= budget:  # a cost of NaN is not feasible
            known[layout] = _checked_score(score(layout), layout)

    for _ in range(population):
        admit(tuple(options[i] for i in rng.integers(len(options), size=space.layers)))
    if not known:
        cheapest = _cheapest(options, space.layers, price)
        admit(cheapest)
    if not known:
        raise RoutingError(
            f"no layout within the budget {budget} was found; the cheapest costs {price(cheapest)}",
            where="search",
            fix="raise the budget, or allow fewer experts and smaller widths",
        )
    history = [max(known.values())]
    for _ in range(generations):
        parents = _best(known, max(2, population // 2))
        for _ in range(population - population // 2):
            admit(_child(parents, options, rng))
        history.append(max(known.values()))
    best = _best(known, 1)[0]
    return SearchResult(best, known[best], price(best), tuple(history))


def elastic_ffn(bank: StackedFFN, experts: int, hidden: int) -> StackedFFN:
    """A bank of copies of the first ``experts`` experts with their first ``hidden`` hidden units.

    Its output is that of the given experts with the other hidden units at 0. Of a gated activation both halves are cut.

    Raises:
        RoutingError: more experts or hidden units than there are, less than 1, or a bank of another kind.
    """
    if not isinstance(bank, StackedFFN):
        raise RoutingError(f"cannot cut a {type(bank).__name__}", where="elastic_ffn", fix="use a StackedFFN")
    if not 1 <= experts <= bank.num_experts or not 1 <= hidden <= bank.hidden:
        raise RoutingError(
            f"{experts} experts of width {hidden} from {bank.num_experts} of width {bank.hidden}",
            where="elastic_ffn",
            fix="use at least 1 and at most what the bank has",
        )
    w = bank.weights()
    halves = (2 if bank.activation.gated else 1, bank.hidden)
    cut = {
        id(w.w_in): w.w_in[:experts].unflatten(-1, halves)[..., :hidden].flatten(-2),
        id(w.w_out): w.w_out[:experts, :hidden],
    }
    if w.b_in is not None:
        cut[id(w.b_in)] = w.b_in[:experts].unflatten(-1, halves)[..., :hidden].flatten(-2)
    if w.b_out is not None:
        cut[id(w.b_out)] = w.b_out[:experts]
    given = {id(p): p.requires_grad for p in bank.parameters()}
    # Every parameter is replaced by its slice on the way: the rest is never copied.
    memo = {key: nn.Parameter(value.detach().clone(), given[key]) for key, value in cut.items()}
    small = copy.deepcopy(bank, memo)
    small.num_experts, small.hidden = experts, hidden
    return small


def elastic_layer(layer: MoELayer, layout: LayerLayout) -> MoELayer:
    """A layer with the first experts of a super-layer, narrowed, and the router's first columns (``prune_experts``).

    Raises:
        RoutingError: as ``elastic_ffn`` and ``prune_experts``, fewer experts than an item chooses among them.
    """
    bank = elastic_ffn(layer.bank, layout.experts, layout.hidden)
    small = prune_experts(layer, range(layout.experts))
    small.bank = bank
    return small


def ffn_parameters(layout: Layout, dim: int, *, gated: bool = False, bias: bool = True) -> int:
    """Scalars of the experts of a layout with D = dim channels in and out: a cost for ``search``."""
    matrices = 2 if gated else 1
    each = [h * (matrices + 1) * dim + (matrices * h + dim if bias else 0) for h in (part.hidden for part in layout)]
    return sum(part.experts * size for part, size in zip(layout, each, strict=True))


def _checked_score(value: float, layout: Layout) -> float:
    value = float(value)
    if math.isnan(value):
        raise RoutingError(f"the score of {layout} is NaN", where="search", fix="give -inf to layouts that fail")
    return value


def _best(known: dict[Layout, float], count: int) -> list[Layout]:
    """The best layouts, ties in the order found (sorting is stable)."""
    return sorted(known, key=known.__getitem__, reverse=True)[:count]


def _child(parents: list[Layout], options: list[LayerLayout], rng: np.random.Generator) -> Layout:
    """Layer by layer from either of two parents, then one layer drawn anew."""
    first, second = (parents[i] for i in rng.integers(len(parents), size=2))
    child = [a if heads else b for a, b, heads in zip(first, second, rng.random(len(first)) < 0.5, strict=True)]
    child[rng.integers(len(child))] = options[rng.integers(len(options))]
    return tuple(child)


def _cheapest(options: list[LayerLayout], layers: int, cost: Callable[[Layout], float]) -> Layout:
    """The layout that no change of a single layer makes cheaper, from the smallest options on."""
    best = (options[0],) * layers
    least, improved = cost(best), True
    while improved:
        improved = False
        for place in range(layers):
            for option in options:
                other = (*best[:place], option, *best[place + 1 :])
                if (price := cost(other)) < least:
                    best, least, improved = other, price, True
    return best
