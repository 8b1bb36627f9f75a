"""Placement and shadowing: worked numbers, brute force, and what must never get worse."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.moe.executors.expert_parallel import Send, flat_plan
from terramoe.moe.placement import (
    StepCost,
    all_to_all_volume,
    balanced_placement,
    contiguous_placement,
    rank_load,
    shadow_experts,
    step_seconds,
)

loads = st.integers(1, 4).flatmap(
    lambda world: st.integers(1, 4).flatmap(
        lambda share: st.tuples(
            st.lists(st.integers(0, 50), min_size=world * share, max_size=world * share).map(torch.tensor),
            st.just(world),
        )
    )
)
seconds = st.floats(0, 10)
costs = st.builds(StepCost, seconds, seconds, seconds)


def test_balanced_placement_on_a_worked_example():
    load = torch.tensor([9, 7, 6, 5, 4, 1])  # contiguous on 2 ranks: 22 and 10
    placement = balanced_placement(load, 2)
    assert placement.tolist() == [0, 1, 1, 0, 1, 0]  # 9 | 7, 13 | 14, then 4 joins the 13
    assert rank_load(load, placement, 2).tolist() == [15, 17]


def test_ties_go_to_the_lower_expert_and_rank_and_equal_loads_stay():
    assert balanced_placement(torch.ones(6), 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert balanced_placement(torch.tensor([5, 5, 0, 0]), 2).tolist() == [0, 1, 0, 1]


@given(loads)
def test_every_expert_is_placed_once_and_never_heavier_than_contiguous(case):
    load, world = case
    placement = balanced_placement(load, world)
    assert torch.bincount(placement, minlength=world).tolist() == [load.numel() // world] * world
    heaviest = rank_load(load, placement, world).max()
    assert heaviest <= rank_load(load, contiguous_placement(load.numel(), world), world).max()
    assert heaviest >= max(load.max(), load.sum() / world)  # what no placement can beat
    assert rank_load(load, placement, world).sum() == load.sum()


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).map(torch.tensor))
def test_four_experts_on_two_ranks_are_placed_best(load):
    """With two a rank, the greedy order pairs the heaviest with the lightest: brute force finds nothing better."""
    best = min(rank_load(load, torch.tensor(p), 2).max() for p in itertools.product([0, 1], repeat=4) if sum(p) == 2)
    assert rank_load(load, balanced_placement(load, 2), 2).max() == best


def test_volume_on_a_worked_example():
    counts = torch.tensor([[5, 1, 2, 0], [3, 4, 0, 7]])
    assert all_to_all_volume(counts, torch.tensor([0, 0, 1, 1])) == 2 + 7
    assert all_to_all_volume(counts, torch.tensor([0, 1, 0, 1])) == 1 + 3
    assert all_to_all_volume(counts, torch.tensor([0, 0, 1, 1]), node_size=2) == 0


@given(st.data())
def test_volume_is_what_the_flat_plan_sends(data):
    world, share = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    entries = data.draw(st.lists(st.integers(0, 9), min_size=world**2 * share, max_size=world**2 * share))
    table, placement = torch.tensor(entries).view(world, -1), contiguous_placement(world * share, world)
    sends = [next(s for s in flat_plan(table, rank) if isinstance(s, Send)).sends for rank in range(world)]
    volume = all_to_all_volume(table, placement)
    assert volume == sum(n for rank, row in enumerate(sends) for to, n in enumerate(row) if to != rank)
    assert all_to_all_volume(table, placement, node_size=world) == 0
    if world == 1:
        assert volume == 0


def test_step_seconds_in_closed_form():
    load, placement = torch.tensor([6, 2, 1, 1]), torch.tensor([0, 0, 1, 1])
    cost = StepCost(row_compute=1.0, row_transfer=10.0, expert_transfer=100.0)
    assert step_seconds(load, placement, 2, cost) == 3 * 8 + 4 * 10 * 8 / 2
    assert step_seconds(load, placement, 2, cost, torch.tensor([0])) == 3 * (2 + 3) + 4 * 10 * 2 / 2 + 2 * 100
    assert step_seconds(load, torch.zeros(4, dtype=torch.int64), 1, cost) == 3 * 10  # alone: nothing travels


def test_shadowing_copies_the_hot_expert_only_while_copies_are_cheap():
    load = torch.tensor([2, 90, 4, 4])
    assert shadow_experts(load, 2, StepCost(1, 1, 10)).tolist() == [1]
    assert shadow_experts(load, 2, StepCost(1, 1, 1000)).tolist() == []
    assert shadow_experts(load, 2, StepCost(1, 1, 0)).tolist() == [1, 2, 3, 0]  # free copies: nothing need travel
    assert shadow_experts(load, 2, StepCost(0, 0, 0)).tolist() == []  # nothing to gain: the smallest set


@given(loads, costs)
def test_shadowing_never_raises_the_modelled_cost(case, cost):
    load, world = case
    placement = contiguous_placement(load.numel(), world)
    shadowed = shadow_experts(load, world, cost)
    without, best = step_seconds(load, placement, world, cost), step_seconds(load, placement, world, cost, shadowed)
    assert best <= without
    assert len(set(shadowed.tolist())) == shadowed.numel()
    cold = [e for e in range(load.numel()) if e not in shadowed.tolist()]
    assert all(load[e] <= load[s] for e in cold for s in shadowed.tolist())
    if world == 1 and cost.expert_transfer > 0:
        assert shadowed.numel() == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: balanced_placement(torch.ones(5), 2),
        lambda: balanced_placement(torch.ones(4), 0),
        lambda: balanced_placement(torch.tensor([1.0, -1.0]), 2),
        lambda: balanced_placement(torch.tensor([1.0, torch.nan]), 2),
        lambda: balanced_placement(torch.ones(2, 2), 2),
        lambda: balanced_placement(torch.ones(0), 1),
        lambda: shadow_experts(torch.tensor([torch.inf, 1.0]), 2, StepCost(1, 1, 1)),
        lambda: all_to_all_volume(torch.ones(2, 4), torch.zeros(3)),
        lambda: all_to_all_volume(torch.ones(2, 4), torch.zeros(4), node_size=0),
        lambda: StepCost(1, -1, 1),
        lambda: StepCost(1, 1, float("nan")),
        lambda: StepCost(float("inf"), 1, 1),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(RoutingError):
        call()
