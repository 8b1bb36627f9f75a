"""Selectors: exact counts, minimality, balance, independence of batch mates where it is declared."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from terramoe.errors import RoutingError
from terramoe.moe import RouteInput, links
from terramoe.moe.selectors import (
    All,
    Available,
    Balanced,
    ExpertChoice,
    GroupedSoftmax,
    GroupLimited,
    HashedItem,
    RandomK,
    SampleFromTop,
    Sinkhorn,
    Support,
    Table,
    Threshold,
    TopK,
    TopOfEachGroup,
    TopP,
    ordered_top,
)

EVERY = {
    "top1": TopK(1),
    "top2": TopK(2),
    "all": All(),
    "random": RandomK(2),
    "top-p": TopP(0.6),
    "threshold": Threshold(0.4),
    "support": Support(),
    "sparse support": Support(2, of_logits=True),
    "expert choice": ExpertChoice(2.0),
    "balanced": Balanced(),
    "sinkhorn": Sinkhorn(2),
    "table": Table.random("tile", 30, 4),
    "hashed": HashedItem(6),
    "group limited": GroupLimited(2, groups=2, limit=1),
    "top of each group": TopOfEachGroup(2),
    "sampled": SampleFromTop(2, pool=3),
    "available": Available(TopK(2)),
}


def make(items=9, experts=4, seed=0, mask=None, group=None):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, experts, generator=generator)
    keys = {
        "tile": torch.randint(30, (items,), generator=generator),
        "available": torch.rand(items, experts, generator=generator) > 0.3,
    }
    return logits, RouteInput(torch.randn(items, 6, generator=generator), mask, group, keys)


def select(selector, logits, inp):
    return selector(links.softmax(logits) if selector.needs == "probs" else logits, inp)


def used(pairs, shape):
    """(T, E) bool, failing when a pair stands twice."""
    count = torch.zeros(shape, dtype=torch.int64).index_put(
        (pairs.item, pairs.expert), torch.tensor(1), accumulate=True
    )
    assert count.max() <= 1
    return count.bool()


@pytest.mark.parametrize("name", EVERY)
def test_pairs_are_distinct_in_range_and_in_order(name):
    logits, inp = make(17)
    pairs = select(EVERY[name], logits, inp)
    used(pairs, logits.shape)
    key = pairs.rank * 17 + pairs.item  # rank-major, then item-minor
    assert (key.diff() > 0).all()
    for item in range(17):
        ranks = pairs.rank[pairs.item == item].tolist()
        assert ranks == list(range(len(ranks))) or name == "available"
    if pairs.fixed_k is not None:
        assert pairs.item.tolist() == list(range(17)) * pairs.fixed_k
    assert not pairs.expert.requires_grad


@pytest.mark.parametrize("name", EVERY)
def test_masked_items_get_nothing_and_change_nothing(name):
    mask = torch.arange(12) % 3 != 1
    logits, inp = make(12, mask=mask)
    torch.manual_seed(5)
    first = select(EVERY[name], logits, inp)
    assert mask[first.item].all()
    torch.manual_seed(5)
    junk = torch.where(mask[:, None], logits, 1e3 * torch.randn(12, 4, generator=torch.Generator().manual_seed(8)))
    torch.manual_seed(5)
    again = select(EVERY[name], junk, inp)
    assert torch.equal(used(first, logits.shape), used(again, logits.shape))


@pytest.mark.parametrize("name", [n for n, s in EVERY.items() if n not in ("random", "sampled")])
def test_items_are_independent_unless_declared(name):
    """P9: the choice of an item does not depend on its batch mates, iff the selector says so."""
    selector, (logits, inp) = EVERY[name], make(12)
    whole = used(select(selector, logits, inp), logits.shape)
    part = RouteInput(inp.x[:5], keys={k: v[:5] for k, v in inp.keys.items()})
    alone = used(select(selector, logits[:5], part), (5, 4))
    if not selector.couples_items:
        assert torch.equal(whole[:5], alone)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("random", "sampled")])
def test_permuting_items_permutes_the_choice(name):
    """P7."""
    logits, inp = make(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    moved = RouteInput(inp.x[order], keys={k: v[order] for k, v in inp.keys.items()})
    a = used(select(EVERY[name], logits, inp), logits.shape)
    b = used(select(EVERY[name], logits[order], moved), logits.shape)
    assert torch.equal(a[order], b)


@pytest.mark.parametrize("name", ["top1", "top2", "all", "top-p", "threshold", "support", "expert choice", "balanced"])
def test_relabelling_experts_relabels_the_choice(name):
    """P8."""
    logits, inp = make(12)
    order = torch.tensor([2, 0, 3, 1])
    a = used(select(EVERY[name], logits, inp), logits.shape)
    b = used(select(EVERY[name], logits[:, order], inp), logits.shape)
    assert torch.equal(a[:, order], b)


@pytest.mark.parametrize("name", EVERY)
def test_no_items(name):
    logits, inp = make(0)
    assert select(EVERY[name], logits, inp).item.numel() == 0


@given(
    scores=st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=7), min_size=1, max_size=6).filter(
        lambda rows: len({len(r) for r in rows}) == 1
    ),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_ordered_top_with_ties_is_a_stable_sort(scores, data):
    """P26 and trap 16: many ties, lowest index first."""
    k = data.draw(st.integers(1, len(scores[0])))
    expected = [sorted(range(len(row)), key=lambda e: -row[e])[:k] for row in scores]
    assert ordered_top(torch.tensor(scores, dtype=torch.float32), k).tolist() == expected


def test_ordered_top_of_a_wide_row_and_of_nan():
    scores = torch.randn(5, 300)
    assert torch.equal(ordered_top(scores, 3), scores.topk(3).indices)
    assert torch.equal(ordered_top(scores, 20), scores.topk(20).indices)
    assert ordered_top(torch.full((2, 4), torch.nan), 1).max() < 4


@given(seed=st.integers(0, 10**6), p=st.floats(0.05, 1), sharp=st.floats(0.1, 8))
@settings(max_examples=60, deadline=None)
def test_top_p_is_the_shortest_prefix(seed, p, sharp):
    """P14, and trap 13: at p = 1 all experts stay, at small p one does."""
    probs = torch.softmax(sharp * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)), -1)
    chosen = used(TopP(p)(probs, RouteInput(torch.zeros(6, 1))), probs.shape)
    for row, keep in zip(probs, chosen, strict=True):
        mass, least = row[keep].sum(), row[keep].min()
        assert keep.any()
        assert (row[~keep] <= least).all()
        assert mass >= p - 1e-6
        assert mass - least < p or keep.sum() == 1 or p == 1
    if p == 1:
        assert chosen.all()


def test_fewer_experts_for_surer_items():
    probs = torch.tensor([[0.9, 0.05, 0.03, 0.02], [0.4, 0.3, 0.2, 0.1]])
    pairs = TopP(0.6)(probs, RouteInput(torch.zeros(2, 1)))
    assert torch.bincount(pairs.item).tolist() == [1, 2]


@given(seed=st.integers(0, 10**6), low=st.floats(0, 1), high=st.floats(0, 1), scale=st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_threshold_grows_with_tau_and_ignores_scale(seed, low, high, scale):
    """P14."""
    norms = torch.rand(5, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    inp, (low, high) = RouteInput(torch.zeros(5, 1)), sorted((low, high))
    few, many = (used(Threshold(t)(norms, inp), norms.shape) for t in (low, high))
    assert (many | ~few).all()
    assert used(Threshold(1)(norms, inp), norms.shape).all()
    assert few.any(1).all()
    assert torch.equal(used(Threshold(0.5)(norms, inp), norms.shape), used(Threshold(0.5)(norms * 4, inp), norms.shape))


@given(items=st.integers(1, 30), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_expert_choice_loads_are_equal_and_best(items, seed):
    """P4."""
    logits, inp = make(items, seed=seed)
    probs = links.softmax(logits)
    chosen = used(ExpertChoice(2.0)(probs, inp), probs.shape)
    capacity = min(math.ceil(items * 2 / 4), items)
    assert chosen.sum(0).tolist() == [capacity] * 4
    for expert in range(4):
        inside, outside = probs[chosen[:, expert], expert], probs[~chosen[:, expert], expert]
        assert (outside[:, None] <= inside).all()


def test_expert_choice_counts_inside_groups():
    group = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    logits, inp = make(8, group=group)
    chosen = used(ExpertChoice(1.0)(links.softmax(logits), inp), logits.shape)
    assert chosen[group == 0].sum(0).tolist() == [1] * 4
    assert chosen[group == 1].sum(0).tolist() == [1] * 4


@given(items=st.integers(1, 21), experts=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_balanced_is_the_best_assignment_with_equal_loads(items, experts, seed):
    """P4; the oracle is scipy on a square problem."""
    logits, inp = make(items, experts, seed=seed)
    pairs = Balanced()(logits, inp)
    load = torch.bincount(pairs.expert, minlength=experts)
    assert load.max() - load.min() <= 1
    if items % experts == 0:
        square = logits.double().repeat_interleave(items // experts, dim=1).numpy()
        rows, columns = linear_sum_assignment(square, maximize=True)
        total = logits.double()[pairs.item, pairs.expert].sum()
        assert float(total) == pytest.approx(square[rows, columns].sum(), abs=1e-9)


def test_sinkhorn_evens_a_skewed_router():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 0, 0, 0])
    inp = RouteInput(torch.zeros(200, 1))
    plain, even = (torch.bincount(s(logits, inp).expert, minlength=4) for s in (TopK(1), Sinkhorn(1)))
    assert plain.max() > 150
    assert even.max() < 70


def test_table_deals_keys_evenly_and_is_the_same_everywhere():
    """P22: nothing here depends on Python's salted hash."""
    frequency = [100, 1, 50, 49, 30, 2, 20, 48]
    table = Table.balanced("tile", frequency, 3)
    load = [sum(f for f, e in zip(frequency, table.table[:, 0].tolist(), strict=True) if e == x) for x in range(3)]
    assert load == [100, 100, 100]
    assert Table.random("tile", 12, 4, seed=3).table[:, 0].tolist() == [2, 0, 1, 3, 0, 0, 0, 1, 1, 3, 2, 3]
    assert HashedItem(2, bits=3, seed=1).directions.shape == (3, 2)


def test_near_items_share_a_hash():
    selector, x = HashedItem(6, bits=6), torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    scores = torch.zeros(40, 64)
    a, b = (selector(scores, RouteInput(y)).expert for y in (x, x * 1.5 + 1e-6))
    assert torch.equal(a, b)
    assert a.unique().numel() > 8
    assert (selector(scores, RouteInput(-x)).expert != a).all()


def test_groups_limit_the_choice():
    logits, inp = make(50, 8)
    pairs = GroupLimited(3, groups=4, limit=2)(links.sigmoid(logits), inp)
    for item in range(50):
        assert len({e // 2 for e in pairs.expert[pairs.item == item].tolist()}) <= 2
    each = TopOfEachGroup(4)(logits, inp)
    assert (each.expert // 2 == each.rank).all()
    torch.testing.assert_close(GroupedSoftmax(4)(logits).unflatten(1, (4, 2)).sum(-1), torch.ones(50, 4))


def test_only_available_experts_are_used_and_a_lost_choice_is_replaced():
    logits, inp = make(40)
    chosen = used(Available(TopK(2))(logits, inp), logits.shape)
    available = inp.keys["available"]
    assert not (chosen & ~available).any()
    assert torch.equal(chosen.sum(1), available.sum(1).clamp_max(2))


def test_sampling_reaches_every_pair_of_the_pool_and_nothing_else():
    torch.manual_seed(0)
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]).expand(600, 5)
    pairs = SampleFromTop(2, pool=4)(logits, RouteInput(torch.zeros(600, 1)))
    seen = {tuple(row) for row in pairs.expert.view(2, 600).T.tolist()}
    assert seen == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    same = SampleFromTop(2, pool=2)(logits, RouteInput(torch.zeros(600, 1)))
    assert same.expert.tolist() == TopK(2)(logits, RouteInput(torch.zeros(600, 1))).expert.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, i: TopK(0)(z, i), "k = 0.*Fix: choose k in 1..4"),
        (lambda z, i: TopK(5)(z, i), "k = 5 with 4"),
        (lambda z, i: TopP(0), "p = 0"),
        (lambda z, i: Threshold(2), "tau = 2"),
        (lambda z, i: ExpertChoice(0), "per_item = 0"),
        (lambda z, i: GroupLimited(2, 3, 1)(z, i), "3 groups of 4"),
        (lambda z, i: GroupLimited(3, 2, 1)(z, i), "k = 3 from 1 of 2"),
        (lambda z, i: TopOfEachGroup(3)(z, i), "3 groups of 4"),
        (lambda z, i: SampleFromTop(3, 2)(z, i), "k = 3 from the best 2"),
        (lambda z, i: Table("missing", [0, 1])(z, i), "the key 'missing' is missing"),
        (lambda z, i: Table("tile", [0, 1])(z, i), "'tile' has values"),
        (lambda z, i: Table("tile", [9] * 30)(z, i), "names expert 9 of 4"),
        (lambda z, i: HashedItem(3)(z, i), "6 channels.*expects 3"),
        (lambda z, i: Available(TopK(1), "tile")(z, i), "expected \\(9, 4\\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RoutingError, match=message):
        call(*make())
