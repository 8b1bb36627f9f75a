"""Sparse upcycling: every expert starts as a copy of the dense FFN, under a new router.

Source: Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints, 2022, arXiv 2212.05055. The alternating
form is that of Training Sparse Mixture Of Experts Text Embedding Models (Nomic Embed v2), 2025, arXiv 2502.07972. The
given modules are left as they are. Shapes: D in, H neurons, O out, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe import weighing
from terramoe.moe.conversion.dense_ffn import read_ffn, stack_ffn, with_offset
from terramoe.moe.conversion.in_model import Targets, convert_ffns, find_ffns
from terramoe.moe.experts import StackedFFN
from terramoe.moe.experts.fused import Weights
from terramoe.moe.layer import Capacity, MoELayer, Selector, Weigh
from terramoe.moe.organisation import SharedPlusRouted
from terramoe.moe.scorers import LinearScorer
from terramoe.moe.selectors import TopK

Entry = Mapping[str, Any]


def upcycle_ffn(
    ffn: nn.Module,
    num_experts: int,
    *,
    selector: Selector | None = None,
    weigh: Weigh = weighing.renormalised,
    capacity: Capacity | None = None,
    router_std: float = 0.02,
) -> MoELayer:
    """A layer of E copies of a dense FFN whose output is that of the FFN until it is trained.

    So it is where the weights of an item sum to 1 and nothing is dropped. With ``weighing.raw`` the output shrinks to
    the probability that was chosen, but the router learns from a single expert too.

    Args:
        ffn: see ``read_ffn``.
        num_experts: E.
        selector: top-2 unless given. The source's vision encoder lets experts choose, ``ExpertChoice(2.0)``, with
            renormalised weights; an item that no expert takes then gets 0.
        weigh, capacity: see ``MoELayer``.
        router_std: standard deviation of the new router's weights.

    Raises:
        RoutingError: no such FFN, no expert, a standard deviation below 0.
    """
    if num_experts < 1 or not router_std >= 0:
        raise RoutingError(
            f"{num_experts} experts, a router of standard deviation {router_std}",
            where="upcycle_ffn",
            fix="use at least 1 expert and a standard deviation of at least 0",
        )
    dense = read_ffn(ffn)
    bank = stack_ffn(_copies(dense.weights, num_experts), dense.activation)
    scorer = LinearScorer(bank.dim, num_experts).to(bank.w_in_EDH)
    nn.init.normal_(scorer.linear.weight, std=router_std)
    selector = TopK(min(2, num_experts)) if selector is None else selector
    return MoELayer(scorer, bank, selector=selector, weigh=weigh, capacity=capacity).train(ffn.training)


def expert_state(
    state: Mapping[nn.Parameter, Entry], ffn: nn.Module, bank: StackedFFN
) -> dict[nn.Parameter, dict[str, Any]]:
    """The optimiser's state of a dense FFN as the state of its copies in ``bank``.

    What has the shape of the parameter (a momentum, a mean of squares) is stacked as the parameter was; anything else
    (a count of steps) is copied. ``new.state.update(expert_state(old.state, ffn, layer.bank))``.

    Args:
        state: ``optimizer.state`` of the optimiser that trained the FFN.
        ffn: the FFN that the bank was made of.
        bank: E copies of it, as ``upcycle_ffn`` makes them; an output offset that it does not hold is passed over.

    Returns:
        Parameter of the bank -> its entry; empty where the optimiser has taken no step.

    Raises:
        RoutingError: some parameters have an entry and others not, or a value of another shape than its parameter's.
    """
    parameters = list(ffn.parameters())
    known = [p for p in parameters if state.get(p)]
    if not known:
        return {}
    if len(known) < len(parameters) or len({frozenset(state[p]) for p in known}) > 1:
        raise RoutingError(
            f"the optimiser has a like state for only {len(known)} of {len(parameters)} parameters",
            where="expert_state",
            fix="carry the state over only where the whole FFN was trained by one optimiser",
        )
    made = {p: {} for p in bank.weights() if p is not None}
    for name, value in state[known[0]].items():
        shaped = isinstance(value, Tensor) and value.ndim > 0
        unlike = [p for p in known if shaped and state[p][name].shape != p.shape]
        if unlike:
            raise RoutingError(
                f"'{name}' has shape {tuple(state[unlike[0]][name].shape)} for a parameter {tuple(unlike[0].shape)}",
                where="expert_state",
                fix="use an optimiser with one value per scalar (SGD, Adam)",
            )
        if shaped:
            dense = read_ffn(ffn, lambda p, name=name: state[p][name]).weights
            for parameter, stacked in zip(bank.weights(), _copies(dense, bank.num_experts), strict=True):
                if parameter is not None:
                    made[parameter][name] = stacked.contiguous().clone()
        else:
            for entry in made.values():
                entry[name] = value.clone() if isinstance(value, Tensor) else value
    return made


def upcycle_alternating(
    model: nn.Module, num_experts: int = 8, k: int = 2, targets: Targets | None = None, *, router_std: float = 0.02
) -> nn.Module:
    """A copy of the model in which every second FFN, from the second on, is E copies of itself: Nomic Embed v2.

    Raw softmax weights and one output offset that all experts share, so that the copy does not compute what the model
    does: of a converted FFN all but the offset is multiplied by the probability of the chosen experts. The source
    trains with ``switch_balance`` at weight 1 while pretraining, and without it later. Routings: ``routed_ffns``.

    Args:
        model: any module with at least two dense FFNs.
        num_experts, k: E and the experts of an item.
        targets: the FFNs to count, see ``find_ffns``.
        router_std: as in ``upcycle_ffn``.

    Raises:
        RoutingError: fewer than two FFNs, k outside 1..E.
    """
    names = list(find_ffns(model, targets))
    if len(names) < 2:
        raise RoutingError(
            f"only the FFN '{names[0]}' was found", where="upcycle_alternating", fix="convert it with upcycle_ffn"
        )
    selector = TopK(k)
    selector.checked_k(num_experts)

    def convert(name: str, ffn: nn.Module) -> nn.Module:
        layer = upcycle_ffn(ffn, num_experts, selector=selector, weigh=weighing.raw, router_std=router_std)
        return _share_offset(layer)

    return convert_ffns(model, convert, names[1::2])


def _copies(weights: Weights, count: int) -> Weights:
    """Parameters of one expert -> of ``count`` equal ones; views."""
    return Weights(*(None if p is None else p.expand(count, *p.shape) for p in weights))


def _share_offset(layer: MoELayer) -> MoELayer | SharedPlusRouted:
    """The layer with the output offset of its first expert taken out of the bank and added once instead."""
    values, layer.bank.b_out_ED = layer.bank.b_out_ED, None
    return with_offset(layer, None if values is None else values[0])
