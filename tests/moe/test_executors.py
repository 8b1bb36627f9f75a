"""All executors compute the same function: values and gradients, in float64, for every kind of routing."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe import (
    EXECUTORS,
    All,
    FixedCapacity,
    LinearScorer,
    ModuleBank,
    MoELayer,
    RandomK,
    RouteInput,
    StackedFFN,
    TopK,
    weighing,
)
from terramoe.moe.experts.activations import ACTIVATIONS
from terramoe.moe.experts.layout import Costs, lay_out

SELECTORS = {"top1": TopK(1), "top2": TopK(2), "all": All(), "random": RandomK(2)}
CAPACITIES = {"dropless": None, "tight": FixedCapacity(0.6), "priority": FixedCapacity(0.6, order="priority")}
SHAPES = {"rows": (13, 6), "windows": (13, 2, 3, 6), "one item": (1, 6), "no items": (0, 6)}
OTHERS = [name for name in EXECUTORS if name != "loop"]


def run(executor, selector, capacity, shape, mask=None, **bank):
    torch.manual_seed(1)
    layer = MoELayer(
        LinearScorer(6, 4), StackedFFN(4, 6, 7, 5, **bank), selector=selector, capacity=capacity, executor=executor
    ).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    routing = layer.route(RouteInput(x, mask))
    y = layer.executor(x, routing, layer.bank)
    (y * torch.linspace(1, 2, 5, dtype=torch.float64)).sum().backward()
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in layer.named_parameters()}
    return y.detach(), {**grads, "x": x.grad}, routing


@pytest.mark.parametrize("executor", OTHERS)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_agree_with_the_loop(executor, selector, capacity, shape):
    case = SELECTORS[selector], CAPACITIES[capacity], SHAPES[shape]
    y_ref, grads_ref, _ = run("loop", *case)
    y, grads, _ = run(executor, *case)
    torch.testing.assert_close(y, y_ref, rtol=1e-10, atol=1e-12)
    for name, grad in grads_ref.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("executor", OTHERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_agree_with_the_loop_for_every_activation(executor, bias, activation):
    case, mask = (TopK(2), None, (13, 6)), torch.arange(13) % 4 != 0
    y_ref, grads_ref, _ = run("loop", *case, mask, activation=activation, bias=bias)
    y, grads, _ = run(executor, *case, mask, activation=activation, bias=bias)
    torch.testing.assert_close(y, y_ref, rtol=1e-10, atol=1e-12)
    for name, grad in grads_ref.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    rows=st.integers(2, 30),
    least=st.integers(1, 30),
    flops=st.integers(1, 10**7),
    multiple=st.sampled_from([1, 3, 16]),
    batched=st.sampled_from([1, 2.5]),
)
@settings(max_examples=80, deadline=None)
def test_blocks_hold_every_pair_once_and_keep_experts_apart(counts, rows, least, flops, multiple, batched):
    layout = lay_out(counts, 1, flops, torch.device("cpu"), Costs(3e6, batched, multiple, least * flops, rows))
    expert_of_row = torch.full((layout.size,), -1)
    for block in layout.blocks:
        start = block.start
        for expert, end in enumerate(block.ends, block.first_expert):
            assert (expert_of_row[start : block.start + end] == -1).all()
            expert_of_row[start : block.start + end] = expert
            start = block.start + end
        assert start == block.stop
    assert all(a.stop == b.start for a, b in itertools.pairwise(layout.blocks))
    expert = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert layout.collect(expert_of_row).tolist() == expert.tolist()
    assert layout.collect(layout.spread(expert)).tolist() == expert.tolist()


@pytest.mark.parametrize("rows", [2, 5, 100])
@pytest.mark.parametrize(("call_flops", "multiple"), [(0, 1), (1e9, 1), (0, 4)])  # never pad, to the largest, a little
def test_agree_with_the_loop_across_blocks(monkeypatch, rows, call_flops, multiple):
    monkeypatch.setattr("terramoe.moe.experts.layout.PLAIN", Costs(call_flops, 1, multiple, 1e9, rows))
    for selector, capacity, shape in itertools.product(SELECTORS, CAPACITIES, SHAPES):
        test_agree_with_the_loop("grouped", selector, capacity, shape)
    for activation in ACTIVATIONS:
        test_agree_with_the_loop_for_every_activation("grouped", True, activation)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_output_is_the_weighted_sum_of_the_chosen_experts(executor):
    y, _, routing = run(executor, TopK(2), None, (13, 6))
    torch.manual_seed(1)
    LinearScorer(6, 4)
    bank = StackedFFN(4, 6, 7, 5).double()
    x = torch.randn((13, 6), dtype=torch.float64)
    for item in range(13):
        rows = routing.item == item
        parts = [w * bank.run(int(e), x[item]) for e, w in zip(routing.expert[rows], routing.weight[rows], strict=True)]
        torch.testing.assert_close(y[item], sum(parts).detach())


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_a_masked_item_harms_nobody_and_gives_zero(executor, junk):
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 7), executor=executor)
    x, mask = torch.randn(9, 6), torch.ones(9, dtype=torch.bool)
    clean, _ = layer(x)
    mask[4] = False
    x[4] = junk
    y, _ = layer(x, mask=mask)
    torch.testing.assert_close(y[mask], clean[mask])
    assert (y[4] == 0).all()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_masked_nan_item_spoils_no_gradient(executor):
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 7), executor=executor)
    x, mask = torch.randn(9, 6), torch.arange(9) != 4
    x[4] = torch.nan
    x.requires_grad_()
    layer(x, mask=mask)[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert (x.grad[4] == 0).all()


@pytest.mark.parametrize("executor", ["auto", "loop", "grouped", "gather", "padded"])
def test_a_nan_item_under_a_given_routing_harms_only_itself(executor):
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 7), executor=executor)
    x = torch.randn(9, 6)
    clean, routing = layer(x)
    x[4] = torch.nan
    y, _ = layer(x, routing)
    others = torch.arange(9) != 4
    torch.testing.assert_close(y[others], clean[others])
    assert y[4].isnan().all()


@pytest.mark.parametrize("executor", ["auto", "loop", "grouped", "dense", "padded"])
def test_a_bank_of_unlike_modules(executor):
    torch.manual_seed(0)
    experts = [nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), nn.Linear(6, 3)]
    layer = MoELayer(LinearScorer(6, 3), ModuleBank(experts), executor=executor)
    x = torch.randn(8, 6)
    y, routing = layer(x)
    weights = routing.dense()
    expected = sum(weights[:, [e]] * expert(x) for e, expert in enumerate(experts))
    torch.testing.assert_close(y, expected)


def test_gather_refuses_a_bank_without_stacked_weights():
    layer = MoELayer(LinearScorer(6, 2), ModuleBank([nn.Linear(6, 6)] * 2), executor="gather")
    with pytest.raises(RoutingError, match=r"ModuleBank.*Fix: use the executor"):
        layer(torch.randn(3, 6))


def test_total_skew_and_an_empty_expert():
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4, bias=True), StackedFFN(4, 6, 7), selector=TopK(1))
    with torch.no_grad():
        layer.scorer.linear.bias.copy_(torch.tensor([0.0, 100.0, 0.0, 0.0]))
    y, routing = layer(torch.randn(5, 6))
    assert routing.load().tolist() == [0, 5, 0, 0]
    assert y.isfinite().all()


def test_half_precision_experts_keep_float32_routing():
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 7).bfloat16())
    y, routing = layer(torch.randn(5, 6).bfloat16())
    assert y.dtype == torch.bfloat16
    assert routing.logits.dtype == routing.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, inside = layer(torch.randn(5, 6))
    assert inside.logits.dtype == torch.float32


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    bank = StackedFFN(3, 3, 4)
    layer = MoELayer(LinearScorer(3, 3), bank, selector=TopK(2), weigh=weighing.softmax_selected).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    router = layer.scorer.linear.weight.detach().clone().requires_grad_()

    def output(x, router):
        return torch.func.functional_call(layer, {"scorer.linear.weight": router}, x)[0]

    assert torch.autograd.gradcheck(output, (x, router))


def build(experts_scored=4, **parts):
    return MoELayer(LinearScorer(6, experts_scored), StackedFFN(4, 6, 7), **parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(executor="magic"), "no executor 'magic'"),
        (lambda: build(selector=TopK(5))(torch.randn(2, 6)), "k = 5 with 4"),
        (lambda: build()(torch.randn(2, 5)), "5 channels.*expects 6"),
        (lambda: build(experts_scored=3)(torch.randn(2, 6)), "3 logits for 4 experts"),
        (lambda: build()(torch.full((2, 6), torch.nan)), "2 of 2 items give NaN logits.*mask="),
        (lambda: build()(torch.empty(0, 6)), "batch is empty"),
        (lambda: ModuleBank([]), "no experts"),
        (lambda: StackedFFN(2, 3, 4, activation="sine"), "no activation 'sine'"),
    ],
)
def test_bad_input_is_one_error_of_ours(make, message):
    with pytest.raises(RoutingError, match=message):
        make()


def test_a_given_routing_is_replayed():
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 7))
    x = torch.randn(5, 6)
    y, routing = layer(x)
    with torch.no_grad():
        layer.scorer.linear.weight.neg_()
    again, same = layer(x, routing)
    assert same is routing
    torch.testing.assert_close(again, y)
    with pytest.raises(RoutingError, match="is for 5 items, x has 4"):
        layer(x[:4], routing)
