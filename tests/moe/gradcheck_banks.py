"""Gradient cases of banks, executors and the sorting between them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from gradcheck_cases import (
    MASK,
    Case,
    D,
    E,
    T,
    case,
    leaf,
    learned,
    of_values,
    route,
    shaken,
)
from torch import Tensor, nn

from terramoe.moe import (
    Routing,
    StackedFFN,
    experts,
    sorting,
)
from terramoe.moe.executors import EXECUTORS, ExpertParallel, combine, expert_parallel
from terramoe.moe.experts import activations, fused, grouped_mm, lora, tt_lora

EMPTY = 1  # the expert without items


def some_routing(weight: Tensor, drop: bool = True) -> Routing:
    """k = 2 of E for T items with the weights ``pair_weights(drop)``; one expert without items.

    With ``drop`` there are a masked item and a dropped pair, else every item has its k pairs (a faster path).
    """
    z = torch.randn(T, E, generator=torch.Generator().manual_seed(4))
    z[:, EMPTY] = -9
    record = replace(route(z, mask=MASK if drop else None), weight=weight)
    if not drop:
        return record
    return replace(record, kept=torch.arange(weight.shape[0]) != 3, fixed_k=None)


def pair_weights(drop: bool = True) -> Tensor:
    return leaf(2 * (T - 1) if drop else 2 * T, seed=6)


@case("sorting.take_rows")
def take_rows():
    x, weight = leaf(T, 2, D), pair_weights()
    pairs = sorting.sort_pairs(some_routing(weight))
    return lambda: sorting.take_rows(x, pairs), [x]


for _label, _drop in {"some dropped": True, "every item k": False}.items():

    @case("sorting.combine_rows", _label)
    def combine_rows(drop=_drop):
        weight = pair_weights(drop)
        pairs = sorting.sort_pairs(some_routing(weight, drop))
        y = leaf(pairs.row.numel(), 2, D)
        return lambda: sorting.combine_rows(y, weight, pairs), [y, weight]


BANKS: dict[str, dict[str, tuple[Callable[[], experts.Bank], tuple[int, ...]]]] = {
    "experts.StackedFFN": {
        **{name: (lambda name=name: StackedFFN(E, D, 2, 2, activation=name), (D,)) for name in activations.ACTIVATIONS},
        "no bias": (lambda: StackedFFN(E, D, 2, activation="swiglu", bias=False), (D,)),
        "windows": (lambda: StackedFFN(E, D, 2), (2, D)),
    },
    "experts.ModuleBank": {"": (lambda: experts.ModuleBank(nn.Linear(D, 2) for _ in range(E)), (D,))},
    "experts.AdapterBank": {"": (lambda: experts.AdapterBank(E, D, 2), (D,))},
    "experts.LoRABank": {
        "": (lambda: experts.LoRABank(E, D, 2, 2), (D,)),
        "shared A": (lambda: experts.LoRABank(E, D, 2, 2, shared_a=True), (2, D)),
        "sorted": (lambda: experts.LoRABank(E, D, 2, 1 + 2 * lora.DENSE_ROWS_PER_CHOICE // E), (D,)),
    },
    "experts.TTLoRABank": {"": (lambda: experts.TTLoRABank(E, (2, 2), (2, 3), 2), (4,))},
    "experts.ConvBank": {
        "": (lambda: experts.ConvBank(E, 2, 2, 2, stride=2), (3, 3, 2)),
        "groups": (lambda: experts.ConvBank(E, 2, 2, 2, groups=2, bias=False), (2, 3, 2)),
    },
    "experts.ChannelBank": {"": (lambda: experts.ChannelBank(2, E, 2), (3, 2, 2))},
}
GATHERED = ("experts.StackedFFN", "experts.AdapterBank", "experts.LoRABank")  # the others refuse, see test_executors


def bank_case(make: Callable[[], experts.Bank], shape: tuple[int, ...], executor: Callable, drop: bool = True) -> Case:
    def build():
        bank, x, weight = shaken(make()), leaf(T, *shape), pair_weights(drop)
        idle = set(bank.experts[EMPTY].parameters()) if isinstance(bank, experts.ModuleBank) else set()
        return lambda: executor(x, some_routing(weight, drop), bank), [x, weight, *(set(learned(bank)) - idle)]

    return build


for _bank, _makes in BANKS.items():
    for _label, (_make, _shape) in _makes.items():
        for _executor in EXECUTORS:
            if _executor != "gather" or _bank in GATHERED:
                case(_bank, f"{_label} {_executor}")(bank_case(_make, _shape, EXECUTORS[_executor]))

for _executor in EXECUTORS:
    case(f"executors.{_executor}")(bank_case(lambda: StackedFFN(E, D, 2), (D,), EXECUTORS[_executor], drop=False))


for _node_size in (None, 1):

    @case("executors.ExpertParallel", f"node size {_node_size}")
    def expert_parallel_executor(node_size=_node_size):
        return bank_case(lambda: StackedFFN(E, D, 2), (D,), ExpertParallel(E, node_size=node_size))()


@case("executors.exchange")
def exchange():
    x = leaf(T, D)
    plan = (expert_parallel.Permute(torch.tensor([3, 0, 4, 1, 2])), expert_parallel.Send([T], [T]))
    return lambda: expert_parallel.exchange(x, plan), [x]


@case("executors.combine")
def combine_pairs():
    y, weight = leaf(4, 2, D), leaf(4)
    return lambda: combine.combine(y, torch.tensor([2, 0, 2, 1]), weight, 3), [y, weight]


case("executors.expand_like")(
    of_values(lambda weight: combine.expand_like(weight, torch.ones(T, 2, D, dtype=torch.float64)), (T,))
)
for _name, _run in {"fused_ffn": fused.fused_ffn, "grouped_ffn": grouped_mm.grouped_ffn}.items():
    for _activation in ("gelu", "swiglu"):

        @case(f"experts.{_name}", _activation)
        def routed_ffn(run=_run, name=_activation):
            bank, x, weight = shaken(StackedFFN(E, D, 2, activation=name)), leaf(T, D), pair_weights()
            pairs, activation = sorting.sort_pairs(some_routing(weight)), activations.get_activation(name)
            return lambda: run(x, weight, bank.weights(), pairs, activation), [x, weight, *learned(bank)]


CORES = tt_lora.core_shapes((2, 2, 3), 2)
case("experts.contract")(of_values(lambda x, *cores: tt_lora.contract(x, cores, 2), (T, 4), *CORES))
case("experts.matrix_of")(of_values(lambda *cores: tt_lora.matrix_of(cores, 2), *CORES))


for _name, _make in {
    "ConvBank": lambda: experts.ConvBank(E, 2, 2, 2),
    "LoRABank": lambda: experts.LoRABank(E, D, 2, 2),
    "TTLoRABank": lambda: experts.TTLoRABank(E, (2, 2), (2, 3), 2),
}.items():

    @case(f"experts.{_name}", "merge")
    def merge(make=_make):
        bank, weights = shaken(make()), leaf(E)
        return lambda: bank.merge(weights), [weights, *learned(bank)]


@case("experts.ChannelBank", "gated")
def gated_channels():
    bank, x, gates = shaken(experts.ChannelBank(2, E, 2)), leaf(T, 2, 2, 2), leaf(T, E)
    return lambda: bank.run_gated(x, gates), [x, gates, *learned(bank)]


for _label, _mask in {"": None, "masked": torch.tensor([[True, False, True], [False, False, False]])}.items():

    @case("experts.AttentionExperts", _label)
    def attention(mask=_mask):
        bank, x, z = shaken(experts.AttentionExperts(E, D, 2)), leaf(2, 3, D), leaf(6, E)
        return lambda: bank(x, route(z), mask), [x, z, *learned(bank)]
