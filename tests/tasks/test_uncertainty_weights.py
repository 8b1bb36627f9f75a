"""Learned weights of several losses: the form, its minimum, and what must stay positive."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from terramoe.errors import ConfigError
from terramoe.tasks.uncertainty_weights import UncertaintyWeights, least_weighted_loss


def weighed(losses, log_scale):
    module = UncertaintyWeights(len(losses)).double()
    with torch.no_grad():
        module.log_scale.copy_(torch.as_tensor(log_scale, dtype=torch.float64))
    return module, module(torch.tensor(losses, dtype=torch.float64)).detach()


def test_formula():
    losses, scales = [2.0, 0.1, 7.0], [0.3, -1.2, 2.0]
    expected = sum(
        loss / (2 * math.exp(s) ** 2) + math.log(1 + math.exp(s) ** 2) for loss, s in zip(losses, scales, strict=True)
    )
    module, found = weighed(losses, scales)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert module.weights().tolist() == pytest.approx([1 / (2 * math.exp(2 * s)) for s in scales])


def test_starts_with_half_the_sum():
    _, found = weighed([1.0, 3.0], [0.0, 0.0])
    assert float(found) == pytest.approx(2.0 + 2 * math.log(2))


@pytest.mark.parametrize("loss", [1e-6, 0.01, 0.5, 1.0, 30.0, 1e4])
def test_least_against_a_search(loss):
    """In c^2, which the closed form solves; SciPy's bounded search knows nothing of it."""
    search = minimize_scalar(
        lambda s: loss / (2 * math.exp(2 * s)) + math.log1p(math.exp(2 * s)),
        bounds=(-12, 8),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert float(least_weighted_loss(torch.tensor([loss], dtype=torch.float64))) == pytest.approx(search.fun, rel=1e-7)


def test_descent_reaches_the_least():
    losses = torch.tensor([0.05, 2.0, 11.0], dtype=torch.float64)
    module = UncertaintyWeights(3).double()
    optimiser = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(600):
        optimiser.zero_grad()
        module(losses).backward()
        optimiser.step()
    assert module(losses).item() == pytest.approx(float(least_weighted_loss(losses)), abs=1e-8)
    assert module.weights()[0] > module.weights()[1] > module.weights()[2]


@pytest.mark.parametrize("log_scale", [-20.0, -1.0, 0.0, 3.0, 400.0])
def test_never_negative_and_finite(log_scale):
    """With the price ln c of the first form, small losses would make the sum negative."""
    _, found = weighed([0.0, 1e-9], [log_scale, log_scale])
    assert 0 <= float(found) < math.inf


def test_least_rises_with_every_loss_and_is_zero_at_zero():
    losses = torch.tensor([0.0, 1e-3, 0.2, 5.0], dtype=torch.float64)
    values = torch.stack([least_weighted_loss(loss[None]) for loss in losses])
    assert values[0] == 0
    assert (values.diff() > 0).all()
    assert torch.isfinite(least_weighted_loss(torch.zeros(3)))


def test_no_task_is_refused():
    with pytest.raises(ConfigError, match="UncertaintyWeights"):
        UncertaintyWeights(0)
