"""Mixing in log space: against float64, at its extremes, in its gradients, and sparse against dense."""

import math

import pytest
import torch

from terramoe.moe import All, LinearScorer, ModuleBank, MoELayer, RouteInput, StackedFFN, TopK
from terramoe.moe.executors.log_space import combine_log_space, log_space, log_space_dense


def direct(y, item, weight, num_items):
    """The definition, in float64."""
    out = torch.zeros(num_items, *y.shape[1:], dtype=torch.float64)
    for t in range(num_items):
        rows = item == t
        if rows.any():
            w = weight[rows].double().view(-1, *[1] * (y.ndim - 1))
            out[t] = (w * y[rows].double().exp()).sum(0).log()
    return out


def made(rows=40, items=9, channels=(3,), spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = spread * torch.randn(rows, *channels, generator=generator)
    item = torch.randint(0, items - 1, (rows,), generator=generator)  # the last item has no row
    return y, item, torch.rand(rows, generator=generator), items


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0, 120.0])
@pytest.mark.parametrize("channels", [(3,), (2, 4)])
def test_equal_to_the_definition_in_float64(spread, channels):
    y, item, weight, items = made(spread=spread, channels=channels)
    ours = combine_log_space(y, item, weight, items)
    torch.testing.assert_close(ours.double(), direct(y, item, weight, items), rtol=1e-5, atol=1e-5)
    assert (ours[-1] == 0).all()


@pytest.mark.parametrize(
    ("outputs", "weights", "expected"),
    [
        ((1e4, -1e4), (0.5, 0.5), 1e4 + math.log(0.5)),  # exp overflows even in float64
        ((-1e4, -1e4), (0.5, 0.5), -1e4),  # and here vanishes
        ((-3e4, 5.0), (1.0, 0.0), -3e4),  # a weight of 0 is no row, though its output is far larger
        ((200.0, 0.0), (1e-30, 1.0), 200 + math.log(1e-30)),  # a tiny weight may still decide
        ((0.0, 0.0), (2e-38, 2e-38), math.log(4e-38)),
        ((9.0, 0.0), (1e-40, 1.0), 0.0),  # below the normal range of float32, where its gradient would overflow
        ((3.0,), (1.0,), 3.0),
        ((7.0, 8.0), (0.0, 0.0), 0.0),
    ],
)
def test_extremes(outputs, weights, expected):
    y = torch.tensor(outputs)[:, None].requires_grad_()
    weight = torch.tensor(weights).requires_grad_()
    out = combine_log_space(y, torch.zeros(len(outputs), dtype=torch.int64), weight, 1)
    assert out.item() == pytest.approx(expected, rel=1e-5)
    out.sum().backward()
    assert y.grad.isfinite().all()
    assert weight.grad.isfinite().all()


def test_gradients_are_those_of_the_definition():
    y, item, weight, items = (v.double() if torch.is_tensor(v) and v.is_floating_point() else v for v in made())
    y, weight = y.requires_grad_(), (weight + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: combine_log_space(a, item, b, items), (y, weight))


def test_a_small_gate_keeps_its_say_and_its_gradient():
    """The released code of SpectralX sets gates below 1e-4 to zero in place."""
    weight = torch.tensor([5e-5, 1 - 5e-5], requires_grad=True)
    y = torch.tensor([[12.0], [0.0]], requires_grad=True)
    out = combine_log_space(y, torch.tensor([0, 0]), weight, 1)
    assert out.item() == pytest.approx(math.log(5e-5 * math.exp(12) + 1), rel=1e-4)
    out.sum().backward()
    assert weight.grad[0] == pytest.approx(math.exp(12) / (5e-5 * math.exp(12) + 1), rel=1e-4)
    assert y.grad[0] > 0.5


def layer(executor, selector, experts=4, seed=0):
    torch.manual_seed(seed)
    return MoELayer(LinearScorer(6, experts), StackedFFN(experts, 6, 5), selector=selector, executor=executor)


@pytest.mark.parametrize("selector", [TopK(1), TopK(2), All()])
@pytest.mark.parametrize("masked", [False, True])
def test_sparse_equals_dense_in_values_and_gradients(selector, masked):
    x = torch.randn(11, 3, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(11) % 3 > 0 if masked else None
    found = []
    for executor in (log_space, log_space_dense):
        mine, items = layer(executor, selector), x.clone().requires_grad_()
        y, _ = mine(items, mask=mask)
        y.square().sum().backward()
        found.append([y.detach(), items.grad, *(p.grad for p in mine.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if masked:
        assert (found[0][0][~mask] == 0).all()


@pytest.mark.parametrize("executor", [log_space, log_space_dense])
def test_masked_items_may_hold_nan_and_nobody_need_be_reached(executor):
    x = torch.randn(4, 6)
    x[1] = torch.nan
    mask = torch.tensor([True, False, True, True])
    mine = layer(executor, TopK(2))
    y, _ = mine(x, mask=mask)
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mine.parameters())
    y, _ = mine(x, mask=torch.zeros_like(mask))
    assert (y == 0).all()


def test_only_the_chosen_pairs_are_run():
    rows = []

    class Counted(torch.nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return x

    mine = MoELayer(LinearScorer(6, 4), ModuleBank(Counted() for _ in range(4)), selector=TopK(2), executor=log_space)
    x = torch.randn(10, 6)
    y, routing = mine(x)
    assert sum(rows) == 20
    expected = x + routing.weight.view(2, 10).sum(0).log()[:, None]  # all experts are the identity
    torch.testing.assert_close(y, expected)


def test_the_mixture_lies_between_its_experts():
    mine = layer(log_space, All())
    x = torch.randn(50, 6)
    y, _ = mine(x)
    outputs = mine.bank.run_all(x)
    assert (y <= outputs.amax(0) + 1e-6).all()
    assert (y >= outputs.amin(0) - 1e-6).all()
    plain = MoELayer(mine.scorer, mine.bank, selector=All())(x)[0]
    assert (y >= plain - 1e-6).all()  # Jensen: the log of the mean is no less than the mean of the logs


def test_a_given_routing_is_replayed():
    mine = layer(log_space, TopK(2))
    x = torch.randn(5, 6)
    routing = mine.route(RouteInput(x))
    torch.testing.assert_close(mine(x, routing)[0], mine(x)[0])
