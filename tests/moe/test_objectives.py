"""Objectives: closed-form values, bounds, and where their gradients go."""

import math
from dataclasses import replace

import pytest
import torch

from terramoe.errors import RoutingError
from terramoe.moe import LinearScorer, ModuleBank, MoELayer, NoisyScorer, RouteInput, TopK, ZeroScorer
from terramoe.moe.objectives import OBJECTIVES, load_cv2, router_z, smooth_load, squared_cv, switch_balance
from terramoe.moe.weighing import softmax_selected


def noisy_layer(experts=4, k=2, dim=5):
    torch.manual_seed(0)
    scorer = NoisyScorer(LinearScorer(dim, experts), dim, experts)
    bank = ModuleBank(torch.nn.Identity() for _ in range(experts))
    return MoELayer(scorer, bank, selector=TopK(k), weigh=softmax_selected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_moves_the_router(name):
    layer = noisy_layer()
    OBJECTIVES[name](layer.route(RouteInput(torch.randn(30, 5)))).backward()
    assert layer.scorer.scorer.linear.weight.grad.abs().max() > 1e-6


def test_the_load_objective_reaches_the_noise_scale():
    layer = noisy_layer()
    load_cv2(layer.route(RouteInput(torch.randn(30, 5)))).backward()
    assert layer.scorer.noise.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("k", [1, 2, 3])
def test_smooth_load_sums_to_about_k_per_item(k):
    layer = noisy_layer(k=k)
    load = smooth_load(layer.route(RouteInput(torch.randn(4000, 5)))).detach()
    assert float(load.sum()) / 4000 == pytest.approx(k, abs=0.05)  # 2.89 for k = 2 in a known defective release


def test_smooth_load_is_the_probability_of_staying_in_the_top_k():
    """Monte Carlo over the noise of one expert, the others held: the definition itself."""
    layer = noisy_layer()
    routing = layer.route(RouteInput(torch.randn(3, 5)))
    fresh = routing.clean_logits[..., None] + routing.noise_std[..., None] * torch.randn(3, 4, 200_000)
    counted = torch.zeros(4)
    for expert in range(4):
        others = routing.logits[:, [e for e in range(4) if e != expert]]
        second_best = others.topk(2, dim=1).values[:, 1]
        counted[expert] = (fresh[:, expert] > second_best[:, None]).float().mean(1).sum()
    torch.testing.assert_close(smooth_load(routing).detach(), counted, atol=0.01, rtol=0)


def test_load_needs_noise():
    layer = noisy_layer().eval()
    with pytest.raises(RoutingError, match=r"Fix: use NoisyScorer"):
        load_cv2(layer.route(RouteInput(torch.randn(3, 5))))


def test_squared_cv_is_the_population_form_and_scale_free():
    x = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert squared_cv(x) == pytest.approx(3.5 / 9)
    torch.testing.assert_close(squared_cv(10 * x), squared_cv(x))
    assert squared_cv(torch.ones(5)) == 0
    assert squared_cv(torch.ones(1)) == 0


def test_switch_is_one_at_uniform_probability_for_every_k():
    for k in (1, 2, 4):
        layer = MoELayer(ZeroScorer(4), ModuleBank(torch.nn.Identity() for _ in range(4)), selector=TopK(k))
        assert switch_balance(layer.route(RouteInput(torch.randn(8, 3)))) == pytest.approx(1)


def test_switch_punishes_collapse():
    layer = noisy_layer(k=1).eval()
    routing = layer.route(RouteInput(torch.randn(10, 5)))
    one = torch.zeros_like(routing.expert)
    collapsed = replace(routing, expert=one, probs=torch.eye(4)[one])
    assert switch_balance(collapsed) == pytest.approx(4)


def test_switch_gradient_runs_through_probabilities_only():
    logits = torch.randn(6, 3, requires_grad=True)
    layer = noisy_layer(experts=3, k=1).eval()
    routing = replace(layer.route(RouteInput(torch.randn(6, 5))), probs=torch.softmax(logits, -1))
    switch_balance(routing).backward()
    share = routing.demand() / 6
    p = torch.softmax(logits, -1).detach()
    expected = 3 * p * (share - (p * share).sum(1, keepdim=True)) / 6
    torch.testing.assert_close(logits.grad, expected)


def test_z_is_log_e_squared_at_zero_logits_and_not_shift_invariant():
    layer = MoELayer(ZeroScorer(5), ModuleBank(torch.nn.Identity() for _ in range(5)))
    routing = layer.route(RouteInput(torch.randn(4, 3)))
    assert router_z(routing) == pytest.approx(math.log(5) ** 2)
    assert router_z(replace(routing, logits=routing.logits + 1)) > router_z(routing)


@pytest.mark.parametrize("name", ["importance_cv2", "switch_balance", "router_z"])
def test_masked_items_do_not_count(name):
    layer = noisy_layer().eval()
    x, mask = torch.randn(9, 5), torch.tensor([True] * 6 + [False] * 3)
    with_masked = OBJECTIVES[name](layer.route(RouteInput(x, mask=mask)))
    without = OBJECTIVES[name](layer.route(RouteInput(x[:6])))
    torch.testing.assert_close(with_masked, without)


def test_noise_is_for_training_only():
    layer, x = noisy_layer(), torch.randn(6, 5)
    assert not torch.equal(layer.route(RouteInput(x)).logits, layer.route(RouteInput(x)).logits)
    layer.eval()
    torch.testing.assert_close(layer.route(RouteInput(x)).logits, layer.scorer.scorer(RouteInput(x)).logits)
