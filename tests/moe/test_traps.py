"""The seventeen traps that published code fell into (what each is stands in its test), and that ours is in none."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_cases import (
    DIM,
    EXPERTS,
    SCORERS,
    build,
    close,
    counts,
    few,
    many,
    random_input,
    random_items,
    random_logits,
    randomised,
    route_scores,
    seeds,
    used,
)
from torch import nn

from terramoe.moe import RouteInput, links, objectives, weighing
from terramoe.moe.adapters import BlendScorer
from terramoe.moe.capacity import FixedCapacity, RenormalisedAfterDrop
from terramoe.moe.organisation import SharedPlusRouted, build_extraction
from terramoe.moe.recipes import RECIPES
from terramoe.moe.scorers import BinaryCodeScorer, EmbeddedKeyScorer, JitterScorer, LinearScorer
from terramoe.moe.selectors import All, ExpertChoice, TopK, TopP, ordered_top


def noisy_record(seed=0, items=4000, k=2):
    """A record with unit noise on logits of unit spread."""
    clean = random_logits(seed, items)
    noisy = clean + random_logits(seed + 1, items)
    return replace(route_scores(noisy, TopK(k)), clean_logits=clean, noise_std=torch.ones_like(clean))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_trap_01_the_smooth_load_sums_to_k(k):
    """Some gates compare raw noisy logits with thresholds of probabilities: 2.89 items of load instead of 2."""
    routing = noisy_record(k=k)
    assert objectives.smooth_load(routing).sum().item() / routing.num_items == pytest.approx(k, abs=0.05)
    probs = routing.logits.softmax(-1).sort(-1, descending=True).values
    threshold = torch.where(routing.probs >= probs[:, k - 1 : k], probs[:, k : k + 1], probs[:, k - 1 : k])
    trapped = torch.special.ndtr(routing.clean_logits - threshold).sum().item() / routing.num_items
    assert abs(trapped - k) > 0.2  # so the test above can tell


@many
@given(rounds=st.integers(1, 4), experts=st.integers(2, 8), k=st.integers(1, 4))
def test_trap_02_balance_is_one_at_balance_whatever_k_and_e(rounds, experts, k):
    """In the wild the same loss is k, 1, 1 / E^2 or 1 / E at balance; each of ours is 1."""
    k = min(k, experts)
    base = torch.linspace(1, -1, experts, dtype=torch.float64)
    routing = route_scores(torch.stack([base.roll(t) for t in range(rounds * experts)]), TopK(k))
    assert routing.demand().unique().tolist() == [rounds * k]
    values = [
        objectives.switch_balance(routing),
        objectives.gshard_balance(routing),
        objectives.group_balance(routing, torch.arange(experts) % 2),
        objectives.sequence_balance(routing, torch.zeros(routing.num_items, dtype=torch.int64)),
    ]
    for value in values:
        assert value.item() == pytest.approx(1, abs=1e-6)


def test_trap_03_first_choices_and_all_choices_are_two_losses_with_two_names():
    """f from the first choice (GShard) or from all k (Switch as in most libraries): equal only for k = 1."""
    logits = torch.tensor([[3.0, 2.0, 0.0, 0.0], [0.0, 2.0, 3.0, 0.0], [0.0, 2.0, 0.0, 3.0], [3.0, 2.0, 0.0, 0.0]])
    one, two = (route_scores(logits, TopK(k)) for k in (1, 2))
    close(objectives.switch_balance(one), objectives.gshard_balance(one), rtol=1e-6)
    mean = logits.softmax(-1).mean(0)
    first, every = torch.tensor([2.0, 0, 1, 1]) / 4, torch.tensor([2.0, 4, 1, 1]) / 8
    close(objectives.gshard_balance(two), 4 * (first * mean).sum(), rtol=1e-6)
    close(objectives.switch_balance(two), 4 * (every * mean).sum(), rtol=1e-6)


@many
@given(values=st.lists(st.floats(0.1, 10), min_size=2, max_size=9))
def test_trap_04_the_coefficient_of_variation_is_that_of_the_population(values):
    """Half of the libraries divide by E - 1: larger by E / (E - 1)."""
    x, n = torch.tensor(values, dtype=torch.float64), len(values)
    mean = math.fsum(values) / n
    population = math.fsum((v - mean) ** 2 for v in values) / n / mean**2
    assert objectives.squared_cv(x).item() == pytest.approx(population, abs=1e-12)
    weights = torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=torch.float64)
    assert objectives.squared_cv(weights).item() == pytest.approx(0.12)


@many
@given(items=counts, seed=seeds, eps=st.floats(0.01, 0.5))
def test_trap_05_jitter_multiplies_items_and_losses_count_choices_before_capacity(items, seed, eps):
    """fastmoe adds its jitter to the scores, scales a loss by the local experts, and counts kept items only."""
    scorer = JitterScorer(LinearScorer(1, 3), eps).double().train()
    x = random_logits(seed, items, 1)
    x[0] = 0
    clean, jittered = scorer.scorer(RouteInput(x)).logits, scorer(RouteInput(x)).logits
    assert not jittered[0].any()  # noise that is added would move a score of 0
    ratio = (jittered / clean)[1:]
    assert ((ratio >= 1 - eps) & (ratio <= 1 + eps)).all()
    logits = random_logits(seed, items)
    free, tight = (route_scores(logits, TopK(2), capacity=c) for c in (None, FixedCapacity(0.3)))
    for loss in (objectives.switch_balance, objectives.gshard_balance, objectives.importance_cv2):
        close(loss(tight), loss(free))


def test_trap_06_the_global_entropy_hinge_asks_for_more_entropy():
    """A public imitation has relu(tau + H), which asks for less: tau - H is 0 as soon as H >= tau."""
    sure = route_scores(1e3 * torch.eye(4, dtype=torch.float64)[:1].expand(8, 4), TopK(1))
    even = route_scores(torch.zeros(8, 4, dtype=torch.float64), TopK(1))
    tau = math.log(3)
    assert objectives.global_entropy_hinge(sure, tau).item() == pytest.approx(tau)
    assert objectives.global_entropy_hinge(even, tau).item() == 0
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(objectives.global_entropy_hinge(route_scores(logits, TopK(1)), tau), logits)
    assert grad[0, 0] > 0  # to descend is to lower the greatest logit


def test_trap_07_no_softmax_of_what_is_a_probability_already():
    """Softmax of probabilities is nearly uniform; ours takes logits, also where two probabilities were blended."""
    logits = torch.tensor([[9.0, 0.0, -1.0, -2.0]], dtype=torch.float64)
    for weigh in (weighing.softmax_selected, weighing.renormalised):
        routing = route_scores(logits, TopK(2), weigh=weigh)
        assert routing.weight[0] > 0.999  # a second softmax would give 0.73
    token, task = randomised(LinearScorer(DIM, EXPERTS), 0), randomised(EmbeddedKeyScorer("task", 3, EXPERTS), 1)
    inp = random_input(7, 0)
    blend = BlendScorer(token, task, 1, 4)
    share = torch.sigmoid(torch.tensor(-1.0, dtype=torch.float64))
    expected = (1 - share) * token(inp).logits.softmax(-1) + share * task(inp).logits.softmax(-1)
    close(links.softmax(blend(inp).logits), expected)


@many
@given(items=counts, seed=seeds)
def test_trap_08_expert_choice_normalises_over_the_experts(items, seed):
    """pytorch-mixtures takes the softmax over the items instead, which is another method."""
    logits = random_logits(seed, items)
    routing = route_scores(logits, ExpertChoice(2.0))
    close(routing.weight, logits.softmax(-1)[routing.item, routing.expert])
    close(routing.probs.sum(1), torch.ones(items, dtype=torch.float64))


def test_trap_09_ple_has_a_shared_gate_over_all_experts_at_every_level_but_the_last():
    """LibMTL leaves the shared gate out, and applies shared experts to each task's own features."""
    torch.manual_seed(0)
    model = build_extraction(["a", "b"], DIM, 5, own_experts=2, shared_experts=1, levels=3).double()
    seen = []
    for level in model.levels:
        level.shared.run_all = lambda x, run=level.shared.run_all: (seen.append(x), run(x))[1]
    x = random_items(6, 0)
    _, routings = model(x)
    assert [sorted(level) for level in routings] == [["a", "b", "shared"], ["a", "b", "shared"], ["a", "b"]]
    assert [level["shared"].num_experts for level in routings[:2]] == [5, 5]
    assert len(seen) == 3  # once per level, not once per task
    first = model.levels[0](dict.fromkeys(("a", "b", "shared"), x)).features
    close(seen[1], first["shared"])


@many
@given(items=st.integers(2, 12), seed=seeds)
def test_trap_10_renormalising_before_or_after_the_drop_is_said(items, seed):
    """GShard renormalises before, DeepSpeed after: different outputs, hence two parts."""
    logits, tight = random_logits(seed, items), FixedCapacity(0.5)
    before = route_scores(logits, TopK(2), weigh=weighing.renormalised, capacity=tight)
    after = route_scores(logits, TopK(2), weigh=weighing.renormalised, capacity=RenormalisedAfterDrop(tight))
    probs = logits.softmax(-1)
    pair = probs.sort(-1, descending=True).values[:, :2].sum(-1, keepdim=True)
    kept = used(take_kept(before), items)
    close(before.dense(), kept * probs / pair)
    total = (kept * probs).sum(-1, keepdim=True)
    close(after.dense(), torch.where(kept, probs / total, 0))


def take_kept(routing):
    return replace(routing, item=routing.item[routing.kept], expert=routing.expert[routing.kept])


@many
@given(
    pairs=st.integers(1, 200),
    experts=st.integers(1, 16),
    percent=st.integers(10, 300),
    multiple=st.sampled_from([1, 4]),
)
def test_trap_11_capacity_rounds_up_is_never_cached_and_changes_no_logits(pairs, experts, percent, multiple):
    """ceil, floor, a multiple of 4, at least 4: all exist. One library keeps the first batch's capacity, and changes
    the logits in place."""
    capacity = FixedCapacity(percent / 100, multiple_of=multiple)
    exact = -(-percent * pairs // (100 * experts))  # in whole numbers: 1.1 times 50 is 55
    assert capacity.limit(pairs, experts) == max(exact, 1) + -max(exact, 1) % multiple
    assert capacity.limit(pairs, experts) >= percent * pairs / (100 * experts) - 1e-9
    logits = random_logits(0, 9)
    before = logits.clone()
    small = route_scores(logits, TopK(2), capacity=capacity)
    route_scores(random_logits(1, 60), TopK(2), capacity=capacity)
    again = route_scores(logits, TopK(2), capacity=capacity)
    assert torch.equal(small.slot, again.slot)
    assert torch.equal(logits, before)


@many
@given(items=counts, seed=seeds, depth=st.floats(0, 60))
def test_trap_12_sigmoid_scores_cannot_cheat_the_balance_loss(items, seed, depth):
    """Pushing all sigmoid scores towards 0, below a normaliser's epsilon, lowers some balance losses: ours for sigmoid
    scores divides by their sum first, and weights still sum to 1. No recipe pairs a sigmoid with the other losses."""
    logits = random_logits(seed, items)
    sequence = torch.zeros(items, dtype=torch.int64)
    low = route_scores(logits - depth, TopK(2), link=links.sigmoid, weigh=weighing.renormalised)
    close(low.dense().sum(1), torch.ones(items, dtype=torch.float64))
    shares = low.logits.sigmoid() / low.logits.sigmoid().sum(1, keepdim=True)
    expected = EXPERTS * (low.demand() / (2 * items) * shares.mean(0)).sum()
    close(objectives.sequence_balance(low, sequence), expected, rtol=1e-6)
    deepest = route_scores(logits - 60, TopK(2), link=links.sigmoid)
    everyone = route_scores(logits, TopK(2))
    close(objectives.sequence_balance(deepest, sequence), objectives.sequence_balance(everyone, sequence), rtol=1e-6)


def test_trap_12_no_recipe_pairs_sigmoid_scores_with_a_loss_that_can_be_cheated():
    """These lower their value when all scores fall."""
    for recipe in RECIPES.values():
        module = recipe.build(DIM, EXPERTS, 4)
        if any(getattr(part, "link", None) is links.sigmoid for part in module.modules()):
            assert not {"switch_balance", "gshard_balance", "group_balance"} & set(recipe.objectives), recipe.name


def test_trap_13_top_p_keeps_all_where_no_prefix_reaches_p():
    """argmax over a row of False is 0: read as "the first prefix that reaches p" it keeps one expert; read as no cut it
    keeps all even where p was reached. Rounding makes such rows: float32 probabilities may sum to less than p."""
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25 - 1e-6], [0.9, 0.05, 0.03, 0.02]])
    inp = RouteInput(torch.zeros(2, 1))
    for p in (1.0, 1 - 1e-8):
        assert used(TopP(p)(probs, inp), 2).sum(1).tolist() == [4, 4]
    assert used(TopP(0.9)(probs, inp), 2).sum(1).tolist() == [4, 1]
    assert used(TopP(1e-9)(probs, inp), 2).sum(1).tolist() == [1, 1]


@pytest.mark.parametrize("name", ["noisy", "fixed noise", "gumbel", "jitter"])
def test_trap_14_no_noise_in_evaluation(name):
    """Mod-Squad's check of the mode is commented out, so that maps change from run to run."""
    scorer, inp = randomised(SCORERS[name](), 0).eval(), random_input(9, 0)
    assert torch.equal(scorer(inp).logits, scorer.scorer(inp).logits)
    assert not torch.equal(scorer.train()(inp).logits, scorer.scorer(inp).logits)
    for recipe in ("mod-squad", "noisy-topk", "vmoe", "switch"):
        torch.manual_seed(0)
        module, x = RECIPES[recipe].build(8, EXPERTS, 4).eval(), torch.randn(6, 8)
        a, b = (RECIPES[recipe].call(module, x)[1][0].logits for _ in range(2))
        assert torch.equal(a, b)


@many
@given(seed=seeds, k=st.integers(1, 3), gamma=st.floats(0.2, 3))
def test_trap_15_dselect_k_uses_k_experts_only_once_its_codes_are_binary(seed, k, gamma):
    """nnz <= k holds when every |z| >= gamma / 2, not before: at the start all experts are on, and q sums to 1 iff E is
    a power of two."""
    scorer = BinaryCodeScorer(8, k, gamma=gamma).double()
    inp = RouteInput(torch.zeros(1, 1, dtype=torch.float64))
    assert (scorer(inp).logits > -torch.inf).all()
    with torch.no_grad():
        scorer.z.copy_((0.5 + random_logits(seed, k, 3).abs()) * gamma * random_logits(seed + 1, k, 3).sign())
    q = scorer(inp).logits.exp()
    assert 1 <= int((q > 0).sum()) <= k
    close(q.sum(), torch.ones(()).double())
    odd = BinaryCodeScorer(5, k, gamma=gamma).double()
    assert odd.code_mass(inp).item() < 0.9


@many
@given(row=st.lists(st.integers(0, 2), min_size=1, max_size=12), data=st.data())
def test_trap_16_ties_are_broken_by_index(row, data):
    """torch.topk leaves the order of ties open, so that two machines may route differently."""
    k = data.draw(st.integers(1, len(row)))
    expected = sorted(range(len(row)), key=lambda e: -row[e])[:k]
    for dtype in (torch.float32, torch.float64):
        assert ordered_top(torch.tensor([row], dtype=dtype), k).tolist() == [expected]
    routing = route_scores(torch.zeros(3, len(row)), All())
    assert routing.expert.view(-1, 3).T.tolist() == [list(range(len(row)))] * 3


@few
@given(items=counts, seed=seeds, k=st.integers(1, 3))
def test_trap_17_shared_experts_are_added_whole_and_losses_know_no_depth(items, seed, k):
    """OLMo-core mixes the shared expert with 1 / (k + 1) and divides loss weights by the number of layers, so that its
    presets are not the papers'. Ours: shared + routed, and a loss of one record whatever the model's depth."""
    layer, x = build(TopK(k), seed=seed), random_items(items, seed)
    shared = randomised(nn.Linear(DIM, 5), seed)
    y, routing = SharedPlusRouted(shared, layer)(x)
    close(y, shared(x) + layer(x)[0])
    for loss in (objectives.switch_balance, objectives.router_z):
        close(loss(routing), loss(layer.route(RouteInput(x))))
    published = {
        "switch": {"switch_balance": 0.01},
        "olmoe": {"switch_balance": 0.01, "router_z": 0.001},
        "st-moe": {"switch_balance": 0.01, "router_z": 0.001},
        "time-moe": {"switch_balance": 0.02},
        "noisy-topk": {"importance_cv2": 0.1, "load_cv2": 0.1},
    }
    assert {name: dict(RECIPES[name].objectives) for name in published} == published
