"""Property catalogue, losses and likelihoods: P11, P12, P17, P18, P20."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_cases import (
    EXPERTS,
    SCORERS,
    build,
    close,
    counts,
    few,
    many,
    random_input,
    random_logits,
    randomised,
    route_scores,
    seeds,
)
from scipy.integrate import quad

from terramoe.mixtures.em import Mixture, random_responsibilities, run_em
from terramoe.mixtures.experts import BernoulliExpert, GaussianExpert, MultinomialExpert, PoissonExpert
from terramoe.mixtures.gating import GaussianGate, SoftmaxGate, gate_log_proba
from terramoe.mixtures.tree import TreeGate
from terramoe.moe import objectives
from terramoe.moe.objectives import OBJECTIVES, group_balance, sequence_balance
from terramoe.moe.selectors import All, TopK

widths = st.integers(2, 8)
BALANCES = {
    "switch": objectives.switch_balance,
    "gshard": objectives.gshard_balance,
    "groups": lambda r: group_balance(r, torch.arange(r.num_experts) % 2),
    "sequences": lambda r: sequence_balance(r, torch.arange(r.num_items) % 2),
}


def record(seed, items, experts, k=1, *, probs=None):
    """The record of random logits, its probabilities replaced where asked."""
    routing = route_scores(random_logits(seed, items, experts), TopK(min(k, experts)))
    return routing if probs is None else replace(routing, probs=probs)


@pytest.mark.parametrize("name", BALANCES)
@many
@given(items=counts, experts=widths, k=st.integers(1, 3), seed=seeds)
def test_p11_balance_is_one_where_probabilities_or_choices_are_uniform(name, items, experts, k, seed):
    """1 at uniform P whatever was chosen, and 1 at uniform f whatever P is, for every k and E."""
    uniform = torch.full((items, experts), 1 / experts, dtype=torch.float64)
    close(BALANCES[name](record(seed, items, experts, k, probs=uniform)), torch.ones(()).double(), atol=1e-11)
    every = (
        torch.eye(experts, dtype=torch.float64).repeat(2 * k, 1).repeat_interleave(2, 0)
    )  # alike often, also in each sequence
    chosen = route_scores(every, TopK(1))
    any_probs = random_logits(seed, every.shape[0], experts).softmax(-1)
    close(BALANCES[name](replace(chosen, probs=any_probs)), torch.ones(()).double(), atol=1e-11)


@many
@given(experts=widths, seed=seeds, scale=st.floats(0.01, 100))
def test_p11_squared_cv_is_zero_at_balance_and_ignores_scale(experts, seed, scale):
    """cv^2 >= 0, its population form; 0 iff all alike; the same for scaled values."""
    x = random_logits(seed, 1, experts)[0].exp()
    expected = np.var(x.numpy()) / np.mean(x.numpy()) ** 2
    assert float(objectives.squared_cv(x)) == pytest.approx(expected, rel=1e-12)
    close(objectives.squared_cv(scale * x), objectives.squared_cv(x))
    assert objectives.squared_cv(torch.full((experts,), scale, dtype=torch.float64)) < 1e-24
    assert objectives.squared_cv(x) > 0


@many
@given(items=counts, experts=widths, shift=st.floats(-5, 5), seed=seeds)
def test_p11_z_loss_is_log_squared_at_zero_and_sees_a_shift(items, experts, shift, seed):
    """(log E + c)^2 for constant logits c; the gradient is 2 lse p / T; importance is 0 under uniform weights."""
    routing = route_scores(torch.full((items, experts), shift, dtype=torch.float64), All())
    close(objectives.router_z(routing), torch.tensor((math.log(experts) + shift) ** 2, dtype=torch.float64))
    assert objectives.importance_cv2(routing) < 1e-24
    logits = random_logits(seed, items, experts).requires_grad_()
    (grad,) = torch.autograd.grad(objectives.router_z(route_scores(logits, TopK(1))), logits)
    close(grad, 2 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1) / items)


@many
@given(items=counts, experts=widths, k=st.integers(1, 3), seed=seeds)
def test_p12_balance_gradients_run_through_the_probabilities_alone(items, experts, k, seed):
    """dL/dp_ti = E f_i / T: f is a constant, and no gradient leaves the probabilities out."""
    k = min(k, experts)
    logits = random_logits(seed, items, experts).requires_grad_()
    routing = route_scores(logits, TopK(k))
    every = torch.bincount(routing.expert, minlength=experts).double() / (items * k)
    first = torch.bincount(routing.expert[:items], minlength=experts).double() / items
    for loss, share in ((objectives.switch_balance, every), (objectives.gshard_balance, first)):
        probs, weight = torch.autograd.grad(
            loss(routing), (routing.probs, routing.weight), retain_graph=True, allow_unused=True
        )
        close(probs, (experts * share / items).expand(items, -1))
        assert weight is None


@pytest.mark.parametrize("name", [*OBJECTIVES, "groups", "sequences"])
@many
@given(items=st.integers(2, 12), seed=seeds)
def test_p12_every_objective_moves_the_router_and_no_expert(name, items, seed):
    """The gradient reaches the router's weights, equals finite differences along itself, and touches no expert."""
    scorer = randomised(SCORERS["noisy"](), seed)
    layer, inp = build("top2", seed=seed, scorer=scorer), random_input(items, seed)
    loss = (OBJECTIVES | BALANCES)[name]
    weight = scorer.scorer.linear.weight

    def value():
        torch.manual_seed(seed)
        return loss(layer.route(inp))

    at_balance = name.endswith(("balance", "groups", "sequences")) and abs(value().item() - 1) < 1e-6  # a flat place
    value().backward()
    assert all(p.grad is None for p in layer.bank.parameters())
    size = float(weight.grad.norm())
    assert size > 1e-9 or at_balance
    if size > 1e-4:  # else rounding hides the slope
        ends = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                weight.add_(weight.grad, alpha=step / size)
            ends.append(value().item())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(size, rel=1e-3)


GATES = ("softmax", "gaussian", "tree")
EXPERT_KINDS = ("gaussian", "bernoulli", "poisson", "multinomial")


def mixture_problem(seed, gate, expert, n=20, features=2):
    """A random start of EM with four experts, and data that no single expert fits."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, features))
    signal = 2 * np.sin(3 * X[:, 0]) + 0.5 * rng.normal(size=n)
    y = {
        "gaussian": signal,
        "bernoulli": (signal > 0).astype(float),
        "poisson": rng.poisson(np.exp(signal / 2)).astype(float),
        "multinomial": np.digitize(signal, [-1.0, 1.0]).astype(float),
    }[expert]
    zeros = np.zeros(features + 1)

    def soft(branches):
        return SoftmaxGate(np.zeros((features + 1, branches)))

    blank = Mixture(
        {
            "softmax": lambda: soft(4),
            "gaussian": lambda: GaussianGate(
                np.full(4, -np.log(4)), np.zeros((4, features)), np.tile(np.eye(features), (4, 1, 1))
            ),
            "tree": lambda: TreeGate(soft(2), (soft(2), soft(2))),
        }[gate](),
        (
            {
                "gaussian": lambda: GaussianExpert(zeros),
                "bernoulli": lambda: BernoulliExpert(zeros),
                "poisson": lambda: PoissonExpert(zeros),
                "multinomial": lambda: MultinomialExpert(np.zeros((features + 1, 3))),
            }[expert](),
        )
        * 4,
    )
    weight = rng.choice([0.5, 1.0, 2.0], size=n)
    start = random_responsibilities(np.column_stack([X, signal]), 4, np.random.RandomState(seed))
    return blank.m_step(X, y, start, weight), X, y, weight


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("expert", EXPERT_KINDS)
@few
@given(seed=seeds)
def test_p17_em_never_lowers_the_likelihood(gate, expert, seed):
    """The safeguarded M-step: the objective rises or rests in each iteration; responsibilities are a distribution."""
    start, X, y, weight = mixture_problem(seed, gate, expert)
    result = run_em(start, X, y, weight, tol=0, max_iter=8)
    assert np.isfinite(result.trace).all()
    assert (np.diff(result.trace) >= -1e-11 * (1 + np.abs(result.trace[:-1]))).all()
    assert result.trace[-1] > result.trace[0]
    posterior = result.mixture.responsibilities(X, y)
    np.testing.assert_allclose(posterior.sum(1), 1, atol=1e-12)
    direct = np.exp(gate_log_proba(result.mixture.gate, X) + result.mixture.expert_log_prob(X, y))
    np.testing.assert_allclose(posterior, direct / direct.sum(1, keepdims=True), atol=1e-9)


@few
@given(seed=seeds, shift=st.floats(-50, 50))
def test_p17_a_vector_added_to_every_gate_row_changes_nothing(seed, shift):
    """Translation of a softmax gate: the same probabilities, likelihood, responsibilities."""
    start, X, y, _ = mixture_problem(seed, "softmax", "gaussian")
    vector = shift * np.random.default_rng(seed).normal(size=(X.shape[1] + 1, 1))
    moved = replace(start, gate=replace(start.gate, coef=start.gate.coef + vector))
    np.testing.assert_allclose(moved.log_likelihood(X, y), start.log_likelihood(X, y), atol=1e-9)
    np.testing.assert_allclose(moved.responsibilities(X, y), start.responsibilities(X, y), atol=1e-9)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("expert", EXPERT_KINDS)
@few
@given(seed=seeds)
def test_p18_the_mixture_is_a_density(gate, expert, seed):
    """Over all outcomes - a quadrature, or a sum over classes or counts - p(y | x) is 1, after some EM too."""
    start, X, y, weight = mixture_problem(seed, gate, expert)
    mixture = run_em(start, X, y, weight, tol=0, max_iter=2).mixture
    x = X[:1]

    def density(outcome):
        return float(np.exp(mixture.log_likelihood(x, np.array([float(outcome)])))[0])

    means = [float(np.ravel(e.mean(x))[0]) for e in mixture.experts]
    if expert == "gaussian":
        spread = [math.sqrt(e.variance) for e in mixture.experts]
        low = min(m - 12 * s for m, s in zip(means, spread, strict=True))
        high = max(m + 12 * s for m, s in zip(means, spread, strict=True))
        edges = sorted({low, high, *(m + d * s for m, s in zip(means, spread, strict=True) for d in (-8, -2, 0, 2, 8))})
        total = sum(quad(density, a, b, epsabs=1e-10)[0] for a, b in itertools.pairwise(edges))
    else:
        most = {"bernoulli": 2, "multinomial": 3, "poisson": int(max(means) + 12 * math.sqrt(max(means)) + 30)}[expert]
        if most > 3000:  # a rate far outside of the data: the sum would be long and says nothing new
            return
        total = sum(density(outcome) for outcome in range(most))
    assert total == pytest.approx(1, abs=1e-7)


@many
@given(tasks=st.integers(1, 6), experts=st.integers(1, 8), seed=seeds, scale=st.floats(0.1, 100))
def test_p20_mutual_information_lies_between_independence_and_a_one_to_one_map(tasks, experts, seed, scale):
    """0 <= MI <= log min(tasks, E); 0 for products, log n for a permutation; the total mass does not matter."""
    mass = random_logits(seed, tasks, experts).exp()
    information = objectives.mutual_information(mass)
    assert -1e-12 <= float(information) <= math.log(min(tasks, experts)) + 1e-12
    close(objectives.mutual_information(scale * mass), information, atol=1e-10)
    product = mass.sum(1, keepdim=True) * mass.sum(0)
    assert abs(float(objectives.mutual_information(product))) < 1e-10
    one = torch.eye(tasks, dtype=torch.float64)[torch.randperm(tasks)]
    assert float(objectives.mutual_information(one)) == pytest.approx(math.log(tasks), abs=1e-12)


@many
@given(items=counts, experts=widths, seed=seeds, sharpness=st.floats(0, 30), share=st.floats(0, 1))
def test_p20_entropies_stay_within_their_bounds(items, experts, seed, sharpness, share):
    """0 <= H <= log E for items and their mean, the former never above the latter; hinges follow by formula."""
    routing = route_scores(sharpness * random_logits(seed, items, experts), TopK(1))
    local, top = objectives.local_entropy(routing), math.log(experts)
    mean = torch.special.entr(routing.probs.mean(0)).sum()
    assert -1e-12 <= local <= mean + 1e-9
    assert mean <= top + 1e-9
    close(local, torch.special.entr(routing.probs).sum(-1).mean())
    close(routing.entropy(), local)
    close(objectives.ranking_sharpness(routing), local - top)
    threshold = share * top
    close(objectives.global_entropy_hinge(routing, threshold), torch.relu(threshold - mean))
    close(objectives.gjs_divergence(routing), 1 - (mean - local) / top, atol=1e-9)


@many
@given(items=st.integers(2, 12), channels=st.integers(1, 5), seed=seeds, scale=st.floats(0.1, 10))
def test_p20_similarities_and_sparsity_stay_within_their_bounds(items, channels, seed, scale):
    """CKA in [0, 1], 1 for itself, turned and scaled; Hoyer^2 in [1, d] and scale-free; gating balance >= E log E."""
    a, b = random_logits(seed, items, channels), random_logits(seed + 1, items, channels)
    rotation, _ = torch.linalg.qr(random_logits(seed + 2, channels, channels))
    for cka in (objectives.linear_cka, objectives.rbf_cka):
        assert -1e-9 <= float(cka(a, b)) <= 1 + 1e-9
        close(cka(a, b), cka(b, a))
        close(cka(a, a), torch.ones(()).double())
        close(cka(a @ rotation, b), cka(a, b), atol=1e-9)
    close(objectives.linear_cka(scale * a, b), objectives.linear_cka(a, b), atol=1e-9)
    hoyer = objectives.hoyer_square(a)
    assert 1 - 1e-12 <= float(hoyer) <= channels + 1e-9
    close(objectives.hoyer_square(scale * a), hoyer)
    gates = random_logits(seed, items, EXPERTS).softmax(-1)
    assert float(objectives.gating_balance(gates)) >= EXPERTS * math.log(EXPERTS) - 1e-9
    assert 0 <= float(objectives.output_correlation(torch.stack([a, b]))) <= 1 + 1e-12
    assert float(objectives.router_orthogonality(rotation)) < 1e-9
    assert float(objectives.router_orthogonality(rotation * (1 + scale))) > 0.1
