"""The torch objectives: analytic gradients, and agreement with the likelihood that EM raises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.mixtures import (
    MixtureOfExpertsRegressor,
    competition_loss,
    cooperative_loss,
    local_experts_nll,
    local_experts_posterior,
    mixture_nll,
)


def made(items=7, experts=3, width=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return normal(items, experts), normal(items, experts, width), normal(items, width).detach()


@given(items=st.integers(1, 9), experts=st.integers(1, 5), width=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_analytic_gradients(items, experts, width, seed):
    logits, output, target = made(items, experts, width, seed)
    gate = logits.softmax(-1)
    residual = target[:, None] - output

    (got,) = torch.autograd.grad(local_experts_nll(logits.log_softmax(-1), output, target), output, retain_graph=True)
    weighted = gate * torch.exp(-0.5 * residual.square().sum(-1))
    h = weighted / weighted.sum(-1, keepdim=True)
    torch.testing.assert_close(got, -h[..., None] * residual / items)
    torch.testing.assert_close(local_experts_posterior(logits.log_softmax(-1), output, target), h)

    (got,) = torch.autograd.grad(competition_loss(gate, output, target), output, retain_graph=True)
    torch.testing.assert_close(got, -2 * gate[..., None] * residual / items)

    (got,) = torch.autograd.grad(cooperative_loss(gate, output, target), output)
    blend = (gate[..., None] * output).sum(1)
    torch.testing.assert_close(got, -2 * gate[..., None] * (target - blend)[:, None] / items)


def test_gradient_of_the_gate_is_prior_minus_posterior():
    logits, output, target = made()
    loss = local_experts_nll(logits.log_softmax(-1), output, target)
    (got,) = torch.autograd.grad(loss, logits)
    h = local_experts_posterior(logits.log_softmax(-1), output, target)
    torch.testing.assert_close(got, (logits.softmax(-1) - h) / 7)


@pytest.mark.parametrize("loss", [cooperative_loss, competition_loss, local_experts_nll])
def test_gradcheck(loss):
    logits, output, target = made()
    assert torch.autograd.gradcheck(lambda a, o: loss(a, o, target), (logits, output))


def test_one_expert_is_plain_regression():
    _, output, target = made(experts=1)
    squares = (target - output[:, 0]).square().sum(-1).mean()
    gate = torch.ones(7, 1, dtype=torch.float64)
    torch.testing.assert_close(cooperative_loss(gate, output, target), squares)
    torch.testing.assert_close(competition_loss(gate, output, target), squares)
    torch.testing.assert_close(local_experts_nll(gate.log(), output, target), 0.5 * squares)


def test_competition_bounds_cooperation():
    """Jensen: the error of the blend is at most the expected error."""
    logits, output, target = made(seed=5)
    gate = logits.softmax(-1)
    assert cooperative_loss(gate, output, target) <= competition_loss(gate, output, target)


def test_far_targets_do_not_underflow():
    logits, output, target = made()
    assert torch.isfinite(local_experts_nll(logits.log_softmax(-1), output, target + 1e6))


def test_em_ends_where_the_torch_gradient_vanishes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 1))
    y = np.where(X[:, 0] + 0.5 * rng.normal(size=300) > 0, 2 * X[:, 0] + 1, -X[:, 0] - 2) + 0.3 * rng.normal(size=300)
    model = MixtureOfExpertsRegressor(2, ridge=0, tol=1e-13, max_iter=5000, random_state=0).fit(X, y)
    parameters = [model.gate_coef_, model.gate_intercept_, model.coef_, model.intercept_, np.log(model.variance_)]
    parameters = [torch.from_numpy(np.array(value)).requires_grad_() for value in parameters]
    slope, shift, coef, intercept, log_variance = parameters
    x, target = torch.from_numpy(X), torch.from_numpy(y)
    normal = torch.distributions.Normal(x @ coef.T + intercept, (0.5 * log_variance).exp())
    loss = mixture_nll((x @ slope.T + shift).log_softmax(-1), normal.log_prob(target[:, None]))
    assert float(loss.detach()) == pytest.approx(-model.log_likelihood(X, y).mean(), abs=1e-10)
    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.abs().max() < 1e-5


def test_shapes_that_do_not_fit():
    logits, output, target = made()
    with pytest.raises(RoutingError, match="do not fit"):
        cooperative_loss(logits, output, target[:, 0])
    with pytest.raises(RoutingError, match="log_prob"):
        mixture_nll(logits, output)
