"""Products through oneDNN against products in float64, in all layouts, and the layers that are built on them."""

import itertools

import pytest
import torch

from terramoe.moe import LinearScorer, MoELayer, StackedFFN, TopK
from terramoe.moe.executors import EXECUTORS
from terramoe.moe.experts import LoRABank
from terramoe.moe.products import _runs_in_onednn, by_onednn, few_by_many, linear, many_by_few, outer

SHAPES = [(1, 1, 1), (3, 5, 7), (17, 8, 33), (130, 64, 40)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float64: 1e-13}


LAYOUTS = {
    "plain": lambda rows, columns: torch.randn(rows, columns),
    "turned": lambda rows, columns: torch.randn(columns, rows).T,
    "every other": lambda rows, columns: torch.randn(2 * rows, 3 * columns)[::2, ::3],
    "one row": lambda rows, columns: torch.randn(1, columns).expand(rows, -1),
    "one column": lambda rows, columns: torch.randn(rows, 1).expand(-1, columns),
}


def close(y, exact, dtype, terms=None):
    """``terms``: the sums of the terms' sizes, where terms may cancel."""
    scale = max([1.0, *(exact if terms is None else terms).abs().flatten().tolist()])
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=TOLERANCE[dtype] * scale)
    assert y.dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("n", "d", "h"), SHAPES)
def test_linear_and_outer_are_the_products_they_name(n, d, h, dtype):
    torch.manual_seed(0)
    for layout_x, layout_w, offset in itertools.product(LAYOUTS.values(), LAYOUTS.values(), [False, True]):
        x, w = layout_x(n, d).to(dtype), layout_w(d, h).to(dtype)
        b = torch.randn(h).to(dtype) if offset else None
        exact = x.double() @ w.double() + (0 if b is None else b.double())
        terms = x.double().abs() @ w.double().abs()
        close(linear(x, w, b), exact, dtype, terms)
        out = torch.full((n, h), torch.nan, dtype=dtype)
        assert linear(x, w, b, out=out) is out
        close(out, exact, dtype, terms)
        grad = layout_w(n, h).to(dtype)
        exact, terms = x.double().T @ grad.double(), x.double().abs().T @ grad.double().abs()
        total = torch.full((d, h), torch.nan, dtype=dtype)
        outer(total, x, grad, add=False)
        close(total, exact, dtype, terms)
        outer(total, x, grad, add=True)
        close(total, 2 * exact, dtype, 2 * terms)


@pytest.mark.parametrize("function", [few_by_many, many_by_few])
def test_gradient_of_a_sum_whose_memory_is_one_number(function):
    many, few = torch.randn(7, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)
    (function(few, many) if function is few_by_many else function(many, few.T)).sum().backward()
    torch.testing.assert_close(many.grad, few.detach().sum(0).expand(7, -1))
    torch.testing.assert_close(few.grad, many.detach().sum(0).expand(3, -1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("items", [0, 1, 50])
@pytest.mark.parametrize("function", [few_by_many, many_by_few])
def test_products_with_gradients_of_both_orders(function, items, dtype):
    torch.manual_seed(0)
    many, few = torch.randn(items, 6).to(dtype), torch.randn(3, 6).to(dtype)
    grad = torch.randn((3, items) if function is few_by_many else (items, 3)).to(dtype)

    def both(dtype, *tensors):
        many, few, grad = (t.to(dtype).requires_grad_() for t in tensors)
        y = function(few, many) if function is few_by_many else function(many, few.T)
        first = torch.autograd.grad(y, [many, few], grad, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [many, few, grad])
        return [y, *first, *second]

    exact = both(torch.float64, many, few, grad)
    for y, e in zip(both(dtype, many, few, grad), exact, strict=True):
        close(y, e, dtype)


@pytest.mark.parametrize("items", [3, 5, 8])
def test_few_by_many_of_lower_precision_is_exact_in_the_higher_one(items, monkeypatch):
    """As if it were converted first, but in parts, and with a gradient in its own type."""
    monkeypatch.setattr("terramoe.moe.products.PART", 4)
    torch.manual_seed(0)
    few, many = torch.randn(3, 6, requires_grad=True), torch.randn(items, 6).bfloat16().requires_grad_()
    y, grad = few_by_many(few, many), torch.randn(3, items)
    close(y.detach(), few.double().detach() @ many.double().detach().T, torch.float32)
    grad_few, grad_many = torch.autograd.grad(y, [few, many], grad)
    close(grad_few, grad.double() @ many.double().detach(), torch.float32)
    close(grad_many, grad.double().T @ few.double().detach(), torch.bfloat16)


def test_what_does_not_go_through_onednn(monkeypatch):
    assert not by_onednn(torch.zeros(2, 2, dtype=torch.float64))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    _runs_in_onednn.cache_clear()
    assert not by_onednn(torch.zeros(2, 2))
    monkeypatch.undo()
    _runs_in_onednn.cache_clear()
    x, w = torch.randn(4, 6), torch.randn(6, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert many_by_few(x, w).dtype == few_by_many(w.T, x).dtype == torch.bfloat16


@pytest.mark.skipif(not by_onednn(torch.zeros(1)), reason="this build of PyTorch has no oneDNN")
@pytest.mark.parametrize("name", ["grouped", "auto"])
@pytest.mark.parametrize("bank", ["ffn", "gated", "lora"])
@pytest.mark.parametrize("skew", [0.0, 3.0])
def test_layers_in_float32_equal_the_loop_in_float64(name, bank, skew):
    """Enough items that the fused bank cuts an expert into blocks, groups others, and leaves some without any."""

    def run(dtype, executor):
        torch.manual_seed(0)
        banks = {
            "ffn": lambda: StackedFFN(8, 16, 24),
            "gated": lambda: StackedFFN(8, 16, 24, 10, activation="swiglu", bias=False),
            "lora": lambda: LoRABank(8, 16, 10, 3),
        }
        layer = MoELayer(LinearScorer(16, 8), banks[bank](), selector=TopK(2), executor=executor)
        x = torch.randn(4001, 16)
        with torch.no_grad():
            layer.scorer.linear.weight.mul_(3)
            x += skew * layer.scorer.linear.weight[3]
            if bank == "lora":
                layer.bank.b_ERO.normal_()
        layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
        y, routing = layer(x)
        y.square().mean().backward()
        return y.detach(), [x.grad, *(p.grad for p in layer.parameters())], routing

    exact, exact_grads, routing = run(torch.float64, EXECUTORS["loop"])
    y, grads, same = run(torch.float32, EXECUTORS[name])
    load = routing.load()
    assert skew == 0 or load.max() > 1200 > 16 > load.min()
    agreed = (same.expert == routing.expert).view(2, -1).all(0)
    assert agreed.all()
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-5)
    for grad, e in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(grad.double(), e, rtol=1e-3, atol=1e-5 * max(1e-3, e.abs().max().item()))
