"""Capacity against a plain double loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.moe import FixedCapacity, LinearScorer, ModuleBank, MoELayer, RouteInput, TopK


def reference(routing, factor, minimum, order, group):
    """Walk the queue pair by pair: rank by rank, inside a rank by position or priority."""
    priority = routing.probs.amax(1)
    rows = sorted(
        range(routing.item.numel()),
        key=lambda i: (int(routing.rank[i]), -float(priority[routing.item[i]]) if order == "priority" else 0),
    )
    pairs_in_group = {}
    for i in range(routing.item.numel()):
        g = int(group[routing.item[i]])
        pairs_in_group[g] = pairs_in_group.get(g, 0) + 1
    used, slot = {}, [-1] * routing.item.numel()
    for i in rows:
        g = int(group[routing.item[i]])
        key = (g, int(routing.expert[i]))
        place = used.get(key, 0)
        used[key] = place + 1
        if place < max(minimum, math.ceil(factor * pairs_in_group[g] / routing.num_experts)):
            slot[i] = place
    return slot


@given(
    items=st.integers(0, 25),
    k=st.integers(1, 3),
    factor=st.sampled_from([0.3, 1.0, 1.25, 2.0]),
    minimum=st.integers(1, 3),
    order=st.sampled_from(["position", "priority"]),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_double_loop(items, k, factor, minimum, order, groups, seed):
    torch.manual_seed(seed)
    layer = MoELayer(
        LinearScorer(4, 4),
        ModuleBank(torch.nn.Identity() for _ in range(4)),
        selector=TopK(k),
        capacity=FixedCapacity(factor, minimum, order),
    )
    group = torch.randint(0, groups, (items,))
    mask = torch.rand(items) < 0.9
    routing = layer.route(RouteInput(torch.randn(items, 4), mask=mask, group=group)).detach()
    expected = reference(routing, factor, minimum, order, group)
    assert routing.slot.tolist() == expected
    assert routing.kept.tolist() == [slot >= 0 for slot in expected]


def test_first_choices_go_before_second_choices():
    torch.manual_seed(0)
    bank = ModuleBank(torch.nn.Identity() for _ in range(2))
    layer = MoELayer(LinearScorer(4, 2), bank, selector=TopK(2), capacity=FixedCapacity(0.5))
    routing = layer.route(RouteInput(torch.randn(40, 4)))
    for expert in range(2):
        of_expert = routing.expert == expert
        if (~routing.kept & of_expert & (routing.rank == 0)).any():
            assert not (routing.kept & of_expert & (routing.rank == 1)).any()


def test_dropped_pairs_are_counted_and_give_zero():
    torch.manual_seed(0)
    layer = MoELayer(
        LinearScorer(4, 4),
        ModuleBank(torch.nn.Linear(4, 4) for _ in range(4)),
        selector=TopK(1),
        capacity=FixedCapacity(0.1),
    )
    y, routing = layer(torch.randn(20, 4))
    assert routing.load().max() <= 1
    assert routing.dropped() == pytest.approx(1 - int(routing.kept.sum()) / 20)
    assert (y[routing.dropped_items()] == 0).all()
    assert routing.demand().sum() == 20


@pytest.mark.parametrize("bad", [{"factor": 0.0}, {"minimum": 0}, {"order": "random"}])
def test_bad_settings(bad):
    with pytest.raises(RoutingError, match="FixedCapacity"):
        FixedCapacity(**bad)
