"""Soft MoE: closed forms, masks, gradients, and agreement with an independent implementation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from terramoe.errors import RoutingError
from terramoe.moe import ModuleBank, StackedFFN
from terramoe.moe.soft import SoftMoELayer


def make(slots=2, experts=3, dim=6, normalise=True):
    torch.manual_seed(0)
    return SoftMoELayer(dim, StackedFFN(experts, dim, 5, 4), slots, normalise=normalise).double()


def items(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    slots=st.integers(1, 4),
    experts=st.integers(1, 5),
    length=st.integers(1, 9),
    scale=st.floats(1e-3, 1e3),
    normalise=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_columns_of_dispatch_and_rows_of_combine_sum_to_one(slots, experts, length, scale, normalise):
    _, routing = make(slots, experts, normalise=normalise)(scale * items(2, length, 6))
    for total, shape in ((routing.dispatch.sum(1), (2, experts * slots)), (routing.combine.sum(2), (2, length))):
        torch.testing.assert_close(total, torch.ones(shape, dtype=torch.float64), rtol=1e-12, atol=0)
    assert min(routing.dispatch.min(), routing.combine.min()) >= 0
    assert routing.num_experts == experts
    torch.testing.assert_close(routing.expert_weight().sum(-1), torch.ones(2, length, dtype=torch.float64))


def test_equals_the_formula_slot_by_slot():
    layer, x = make(), items(2, 7, 6)
    y, _ = layer(x)
    want = torch.zeros(2, 7, 4, dtype=torch.float64)
    for b in range(2):
        logits = (x[b] / x[b].norm(dim=1, keepdim=True)) @ (layer.phi_DS / layer.phi_DS.norm(dim=0)) * layer.scale
        for s in range(6):
            share = logits[:, s].exp() / logits[:, s].exp().sum()
            out = layer.bank.run(s // 2, (share[:, None] * x[b]).sum(0, keepdim=True))  # slots are expert-major
            want[b] += (logits[:, s].exp() / logits.exp().sum(1))[:, None] * out
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-12)


def test_equal_slot_vectors_give_every_item_the_mean():
    layer, x = make(), items(2, 7, 6)
    with torch.no_grad():
        layer.phi_DS.zero_()
    y, routing = layer(x)
    torch.testing.assert_close(routing.dispatch, torch.full((2, 7, 6), 1 / 7, dtype=torch.float64))
    mean = x.mean(1)
    want = layer.bank.run_all(mean).mean(0)[:, None].expand(2, 7, 4)
    torch.testing.assert_close(y, want)


def test_one_item_reaches_every_slot_whole():
    layer, x = make(), items(3, 1, 6)
    y, routing = layer(x)
    torch.testing.assert_close(routing.dispatch, torch.ones(3, 1, 6, dtype=torch.float64))
    want = torch.einsum("be,ebd->bd", routing.expert_weight()[:, 0], layer.bank.run_all(x[:, 0]))
    torch.testing.assert_close(y[:, 0], want)


def test_normalised_logits_ignore_the_length_of_items_and_plain_ones_do_not():
    x = items(2, 7, 6)
    for normalise in (True, False):
        layer = make(normalise=normalise)
        same = torch.allclose(layer.route(x).combine, layer.route(10 * x).combine, rtol=1e-12)
        assert same == normalise


def test_permuting_items_permutes_the_output_and_sequences_do_not_mix():
    layer, x = make(), items(2, 7, 6)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(layer(x[:, order])[0], layer(x)[0][:, order])
    torch.testing.assert_close(layer(x)[0][1:], layer(x[1:])[0])


def test_a_masked_item_changes_nothing_whatever_it_holds():
    layer, x = make(), items(2, 5, 6)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[:, 5:] = False
    filled = torch.cat([x, torch.full((2, 3, 6), torch.nan, dtype=torch.float64)], 1)
    y, routing = layer(filled, mask)
    torch.testing.assert_close(y[:, :5], layer(x)[0], rtol=1e-12, atol=1e-14)
    assert (y[:, 5:] == 0).all()
    assert (routing.dispatch[:, 5:] == 0).all()
    assert (routing.combine[:, 5:] == 0).all()


def test_a_sequence_without_valid_items_gives_zeros_and_finite_gradients():
    layer, x = make(), items(2, 5, 6).requires_grad_()
    mask = torch.tensor([[True] * 5, [False] * 5])
    y, routing = layer(x, mask)
    y.square().sum().backward()
    assert (y[1] == 0).all()
    assert (routing.dispatch[1] == 0).all()
    assert (x.grad[1] == 0).all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    alone = make()
    alone(x.detach()[:1])[0].square().sum().backward()
    torch.testing.assert_close(layer.phi_DS.grad, alone.phi_DS.grad)


def test_gradcheck_and_every_item_and_parameter_gets_a_gradient():
    layer, x = make(1, 2, 3), items(1, 4, 3).requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    layer(x)[0].square().sum().backward()
    assert (x.grad.abs().amax(-1) > 0).all()
    assert all((p.grad != 0).any() for p in parameters.values())


@pytest.mark.parametrize("rms", [False, True])
def test_agrees_with_soft_moe_pytorch(rms):
    package = pytest.importorskip("soft_moe_pytorch")
    torch.manual_seed(4)
    other = package.SoftMoE(6, num_slots=2, num_experts=3, expert_mult=2).double()
    with torch.no_grad():  # its RMSNorm is the direction times sqrt(D) times gamma
        if rms:
            other.norm.gamma.uniform_(0.5, 2)
            other.slot_norm.gamma.uniform_(0.5, 2)
        else:
            other.norm.gamma.fill_(1 / math.sqrt(6))
            other.slot_norm.gamma.fill_(1.7 / math.sqrt(6))
    layer = SoftMoELayer(6, StackedFFN(3, 6, 12), 2, normalise=not rms).double()
    with torch.no_grad():
        slots = other.slot_norm(other.slot_embeds) if rms else other.slot_embeds
        layer.phi_DS.copy_(slots.flatten(0, 1).T)
        if not rms:
            layer.scale.fill_(1.7)
        for e, expert in enumerate(other.experts.experts):
            layer.bank.w_in_EDH[e], layer.bank.b_in_EH[e] = expert[0].weight.T, expert[0].bias
            layer.bank.w_out_EHD[e], layer.bank.b_out_ED[e] = expert[3].weight.T, expert[3].bias
    mask = torch.arange(9) % 4 != 2
    x_own, x_other = items(2, 9, 6).requires_grad_(), items(2, 9, 6).requires_grad_()
    # The package mixes the normalised items into its slots, the paper the items themselves.
    y = layer(other.norm(x_own) if rms else F.normalize(x_own, dim=-1), mask.expand(2, 9))[0]
    want = other(x_other, mask=mask.expand(2, 9))
    torch.testing.assert_close(y[:, mask], want[:, mask], rtol=1e-9, atol=1e-11)
    weight = items(2, 9, 6, seed=5) * mask[:, None]  # what it gives for masked items is not defined
    (y * weight).sum().backward()
    (want * weight).sum().backward()
    torch.testing.assert_close(x_own.grad, x_other.grad, rtol=1e-8, atol=1e-10)


def test_checkpointing_changes_neither_routing_nor_gradients():
    layer, x = make(), items(2, 7, 6).requires_grad_()
    y, routing = layer(x)
    want = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
    y, again = checkpoint(layer, x, use_reentrant=False)
    assert torch.equal(routing.combine, again.combine)
    assert torch.equal(routing.dispatch, again.dispatch)
    for got, grad in zip(torch.autograd.grad(y.square().sum(), (x, *layer.parameters())), want, strict=True):
        assert torch.equal(got, grad)


def test_low_precision_items_are_routed_in_float32_and_any_bank_will_do():
    layer = SoftMoELayer(6, ModuleBank(torch.nn.Linear(6, 6) for _ in range(3)), 2).to(torch.bfloat16)
    y, routing = layer(items(2, 7, 6).to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert routing.combine.dtype == torch.float32
    assert not routing.detach().combine.requires_grad
    assert routing.combine.requires_grad


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.zeros(2, 6), None, "expected"),
        (torch.zeros(2, 0, 6), None, "at least one item"),
        (torch.zeros(2, 3, 5), None, "expected"),
        (torch.zeros(2, 3, 6), torch.ones(3, 2, dtype=torch.bool), "mask"),
        (torch.zeros(2, 3, 6), torch.ones(2, 3), "mask"),
        (torch.full((2, 3, 6), torch.nan), None, "NaN"),
    ],
)
def test_refuses_what_it_cannot_route(x, mask, message):
    with pytest.raises(RoutingError, match=message):
        make()(x.double(), mask)


@pytest.mark.parametrize(("dim", "slots"), [(0, 1), (4, 0), (4, -2)])
def test_refuses_impossible_sizes(dim, slots):
    with pytest.raises(RoutingError, match="at least 1"):
        SoftMoELayer(dim, StackedFFN(2, 4, 3), slots)
