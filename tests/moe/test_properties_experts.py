"""Property catalogue, what experts and executors compute: P1, P19, P24, P25, P28, P29, P30."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from property_cases import (
    BANKS,
    CAPACITIES,
    DIM,
    EXPERTS,
    IMAGES,
    RUNS,
    SCORERS,
    SELECTORS,
    build,
    close,
    counts,
    few,
    generator,
    items_for,
    linear_scorer,
    many,
    mixture,
    parameters_of,
    random_input,
    random_items,
    randomised,
    seeds,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from terramoe.moe import EXECUTORS, MoELayer, RouteInput, experts, links, summarise, weighing
from terramoe.moe.controllers import BiasedSelector, LossFreeBias
from terramoe.moe.experts import AttentionExperts, Bank, ChannelBank, ConvBank, LoRABank, StackedFFN, TTLoRABank
from terramoe.moe.merging import SegmentMergedFFN, run_merged
from terramoe.moe.selectors import All, TopK
from terramoe.moe.soft import SoftMoELayer


def test_the_catalogue_knows_every_bank():
    """A new bank cannot escape the catalogue (attention experts are not a bank)."""
    public = {getattr(experts, name) for name in experts.__all__} - {Bank, AttentionExperts}
    assert public == {type(make()) for make in BANKS.values()}


@pytest.mark.parametrize(("executor", "bank"), RUNS)
@many
@given(
    items=counts,
    seed=seeds,
    selector=st.sampled_from(list(SELECTORS)),
    limit=st.sampled_from([None, *CAPACITIES]),
    masked=st.booleans(),
    inner=st.booleans(),
)
def test_p01_every_executor_gives_the_weighted_sum_of_the_record(
    executor, bank, items, seed, selector, limit, masked, inner
):
    """Values and gradients, of items, router and experts, equal those of the plain sum over the record's kept rows."""
    inp = random_input(items, seed, masked=masked)
    x = items_for(bank, items, seed)
    x = random_items(items, seed, 2) if inner and bank not in IMAGES else x
    results = []
    for run in (mixture, EXECUTORS[executor]):
        layer = build(selector, bank, seed, capacity=CAPACITIES.get(limit))
        leaf = x.clone().requires_grad_()
        torch.manual_seed(seed)
        routing = layer.route(RouteInput(leaf, inp.mask, keys=inp.keys))
        y = run(leaf, routing, layer.bank)
        (y * torch.linspace(1, 2, y.shape[-1], dtype=y.dtype)).square().sum().backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in layer.parameters()]
        results.append((y.detach(), leaf.grad, *grads))
    for ours, expected in zip(results[1], results[0], strict=True):
        close(ours, expected, rtol=1e-8, atol=1e-9)


@many
@given(
    items=counts,
    seed=seeds,
    weigh=st.sampled_from([weighing.renormalised, weighing.raw, weighing.ones]),
    k=st.integers(1, EXPERTS),
)
def test_p19_identical_experts_are_the_dense_network_iff_weights_sum_to_one(items, seed, weigh, k):
    """Upcycling: every expert a copy of one network; raw and plain weights scale it instead."""
    layer, x = build(TopK(k), "ffn", seed, weigh=weigh), random_items(items, seed)
    with torch.no_grad():
        for parameter in layer.bank.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    y, routing = layer(x)
    dense = layer.bank.run(0, x)
    total = routing.dense().sum(1, keepdim=True)
    close(y, total * dense)
    assert torch.allclose(y, dense) == torch.allclose(total, torch.ones_like(total))


@many
@given(items=counts, seed=seeds, pieces=st.sampled_from([1, 2, 3, 4]), order=st.randoms(use_true_random=False))
def test_p19_splitting_hidden_neurons_into_experts_keeps_the_sum(items, seed, pieces, order):
    """Any deal of a network's neurons to experts, all used with weight 1, is the network."""
    whole, x = randomised(StackedFFN(1, DIM, 12, 5), seed), random_items(items, seed)
    neurons = order.sample(range(12), 12)
    parts = StackedFFN(pieces, DIM, 12 // pieces, 5).double()
    with torch.no_grad():
        for e in range(pieces):
            mine = neurons[e::pieces]
            parts.w_in_EDH[e], parts.b_in_EH[e] = whole.w_in_EDH[0][:, mine], whole.b_in_EH[0][mine]
            parts.w_out_EHD[e], parts.b_out_ED[e] = whole.w_out_EHD[0][mine], whole.b_out_ED[0] / pieces
    scorer = linear_scorer(seed, pieces)
    y, _ = MoELayer(scorer, parts, selector=All(), weigh=weighing.ones)(x)
    close(y, whole.run(0, x))


@pytest.mark.parametrize(("executor", "bank"), [run for run in RUNS if run[1].endswith(("lora", "adapter"))])
def test_p19_updates_add_nothing_at_the_start(executor, bank):
    """B = 0: before training the output beside a base layer is exactly 0, whatever the routing."""
    y, _ = build("top2", BANKS[bank](), executor=executor)(random_items(9, 0))
    assert not y.any()


@pytest.mark.parametrize("name", ["lora", "shared lora", "tt-lora", "conv", "linear ffn"])
@few
@given(items=counts, seed=seeds)
def test_p19_merged_linear_experts_are_the_mixture(name, items, seed):
    """sum_e g_e (W_e x) = (sum_e g_e W_e) x, by each bank's own ``merge``; all that a linear expert is."""
    weights = torch.randn(EXPERTS, generator=generator(seed), dtype=torch.float64).softmax(0)
    linear = name == "linear ffn"
    bank = _linear_ffn(seed) if linear else randomised(BANKS[name](), seed)
    x = items_for(name, items, seed)
    outputs = torch.stack([bank.run(e, x) for e in range(EXPERTS)])
    expected = torch.einsum("e,e...->...", weights, outputs)
    if isinstance(bank, ConvBank):
        kernel, offset = bank.merge(weights)
        y = nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, offset, padding=1).permute(0, 2, 3, 1)
    elif isinstance(bank, LoRABank | TTLoRABank):
        y = x @ bank.merge(weights).T
    else:
        y = run_merged(bank, x[None], weights[None])[0]
    close(y, expected)


def _linear_ffn(seed):
    """Experts that are linear in effect, relu(x + 100) - 100 being x: merging hidden layers is exact for them."""
    bank = randomised(StackedFFN(EXPERTS, DIM, DIM, 5, activation="relu"), seed)
    with torch.no_grad():
        bank.w_in_EDH.copy_(torch.eye(DIM).expand_as(bank.w_in_EDH))
        bank.b_in_EH.fill_(100.0)
        bank.b_out_ED.sub_(100 * bank.w_out_EHD.sum(1))
    return bank


@pytest.mark.parametrize(("executor", "bank"), RUNS)
@few
@given(items=counts, seed=seeds, selector=st.sampled_from(["top1", "top2", "top-p", "expert choice", "all"]))
def test_p24_only_chosen_experts_get_a_gradient(executor, bank, items, seed, selector):
    """Exactly zero for an expert that computed nothing, nonzero for one that did; under "all" for every expert."""
    layer = build(selector, bank, seed, executor=executor)
    with torch.no_grad():
        layer.scorer.linear.bias[seed % EXPERTS] -= 5  # somebody may well stay without items
    y, routing = layer(items_for(bank, items, seed))
    y.square().sum().backward()
    for expert, load in enumerate(routing.load().tolist()):
        grads = [
            p.grad[index] if p.grad is not None else torch.zeros(1) for p, index in parameters_of(layer.bank, expert)
        ]
        assert grads
        assert any(g.any() for g in grads) == (load > 0)
    assert selector != "all" or routing.load().tolist() == [items] * EXPERTS


@pytest.mark.parametrize("executor", EXECUTORS)
@many
@given(items=counts, seed=seeds, activation=st.sampled_from(["gelu", "relu", "swiglu"]))
def test_p25_one_expert_is_that_expert(executor, items, seed, activation):
    """E = 1: softmax gives it weight 1, so that the layer is a feed-forward network, written out here."""
    bank = randomised(StackedFFN(1, DIM, 7, 5, activation=activation), seed)
    x = random_items(items, seed)
    y, _ = build(TopK(1), bank, seed, executor=executor)(x)
    pre = x @ bank.w_in_EDH[0] + bank.b_in_EH[0]
    hidden = {
        "gelu": lambda: nn.functional.gelu(pre),
        "relu": lambda: pre.clamp_min(0),
        "swiglu": lambda: nn.functional.silu(pre[:, :7]) * pre[:, 7:],
    }[activation]()
    close(y, hidden @ bank.w_out_EHD[0] + bank.b_out_ED[0])


@pytest.mark.parametrize(("executor", "bank"), RUNS)
@few
@given(
    items=counts, seed=seeds, weigh=st.sampled_from([weighing.raw, weighing.renormalised, weighing.softmax_selected])
)
def test_p25_all_experts_are_the_dense_mixture(executor, bank, items, seed, weigh):
    """k = E: sum_i softmax(z)_i E_i(x) with every weighing, and the same as the selector of all."""
    x = items_for(bank, items, seed)
    layer, every = (build(s, bank, seed, executor=executor, weigh=weigh) for s in (TopK(EXPERTS), All()))
    y, routing = layer(x)
    outputs = torch.stack([layer.bank.run(e, x) for e in range(EXPERTS)])
    close(y, torch.einsum("te,et...->t...", routing.logits.softmax(-1), outputs))
    close(every(x)[0], y)


@few
@given(items=counts, seed=seeds)
def test_p25_channel_experts_stand_side_by_side(items, seed):
    """Gates times one convolution, channel by channel; leaving out closed channels changes nothing."""
    bank, x = randomised(ChannelBank(DIM, EXPERTS), seed), items_for("channels", items, seed)
    y, routing = build("support", bank, seed, link=links.relu)(x)
    gates = routing.logits.relu()
    whole = nn.functional.conv2d(x.permute(0, 3, 1, 2), bank.weight_EIKK, bank.bias_E, padding=1).permute(0, 2, 3, 1)
    close(y, gates[:, None, None] * whole)
    close(bank.run_gated(x, gates), y)


@pytest.mark.parametrize("scorer", ["linear", "noisy", "gumbel", "jitter"])
@pytest.mark.parametrize("limit", [None, "position", "random order"])
@few
@given(items=counts, seed=seeds)
def test_p28_checkpointing_counts_once_and_changes_no_gradient(scorer, limit, items, seed):
    """A layer run again in the backward pass: one record, the same gradients, the same step of a bias controller."""
    results = []
    for recompute in (False, True):
        selector = BiasedSelector(TopK(2), EXPERTS)
        parts = {"scorer": randomised(SCORERS[scorer](), seed), "capacity": CAPACITIES.get(limit)}
        layer = build(selector, "gated ffn", seed, **parts)
        control, records = LossFreeBias(layer.selector, 0.1), []
        x = random_items(items, seed).requires_grad_()
        torch.manual_seed(seed)
        y, routing = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        records.append(routing)
        y.square().sum().backward()
        control.after_step(0, records)
        numbers = summarise({"layer": routing})["layer"]
        assert numbers.items == items
        assert numbers.pairs == 2 * items
        grads = [torch.zeros(1) if p.grad is None else p.grad for p in layer.parameters()]
        results.append((layer.selector.bias, x.grad, routing.load(), *grads))
    for plain, recomputed in zip(*results, strict=True):
        close(recomputed, plain)


@few
@given(
    batch=st.integers(1, 3),
    items=counts,
    seed=seeds,
    slots=st.integers(1, 3),
    normalise=st.booleans(),
    masked=st.booleans(),
)
def test_p29_soft_moe_dispatch_and_combine_are_distributions(batch, items, seed, slots, normalise, masked):
    """Dispatch sums to 1 over items, combine over slots; every valid item moves the output, masked ones nothing;
    permuting items permutes the output."""
    bank = randomised(StackedFFN(EXPERTS, DIM, 7, 5), seed)
    layer = randomised(SoftMoELayer(DIM, bank, slots, normalise=normalise), seed)
    x = random_items(batch * items, seed).view(batch, items, DIM).requires_grad_()
    mask = torch.rand(batch, items, generator=generator(seed)) < 0.7 if masked else torch.ones(batch, items).bool()
    mask[:, 0] = True
    y, routing = layer(x, mask=mask)
    ones = torch.ones(batch, EXPERTS * slots, dtype=x.dtype)
    close(routing.dispatch.sum(1), ones)
    close(routing.combine.sum(2), mask.double())
    assert (routing.dispatch[~mask] == 0).all()
    logits = _soft_logits(layer, x)
    close(routing.combine[mask], logits.softmax(-1)[mask])
    close(routing.dispatch, logits.masked_fill(~mask[..., None], -torch.inf).softmax(1))
    y[:, 0].square().sum().backward()
    assert torch.equal(x.grad.abs().sum(-1) > 0, mask)
    order = torch.randperm(items, generator=generator(seed))
    close(layer(x[:, order], mask=mask[:, order])[0], y[:, order])


def _soft_logits(layer, x):
    if layer.scale is None:
        return x @ layer.phi_DS
    unit = layer.phi_DS / layer.phi_DS.norm(dim=0, keepdim=True)
    return layer.scale * (x / x.norm(dim=-1, keepdim=True)) @ unit


@many
@given(segments=st.integers(1, 4), length=st.integers(1, 4), short=st.integers(0, 3), seed=seeds, data=st.data())
def test_p30_lory_sees_no_later_segment(segments, length, short, seed, data):
    """Another item in segment s leaves all earlier segments bit for bit alone, and reaches s + 1 through the router;
    no gradient runs back from an earlier output, and none at all through the weights of the first segment."""
    items = max(segments * length - min(short, length - 1), 1)
    layer = SegmentMergedFFN(build("all", "ffn", seed), length)
    x = random_items(items, seed)[None].requires_grad_()
    place = data.draw(st.integers(0, items - 1))
    start = place // length * length
    changed = x.detach().clone()
    changed[0, place] += 1
    y, _ = layer(x)
    other, _ = layer(changed)
    assert torch.equal(other[:, :start], y[:, :start])
    later = slice(start + length, start + 2 * length)
    assert not y[:, later].numel() or not torch.allclose(other[:, later], y[:, later])
    if start:
        (grad,) = torch.autograd.grad(y[:, :start].square().sum(), x, retain_graph=True)
        assert not grad[:, start:].any()
    first = y[:, :length].square().sum()
    (grad,) = torch.autograd.grad(first, layer.layer.scorer.linear.weight, allow_unused=True)
    assert grad is None or not grad.any()


@few
@given(seed=seeds, expert=st.integers(0, EXPERTS - 1))
def test_p30_a_sure_gate_makes_lory_that_expert(seed, expert):
    """One-hot weights: merged parameters are those of the one expert, in every segment."""
    layer = SegmentMergedFFN(build("all", "ffn", seed), 3)
    with torch.no_grad():
        layer.layer.scorer.linear.bias[expert] += 1e4
    x = random_items(8, seed)
    close(layer(x[None])[0][0], layer.layer.bank.run(expert, x))
