"""Property catalogue, who is chosen: P3, P4, P7, P8, P9, P14, P16, P22, P26."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from property_cases import (
    BY_GROUP,
    BY_PLACE,
    BY_RULE,
    CAPACITIES,
    EXPERTS,
    FIXED_K,
    SELECTORS,
    build,
    choose,
    close,
    counts,
    few,
    generator,
    many,
    random_input,
    random_items,
    random_logits,
    route_scores,
    run_on,
    seeds,
    take,
    used,
)

from terramoe.errors import RoutingError
from terramoe.moe import RouteInput, links, selectors
from terramoe.moe.controllers import BiasedSelector, DroppingSelector, ReplaySelector
from terramoe.moe.selectors import Available, Balanced, ExpertChoice, Support, Table, Threshold, TopK, TopP, ordered_top

COUPLED = ("expert choice", "balanced", "sinkhorn")


def test_the_catalogue_knows_every_selector():
    """A new selector cannot escape the catalogue."""
    public = {c for name in selectors.__all__ if hasattr(c := getattr(selectors, name), "couples_items")}
    assert public | {BiasedSelector, DroppingSelector, ReplaySelector} == {type(s) for s in SELECTORS.values()}
    assert {name for name, s in SELECTORS.items() if s.couples_items} == set(COUPLED)


@pytest.mark.parametrize("name", SELECTORS)
@many
@given(items=st.integers(0, 12), seed=seeds, masked=st.booleans())
def test_p03_each_item_has_k_distinct_experts_in_order(name, items, seed, masked):
    """|S_t| = k, all distinct; rows are rank-major, then item-minor, and an item's ranks are 0, 1, 2 ..."""
    logits, inp = random_logits(seed, items), random_input(items, seed, masked=masked)
    pairs = choose(name, logits, inp)
    chosen = used(pairs, items)
    if name in FIXED_K:
        valid = torch.ones(items, dtype=torch.bool) if inp.mask is None else inp.mask
        assert chosen.sum(1).tolist() == (valid * FIXED_K[name]).tolist()
    assert (pairs.rank * max(items, 1) + pairs.item).diff().gt(0).all()
    number = torch.bincount(pairs.item, minlength=items)
    assert (pairs.rank < number[pairs.item]).all()
    if pairs.fixed_k is not None:
        assert pairs.item.tolist() == list(range(items)) * pairs.fixed_k


@many
@given(items=counts, experts=st.integers(1, 12), seed=seeds, data=st.data())
def test_p03_topk_takes_the_k_best_best_first(items, experts, seed, data):
    """For any k in 1..E: no expert outside is better than one inside, and ranks follow the scores."""
    k, logits = data.draw(st.integers(1, experts)), random_logits(seed, items, experts)
    routing = route_scores(logits, TopK(k))
    assert used(routing, items, experts).sum(1).tolist() == [k] * items
    best = torch.stack([logits[routing.item[routing.rank == r], routing.expert[routing.rank == r]] for r in range(k)])
    close(best.T, logits.sort(-1, descending=True).values[:, :k], rtol=0, atol=0)


@many
@given(items=counts, seed=seeds, k=st.integers(1, EXPERTS))
def test_p03_only_available_experts_are_chosen_and_lost_ones_replaced(items, seed, k):
    """|S_t| = min(k, available), the best of these."""
    inp, logits = random_input(items, seed), random_logits(seed, items)
    available = inp.keys["available"]
    chosen = used(choose(Available(TopK(k)), logits, inp), items)
    assert not (chosen & ~available).any()
    assert chosen.sum(1).tolist() == available.sum(1).clamp_max(k).tolist()
    left = torch.where(available & ~chosen, logits, -torch.inf).amax(1)
    assert (torch.where(chosen, logits, torch.inf).amin(1) > left).all()


@pytest.mark.parametrize("groups", [0, 1, 3])
@many
@given(items=counts, seed=seeds, per_item=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_p04_expert_choice_loads_are_exactly_c_with_the_best_items(groups, items, seed, per_item):
    """Every expert has C = min(ceil(n c / E), n) of a group's n valid items, and none outside is better."""
    inp, logits = random_input(items, seed, masked=True, groups=groups), random_logits(seed, items)
    chosen, probs = used(choose(ExpertChoice(per_item), logits, inp), items), links.softmax(logits)
    assert not chosen[~inp.mask].any()
    for g in range(max(groups, 1)):
        inside = inp.mask & ((inp.group == g) if groups else True)
        n = int(inside.sum())
        assert chosen[inside].sum(0).tolist() == [min(math.ceil(n * per_item / EXPERTS), n)] * EXPERTS
        for expert in range(EXPERTS):
            taken, left = (probs[inside & m, expert] for m in (chosen[:, expert], ~chosen[:, expert]))
            assert not taken.numel() or not left.numel() or taken.min() >= left.max()


@pytest.mark.parametrize(("experts", "items"), [(1, 3), (2, 5), (3, 1), (3, 4), (3, 6), (4, 5)])
@many
@given(seed=seeds)
def test_p04_balanced_is_the_best_of_all_assignments_with_equal_loads(experts, items, seed):
    """Loads differ by at most 1; the total score is the greatest of every such assignment, by trying all of them."""
    logits = random_logits(seed, items, experts)
    pairs = choose(Balanced(), logits, RouteInput(torch.zeros(items, 1)))
    assert pairs.item.tolist() == list(range(items))
    totals = {}
    for assignment in itertools.product(range(experts), repeat=items):
        load = [assignment.count(e) for e in range(experts)]
        if max(load) - min(load) <= 1:
            totals[assignment] = float(logits[range(items), list(assignment)].sum())
    assert totals[tuple(pairs.expert.tolist())] == pytest.approx(max(totals.values()), abs=1e-12)


@pytest.mark.parametrize("capacity", [None, "priority", "adaptive"])
@pytest.mark.parametrize("name", [n for n in SELECTORS if n not in BY_PLACE])
@few
@given(items=counts, seed=seeds, masked=st.booleans(), groups=st.sampled_from([0, 2]))
def test_p07_permuting_items_permutes_the_output(name, capacity, items, seed, masked, groups):
    """Layer and permutation commute, unless places in the batch count (position and random order, random choice)."""
    inp = random_input(items, seed, masked=masked, groups=groups)
    order = torch.randperm(items, generator=generator(seed))
    layer = build(name, seed=seed, capacity=CAPACITIES.get(capacity))
    (y, a), (moved, b) = run_on(layer, inp), run_on(layer, take(inp, order))
    close(moved, y[order])
    close(b.dense(), a.dense()[order])


def test_p07_the_position_order_is_not_equivariant():
    """The exception is real: with position capacity the last items are dropped, whoever they are."""
    inp, layer = random_input(12, 0), build("top1", capacity=CAPACITIES["position"])
    y, flipped = run_on(layer, inp)[0], run_on(layer, take(inp, torch.arange(11, -1, -1)))[0].flip(0)
    assert not torch.allclose(y, flipped)


@pytest.mark.parametrize("name", [n for n in SELECTORS if n not in BY_RULE])
@few
@given(items=counts, seed=seeds, capacity=st.sampled_from([None, "position", "priority"]), data=st.data())
def test_p08_relabelling_experts_changes_nothing_but_their_names(name, items, seed, capacity, data):
    """Experts, router rows and masks in another order: the same output, and loads in that order."""
    inp = random_input(items, seed)
    layer, other = (build(name, seed=seed, capacity=CAPACITIES.get(capacity)) for _ in range(2))
    orders = ([2, 3, 1, 0], [1, 0, 2, 3]) if name in BY_GROUP else list(itertools.permutations(range(EXPERTS)))
    order = list(data.draw(st.sampled_from(orders)))  # experts of a group must stay together
    with torch.no_grad():
        for parameter in [*other.bank.parameters(), *other.scorer.parameters()]:
            parameter.copy_(parameter[order])
    renamed = RouteInput(inp.x, keys={**inp.keys, "available": inp.keys["available"][:, order]})
    (y, a), (same, b) = run_on(layer, inp), run_on(other, renamed)
    close(same, y)
    assert b.load().tolist() == a.load()[order].tolist()


@pytest.mark.parametrize("name", [n for n in SELECTORS if n not in COUPLED])
@many
@given(items=st.integers(2, 12), seed=seeds, data=st.data())
def test_p09_an_item_does_not_see_its_batch_mates(name, items, seed, data):
    """Without coupling, other mates in the same places change neither choice nor output of an item."""
    place, layer = data.draw(st.integers(0, items - 1)), build(name, seed=seed)
    inp, mates = random_input(items, seed), random_input(items, seed + 1)
    for tensor, source in [(mates.x, inp.x), *((mates.keys[k], inp.keys[k]) for k in inp.keys)]:
        tensor[place] = source[place]
    results = []
    for batch in (inp, mates):
        torch.manual_seed(seed)
        y, routing = run_on(layer, batch)
        results.append((y[place], routing.expert[routing.item == place]))
    close(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("part", [*COUPLED, *CAPACITIES.keys() - {"adaptive"}])  # it drops nothing: slots alone differ
def test_p09_coupling_is_declared_where_it_happens(part):
    """The other half of "iff": a part that says it couples items does so for some batch."""
    parts = {"capacity": CAPACITIES[part], "selector": "top2"} if part in CAPACITIES else {"selector": part}
    assert (CAPACITIES | SELECTORS)[part].couples_items
    for seed in range(50):
        layer, inp = build(seed=seed, **parts), random_input(8, seed)
        torch.manual_seed(seed)
        whole = run_on(layer, inp)[0][:1]
        torch.manual_seed(seed)
        if not torch.allclose(whole, run_on(layer, take(inp, torch.arange(1)))[0]):
            return
    pytest.fail("no batch of fifty showed a coupling")


@many
@given(items=counts, experts=st.integers(1, 9), seed=seeds, p=st.floats(0.01, 1), sharpness=st.floats(0.01, 20))
def test_p14_top_p_is_the_smallest_prefix_that_reaches_p(items, experts, seed, p, sharpness):
    """The best experts, at least one; their mass reaches p, without the last it does not; more p, more experts."""
    probs = links.softmax(sharpness * random_logits(seed, items, experts))
    inp = RouteInput(torch.zeros(items, 1))
    chosen, wider = (used(TopP(q)(probs, inp), items, experts) for q in (p, (p + 1) / 2))
    assert (wider | ~chosen).all()
    for row, keep in zip(probs.tolist(), chosen.tolist(), strict=True):
        inside = sorted(v for v, k in zip(row, keep, strict=True) if k)
        outside = [v for v, k in zip(row, keep, strict=True) if not k]
        assert inside
        assert inside[0] >= max(outside, default=0)
        assert math.fsum(inside) >= p - 1e-12 or not outside
        assert p == 1 or len(inside) == 1 or math.fsum(inside[1:]) < p + 1e-12


@many
@given(items=counts, seed=seeds, tau=st.floats(0, 1), more=st.floats(0, 1), scale=st.sampled_from([0.25, 8.0, 1024.0]))
def test_p14_threshold_grows_with_tau_and_ignores_scale(items, seed, tau, more, scale):
    """score >= (1 - tau) max by definition; monotone in tau, all experts at tau = 1, the same for scaled scores."""
    norms, inp = random_logits(seed, items).abs(), RouteInput(torch.zeros(items, 1))
    chosen = used(Threshold(tau)(norms, inp), items)
    close(chosen, norms >= (1 - tau) * norms.amax(1, keepdim=True))
    assert (used(Threshold(max(tau, more))(norms, inp), items) | ~chosen).all()
    assert used(Threshold(1.0)(norms, inp), items).all()
    assert torch.equal(used(Threshold(tau)(norms * scale, inp), items), chosen)


@pytest.mark.parametrize("scale", [0.01, 0.5, 30.0])  # all experts in the support, some, few
@many
@given(items=counts, experts=st.integers(1, 9), seed=seeds, shift=st.floats(-1e3, 1e3))
def test_p16_sparsemax_is_the_nearest_point_of_the_simplex(scale, items, experts, seed, shift):
    """p = relu(z - t) with sum 1 for one t per row, which is what makes it the projection; a shift changes nothing."""
    z = scale * random_logits(seed, items, experts)
    p = links.sparsemax(z)
    assert (p >= 0).all()
    close(p.sum(-1), torch.ones(items, dtype=z.dtype))
    gap = torch.where(p > 0, z - p, torch.nan)
    t = gap.nanmean(-1, keepdim=True)
    close(torch.relu(z - t), p)
    assert (z[p == 0] <= t.expand_as(z)[p == 0] + 1e-9 * scale).all()
    close(links.sparsemax(z + shift), p, atol=1e-9)
    inp = RouteInput(torch.zeros(items, 1))
    assert torch.equal(used(Support(of_logits=True)(z, inp), items, experts), p > 0)
    for most in range(1, experts + 1):  # adaptive k: the best of the support, at most so many
        chosen = used(Support(most, of_logits=True)(z, inp), items, experts)
        assert chosen.sum(1).tolist() == (p > 0).sum(1).clamp_max(most).tolist()
        assert not (chosen & (p == 0)).any()


@few
@given(seed=seeds)
def test_p16_sparsemax_has_exact_zeros_and_the_right_gradient(seed):
    """Far logits get exactly 0; the gradient agrees with finite differences."""
    z = random_logits(seed, 3).requires_grad_()
    assert links.sparsemax(10 * z).eq(0).any()
    assert torch.autograd.gradcheck(links.sparsemax, (z,))


@many
@example(frequency=[1, 1, 1, 9], experts=2)
@given(frequency=st.lists(st.integers(0, 50), min_size=1, max_size=30), experts=st.integers(1, 6))
def test_p22_a_balanced_table_is_even_up_to_its_least_key(frequency, experts):
    """Without its least frequent key the fullest expert is no fuller than any other: what greedy dealing ensures."""
    expert = Table.balanced("tile", frequency, experts).table[:, 0].tolist()
    held = [[f for f, e in zip(frequency, expert, strict=True) if e == x and f > 0] for x in range(experts)]
    load = [sum(values) for values in held]
    fullest = held[load.index(max(load))]
    assert max(load) - min(fullest, default=0) <= min(load)


@many
@given(
    scores=st.integers(1, 7).flatmap(
        lambda e: st.lists(st.lists(st.integers(0, 2), min_size=e, max_size=e), min_size=1)
    )
)
def test_p26_ties_go_to_the_lowest_index(scores):
    """Scores with many ties: the order of every k is that of Python's stable sort."""
    wide = torch.tensor(scores, dtype=torch.float64)
    inp, experts = RouteInput(torch.zeros(len(scores), 1)), wide.shape[1]
    for k in range(1, experts + 1):
        expected = [sorted(range(experts), key=lambda e: -row[e])[:k] for row in scores]
        assert ordered_top(wide, k).tolist() == expected
        pairs = TopK(k)(wide, inp)
        assert pairs.expert.view(k, -1).T.tolist() == expected
    for selector in (TopP(0.5), Threshold(0.2), Support()):
        pairs = selector(wide, inp)
        for item, row in enumerate(scores):
            mine = pairs.expert[pairs.item == item].tolist()
            assert mine == sorted(range(experts), key=lambda e: -row[e])[: len(mine)]
    first = used(
        ExpertChoice(1.0)(torch.zeros(2 * experts, experts), RouteInput(torch.zeros(2 * experts, 1))),
        2 * experts,
        experts,
    )
    assert first[:2].all()
    assert not first[2:].any()


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("items", [0, 1, 3])
def test_p26_no_item_and_fewer_items_than_experts(name, items):
    """T = 0 and T < E route without an error; a layer refuses no items with an error of ours."""
    layer, inp = build(name), random_input(items, 0)
    routing = layer.route(inp)
    assert routing.load().sum() == routing.expert.numel()
    if items:
        assert run_on(layer, inp)[0].shape == (items, 5)
    else:
        assert layer.executor(inp.x, routing, layer.bank).shape == (0, 5)
        with pytest.raises(RoutingError, match="batch is empty"):
            run_on(layer, inp)


@few
@given(items=counts, seed=seeds, expert=st.integers(0, EXPERTS - 1))
def test_p26_experts_that_nobody_chose_do_no_harm(items, seed, expert):
    """All items at one expert: three are empty, the output is that expert's."""
    layer, x = build("top1", seed=seed), random_items(items, seed)
    with torch.no_grad():
        layer.scorer.linear.bias[expert] += 1e3
    y, routing = layer(x)
    assert routing.load().tolist() == [items if e == expert else 0 for e in range(EXPERTS)]
    close(y, layer.bank.run(expert, x))
