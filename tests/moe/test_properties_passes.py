"""Property catalogue, what holds for whole passes: P10, P21, P23, P27."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_cases import (
    BY_PLACE,
    CAPACITIES,
    DIM,
    EXPERTS,
    NOISY,
    RUNS,
    SCORERS,
    SELECTORS,
    build,
    close,
    counts,
    few,
    items_for,
    pairs_of,
    random_input,
    random_logits,
    randomised,
    route_scores,
    run_on,
    seeds,
    take,
)

from terramoe.moe import RouteInput, scorers, summarise, weighing
from terramoe.moe.controllers import RecordReplay, ReplaySelector
from terramoe.moe.experts import StackedFFN
from terramoe.moe.objectives import OBJECTIVES, negative_mutual_information, sequence_balance
from terramoe.moe.selectors import SampleFromTop, TopK


def test_the_catalogue_knows_every_scorer():
    """A new scorer cannot escape the catalogue."""
    public = {c for name in scorers.__all__ if isinstance(c := getattr(scorers, name), type) and name != "Scores"}
    assert public == {type(make()) for make in SCORERS.values()}


@pytest.mark.parametrize("name", [n for n in SELECTORS if n not in BY_PLACE])
@few
@given(items=st.integers(2, 12), seed=seeds, limit=st.sampled_from([None, "position", "priority", "in pairs"]))
def test_p10_masked_items_count_nowhere(name, items, seed, limit):
    """NaN under the mask: no row, output 0, no gradient, and all else - choice, capacity, losses, statistics - is what
    it is without those items."""
    inp = random_input(items, seed, masked=True, groups=2)
    inp.mask[0] = True
    valid = inp.mask.nonzero().squeeze(1)
    short = take(inp, valid)
    layer = build(name, seed=seed, capacity=CAPACITIES.get(limit))
    dirty = torch.where(inp.mask[:, None], inp.x, torch.nan).requires_grad_()
    y, routing = run_on(layer, RouteInput(dirty, inp.mask, inp.group, inp.keys))
    alone, expected = run_on(layer, RouteInput(short.x, None, short.group, short.keys))
    assert inp.mask[routing.item].all()
    assert (y[~inp.mask] == 0).all()
    close(y[valid], alone)
    close(routing.dense()[valid], expected.dense())
    assert torch.equal(routing.load(), expected.load())
    numbers, wanted = (vars(summarise({"layer": r})["layer"]) for r in (routing, expected))
    assert all(numbers[name] == pytest.approx(wanted[name]) for name in wanted)
    losses = losses_of(routing)
    close(losses, losses_of(expected))
    (y.square().sum() + losses.sum()).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~inp.mask] == 0).all()


def losses_of(routing):
    """All losses of a record that need no noise."""
    plain = [loss(routing) for name, loss in OBJECTIVES.items() if name != "load_cv2"]
    by_task = [sequence_balance(routing, routing.keys["task"]), negative_mutual_information([routing], "task")]
    return torch.stack([*plain, *by_task])


@pytest.mark.parametrize(("executor", "bank"), RUNS)
@few
@given(items=st.integers(2, 12), seed=seeds, junk=st.sampled_from([torch.nan, torch.inf]))
def test_p10_no_executor_or_bank_lets_nodata_out(executor, bank, items, seed, junk):
    """What stands under the mask changes no output and no gradient, and gives 0."""
    x, mask = items_for(bank, items, seed), torch.arange(items) % 2 == 0
    results = []
    for filling in (0.0, junk):
        layer = build("top2", bank, seed, executor=executor)
        dirty = x.clone()
        dirty[~mask] = filling
        dirty.requires_grad_()
        y, _ = layer(dirty, mask=mask)
        y.square().sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters()]
        results.append((y, dirty.grad, *grads))
    assert not results[1][0][~mask].any()
    for clean, spoilt in zip(*results, strict=True):
        close(spoilt, clean)


@few
@given(items=st.integers(2, 12), seed=seeds)
def test_p10_the_load_objective_skips_masked_items_too(items, seed):
    """The smooth load needs noise, so its draws are given: masked rows must not enter it."""
    logits, clean = random_logits(seed, items), random_logits(seed + 1, items)
    mask = torch.arange(items) % 3 != 1
    whole = route_scores(logits, TopK(2), mask=mask)
    part = route_scores(logits[mask], TopK(2))
    ones = torch.ones_like(logits)
    whole = replace(whole, clean_logits=clean, noise_std=ones)
    part = replace(part, clean_logits=clean[mask], noise_std=ones[mask])
    close(OBJECTIVES["load_cv2"](whole), OBJECTIVES["load_cv2"](part))


@few
@given(items=counts, seed=seeds, changed=seeds)
def test_p21_replaying_a_record_makes_the_same_choice(items, seed, changed):
    """replay(record(x)) is the identity, twice; under another router the choice stays, the weights are the new ones,
    and the router gets a gradient."""
    layer, inp = build(ReplaySelector(TopK(2)), seed=seed, weigh=weighing.softmax_selected), random_input(items, seed)
    replay = RecordReplay({"layer": layer.selector})
    y, first = run_on(layer, inp)
    replay.record({"layer": first})
    for _ in range(2):
        with replay.replaying():
            again, routing = run_on(layer, inp)
        close(again, y, rtol=0, atol=0)
        assert torch.equal(routing.dense(), first.dense())
        replay.record({"layer": routing})
    randomised(layer.scorer, changed + 7)
    with replay.replaying():
        y, routing = run_on(layer, inp)
    assert torch.equal(routing.expert, first.expert)
    close(routing.weight, weighing.renormalised(routing.logits.softmax(-1), routing.logits, pairs_of(first)))
    (y * torch.linspace(1, 2, 5)).sum().backward()
    assert layer.scorer.linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", SELECTORS)
@few
@given(items=counts, seed=seeds, masked=st.booleans(), limit=st.sampled_from([None, *CAPACITIES]))
def test_p21_a_given_routing_is_used_as_it_is(name, items, seed, masked, limit):
    """layer(x, routing) gives the recorded output, whatever the router says by now."""
    layer, inp = build(name, seed=seed, capacity=CAPACITIES.get(limit)), random_input(items, seed, masked=masked)
    y, routing = run_on(layer, inp)
    randomised(layer.scorer, seed + 9)
    again, same = run_on(layer, inp, routing)
    assert same is routing
    close(again, y)


@pytest.mark.parametrize("name", SCORERS)
@few
@given(items=counts, seed=seeds)
def test_p23_noise_in_training_only(name, items, seed):
    """Evaluation gives the same logits each time, without the noise; training differs only where noise is declared."""
    scorer, inp = randomised(SCORERS[name](), seed), random_input(items, seed)
    first, second = scorer.eval()(inp), scorer(inp)
    assert torch.equal(first.logits, second.logits)
    assert first.noise_std is None
    clean = getattr(scorer, "scorer", scorer)(inp).logits
    assert torch.equal(first.logits, clean)
    one, two = scorer.train()(inp), scorer(inp)
    assert torch.equal(one.logits, two.logits) == (name not in NOISY)
    if one.clean is not None:
        assert torch.equal(one.clean, clean)


@pytest.mark.parametrize("name", [n for n, s in SELECTORS.items() if not isinstance(s, SampleFromTop)])
@few
@given(items=counts, seed=seeds, limit=st.sampled_from([None, "position", "priority", "adaptive"]))
def test_p23_evaluation_of_a_layer_is_deterministic(name, items, seed, limit):
    """Under a noisy scorer, in evaluation, two calls agree to the last bit, and in training they do not."""
    scorer = randomised(SCORERS["noisy"](), seed)
    layer, inp = build(name, seed=seed, scorer=scorer, capacity=CAPACITIES.get(limit)).eval(), random_input(items, seed)
    assert torch.equal(run_on(layer, inp)[0], run_on(layer, inp)[0])
    layer.train()
    assert not torch.equal(layer.route(inp).logits, layer.route(inp).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", SCORERS)
def test_p27_the_router_decides_in_float32_or_better(name, dtype):
    """Half-precision items: logits, probabilities and weights are float32, also under autocast, and those of the same
    numbers given as float32; float64 stays float64."""
    wanted = torch.promote_types(dtype, torch.float32)
    layer = build("top2", bank=StackedFFN(EXPERTS, DIM, 7, 5), scorer=randomised(SCORERS[name](), 0)).eval()
    layer.to(wanted)
    layer.bank.to(dtype)
    inp = random_input(9, 0)
    low = RouteInput(inp.x.to(dtype), keys=inp.keys)
    y, routing = run_on(layer, low)
    assert y.dtype == dtype
    assert {routing.logits.dtype, routing.probs.dtype, routing.weight.dtype} == {wanted}
    same = layer.route(RouteInput(low.x.to(wanted), keys=inp.keys))
    close(routing.logits, same.logits, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer.route(low)
    close(inside.logits, same.logits, rtol=1e-6, atol=1e-6)
    assert inside.weight.dtype == wanted


@few
@given(items=counts, seed=seeds)
def test_p27_two_logits_that_bfloat16_cannot_tell_apart_are_told_apart(items, seed):
    """A gap of 1e-4 of the largest logit decides, as it would not in bfloat16."""
    base = 8 + random_logits(seed, items, 1).abs()
    logits = torch.cat([base, base + 1e-3, base - 1e-3], dim=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = route_scores(logits, TopK(1))
    assert routing.expert.tolist() == [1] * items
