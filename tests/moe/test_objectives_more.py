"""The other objectives: closed forms, bounds, invariances, gradients in float64, masks, hostile input."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from terramoe.errors import RoutingError
from terramoe.moe import RouteInput, Routing, TopK, objectives

GROUPS = torch.tensor([0, 0, 1, 1])


def route(probs, k=2, mask=None, keys=None, logits=None):
    """A routing with these probabilities, top-k of them chosen and the probability as weight."""
    pairs = TopK(k)(probs, RouteInput(probs.detach(), mask))
    return Routing(
        logits=probs.clamp_min(1e-30).log() if logits is None else logits,
        probs=probs,
        item=pairs.item,
        expert=pairs.expert,
        rank=pairs.rank,
        weight=pairs.take(probs),
        kept=torch.ones_like(pairs.item, dtype=torch.bool),
        mask=mask,
        keys=keys or {},
        fixed_k=pairs.fixed_k,
    )


def random_probs(items=7, experts=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(items, experts, generator=generator, dtype=torch.float64).softmax(-1)


def one_hot(*experts, number=4):
    return torch.eye(number, dtype=torch.float64)[list(experts)]


def sequences(routing):
    return torch.arange(routing.num_items) % 2


# Every objective of one routing, with what it needs besides.
OF_ROUTING = {
    "gshard_balance": objectives.gshard_balance,
    "switch_balance": objectives.switch_balance,
    "group_balance": lambda r: objectives.group_balance(r, GROUPS),
    "sequence_balance": lambda r: objectives.sequence_balance(r, sequences(r)),
    "local_entropy": objectives.local_entropy,
    "global_entropy_hinge": objectives.global_entropy_hinge,
    "ranking_sharpness": objectives.ranking_sharpness,
    "gjs_divergence": objectives.gjs_divergence,
    "cluster_variance": lambda r: objectives.cluster_variance(r, GROUPS, spread=0.5),
    "group_alignment_hinge": lambda r: objectives.group_alignment_hinge(r, GROUPS),
    "gate_l1": objectives.gate_l1,
    "router_cross_entropy": lambda r: objectives.router_cross_entropy(r, torch.arange(r.num_items) % 4 - 1),
}
BALANCES = ["gshard_balance", "switch_balance", "group_balance", "sequence_balance"]


# ---- what holds for all of them


@pytest.mark.parametrize("name", OF_ROUTING)
def test_gradients_are_those_of_finite_differences(name):
    decided = route(random_probs())  # the choice is held: f takes no gradient
    start = torch.randn(7, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()

    def value(logits):
        probs = torch.sigmoid(logits) if name == "gate_l1" else logits.softmax(-1)
        return OF_ROUTING[name](replace(decided, logits=logits, probs=probs))

    assert gradcheck(value, start)
    value(start).backward()
    assert start.grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", OF_ROUTING)
def test_masked_items_do_not_count_even_if_they_are_nan(name):
    clean = random_probs(6)
    mask = torch.tensor([True] * 6 + [False] * 3)
    probs = torch.cat([clean, torch.full((3, 4), torch.nan, dtype=torch.float64)]).requires_grad_()
    value = OF_ROUTING[name](route(probs, mask=mask))
    torch.testing.assert_close(value, OF_ROUTING[name](route(clean)))
    value.backward()
    assert probs.grad.isfinite().all()
    assert (probs.grad[6:] == 0).all()


@pytest.mark.parametrize("name", OF_ROUTING)
def test_nothing_valid_gives_zero_and_no_nan(name):
    probs = random_probs(3).requires_grad_()
    value = OF_ROUTING[name](route(probs, mask=torch.zeros(3, dtype=torch.bool)))
    assert value == 0
    value.backward()
    assert (probs.grad == 0).all()
    assert OF_ROUTING[name](route(random_probs(0))) == 0


@pytest.mark.parametrize("name", sorted(set(OF_ROUTING) - {"sequence_balance", "router_cross_entropy"}))
def test_the_order_of_the_items_does_not_matter(name):
    probs = random_probs()
    shuffled = probs[torch.tensor([3, 1, 6, 0, 5, 2, 4])]
    torch.testing.assert_close(OF_ROUTING[name](route(shuffled)), OF_ROUTING[name](route(probs)))


@pytest.mark.parametrize(
    "name",
    sorted(set(OF_ROUTING) - {"group_balance", "cluster_variance", "group_alignment_hinge", "router_cross_entropy"}),
)
def test_the_names_of_the_experts_do_not_matter(name):
    probs = random_probs()
    torch.testing.assert_close(OF_ROUTING[name](route(probs[:, [2, 0, 3, 1]])), OF_ROUTING[name](route(probs)))


@pytest.mark.parametrize("name", OF_ROUTING)
def test_zeros_of_a_sparse_link_leave_value_and_gradient_finite(name):
    gates = torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 3.0]], requires_grad=True)
    value = OF_ROUTING[name](route(gates.relu()))
    value.backward()
    assert value.isfinite()
    assert gates.grad.isfinite().all()


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_the_registry_names_its_functions(name):
    assert objectives.OBJECTIVES[name].__name__ == name


def test_everything_exported_exists():
    assert all(callable(getattr(objectives, name)) for name in objectives.__all__ if name != "OBJECTIVES")
    assert objectives.__all__ == sorted(objectives.__all__, key=lambda n: (not n.isupper(), n[0].islower(), n))


# ---- balance


@pytest.mark.parametrize("name", BALANCES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_balances_are_one_at_uniform_probability(name, k):
    """Whatever the choices: with equal probabilities all ties go to the lowest experts."""
    uniform = torch.full((6, 4), 0.25, dtype=torch.float64)
    assert OF_ROUTING[name](route(uniform, k)) == pytest.approx(1)


@pytest.mark.parametrize("name", BALANCES)
def test_balances_are_one_at_equal_load_and_largest_at_collapse(name):
    even = one_hot(0, 1, 2, 3, 1, 0, 3, 2) if name != "sequence_balance" else one_hot(0, 0, 1, 1, 2, 2, 3, 3)
    assert OF_ROUTING[name](route(even, k=1)) == pytest.approx(1)
    # On one expert: E; on one of two groups of two: the number of groups.
    assert OF_ROUTING[name](route(one_hot(*[2] * 8), k=1)) == pytest.approx(2 if name == "group_balance" else 4)


@pytest.mark.parametrize("name", ["gshard_balance", "switch_balance", "group_balance"])
def test_balance_gradient_runs_through_probabilities_and_not_through_the_share(name):
    probs = random_probs().requires_grad_()
    decided = route(probs, k=1)
    OF_ROUTING[name](decided).backward()
    share = decided.demand().double() / 7
    if name == "group_balance":
        share = torch.stack([share[:2].mean(), share[2:].mean()])[GROUPS]
    torch.testing.assert_close(probs.grad, (4 * share / 7).expand(7, 4))


def test_sequence_balance_gradient_is_that_of_its_normalised_probabilities():
    probs = random_probs().requires_grad_()
    decided = route(probs, k=1)
    objectives.sequence_balance(decided, sequences(decided)).backward()
    even, odd = (torch.bincount(decided.expert[first::2], minlength=4).double() for first in (0, 1))
    rows = 4 * torch.stack([even / 4**2, odd / 3**2])[sequences(decided)] / 2
    # Dividing a row by its sum, here 1, takes the part along the probabilities out.
    expected = rows - (rows * probs.detach()).sum(-1, keepdim=True)
    torch.testing.assert_close(probs.grad, expected)


def test_gshard_counts_first_choices_only():
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1]], dtype=torch.float64)
    share, mean = torch.tensor([2, 1, 0, 0]) / 3, probs.mean(0)
    assert objectives.gshard_balance(route(probs)) == pytest.approx(float(4 * (share * mean).sum()))
    single = route(random_probs(), k=1)
    torch.testing.assert_close(objectives.gshard_balance(single), objectives.switch_balance(single))


def test_group_balance_of_single_experts_is_the_expert_balance_and_of_one_group_constant():
    routing = route(random_probs())
    torch.testing.assert_close(objectives.group_balance(routing, torch.arange(4)), objectives.switch_balance(routing))
    assert objectives.group_balance(routing, torch.zeros(4, dtype=torch.int64)) == pytest.approx(1)


def test_sequence_balance_sees_what_the_batch_hides():
    """Two scenes, each on one expert of its own: balanced over the batch of two experts, collapsed inside each."""
    routing = route(one_hot(0, 0, 0, 1, 1, 1, number=2), k=1)
    scenes = torch.tensor([7, 7, 7, -2, -2, -2])
    assert objectives.switch_balance(routing) == pytest.approx(1)
    assert objectives.sequence_balance(routing, scenes) == pytest.approx(2)
    torch.testing.assert_close(
        objectives.sequence_balance(routing, torch.zeros(6, dtype=torch.int64)), objectives.switch_balance(routing)
    )


def test_a_sequence_without_a_valid_item_does_not_count():
    probs, mask = random_probs(6), torch.tensor([True] * 4 + [False] * 2)
    ids = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = objectives.sequence_balance(route(probs[:4]), ids[:4])
    torch.testing.assert_close(objectives.sequence_balance(route(probs, mask=mask), ids), expected)


# ---- entropies


@given(seed=st.integers(0, 10_000), items=st.integers(1, 9), experts=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_entropies_keep_their_bounds(seed, items, experts):
    routing, top = route(random_probs(items, experts, seed), k=1), math.log(experts)
    assert -1e-9 <= objectives.local_entropy(routing) <= top + 1e-9
    assert -1e-9 <= objectives.global_entropy_hinge(routing) <= top + 1e-9
    assert -top - 1e-9 <= objectives.ranking_sharpness(routing) <= 1e-9
    assert -1e-9 <= objectives.gjs_divergence(routing) <= 1 + 1e-9
    torch.testing.assert_close(objectives.local_entropy(routing), routing.entropy())


def test_entropies_at_their_ends():
    sure_even, sure_one = route(one_hot(0, 1, 2, 3), k=1), route(one_hot(2, 2, 2), k=1)
    uniform = route(torch.full((5, 4), 0.25, dtype=torch.float64))
    log4 = math.log(4)
    for routing, local, hinge, sharp, gjs in [
        (sure_even, 0, 0, -log4, 0),
        (sure_one, 0, log4, -log4, 1),
        (uniform, log4, 0, 0, 1),
    ]:
        assert objectives.local_entropy(routing) == pytest.approx(local, abs=1e-12)
        assert objectives.global_entropy_hinge(routing) == pytest.approx(hinge, abs=1e-12)
        assert objectives.ranking_sharpness(routing) == pytest.approx(sharp, abs=1e-12)
        assert objectives.gjs_divergence(routing) == pytest.approx(gjs, abs=1e-12)


def test_global_entropy_is_zero_from_the_threshold_on():
    """exp(threshold) is a soft number of experts: two used alike satisfy log 2 and miss log 3."""
    two = route(one_hot(0, 1), k=1)
    assert objectives.global_entropy_hinge(two, math.log(2) - 1e-9) == 0
    assert objectives.global_entropy_hinge(two, math.log(3)) == pytest.approx(math.log(3 / 2))
    # The sign of a known imitation, threshold plus entropy, would punish the even use instead.
    assert objectives.global_entropy_hinge(two) < objectives.global_entropy_hinge(route(one_hot(0, 0), k=1))


def test_entropies_by_modality_partition_the_items():
    probs, ids = random_probs(), torch.tensor([0, 1, 0, 2, 1, 0, 0])
    routing = route(probs, keys={"modality": ids})
    by_hand = {m: route(probs[ids == m]) for m in (0, 1, 2)}
    for m, alone in by_hand.items():
        torch.testing.assert_close(objectives.local_entropy(routing, m), objectives.local_entropy(alone))
        hinge = objectives.global_entropy_hinge(routing, 1.3, m)
        torch.testing.assert_close(hinge, objectives.global_entropy_hinge(alone, 1.3))
    whole = sum((ids == m).sum() * objectives.local_entropy(routing, m) for m in (0, 1, 2)) / 7
    torch.testing.assert_close(whole, objectives.local_entropy(routing))


def test_an_absent_modality_is_zero_and_a_missing_key_an_error():
    routing = route(random_probs(), keys={"modality": torch.zeros(7, dtype=torch.int64)})
    assert objectives.local_entropy(routing, 5) == 0
    assert objectives.global_entropy_hinge(routing, None, 5) == 0
    with pytest.raises(RoutingError, match=r"key 'modality' is missing .*Fix: pass keys"):
        objectives.local_entropy(route(random_probs()), 0)


def test_sigmoid_scores_are_normalised_so_that_their_size_cannot_be_gamed():
    scores = random_probs()
    for function in (objectives.local_entropy, objectives.global_entropy_hinge, objectives.gjs_divergence):
        torch.testing.assert_close(function(route(scores * 1e-20)), function(route(scores)))


def test_gjs_is_one_minus_information_and_its_limits_relax_it():
    probs = random_probs()
    routing, log4 = route(probs), math.log(4)
    information = torch.special.entr(probs.mean(0)).sum() - torch.special.entr(probs).sum(-1).mean()
    assert objectives.gjs_divergence(routing) == pytest.approx(float(1 - information / log4))
    half_sure = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
    assert objectives.gjs_divergence(route(half_sure)) == pytest.approx(0.5)
    assert objectives.gjs_divergence(route(half_sure), balance=1, certainty=0.5) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("balance", "certainty"), [(1.2, 0), (0.4, 0.5), (1, -0.1), (math.nan, 0)])
def test_gjs_refuses_impossible_limits(balance, certainty):
    with pytest.raises(RoutingError, match="gjs_divergence"):
        objectives.gjs_divergence(route(random_probs()), balance, certainty)


def test_selector_regularisers():
    binary = one_hot(1, 3)
    assert objectives.selector_entropy(binary) == 0
    assert objectives.selector_mass(binary) == pytest.approx(2)
    halves = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0, 0, 0.25]], dtype=torch.float64)
    assert objectives.selector_entropy(halves) == pytest.approx(math.log(2) + 0.5 * math.log(4))
    assert objectives.selector_mass(halves) == pytest.approx(1 + 2)
    stacked = torch.stack([binary, halves])  # by item: the mean over the items
    assert objectives.selector_mass(stacked) == pytest.approx(2.5)
    start = random_probs(6, 5).view(2, 3, 5).mul(0.7).requires_grad_()
    assert gradcheck(objectives.selector_entropy, start)
    assert gradcheck(objectives.selector_mass, start)


# ---- several routings


def test_mutual_information_of_a_one_to_one_map_is_log_of_the_tasks():
    routings = [route(one_hot(task, task), k=1) for task in range(3)]
    assert objectives.mutual_information(objectives.task_expert_mass(routings)) == pytest.approx(math.log(3))
    assert objectives.negative_mutual_information(routings) == pytest.approx(-math.log(3))


@given(seed=st.integers(0, 10_000), tasks=st.integers(1, 5), experts=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_mutual_information_keeps_its_bounds_and_is_symmetric(seed, tasks, experts):
    mass = random_probs(tasks, experts, seed) * torch.arange(1, tasks + 1)[:, None]
    value = objectives.mutual_information(mass)
    assert -1e-12 <= value <= min(math.log(tasks), math.log(experts)) + 1e-12
    torch.testing.assert_close(objectives.mutual_information(mass.T), value)
    torch.testing.assert_close(objectives.mutual_information(7 * mass), value)
    independent = mass.sum(1, keepdim=True) * mass.sum(0)
    assert objectives.mutual_information(independent) == pytest.approx(0, abs=1e-12)


def test_tasks_accumulate_over_routings_and_may_be_read_from_a_key():
    probs, ids = random_probs(8), torch.tensor([0, 2, 2, 0, 0, 2, 2, 0])
    apart = objectives.task_expert_mass([route(probs[ids == 0]), route(probs[ids == 1]), route(probs[ids == 2])])
    halves = [route(probs[part], keys={"task": ids[part]}) for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(objectives.task_expert_mass(halves, "task"), apart)
    assert (apart[1] == 0).all()  # an absent task has no mass and no say
    torch.testing.assert_close(objectives.mutual_information(apart), objectives.mutual_information(apart[[0, 2]]))


def test_mutual_information_reaches_every_router_and_survives_no_mass():
    parts = [random_probs(4, 3, seed).requires_grad_() for seed in (1, 2)]

    def value(a, b):
        return objectives.negative_mutual_information([route(a.softmax(-1)), route(b.softmax(-1))])

    assert gradcheck(value, parts)
    value(*parts).backward()
    assert all(p.grad.abs().max() > 1e-6 for p in parts)
    empty = torch.zeros(2, 3, requires_grad=True)
    objectives.mutual_information(empty).backward()
    assert empty.grad.isfinite().all()


def test_tasks_refuse_what_does_not_fit():
    with pytest.raises(RoutingError, match="Fix: give at least one routing"):
        objectives.task_expert_mass([])
    with pytest.raises(RoutingError, match=r"2 routings over \[3, 4\] experts"):
        objectives.task_expert_mass([route(random_probs()), route(random_probs(experts=3))])
    with pytest.raises(RoutingError, match="key 'task' is missing"):
        objectives.task_expert_mass([route(random_probs())], "task")
    with pytest.raises(RoutingError, match="integer of at least 0"):
        objectives.task_expert_mass([route(random_probs(), keys={"task": torch.full((7,), -1)})], "task")


def test_gating_balance_is_e_log_e_at_balance_and_least_there():
    even = torch.full((3, 4), 0.25, dtype=torch.float64)
    assert objectives.gating_balance(even) == pytest.approx(4 * math.log(4))
    assert objectives.gating_balance(one_hot(0, 1, 2, 3)) == pytest.approx(4 * math.log(4))  # the mean counts
    assert objectives.gating_balance(random_probs()) > 4 * math.log(4)
    assert objectives.gating_balance(one_hot(0, 0)).isfinite()
    assert gradcheck(objectives.gating_balance, random_probs().requires_grad_())


# ---- groups of experts


def test_cluster_variance_is_zero_inside_equal_clusters_and_least_there():
    level = torch.tensor([[0.45, 0.45, 0.05, 0.05], [0.1, 0.1, 0.4, 0.4]], dtype=torch.float64)
    assert objectives.cluster_variance(route(level), GROUPS, spread=0) == pytest.approx(0, abs=1e-15)
    tilted = level + 0.03 * torch.tensor([1, -1, 1, -1])
    # Inside the chosen cluster the deviation is 0.03 on both sides.
    assert objectives.cluster_variance(route(tilted), GROUPS, spread=0) == pytest.approx(0.03**2)
    # Cluster means 0.45 and 0.05, 0.1 and 0.4: variances 0.2^2 and 0.15^2.
    assert objectives.cluster_variance(route(level), GROUPS) == pytest.approx(-(0.2**2 + 0.15**2) / 2)
    start = tilted.clone().requires_grad_()
    objectives.cluster_variance(route(start), GROUPS).backward()
    down = (tilted - 0.01 * start.grad)[:, 0::2] - (tilted - 0.01 * start.grad)[:, 1::2]
    assert down[0, 0] < 0.06  # the gradient levels the cluster


def test_cluster_variance_with_unequal_clusters():
    groups = torch.tensor([0, 0, 0, 1])
    probs = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64)
    assert objectives.cluster_variance(route(probs), groups, spread=0) == pytest.approx(0.02)


def test_alignment_is_zero_when_the_best_lie_in_one_group():
    aligned = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.05, 0.05, 0.3, 0.6]], dtype=torch.float64)
    assert objectives.group_alignment_hinge(route(aligned), GROUPS) == 0
    crossed = torch.tensor([[0.5, 0.15, 0.3, 0.05]], dtype=torch.float64)  # group 0; second best there is 0.15
    assert objectives.group_alignment_hinge(route(crossed), GROUPS) == pytest.approx(0.15)
    assert objectives.group_alignment_hinge(route(crossed, k=1), GROUPS) == 0
    # A group with fewer than k experts is measured by its smallest.
    small = torch.tensor([0, 1, 1, 1])
    assert objectives.group_alignment_hinge(route(one_hot(0), k=3), small) == 0


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.tensor([0, 1, 2]), r"shape \(3,\)"),
        (torch.tensor([0.0, 0, 1, 1]), "type torch.float32"),
        (torch.tensor([0, 0, 2, 2]), "without a gap"),
        (torch.tensor([-1, 0, 0, 0]), "without a gap"),
    ],
)
def test_bad_groups_are_refused(groups, message):
    for function in (objectives.group_balance, objectives.cluster_variance, objectives.group_alignment_hinge):
        with pytest.raises(RoutingError, match=message):
            function(route(random_probs()), groups)


# ---- experts and router weights


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_orthogonality_is_zero_only_for_orthonormal_rows():
    rows = torch.linalg.qr(normal(6, 4)).Q.T
    assert objectives.router_orthogonality(rows) == pytest.approx(0, abs=1e-12)
    assert objectives.router_orthogonality(2 * rows) == pytest.approx(4 * 3)  # four diagonal entries 4 - 1
    assert objectives.router_orthogonality(rows.flip(0)) == pytest.approx(0, abs=1e-12)
    assert objectives.router_orthogonality(torch.ones(2, 1)) == pytest.approx(2)  # D < E cannot reach 0
    assert gradcheck(objectives.router_orthogonality, normal(3, 5).requires_grad_())


def test_descent_makes_router_vectors_orthonormal():
    weight = (0.3 * normal(4, 8)).requires_grad_()
    before = float(objectives.router_orthogonality(weight).detach())
    for step in range(400):
        (slope,) = torch.autograd.grad(objectives.router_orthogonality(weight), weight)
        with torch.no_grad():
            weight -= 0.02 * (1 - step / 400) * slope  # ever shorter: the slope does not fade towards the minimum
    assert objectives.router_orthogonality(weight) < before / 20


@pytest.mark.parametrize("cka", [objectives.linear_cka, objectives.rbf_cka])
def test_alignment_is_one_for_equal_outputs_and_blind_to_rotation_and_shift(cka):
    a, b = normal(12, 3), normal(12, 3, seed=1)
    rotation = torch.linalg.qr(normal(3, 3, seed=2)).Q
    assert cka(a, a) == pytest.approx(1)
    assert cka(a, a @ rotation + 5) == pytest.approx(1)
    torch.testing.assert_close(cka(a, b), cka(b, a))
    assert 0 <= cka(a, b) < 0.95
    torch.testing.assert_close(cka(a @ rotation - 1, b), cka(a, b))
    assert gradcheck(cka, (a.requires_grad_(), b.requires_grad_()))


def test_linear_alignment_by_hand():
    a, b = normal(9, 2), normal(9, 4, seed=3)
    h = torch.eye(9, dtype=torch.float64) - 1 / 9
    k, q = h @ a @ a.T @ h, h @ b @ b.T @ h
    expected = (k * q).sum() / (k.norm() * q.norm())
    torch.testing.assert_close(objectives.linear_cka(a, b), expected)
    for scale in (1e-12, 1e12):  # in float32, whose squares of squares would not hold them
        torch.testing.assert_close(
            objectives.linear_cka(scale * a.float(), b.float()), expected.float(), rtol=1e-5, atol=1e-6
        )


def test_rbf_alignment_by_hand():
    a, b = normal(6, 2), normal(6, 4, seed=3)
    h = torch.eye(6, dtype=torch.float64) - 1 / 6
    k, q = (h @ torch.exp(-(torch.cdist(x, x) ** 2) / (2 * 0.8**2)) @ h for x in (a, b))
    torch.testing.assert_close(objectives.rbf_cka(a, b), (k * q).sum() / (k.norm() * q.norm()))


@pytest.mark.parametrize("cka", [objectives.linear_cka, objectives.rbf_cka])
def test_outputs_that_do_not_vary_align_with_nothing(cka):
    constant = torch.full((5, 3), 3.7).requires_grad_()
    other = torch.randn(5, 3, requires_grad=True)
    for pair in ((constant, other), (constant, constant), (other[:1], other[:1])):
        value = cka(*pair)
        assert value == 0
        value.backward()
    assert constant.grad.isfinite().all()
    assert other.grad.isfinite().all()


def test_similarity_counts_above_the_threshold_only():
    a, b = normal(12, 3).requires_grad_(), normal(12, 3, seed=1)
    assert float(objectives.expert_similarity_hinge(b, b)) == pytest.approx(1)
    similar = float(objectives.linear_cka(a, b).detach())
    assert objectives.expert_similarity_hinge(a, b, threshold=similar + 1e-6, kernel="linear") == 0
    above = objectives.expert_similarity_hinge(a, b, threshold=similar - 1e-6, kernel="linear")
    assert float(above.detach()) == pytest.approx(similar)
    above.backward()
    assert a.grad.abs().max() > 1e-6
    with pytest.raises(RoutingError, match="use 'linear' or 'rbf'"):
        objectives.expert_similarity_hinge(a, b, kernel="poly")
    with pytest.raises(RoutingError, match="same items"):
        objectives.linear_cka(a, b[:5])
    with pytest.raises(RoutingError, match="width above 0"):
        objectives.rbf_cka(a, b, sigma=0)


def test_output_correlation_between_its_ends():
    a = normal(10, 3)
    assert objectives.output_correlation(torch.stack([a, -2 * a + 1])) == pytest.approx(1)
    basis = torch.linalg.qr(normal(10, 3) - normal(10, 3).mean(0)).Q  # centred, orthogonal columns
    apart = torch.stack([basis[:, :1], basis[:, 1:2], basis[:, 2:]])
    assert objectives.output_correlation(apart) == pytest.approx(0, abs=1e-12)
    some = torch.stack([normal(10, 1, seed=s) for s in range(3)])
    expected = torch.corrcoef(some[..., 0]).square()
    torch.testing.assert_close(objectives.output_correlation(some), (expected.sum() - 3) / 6)
    assert objectives.output_correlation(some[:1]) == pytest.approx(0, abs=1e-12)
    assert objectives.output_correlation(torch.zeros(2, 4, 3)) == 0
    assert gradcheck(objectives.output_correlation, normal(3, 5, 2).requires_grad_())
    assert gradcheck(objectives.output_correlation, normal(2, 3, 2, 2).requires_grad_())


# ---- sparsity


def test_gate_l1_is_the_sum_of_open_gates():
    gates = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.5, 0.0, 0.0, 0.0]])
    assert objectives.gate_l1(route(gates)) == pytest.approx(1.75)
    assert objectives.gate_l1(route(random_probs())) == pytest.approx(1)


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_hoyer_lies_between_one_and_the_width(values):
    a = torch.tensor(values, dtype=torch.float64)
    value = float(objectives.hoyer_square(a))
    if not any(values):
        assert value == 0
    else:
        assert 1 - 1e-9 <= value <= len(values) + 1e-9
        assert objectives.hoyer_square(-3e-200 * a) == pytest.approx(value)


def test_hoyer_counts_equal_active_neurons():
    rows = torch.tensor([[0.0, 3, 0, 0], [2, 2, 0, -2]], dtype=torch.float64)
    assert objectives.hoyer_square(rows) == pytest.approx((1 + 3) / 2)
    assert gradcheck(objectives.hoyer_square, normal(3, 4).requires_grad_())
    dead = torch.zeros(2, 4, requires_grad=True)
    objectives.hoyer_square(dead).backward()
    assert (dead.grad == 0).all()


# ---- targets


def test_router_cross_entropy_is_log_e_for_equal_logits_and_ignores_the_unlabelled():
    logits = torch.zeros(4, 3, dtype=torch.float64)
    routing = route(logits.softmax(-1), logits=logits)
    assert objectives.router_cross_entropy(routing, torch.tensor([0, 2, 1, -1])) == pytest.approx(math.log(3))
    probs, labels = random_probs(5), torch.tensor([3, -1, 0, 2, -1])
    by_hand = -(probs[0, 3].log() + probs[2, 0].log() + probs[3, 2].log()) / 3
    torch.testing.assert_close(objectives.router_cross_entropy(route(probs), labels), by_hand)
    assert objectives.router_cross_entropy(route(probs), torch.full((5,), -1)) == 0


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1]), torch.zeros(7), torch.full((7,), 4), torch.tensor([0, 0, 0, 0, 0, 0, -2])]
)
def test_router_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(RoutingError, match="router_cross_entropy"):
        objectives.router_cross_entropy(route(random_probs()), labels)


def test_sequence_ids_that_do_not_fit_are_refused():
    for ids in (torch.zeros(3, dtype=torch.int64), torch.zeros(7)):
        with pytest.raises(RoutingError, match="sequence_balance"):
            objectives.sequence_balance(route(random_probs()), ids)


def test_symmetric_kl_is_zero_for_equal_predictions_and_symmetric():
    a, b = normal(4, 5), normal(4, 5, seed=1)
    assert objectives.symmetric_kl(a, a + 3) == pytest.approx(0, abs=1e-12)  # the shift changes no prediction
    p, q = a.softmax(-1), b.softmax(-1)
    by_hand = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean() / 2
    torch.testing.assert_close(objectives.symmetric_kl(a, b), by_hand)
    torch.testing.assert_close(objectives.symmetric_kl(b, a), by_hand)
    assert gradcheck(objectives.symmetric_kl, (a.requires_grad_(), b.requires_grad_()))
    with pytest.raises(RoutingError, match="same rows"):
        objectives.symmetric_kl(a, b[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_outputs_are_measured_in_float32(dtype):
    a, b = (normal(16, 3, seed=s).to(dtype) for s in (0, 1))
    outputs = torch.stack([a, b])
    for function in (objectives.linear_cka, objectives.rbf_cka, objectives.symmetric_kl):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = function(a, b)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(a.float(), b.float()))
    assert objectives.hoyer_square(60_000 * torch.ones(4, dtype=dtype)) == pytest.approx(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objectives.router_orthogonality(torch.eye(3) * 1.001) == pytest.approx(3 * (1.001**2 - 1), rel=1e-3)
        both = objectives.output_correlation(outputs)
    torch.testing.assert_close(both, objectives.output_correlation(outputs.float()))
