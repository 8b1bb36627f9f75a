"""Convolutions, channels, attention heads and adapters as experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe import (
    EXECUTORS,
    All,
    FixedCapacity,
    LinearScorer,
    MoELayer,
    RouteInput,
    TopK,
    ZeroScorer,
    links,
)
from terramoe.moe.experts.adapter import AdapterBank
from terramoe.moe.experts.attention import AttentionExperts
from terramoe.moe.experts.channels import ChannelBank, freeze_gates
from terramoe.moe.experts.conv import ConvBank
from terramoe.moe.selectors import Support

# name: (bank, its item shape, output channels)
BANKS = {
    "conv": (lambda: ConvBank(4, 6, 5), (5, 4, 6), 5),
    "strided": (lambda: ConvBank(4, 6, 4, 3, stride=2, padding=0, bias=False), (7, 5, 6), 4),
    "grouped": (lambda: ConvBank(4, 6, 4, 3, groups=2, dilation=2), (5, 5, 6), 4),
    "pointwise": (lambda: ConvBank(4, 6, 3, 1), (3, 3, 6), 3),
    "channels": (lambda: ChannelBank(6, 4), (5, 4, 6), 4),
    "adapter": (lambda: AdapterBank(4, 6, 2, "swiglu"), (2, 6), 6),
}
SELECTORS = {"top1": TopK(1), "top2": TopK(2), "all": All()}
CAPACITIES = {"dropless": None, "tight": FixedCapacity(0.6)}
GATHERS = ("adapter",)


def randomised(module, seed=3):
    """The module in float64 with every parameter random, so that no part is hidden behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def run(executor, bank, selector, capacity, items, mask=None):
    torch.manual_seed(1)
    make, shape, width = BANKS[bank]
    layer = MoELayer(LinearScorer(6, 4), make(), selector=selector, capacity=capacity, executor=executor)
    randomised(layer)
    x = torch.randn(items, *shape, dtype=torch.float64, requires_grad=True)
    routing = layer.route(RouteInput(x, mask))
    y = layer.executor(x, routing, layer.bank)
    (y * torch.linspace(1, 2, width, dtype=torch.float64)).sum().backward()
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in layer.named_parameters()}
    return y.detach(), {**grads, "x": x.grad}


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("masked", [False, True])
def test_executors_agree_with_the_loop(bank, selector, capacity, masked):
    for items in (9, 1):
        mask = torch.arange(items) % 4 != 1 if masked else None
        case = bank, SELECTORS[selector], CAPACITIES[capacity], items, mask
        y_ref, grads_ref = run("loop", *case)
        for executor in EXECUTORS:
            if executor == "loop" or (executor == "gather" and bank not in GATHERS):
                continue
            y, grads = run(executor, *case)
            torch.testing.assert_close(y, y_ref, rtol=1e-10, atol=1e-10)
            for name, grad in grads_ref.items():
                torch.testing.assert_close(
                    grads[name], grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, e=executor: f"{e}, {n}: {m}"
                )


# convolutions


@given(
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_each_image_goes_through_its_own_convolutions(kernel, stride, padding, dilation, groups, bias):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias}
    bank = ConvBank(3, 4, 2, kernel, **options).double()
    layer = MoELayer(LinearScorer(4, 3).double(), bank)
    experts = [nn.Conv2d(4, 2, kernel, **options).double() for _ in range(3)]
    for e, expert in enumerate(experts):
        with torch.no_grad():
            expert.weight.copy_(bank.weight_EOIKK[e])
            if bias:
                expert.bias.copy_(bank.bias_EO[e])
    x = torch.randn(5, 6, 7, 4, dtype=torch.float64)
    y, routing = layer(x)
    for item, weights in enumerate(routing.dense()):
        image = x[item].movedim(-1, 0)[None]
        expected = sum(w * expert(image) for w, expert in zip(weights, experts, strict=True) if w > 0)
        torch.testing.assert_close(y[item], expected[0].movedim(0, -1))


def test_default_padding_keeps_the_size():
    for kernel, dilation in ((1, 1), (3, 1), (5, 1), (3, 2)):
        assert ConvBank(2, 3, 4, kernel, dilation=dilation).run(0, torch.randn(2, 8, 9, 3)).shape == (2, 8, 9, 4)


def test_merged_convolution_equals_the_mixture():
    bank = randomised(ConvBank(3, 4, 2))
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    x = torch.randn(2, 5, 5, 4, dtype=torch.float64)
    kernel, bias = bank.merge(weights)
    y = F.conv2d(x.movedim(-1, 1), kernel, bias, padding=1).movedim(1, -1)
    torch.testing.assert_close(y, torch.einsum("e,e...->...", weights, bank.run_all(x)))


@pytest.mark.parametrize("executor", ["auto", "loop", "grouped"])
@pytest.mark.parametrize("make", [lambda: ConvBank(4, 3, 3), lambda: ChannelBank(3, 4)])
def test_unselected_experts_are_not_computed(monkeypatch, executor, make):
    bank, images = make(), []
    convolve = F.conv2d

    def counted(image, *args):
        images.append(image.shape[0])
        return convolve(image, *args)

    monkeypatch.setattr(F, "conv2d", counted)
    layer = MoELayer(ZeroScorer(4), bank, selector=TopK(2), executor=executor)
    layer(torch.randn(5, 4, 4, 3))[0].sum().backward()  # ties go to experts 0 and 1
    assert images == [5, 5]
    assert all((p.grad[2:] == 0).all() and (p.grad[:2] != 0).any() for p in bank.parameters())


# channels


def gated_layer(**options):
    return MoELayer(LinearScorer(6, 8), ChannelBank(6, 8), link=links.relu, selector=Support(), **options)


@pytest.mark.parametrize("executor", ["loop", "grouped", "dense", "padded"])
def test_gates_scale_channels(executor):
    layer = gated_layer(executor=executor).double()
    x = torch.randn(5, 4, 4, 6, dtype=torch.float64)
    y, routing = layer(x)
    gates = torch.relu(routing.logits)
    assert (gates == 0).any()
    bank = layer.bank
    full = F.conv2d(x.movedim(-1, 1), bank.weight_EIKK, bank.bias_E, padding=1).movedim(1, -1)
    torch.testing.assert_close(y, gates[:, None, None] * full)
    torch.testing.assert_close(bank.run_routing(x, routing), y)


@given(used=st.lists(st.booleans(), min_size=8, max_size=8), stride=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_slicing_equals_masking(used, stride):
    bank = ChannelBank(6, 8, stride=stride).double()
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(3, 8, dtype=torch.float64) * torch.tensor(used)
    results = []
    for sliced in (True, False):
        y = bank.run_gated(x, gates, sliced=sliced)
        grads = torch.autograd.grad(y.square().sum(), [x, *bank.parameters()])
        results.append((y, *grads))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_closed_gates_give_zero():
    assert (ChannelBank(6, 8).run_gated(torch.randn(2, 4, 4, 6), torch.zeros(2, 8)) == 0).all()


def test_channels_nobody_uses_are_not_computed(monkeypatch):
    bank, widths = ChannelBank(6, 8), []
    convolve = F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, w, *args: widths.append(w.shape[0]) or convolve(x, w, *args))
    gates = torch.zeros(3, 8)
    gates[0, 2] = gates[1, 5] = 1.0
    bank.run_gated(torch.randn(3, 4, 4, 6), gates)
    assert widths == [2]


def test_second_stage_keeps_the_gates():
    torch.manual_seed(0)
    gate = nn.Sequential(nn.Conv2d(6, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(8))
    bank, x = ChannelBank(6, 8), torch.randn(4, 5, 5, 6)
    gate(x.movedim(-1, 1))
    names = freeze_gates(gate)
    assert names == [name for name, _ in gate.named_parameters()]
    assert freeze_gates(gate) == []
    before = torch.relu(gate(x.movedim(-1, 1)))
    old = bank.weight_EIKK.detach().clone()
    optimiser = torch.optim.SGD([p for p in [*gate.parameters(), *bank.parameters()] if p.requires_grad], lr=0.1)
    for _ in range(3):
        gates = torch.relu(gate(x.movedim(-1, 1)))
        optimiser.zero_grad()
        bank.run_gated(x, gates).square().mean().backward()
        optimiser.step()
    torch.testing.assert_close(torch.relu(gate(x[:2].movedim(-1, 1))), before[:2])  # also for other batch mates
    assert not torch.equal(bank.weight_EIKK, old)


# attention


def attention_case(selector=None, mask=None, experts=4):
    torch.manual_seed(0)
    attention = AttentionExperts(experts, 6, 3).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    layer = MoELayer(LinearScorer(6, experts), AdapterBank(experts, 6, 1), selector=selector or TopK(2)).double()
    return attention, x, layer.route(RouteInput(x.flatten(0, 1), mask)), layer


def by_hand(attention, x, routing, attend=None):
    key, value = attention.key_value(x).chunk(2, -1)
    y = torch.zeros_like(x)
    weights = routing.dense()
    for b in range(x.shape[0]):
        for s in range(x.shape[1]):
            for e in range(attention.num_experts):
                weight = weights[b * x.shape[1] + s, e]
                if weight == 0:
                    continue
                scores = key[b] @ (x[b, s] @ attention.query_EDH[e]) / attention.head_dim**0.5
                if attend is not None:
                    scores = scores.masked_fill(~attend[b], -torch.inf)
                head = scores.softmax(0) @ value[b]
                y[b, s] = y[b, s] + weight * (head @ attention.output_EHD[e])
    return y


@pytest.mark.parametrize("selector", [TopK(1), TopK(2), All()])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_hand(selector, masked):
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]]).bool() if masked else None
    attention, x, routing, _ = attention_case(selector, None if mask is None else mask.flatten())
    y = attention(x, routing, mask)
    expected = by_hand(attention, x, routing, mask)
    torch.testing.assert_close(y, expected)
    got = torch.autograd.grad(y.square().sum(), [x, *attention.parameters()], retain_graph=True)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *attention.parameters()], retain_graph=True)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_all_heads_with_weight_one_are_multi_query_attention():
    attention, x, routing, _ = attention_case(All())
    ones = torch.ones_like(routing.weight)
    routing = type(routing)(**{**vars(routing), "weight": ones})
    y = attention(x, routing)
    key, value = attention.key_value(x).chunk(2, -1)
    query = torch.einsum("bsd,edh->besh", x, attention.query_EDH)
    heads = F.scaled_dot_product_attention(query, key[:, None], value[:, None])
    torch.testing.assert_close(y, torch.einsum("besh,ehd->bsd", heads, attention.output_EHD))


def test_map_then_reduce_without_attention_is_a_low_rank_expert():
    attention, x, routing, _ = attention_case()
    tokens = x.flatten(0, 1)
    y = attention.reduce(attention.map(tokens, routing), routing)
    matrices = attention.query_EDH @ attention.output_EHD
    expected = torch.einsum("te,td,edo->to", routing.dense(), tokens, matrices)
    torch.testing.assert_close(y, expected)


def test_masked_tokens_are_not_attended_to_and_unused_heads_get_no_gradient():
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    attention, x, _, layer = attention_case()
    layer.scorer = ZeroScorer(4)
    routing = layer.route(RouteInput(x.flatten(0, 1), mask.flatten()))
    clean = attention(x, routing, mask)
    junk = torch.where(mask[..., None], x, torch.nan)
    y = attention(junk, routing, mask)
    torch.testing.assert_close(y, clean)
    assert (y[1] == 0).all()
    y.sum().backward()
    assert (attention.query_EDH.grad[2:] == 0).all()
    assert (attention.query_EDH.grad[:2] != 0).any()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_a_batch_without_valid_tokens_gives_zero():
    nobody = torch.zeros(2, 5, dtype=torch.bool)
    attention, x, routing, _ = attention_case(mask=nobody.flatten())
    y = attention(x, routing, nobody)
    assert y.shape == x.shape
    assert (y == 0).all()
    y.sum().backward()


def test_dropped_pairs_are_left_out():
    attention, x, routing, _ = attention_case()
    tight = FixedCapacity(0.6)(routing, None)
    assert not tight.kept.all()
    torch.testing.assert_close(attention(x, tight), by_hand(attention, x, tight))


# adapters


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("bias", [False, True])
def test_adapters_add_nothing_at_the_start_but_learn(executor, bias):
    layer = MoELayer(LinearScorer(6, 4), AdapterBank(4, 6, 2, bias=bias), executor=executor)
    y, _ = layer(torch.randn(9, 6))
    assert (y == 0).all()
    y.sum().backward()
    assert layer.bank.w_out_EHD.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvBank(0, 3, 3), "0 experts"),
        (lambda: ConvBank(2, 3, 4, groups=2), "2 groups do not divide"),
        (lambda: ConvBank(2, 3, 4).run(0, torch.randn(2, 5, 5, 4)), "expected .images, height, width, 3."),
        (lambda: ConvBank(2, 3, 4).run(0, torch.randn(2, 3)), "expected .images"),
        (lambda: MoELayer(ZeroScorer(2), ConvBank(2, 3, 4), executor="dense")(torch.randn(2, 3)), "expected .images"),
        (lambda: MoELayer(ZeroScorer(2), ConvBank(2, 3, 3), executor="gather")(torch.randn(2, 5, 5, 3)), "gathered"),
        (lambda: ConvBank(2, 3, 4).merge(torch.ones(3)), "3 weights for 2"),
        (lambda: ChannelBank(3, 0), "3 to 0 channels"),
        (lambda: ChannelBank(3, 4).run(0, torch.randn(2, 5, 5, 4)), "expected .images"),
        (lambda: ChannelBank(3, 4).run_gated(torch.randn(2, 5, 5, 3), torch.ones(2, 3)), r"expected \(2, 4\)"),
        (lambda: AttentionExperts(2, 3, 0), "width 0"),
        (lambda: AdapterBank(2, 3, 0), "widths 3 and 0"),
        (lambda: attention_case()[0](torch.randn(2, 5, 4), attention_case()[2]), "sequences, tokens, 6"),
        (lambda: attention_case()[0](torch.randn(2, 4, 6), attention_case()[2]), "there are 8 tokens"),
    ],
)
def test_bad_input_is_one_error_of_ours(make, message):
    with pytest.raises(RoutingError, match=message):
        make()
