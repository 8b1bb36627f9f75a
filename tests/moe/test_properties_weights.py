"""Property catalogue, with which weight and who is dropped: P2, P5, P6, P13, P15."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_cases import (
    CAPACITIES,
    EXPERTS,
    SELECTORS,
    WEIGHINGS,
    build,
    check_order,
    choose,
    close,
    counts,
    few,
    limit_of,
    many,
    pairs_of,
    random_input,
    random_logits,
    route_scores,
    run_on,
    seeds,
)

from terramoe.moe import capacity, links, summarise, weighing
from terramoe.moe.controllers import BiasedSelector, DualAscent, LossFreeBias
from terramoe.moe.selectors import GroupLimited, Support, TopK


def test_the_catalogue_knows_every_capacity():
    """A new capacity cannot escape the catalogue."""
    public = {c for c in vars(capacity).values() if isinstance(c, type) and hasattr(c, "couples_items")}
    assert public == {type(c) for c in CAPACITIES.values()}


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("weigh", WEIGHINGS)
@few
@given(items=counts, seed=seeds, masked=st.booleans())
def test_p02_weights_sum_to_one_iff_renormalised(name, weigh, items, seed, masked):
    """Renormalised weights sum to 1 (scaled ones to the factor) for each item with an expert; ones to their number;
    raw ones to the chosen probability, which is 1 only where nothing was left out."""
    inp = random_input(items, seed, masked=masked)
    routing = build(name, seed=seed, weigh=WEIGHINGS[weigh]).route(inp)
    number = torch.bincount(routing.item, minlength=items)
    chosen = torch.zeros(items, EXPERTS, dtype=torch.float64).index_put(
        (routing.item, routing.expert), torch.ones(()).double()
    )
    total = {
        "raw": (chosen * routing.logits.softmax(-1)).sum(-1),
        "ones": number.double(),
        "scaled": 2.5 * (number > 0).double(),
        "sigmoid": (chosen * routing.logits.sigmoid()).sum(-1),
    }.get(weigh, (number > 0).double())
    close(routing.dense().sum(-1), total)
    if weigh == "raw":
        assert torch.equal(routing.dense().sum(-1) > 1 - 1e-9, number == EXPERTS)


@many
@given(items=counts, seed=seeds)
def test_p02_a_single_expert_keeps_its_probability_unless_asked_otherwise(items, seed):
    """The default weight of top-1 is p < 1 and differentiable; renormalised it is 1, and the router learns nothing."""
    inp = random_input(items, seed)
    for parts, learns in (({}, True), ({"weigh": weighing.renormalised}, False)):
        layer = build("top1", seed=seed, **parts)
        y, routing = run_on(layer, inp)
        (y * torch.linspace(1, 2, 5)).sum().backward()
        assert torch.equal(routing.weight == 1, torch.full((items,), not learns))
        assert (layer.scorer.linear.weight.grad.abs().max() > 1e-9) == learns


@many
@given(items=counts, seed=seeds, factor=st.sampled_from([0.3, 0.7, 1.0]))
def test_p02_a_drop_leaves_the_other_weights_unless_renormalised_after(items, seed, factor):
    """Kept weights are those of before the drop; their sum is 1 iff nothing of the item was dropped, or afterwards,
    whatever it was before."""
    logits, fixed = random_logits(seed, items), capacity.FixedCapacity(factor)
    after = capacity.RenormalisedAfterDrop(fixed)
    free, dropped = (route_scores(logits, TopK(2), weigh=weighing.renormalised, capacity=c) for c in (None, fixed))
    close(dropped.dense(), torch.where(dropped.dense() > 0, free.dense(), 0))
    whole = torch.bincount(dropped.item[dropped.kept], minlength=items) == 2
    assert torch.equal((dropped.dense().sum(-1) - 1).abs() < 1e-9, whole)
    for weigh in WEIGHINGS.values():
        again = route_scores(logits, TopK(2), weigh=weigh, capacity=after)
        close(again.dense().sum(-1), (~again.dropped_items()).double())


@pytest.mark.parametrize("name", CAPACITIES)
@many
@given(items=st.integers(1, 20), seed=seeds, groups=st.integers(0, 3), selector=st.sampled_from(list(SELECTORS)))
def test_p05_capacity_bounds_loads_and_counts_what_it_drops(name, items, seed, groups, selector):
    """load <= C in each group; rows stay those selected; kept slots are 0 .. load - 1; nothing goes while there is
    room; dropped pairs are counted."""
    inp = random_input(items, seed, masked=True, groups=groups)
    layer = build(selector, seed=seed, capacity=CAPACITIES[name])
    torch.manual_seed(seed)
    routing = layer.route(inp)
    layer.capacity = None
    torch.manual_seed(seed)
    free = layer.route(inp)
    rows = {pair: row for row, pair in enumerate(zip(free.item.tolist(), free.expert.tolist(), strict=True))}
    assert all(pair in rows for pair in zip(routing.item.tolist(), routing.expert.tolist(), strict=True))
    certain = free.rank == 0 if name == "random second" else free.rank >= 0  # only second choices are drawn
    assert set(free.item[certain].tolist()) <= set(routing.item.tolist())
    assert routing.expert.numel() >= int(certain.sum())
    group_of = torch.zeros(items).long() if inp.group is None else inp.group
    group = group_of[routing.item]
    for g in group_of.unique().tolist():
        limit = limit_of(CAPACITIES[name], int((group == g).sum()))
        for expert in range(EXPERTS):
            mine = (group == g) & (routing.expert == expert)
            kept = mine & routing.kept
            load = int(kept.sum())
            assert load == min(limit, int(mine.sum()))
            assert sorted(routing.slot[kept].tolist()) == list(range(load))
            assert (routing.slot[mine & ~routing.kept] == -1).all()
    gone = int((~routing.kept).sum())
    assert int(routing.load().sum()) + gone == int(routing.demand().sum()) == routing.expert.numel()
    numbers = summarise({"layer": routing})["layer"]
    assert numbers.dropped_share == pytest.approx(gone / max(routing.expert.numel(), 1))
    assert float(routing.dropped()) == pytest.approx(numbers.dropped_share)
    assert numbers.load == pytest.approx((routing.load() / max(int(routing.load().sum()), 1)).tolist())
    importance = torch.zeros(EXPERTS, dtype=torch.float64).index_add(0, routing.expert, routing.weight)
    assert numbers.importance == pytest.approx((importance / importance.sum().clamp_min(1e-300)).tolist())
    reached = set(routing.item[routing.kept].tolist())
    lost = [i for i in range(items) if inp.mask[i] and i not in reached]
    assert routing.dropped_items().nonzero().flatten().tolist() == lost


@pytest.mark.parametrize("name", [n for n in CAPACITIES if n != "random second"])
@many
@given(items=st.integers(1, 20), seed=seeds, selector=st.sampled_from(["top2", "top3", "all", "top-p", "threshold"]))
def test_p06_first_choices_first_and_then_priority(name, items, seed, selector):
    """Rank by rank; inside a rank the item of greater largest probability (priority) or the earlier one (position)."""
    routing = build(selector, seed=seed, capacity=CAPACITIES[name]).route(random_input(items, seed))
    check_order(routing, getattr(CAPACITIES[name], "inner", CAPACITIES[name]).order)


BIASED = {
    "top-k": lambda: BiasedSelector(TopK(2), EXPERTS),
    "groups": lambda: BiasedSelector(GroupLimited(2, groups=2, limit=1), EXPERTS),
    "logits": lambda: BiasedSelector(TopK(2), EXPERTS, on="logits"),
    "support": lambda: BiasedSelector(Support(of_logits=True), EXPERTS, on="logits"),
}


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("weigh", WEIGHINGS)
@few
@given(items=counts, seed=seeds, shift=st.floats(-3, 3))
def test_p13_a_bias_moves_the_choice_and_never_the_weights(name, weigh, items, seed, shift):
    """A pair weighs what it does without a bias; the bias has no gradient; a constant added to it changes nothing."""
    link = links.sigmoid if name == "groups" else links.softmax
    layer, inp = build(BIASED[name](), seed=seed, weigh=WEIGHINGS[weigh], link=link), random_input(items, seed)
    with torch.no_grad():
        layer.selector.bias.copy_(random_logits(seed + 1, 1)[0])
    routing = layer.route(inp)
    pairs = pairs_of(routing)
    close(routing.weight, WEIGHINGS[weigh](link(routing.logits), routing.logits, pairs))
    assert not layer.selector.bias.requires_grad
    assert "selector.bias" in layer.state_dict()
    layer.selector.bias.add_(shift)
    shifted = layer.route(inp)
    assert torch.equal(shifted.dense(), routing.dense()) or name == "groups"
    push = torch.zeros(EXPERTS, dtype=torch.float64)
    push[seed % EXPERTS] = 1e3
    layer.selector.bias.copy_(push)
    assert (layer.route(inp).demand()[seed % EXPERTS]) == items


@many
@given(items=st.integers(1, 30), seed=seeds, rate=st.sampled_from([0.001, 0.1]))
def test_p13_controllers_move_against_the_load_and_rest_at_balance(items, seed, rate):
    """Loss-free: overloaded experts go down, the mean stays 0, rest iff balanced. Dual ascent: rest at the target."""
    routing = route_scores(random_logits(seed, items).requires_grad_(), TopK(1))
    even = route_scores(torch.eye(EXPERTS, dtype=torch.float64), TopK(1))
    demand = routing.demand().double()
    free, dual = BiasedSelector(TopK(1), EXPERTS), BiasedSelector(TopK(1), EXPERTS, on="logits")
    for selector, controller in ((free, LossFreeBias(free, rate)), (dual, DualAscent(dual, rate, damping=0.0))):
        controller.after_step(0, [even])
        assert not selector.bias.any()
        controller.after_step(1, [routing])
        moved = selector.bias.double()
        assert abs(float(moved.mean())) < 1e-6
        assert moved.any() == (demand != demand.mean()).any()
        above, below = moved[demand > demand.mean()], moved[demand < demand.mean()]
        assert not above.numel() or above.max() < below.min()
    close(dual.bias.double(), -rate * (demand / items - 1 / EXPERTS), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SELECTORS)
@many
@given(items=counts, seed=seeds, scale=st.sampled_from([1.0, 30.0]), shift=st.sampled_from([0.0, 1e4]))
def test_p15_softmax_of_the_selected_is_the_renormalised_softmax(name, items, seed, scale, shift):
    """Values and gradients agree; only the former stays finite where the softmax of all experts underflows."""
    logits = (scale * random_logits(seed, items)).requires_grad_()
    pairs = choose(name, logits, random_input(items, seed))
    a = weighing.softmax_selected(links.softmax(logits), logits, pairs)
    b = weighing.renormalised(links.softmax(logits), logits, pairs)
    close(a, b)
    arrow = torch.linspace(1, 2, a.numel(), dtype=a.dtype)
    close(*(torch.autograd.grad((w * arrow).sum(), logits, retain_graph=True)[0] for w in (a, b)), atol=1e-9)
    far = weighing.softmax_selected(links.softmax(logits + shift), 1e4 * logits + shift, pairs)
    close(pairs.total(far, items), torch.ones_like(far))
