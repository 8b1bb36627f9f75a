"""The recurrence against a plain loop and against finite differences; the selective scan against its definition."""

import pytest
import torch
from torch import nn

from terramoe.nets import SelectiveScan, linear_recurrence


def plain(a, b):
    h, rows = torch.zeros_like(b[0]), []
    for t in range(len(b)):
        h = a[t] * h + b[t]
        rows.append(h)
    return torch.stack(rows)


@pytest.mark.parametrize("length", [1, 2, 17, 96, 97, 100, 143, 144, 145, 1000])
def test_equals_a_plain_loop_in_value_and_gradient(length):
    torch.manual_seed(length)
    a = torch.rand(length, 3, 2, dtype=torch.float64, requires_grad=True)
    b = torch.randn(length, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(length, 3, 2, dtype=torch.float64)
    expected = torch.autograd.grad((plain(a, b) * weight).sum(), (a, b))
    h = linear_recurrence(a, b)
    torch.testing.assert_close(h, plain(a, b))
    torch.testing.assert_close(torch.autograd.grad((h * weight).sum(), (a, b)), expected)


@pytest.mark.parametrize("length", [5, 110])
def test_gradcheck(length):
    torch.manual_seed(0)
    a = torch.rand(length, 1, dtype=torch.float64, requires_grad=True)
    b = torch.randn(length, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear_recurrence, (a, b))


def test_a_long_decaying_sequence_stays_finite():
    a = torch.full((20_000, 1), 0.1)
    h = linear_recurrence(a, torch.ones(20_000, 1))
    torch.testing.assert_close(h[-1], torch.tensor([1 / 0.9]))


def test_no_items():
    assert linear_recurrence(torch.zeros(5, 0, 2), torch.zeros(5, 0, 2)).shape == (5, 0, 2)


def test_selective_scan_follows_its_definition():
    torch.manual_seed(0)
    scan = SelectiveScan(3, state=4).double()
    u = torch.randn(6, 2, 3, dtype=torch.float64)
    y = scan(u)
    step, b, c = scan.project(u).split([scan.step_rank, 4, 4], dim=-1)
    delta = nn.functional.softplus(scan.step(step))
    decay = -torch.exp(scan.log_decay)
    for n in range(2):
        for d in range(3):
            h = torch.zeros(4, dtype=torch.float64)
            for t in range(6):
                h = torch.exp(delta[t, n, d] * decay[d]) * h + delta[t, n, d] * b[t, n] * u[t, n, d]
                torch.testing.assert_close(y[t, n, d], h @ c[t, n] + scan.skip[d] * u[t, n, d])


def test_selective_scan_is_causal():
    torch.manual_seed(0)
    scan = SelectiveScan(3)
    u = torch.randn(8, 1, 3)
    y = scan(u)
    u[5] += 1
    changed = (scan(u) - y).abs().sum((1, 2)) > 0
    assert changed.tolist() == [False] * 5 + [True] * 3


def test_initial_steps_lie_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    step = nn.functional.softplus(SelectiveScan(500).step.bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 0.101
