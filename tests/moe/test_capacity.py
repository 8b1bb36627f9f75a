"""Capacity against a plain double loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.moe import FixedCapacity, LinearScorer, ModuleBank, MoELayer, RouteInput, TopK, weighing
from terramoe.moe.capacity import AdaptiveCapacity, RandomSecond, RenormalisedAfterDrop


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


@pytest.mark.parametrize("bad", [{"factor": 0.0}, {"minimum": 0}, {"order": "alphabetic"}, {"multiple_of": 0}])
def test_bad_settings(bad):
    with pytest.raises(RoutingError, match="FixedCapacity"):
        FixedCapacity(**bad)


def test_random_order_drops_anybody_but_keeps_the_count():
    torch.manual_seed(0)
    scores = torch.zeros(40, 2)
    kept = []
    for _ in range(20):
        routing = route(scores, FixedCapacity(0.5, order="random"), k=1)
        assert routing.load().tolist() == [10, 0]
        kept.append(routing.kept)
    assert torch.stack(kept).float().mean(0).max() < 1


def test_capacity_rounds_up_to_a_multiple():
    """Trap 11: libraries round differently; ours rounds up, then to a multiple."""
    assert FixedCapacity(1.0).limit(9, 4) == 3
    assert FixedCapacity(1.0, multiple_of=4).limit(9, 4) == 4
    assert FixedCapacity(1.0, minimum=5).limit(9, 4) == 5


def test_adaptive_capacity_drops_nothing_until_it_is_capped():
    scores = torch.tensor([[3.0, 0.0]]).expand(10, 2)
    assert route(scores, AdaptiveCapacity(), k=1).load().tolist() == [10, 0]
    assert route(scores, AdaptiveCapacity(most=1.2), k=1).load().tolist() == [6, 0]


def test_weights_can_be_renormalised_before_or_after_the_drop():
    """Trap 10: the two give different outputs."""
    scores = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    before = route(scores, FixedCapacity(0.6), k=2, weigh=weighing.renormalised)
    after = route(scores, RenormalisedAfterDrop(FixedCapacity(0.6)), k=2, weigh=weighing.renormalised)
    reached = ~after.dropped_items()
    torch.testing.assert_close(after.dense().sum(1)[reached], torch.ones(int(reached.sum())))
    partly = before.dense().sum(1)[reached]
    assert ((partly > 0) & (partly < 0.999)).any()


def test_random_second_keeps_likely_second_choices_only():
    torch.manual_seed(0)
    sure, unsure = torch.tensor([[9.0, 0.0]]).expand(50, 2), torch.zeros(50, 2)
    capacity = RandomSecond(FixedCapacity(10.0))
    routing = route(torch.cat([sure, unsure]), capacity, k=2, weigh=weighing.renormalised)
    seconds = routing.item[routing.rank == 1]
    assert set(seconds.tolist()) == set(range(50, 100))  # weight 1/2 stays always, weight 1e-4 hardly ever
    assert (routing.rank == 0).sum() == 100
    off = route(torch.cat([sure, unsure]), RandomSecond(FixedCapacity(10.0), enabled=False), k=2)
    assert off.rank.sum() == 100


def route(scores, capacity, k, weigh=weighing.raw):
    """The routing of given scores."""
    bank = ModuleBank(torch.nn.Identity() for _ in range(scores.shape[1]))
    scorer = LinearScorer(scores.shape[1], scores.shape[1])
    with torch.no_grad():
        scorer.linear.weight.copy_(torch.eye(scores.shape[1]))
    return MoELayer(scorer, bank, selector=TopK(k), weigh=weigh, capacity=capacity).route(RouteInput(scores)).detach()
