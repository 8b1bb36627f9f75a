"""The record: rows, derived quantities, masks."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.moe import (
    All,
    FixedCapacity,
    LinearScorer,
    ModuleBank,
    MoELayer,
    RouteInput,
    StackedFFN,
    TopK,
    ZeroScorer,
    summarise,
    weighing,
)


def make_routing(items=7, experts=4, k=2, seed=0, mask=None, **parts):
    torch.manual_seed(seed)
    bank = ModuleBank(torch.nn.Linear(5, 5) for _ in range(experts))
    layer = MoELayer(LinearScorer(5, experts), bank, selector=TopK(k), **parts)
    return layer.route(RouteInput(torch.randn(items, 5), mask=mask)).detach()


@given(items=st.integers(0, 20), experts=st.integers(1, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_topk_gives_k_distinct_experts_per_item_in_order(items, experts, data):
    k = data.draw(st.integers(1, experts))
    routing = make_routing(items, experts, k)
    assert routing.item.numel() == items * k
    chosen = routing.expert.view(k, items).T
    assert all(len(set(row)) == k for row in chosen.tolist())
    chosen_logits = routing.logits.gather(1, chosen)
    assert (chosen_logits.diff(dim=1) <= 0).all()
    assert routing.load().sum() == items * k
    torch.testing.assert_close(routing.dense().sum(0), routing.importance())


def test_rows_are_rank_major_then_item_minor():
    routing = make_routing(items=3, k=2)
    assert routing.item.tolist() == [0, 1, 2, 0, 1, 2]
    assert routing.rank.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("k", [1, 2, 4, 5, 6])
def test_ties_go_to_the_lower_index(k):
    pairs = TopK(k)(torch.zeros(3, 6), RouteInput(torch.zeros(3, 1)))
    assert pairs.expert.view(k, 3).T.tolist() == [list(range(k))] * 3


def test_masked_items_get_no_pair_no_load_and_no_entropy():
    mask = torch.tensor([True, False, True, True, False])
    routing = make_routing(items=5, mask=mask)
    assert set(routing.item.tolist()) == {0, 2, 3}
    assert routing.load().sum() == 6
    assert routing.top_expert()[~mask].tolist() == [-1, -1]
    assert routing.entropy() == pytest.approx(float(routing.item_entropy()[mask].mean()))
    assert not routing.dropped_items()[~mask].any()


def test_entropy_is_log_e_for_uniform_and_zero_for_certain():
    uniform = MoELayer(ZeroScorer(4), ModuleBank(torch.nn.Identity() for _ in range(4)), selector=All())
    routing = uniform.route(RouteInput(torch.randn(6, 3)))
    assert routing.entropy() == pytest.approx(torch.log(torch.tensor(4.0)).item(), abs=1e-6)
    certain = make_routing()
    certain = type(certain)(**{**vars(certain), "probs": torch.eye(4)[torch.tensor([0, 1, 2, 3, 0, 1, 2])]})
    assert certain.entropy() == 0
    assert certain.margin().tolist() == [1.0] * 7


def test_top_expert_is_the_kept_one_of_greatest_weight():
    routing = make_routing()
    first_dropped = routing.rank != 0
    routing = type(routing)(**{**vars(routing), "kept": first_dropped})
    assert routing.top_expert().tolist() == routing.expert[routing.rank == 1].tolist()
    nothing = type(routing)(**{**vars(routing), "kept": torch.zeros_like(first_dropped)})
    assert nothing.top_expert().tolist() == [-1] * 7
    assert nothing.top_weight().tolist() == [0.0] * 7
    assert nothing.dropped_items().all()
    assert nothing.dropped() == 1


@pytest.mark.parametrize(
    ("weigh", "total"), [(weighing.renormalised, 1.0), (weighing.softmax_selected, 1.0), (weighing.ones, 2.0)]
)
def test_weights_sum_as_promised(weigh, total):
    routing = make_routing(weigh=weigh)
    torch.testing.assert_close(routing.dense().sum(1), torch.full((7,), total))


def test_softmax_selected_equals_renormalised_softmax():
    a, b = make_routing(weigh=weighing.renormalised), make_routing(weigh=weighing.softmax_selected)
    torch.testing.assert_close(a.weight, b.weight)


def test_raw_top1_weight_is_the_probability_not_one():
    routing = make_routing(k=1)
    torch.testing.assert_close(routing.weight, routing.probs.amax(1))
    assert (routing.weight < 1).all()


def test_statistics_count_what_happened():
    routing = make_routing(items=50, experts=4, k=1, seed=3)
    numbers = summarise({"layer": routing})["layer"]
    assert numbers.load == pytest.approx((routing.load() / 50).tolist())
    assert numbers.items == 50
    assert numbers.pairs == 50
    assert 1 <= numbers.effective_experts <= 4
    alone = type(routing)(**{**vars(routing), "expert": torch.zeros_like(routing.expert)})
    numbers = summarise({"layer": alone})["layer"]
    assert numbers.effective_experts == pytest.approx(1)
    assert numbers.dead_experts == 3


def test_a_missing_key_is_named():
    with pytest.raises(RoutingError, match=r"'sensor' is missing.*Fix: pass keys"):
        RouteInput(torch.randn(2, 3)).key("sensor", "SomeScorer")


@pytest.mark.parametrize(
    "bad", [{"mask": torch.ones(3).bool()}, {"group": torch.zeros(5)}, {"keys": {"a": torch.ones(9)}}]
)
def test_rows_must_match_items(bad):
    with pytest.raises(RoutingError, match="there are 4 items"):
        RouteInput(torch.randn(4, 3), **bad)


def test_items_need_channels():
    with pytest.raises(RoutingError, match="channels last"):
        RouteInput(torch.randn(4))


@pytest.mark.parametrize("drop", [False, True])
def test_dense_weights_are_the_same_from_fixed_and_from_free_rows(drop):
    torch.manual_seed(0)
    capacity = FixedCapacity(0.6) if drop else None
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 5), selector=TopK(2), capacity=capacity).double()
    routing = layer.route(RouteInput(torch.randn(13, 6, dtype=torch.float64)))
    assert routing.fixed_k == 2
    assert bool(routing.kept.all()) != drop
    free = dataclasses.replace(routing, fixed_k=None)
    assert torch.equal(routing.dense(), free.dense())
    ascent = torch.randn(13, 4, dtype=torch.float64)
    one, other = (
        torch.autograd.grad((r.dense() * ascent).sum(), layer.scorer.linear.weight, retain_graph=True)[0]
        for r in (routing, free)
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
