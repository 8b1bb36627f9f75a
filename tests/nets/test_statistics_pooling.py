"""Attentive statistics pooling against its formula and in its limits."""

import numpy as np
import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.nets.statistics_pooling import FLOOR, AttentiveStatisticsPooling


@pytest.fixture
def pool():
    torch.manual_seed(0)
    return AttentiveStatisticsPooling(3, 2).double()


def series(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_formula_by_numpy(pool):
    x = series(2, 3, 7)
    w, b = pool.down.weight.detach().numpy()[..., 0], pool.down.bias.detach().numpy()
    v, k = pool.up.weight.detach().numpy()[..., 0], pool.up.bias.detach().numpy()
    for row, found in zip(x.numpy(), pool(x).detach().numpy(), strict=True):
        score = v @ np.tanh(w @ row + b[:, None]) + k[:, None]
        weight = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        mean = (weight * row).sum(axis=1)
        deviation = np.sqrt((weight * row**2).sum(axis=1) - mean**2)
        np.testing.assert_allclose(found, np.r_[mean, deviation], rtol=1e-9)


def test_equal_weights_give_mean_and_deviation(pool):
    torch.nn.init.zeros_(pool.up.weight)
    x = series(4, 3, 9)
    expected = torch.cat([x.mean(2), x.std(2, correction=0)], dim=1)
    torch.testing.assert_close(pool(x), expected)


def test_attention_is_a_distribution_over_time_for_each_channel(pool):
    weight = pool.attention(series(2, 3, 5))
    torch.testing.assert_close(weight.sum(2), torch.ones(2, 3, dtype=torch.float64))
    assert weight.std(1).min() > 0  # channels look at different moments


def test_order_of_moments_does_not_matter(pool):
    x = series(2, 3, 8)
    torch.testing.assert_close(pool(x.flip(2)), pool(x))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_large_offset_leaves_deviation_alone(offset):
    torch.manual_seed(0)
    pool = AttentiveStatisticsPooling(2, 2)
    torch.nn.init.zeros_(pool.up.weight)
    x = torch.tensor([[[0.0, 1.0], [0.0, 4.0]]]) + offset  # 1e12 + 1 is 1e12 in single precision
    torch.testing.assert_close(pool(x)[:, 2:], torch.tensor([[0.5, 2.0]]))


def test_one_moment_and_a_constant_have_finite_gradients(pool):
    for x in (series(2, 3, 1), torch.ones(2, 3, 6, dtype=torch.float64)):
        x = x.clone().requires_grad_()
        found = pool(x)
        torch.testing.assert_close(found[:, 3:], torch.full((2, 3), FLOOR**0.5, dtype=torch.float64))
        found.sum().backward()
        assert torch.isfinite(x.grad).all()


def test_gradient_reaches_everything(pool):
    x = series(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(pool, x)
    pool(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for name, p in pool.named_parameters() if name != "up.bias")
    assert pool.up.bias.grad.abs().max() < 1e-12  # the same at every moment: softmax takes it out


@pytest.mark.parametrize("widths", [(0, 2), (3, 0)])
def test_widths_below_one_are_refused(widths):
    with pytest.raises(ConfigError, match="AttentiveStatisticsPooling"):
        AttentiveStatisticsPooling(*widths)
