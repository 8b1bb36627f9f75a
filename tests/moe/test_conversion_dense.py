"""From dense networks to experts: what stays equal, what is lost, and what the routers and masks learn from."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from terramoe.errors import RoutingError
from terramoe.moe import All, FixedCapacity, LinearScorer, MoELayer, StackedFFN, TopK, ZeroScorer, weighing
from terramoe.moe.conversion import (
    MaskedBank,
    MaskedLayer,
    MaskNetwork,
    RoutedFFN,
    cluster_neurons,
    convert_ffns,
    deal_neurons,
    distillation_loss,
    expert_norms,
    expert_state,
    find_ffns,
    harden,
    hidden_activations,
    neuron_importance,
    norm_error,
    parameter_budget,
    prediction_kl,
    read_ffn,
    recorded_inputs,
    routed_ffns,
    sample_masks,
    slice_experts,
    split_by_importance,
    to_dynamic_k,
    under_masks,
    union_gap,
    upcycle_alternating,
    upcycle_ffn,
    with_offset,
)
from terramoe.moe.objectives import hoyer_square
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.selectors import ExpertChoice, Table, Threshold, TopP

D, H, O, E = 4, 6, 3, 3  # noqa: E741


class Mlp(nn.Module):
    def __init__(self, dim=D, out=O, dropout=0.0):
        super().__init__()
        self.fc1, self.act, self.drop, self.fc2 = nn.Linear(dim, H), nn.GELU(), nn.Dropout(dropout), nn.Linear(H, out)

    def forward(self, x):
        return self.fc2(self.drop(self.act(self.fc1(x))))


class Gated(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.gate, self.up = nn.Linear(D, H, bias=bias), nn.Linear(D, H, bias=bias)
        self.down, self.act = nn.Linear(H, O), nn.SiLU()

    def forward(self, x):
        return self.down(self.act(self.gate(x)) * self.up(x))


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.bank = StackedFFN(1, D, H, O, "reglu", bias=False)

    def forward(self, x):
        return self.bank.run(0, x)


FFNS = {
    "sequence": lambda: nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, O)),
    "relu without offsets": lambda: nn.Sequential(nn.Linear(D, H, bias=False), nn.ReLU(), nn.Linear(H, O, bias=False)),
    "one offset": lambda: nn.Sequential(nn.Linear(D, H, bias=False), nn.SiLU(), nn.Linear(H, O)),
    "class": Mlp,
    "gated class": Gated,
    "gated without offset": lambda: Gated(bias=False),
    "bank": lambda: StackedFFN(1, D, H, O, "geglu"),
    "holder of a bank": Holder,
}


def randomised(module, seed=3):
    """The module in float64 with every parameter random, so that no part is hidden behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def make(name="sequence"):
    return randomised(FFNS[name]())


def items(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(ffn, x):
    return ffn.run(0, x) if isinstance(ffn, StackedFFN) else ffn(x)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def routed_layer(converted):
    return converted if isinstance(converted, MoELayer) else converted.layer


def unchanged(module, convert):
    """Runs ``convert(module)`` and checks that it changed no value and shares no memory with the result."""
    before, mine = copy.deepcopy(module.state_dict()), {p.data_ptr() for p in module.parameters()}
    made = convert(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(p.data_ptr() in mine for p in made.parameters())
    return made


# reading a dense network


@pytest.mark.parametrize("name", FFNS)
def test_slices_are_the_networks_own_neurons(name):
    ffn, x = make(name), items(7, D)
    dense = read_ffn(ffn)
    w = dense.weights
    neurons = torch.tensor([[5, 0], [1, 1], [2, 4]])
    bank = slice_experts(dense, neurons)
    for expert, mine in enumerate(neurons):
        close(bank.run(expert, x), dense.hidden(x)[:, mine] @ w.w_out[mine])
    whole = slice_experts(dense, torch.arange(H)[None]).run(0, x)
    close(whole if w.b_out is None else whole + w.b_out, run(ffn, x))
    assert bank.b_out_ED is None
    assert (bank.b_in_EH is None) == (w.b_in is None)


def test_a_transformer_of_another_library_is_read():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers is a dev dependency")
    from transformers import LlamaConfig

    ffn = randomised(llama.LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=H, num_attention_heads=1)))
    x = items(7, D)
    assert read_ffn(ffn).activation == "swiglu"
    close(upcycle_ffn(ffn, E)(x)[0], ffn(x))


class Residual(Mlp):
    def forward(self, x):
        return x[..., :O] + super().forward(x)


class Scaled(Mlp):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(O))  # changes nothing yet, but would be lost


class TwoInputs(Mlp):
    def forward(self, x, y):
        return super().forward(x + y)


class UpFirst(Gated):
    def forward(self, x):
        return self.down(self.act(self.up(x)) * self.gate(x))


def uneven_gate():
    gated = Gated()
    gated.up = nn.Linear(D, H, bias=False)
    return gated


UNREADABLE = {
    "does something else": [Residual, UpFirst],
    "cannot be called": [TwoInputs],
    "it holds": [
        Scaled,
        lambda: Mlp(dropout=0.1),
        lambda: nn.Linear(D, H),
        lambda: StackedFFN(2, D, H),
        lambda: nn.Sequential(nn.Linear(D, H), nn.Tanh(), nn.Linear(H, O)),
        lambda: nn.Sequential(nn.Linear(D, H), nn.GELU(approximate="tanh"), nn.Linear(H, O)),
        lambda: nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.LayerNorm(H), nn.Linear(H, O)),
    ],
    "it joins 6 to 3 neurons": [lambda: nn.Sequential(nn.Linear(D, 6), nn.GELU(), nn.Linear(3, O))],
    "differ in shape or offsets": [uneven_gate],
}


@pytest.mark.parametrize(("message", "build"), [(m, build) for m, builds in UNREADABLE.items() for build in builds])
def test_what_computes_something_else_is_not_read(message, build):
    with pytest.raises(RoutingError, match=f"feed-forward network: .*{message}"):
        read_ffn(randomised(build()) if build is not Scaled else build().double())


# upcycling


SELECTORS = [TopK(1), TopK(2), All(), TopP(0.5)]


@pytest.mark.parametrize("name", FFNS)
@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_an_upcycled_layer_is_the_dense_network(name, selector):
    ffn, x = make(name), items(9, D)
    layer = unchanged(ffn, lambda f: upcycle_ffn(f, E, selector=selector))
    y, routing = layer(x)
    close(y, run(ffn, x))
    close(routing.dense().sum(-1), torch.ones(9, dtype=torch.float64))
    assert layer.num_experts == E


def test_it_is_not_where_weights_do_not_sum_to_one_or_items_are_dropped():
    ffn, x = make(), items(9, D)
    y, routing = upcycle_ffn(ffn, E, selector=TopK(1), weigh=weighing.raw)(x)
    close(y, routing.probs.amax(-1, keepdim=True) * ffn(x))
    y, routing = upcycle_ffn(ffn, E, selector=TopK(1), capacity=FixedCapacity(0.5))(x)
    gone = routing.dropped_items()
    assert 0 < gone.sum() < 9
    assert not y[gone].any()
    close(y[~gone], ffn(x)[~gone])


@pytest.mark.parametrize(("per_item", "load"), [(2.0, 6), (0.5, 2)])
def test_experts_that_choose_give_the_dense_network_where_one_chose(per_item, load):
    ffn, x = make(), items(12, D)
    layer = upcycle_ffn(ffn, 4, selector=ExpertChoice(per_item), router_std=1.0)
    y, routing = layer(x)
    assert routing.load().tolist() == [load] * 4
    reached = torch.zeros(12, dtype=torch.bool).index_fill(0, routing.item, True)
    assert reached.any()
    assert reached.all() or per_item < 1
    close(y[reached], ffn(x)[reached])
    assert not y[~reached].any()


def test_gradients_of_the_copies_sum_to_the_dense_gradient():
    ffn, x = make("gated class"), items(9, D).requires_grad_()
    layer = upcycle_ffn(ffn, E)
    dense = torch.autograd.grad(ffn(x).square().sum(), [x, *ffn.parameters()])
    experts = torch.autograd.grad(layer(x)[0].square().sum(), [x, *layer.bank.parameters()])
    close(experts[0], dense[0])
    g_in, b_in, g_out, b_out = (g.sum(0) for g in experts[1:])
    gate, gate_b, up, up_b, down, down_b = dense[1:]
    close(g_in, torch.cat([gate, up]).T)
    close(b_in, torch.cat([gate_b, up_b]))
    close(g_out, down.T)
    close(b_out, down_b)


def test_the_router_is_small_and_takes_dtype_and_mode():
    ffn = nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 64)).bfloat16().eval()
    layer = upcycle_ffn(ffn, 64)
    assert layer.scorer.linear.weight.float().std().item() == pytest.approx(0.02, rel=0.05)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert not any(part.training for part in layer.modules())
    assert upcycle_ffn(ffn.train(), 2, router_std=0.5).scorer.linear.weight.std() > 0.3


OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("name", FFNS)
def test_training_goes_on_with_the_optimisers_state(name, optimiser):
    """One copy trained further is the dense network trained further, if the state was carried over."""
    ffn, x = make(name), items(9, D)

    def step(module, parameters, run_module):
        for p in parameters:
            p.grad = None
        run_module(module, x).square().mean().backward()

    dense_optimiser = OPTIMISERS[optimiser](ffn.parameters())
    for _ in range(3):
        step(ffn, list(ffn.parameters()), run)
        dense_optimiser.step()
    layer = upcycle_ffn(ffn, 1)
    new = OPTIMISERS[optimiser](layer.bank.parameters())
    new.state.update(expert_state(dense_optimiser.state, ffn, layer.bank))
    forgetful = copy.deepcopy(layer)
    fresh = OPTIMISERS[optimiser](forgetful.bank.parameters())
    for _ in range(2):
        for module, its_optimiser in ((ffn, dense_optimiser), (layer, new), (forgetful, fresh)):
            parameters = list(module.parameters())
            step(module, parameters, run if module is ffn else lambda m, rows: m(rows)[0])
            its_optimiser.step()
    close(layer(x)[0], run(ffn, x))
    assert not torch.allclose(forgetful(x)[0], run(ffn, x), rtol=1e-3)


def test_every_copy_has_a_state_of_its_own():
    ffn = make()
    optimiser = torch.optim.Adam(ffn.parameters())
    assert expert_state(optimiser.state, ffn, upcycle_ffn(ffn, E).bank) == {}
    ffn(items(9, D)).square().sum().backward()
    optimiser.step()
    bank = upcycle_ffn(ffn, E).bank
    state = expert_state(optimiser.state, ffn, bank)
    assert set(state) == set(bank.parameters())
    want = optimiser.state[ffn[0].weight]
    for expert in range(E):
        close(state[bank.w_in_EDH]["exp_avg"][expert], want["exp_avg"].T)
    state[bank.w_in_EDH]["exp_avg"][0] += 1  # no expanded memory
    state[bank.w_in_EDH]["step"] += 1
    close(state[bank.w_in_EDH]["exp_avg"][1], want["exp_avg"].T)
    assert want["step"] == state[bank.w_out_EHD]["step"] == 1


# in a model


class Block(nn.Module):
    def __init__(self, ffn):
        super().__init__()
        self.norm, self.ffn = nn.LayerNorm(D), ffn

    def forward(self, x):
        return x + self.ffn(self.norm(x))


def model(blocks=4):
    body = [Block(Mlp(out=D)) for _ in range(blocks)]
    return randomised(nn.Sequential(*body, nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, 2))))


def test_every_second_network_is_upcycled_in_a_copy():
    net, x = model(), items(2, 5, D)
    moe = unchanged(net, lambda m: upcycle_alternating(m, num_experts=8, k=2))
    assert [type(moe[i].ffn) for i in range(4)] == [Mlp, RoutedFFN, Mlp, RoutedFFN]
    assert type(moe[4]) is nn.Sequential  # a head keeps no width
    with routed_ffns(moe) as records:
        y = moe(x)
    assert list(records) == ["1.ffn", "3.ffn"]
    assert [r.num_items for rs in records.values() for r in rs] == [10, 10]
    want = x
    for place, block in enumerate(net[:4]):
        update = block.ffn(block.norm(want))
        if place % 2:  # raw weights of the chosen two, and the offset once
            offset, weight = block.ffn.fc2.bias, records[f"{place}.ffn"][0].dense().sum(-1).view(2, 5, 1)
            assert (weight < 0.9).all()
            update = offset + weight * (update - offset)
        want = want + update
    close(y, net[4](want))
    shared = moe[1].ffn.experts.shared.values
    close(shared, net[1].ffn.fc2.bias)
    y.sum().backward()
    assert shared.grad.abs().sum() > 0
    assert moe[1].ffn.experts.layer.scorer.linear.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())


def test_no_module_keeps_a_routing_or_a_hook():
    moe = upcycle_alternating(model(), 4)
    with routed_ffns(moe):
        moe(items(5, D))
    for part in moe.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
        assert not any(isinstance(value, Routing) for value in vars(part).values())


def test_targets_choose_and_order_counts():
    net = model(2)
    assert list(find_ffns(net)) == ["0.ffn", "1.ffn"]
    assert list(find_ffns(net, lambda name, ffn: True)) == ["0.ffn", "1.ffn", "2"]
    moe = upcycle_alternating(net, 4, targets=["1.ffn", "2"])
    assert type(moe[1].ffn) is Mlp
    assert isinstance(moe[2], RoutedFFN)
    assert moe(items(5, D)).shape == (5, 2)
    assert list(find_ffns(convert_ffns(net, lambda name, ffn: upcycle_ffn(ffn, 2), ["0.ffn"]))) == ["1.ffn"]


def test_a_network_in_two_places_stays_one():
    net, x, converted = model(3), items(5, D), []
    net[2].ffn = net[1].ffn

    def convert(name, ffn):
        converted.append(name)
        return upcycle_ffn(ffn, E)

    convert_ffns(net, convert, ["1.ffn", "2.ffn"])
    assert converted == ["1.ffn"]
    moe = convert_ffns(net, convert)
    assert moe[1].ffn is moe[2].ffn
    assert moe[0].ffn is not moe[1].ffn
    close(moe(x), net(x))
    with routed_ffns(moe) as records:
        moe(x)
    assert {name: len(r) for name, r in records.items()} == {"0.ffn": 1, "1.ffn": 2}


def test_keys_reach_the_items_and_nothing_is_run_for_none():
    net, x = model(1), items(3, 4, D)
    moe = convert_ffns(
        net, lambda name, ffn: split_by_importance(ffn, torch.ones(H), 2, table=Table("token", [0, 1, 1]))
    )
    tokens = torch.tensor([0, 1, 2])
    with routed_ffns(moe, {"token": tokens}) as records:
        moe(x)
    assert records["0.ffn"][0].expert.tolist() == [0] * 4 + [1] * 8
    assert moe(items(0, D)).shape == (0, 2)
    with pytest.raises(RoutingError, match="'token' is missing"):
        moe(x)
    with pytest.raises(RoutingError, match=r"'token' has \(2,\)"), routed_ffns(moe, {"token": tokens[:2]}):
        moe(x)


def test_inputs_are_recorded_with_their_gradient():
    net, x = model(2), items(3, 4, D)
    with recorded_inputs(net, ["1.ffn"]) as inputs:
        net(x)
    (rows,) = inputs["1.ffn"]
    close(rows, net[1].norm(net[0](x)).view(12, D))
    hoyer_square(hidden_activations(net[1].ffn, rows)).backward()
    for parameter in (net[0].ffn.fc1.weight, net[1].ffn.fc1.weight):
        assert parameter.grad.abs().sum() > 0
    assert net[1].ffn.fc2.weight.grad is None
    assert not net[1].ffn._forward_pre_hooks


# splitting by importance


@pytest.mark.parametrize("name", FFNS)
def test_importance_is_the_change_of_the_loss_with_a_neurons_size(name):
    """Scaling both weights of neuron j by s changes the loss at the rate I_j before the absolute value."""
    ffn, batches = make(name), [items(9, D, seed=s) for s in (1, 2)]
    importance = neuron_importance({"ffn": ffn}, lambda x: run(ffn, x).pow(3).mean(), batches)["ffn"]
    dense = read_ffn(ffn)
    want = torch.zeros(H, dtype=torch.float64)
    for x in batches:
        size = torch.ones(H, dtype=torch.float64, requires_grad=True)
        w = dense.weights
        columns = size if w.w_in.shape[1] == H else size.repeat(2)
        scaled = dense._replace(weights=w._replace(w_in=w.w_in * columns))
        y = scaled.hidden(x) @ (w.w_out * size[:, None])
        loss = (y if w.b_out is None else y + w.b_out).pow(3).mean()
        want += torch.autograd.grad(loss, size)[0].abs()
    close(importance, want)
    assert all(p.grad is None for p in ffn.parameters())


def test_one_pass_serves_all_networks_of_a_model():
    net, x = model(2), items(9, D)
    both = neuron_importance(find_ffns(net), lambda rows: net(rows).square().sum(), [x])
    for name, ffn in find_ffns(net).items():
        close(both[name], neuron_importance({name: ffn}, lambda rows: net(rows).square().sum(), [x])[name])


def test_neurons_are_dealt_by_rank():
    importance = torch.tensor([0.1, 0.9, 0.3, 0.9, 0.5, 0.2, 0.8, 0.0])
    assert deal_neurons(importance, 2, 2).tolist() == [[1, 3, 6, 2, 0], [1, 3, 4, 5, 7]]
    assert deal_neurons(importance, 3, 2, width=3).tolist() == [[1, 3, 6], [1, 3, 4], [1, 3, 2]]
    assert deal_neurons(importance, 2, 8).tolist() == [[1, 3, 6, 4, 2, 5, 0, 7]] * 2


@given(st.integers(1, 5), st.integers(0, 5), st.integers(0, 6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_every_neuron_is_in_an_expert_and_shared_ones_are_in_all(experts, shared, own, seed):
    neurons = shared + own * experts
    if neurons == 0:
        return
    importance = torch.rand(neurons, generator=torch.Generator().manual_seed(seed))
    if shared + own == 0:
        return
    dealt = deal_neurons(importance, experts, shared)
    counts = torch.bincount(dealt.flatten(), minlength=neurons)
    assert dealt.shape == (experts, shared + own)
    best = torch.argsort(importance, descending=True, stable=True)
    assert (counts[best[:shared]] == experts).all()
    assert (counts[best[shared:]] == 1).all()
    assert (importance[dealt].diff(dim=1) <= 0).all()


def test_the_published_widths_leave_neurons_out():
    dealt = deal_neurons(torch.rand(3072, generator=torch.Generator().manual_seed(0)), 4, 512, 768)
    assert dealt.shape == (4, 768)
    assert dealt.unique().numel() == 512 + 4 * 256


@pytest.mark.parametrize("name", FFNS)
def test_all_parts_together_are_the_dense_network(name):
    ffn, x = make(name), items(9, D)
    converted = unchanged(ffn, lambda f: split_by_importance(f, torch.rand(H), 3, table=Table("token", [0, 1, 2])))
    every = MoELayer(ZeroScorer(3), routed_layer(converted).bank, selector=All(), weigh=weighing.ones)
    close(with_offset(every, read_ffn(ffn).weights.b_out)(x)[0], run(ffn, x))  # the offset counted once


def test_a_table_or_a_router_chooses_one_part():
    ffn, x, importance = make(), items(9, D), torch.tensor([6.0, 1, 2, 5, 3, 4])
    dense, parts = read_ffn(ffn), [[0, 3, 5, 2], [0, 3, 4, 1]]
    outputs = torch.stack([dense.hidden(x)[:, n] @ dense.weights.w_out[n] for n in parts])
    offset = ffn[2].bias
    by_table = split_by_importance(ffn, importance, 2, shared=2, table=Table("token", [1, 0, 1]))
    tokens = torch.arange(9) % 3
    y, routing = by_table(x, keys={"token": tokens})
    expert = torch.tensor([1, 0, 1])[tokens]
    close(y, outputs[expert, torch.arange(9)] + offset)
    learned = randomised(split_by_importance(ffn, importance, 2, shared=2))
    bank = slice_experts(dense, torch.tensor(parts))
    learned.layer.bank.load_state_dict(bank.state_dict())
    y, routing = learned(x)
    weight, expert = routing.probs.max(-1)
    close(y, weight[:, None] * outputs[expert, torch.arange(9)] + learned.shared.values)
    mask = torch.arange(9) != 4
    assert not learned(torch.where(mask[:, None], x, torch.nan), mask=mask)[0][4].any()


def test_distillation_by_hand():
    student, teacher = [items(3, 5, seed=1), items(3, 5, seed=2)], [items(3, 5, seed=3), items(3, 5, seed=4)]
    p, q = items(3, 4, seed=5), items(3, 4, seed=6)
    mse = sum(((s - t) ** 2).mean() for s, t in zip(student, teacher, strict=True))
    kl = F.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
    kl = (kl + F.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="batchmean")) / 2
    close(distillation_loss(student, teacher, p, q, weight=2.0), 2 * (mse + kl))
    close(distillation_loss(student, teacher, p, q), 5 * (mse + kl))
    assert distillation_loss(student, student, p, p + 7) < 1e-12
    inputs = [t.requires_grad_() for t in (*student, p)]
    assert torch.autograd.gradcheck(lambda a, b, c: distillation_loss([a, b], teacher, c, q), inputs)
    teachers = [t.requires_grad_() for t in (*teacher, q)]
    grads = torch.autograd.grad(distillation_loss(student, teacher, p, q), teachers, allow_unused=True)
    assert grads == (None,) * 3


# dynamic k


@pytest.mark.parametrize("name", FFNS)
def test_with_tau_one_it_is_the_dense_network_whatever_the_router_says(name):
    ffn, x = make(name), items(9, D)
    converted = unchanged(ffn, lambda f: to_dynamic_k(f, 3, tau=1.0))
    randomised(routed_layer(converted).scorer)
    y, routing = converted(x)
    close(y, run(ffn, x))
    assert routing.load().tolist() == [9] * 3


def test_neurons_that_look_the_same_way_share_an_expert():
    way, ffn = torch.tensor([2, 0, 1, 1, 2, 0]), make()
    ways = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]]).double()  # 60 degrees apart
    with torch.no_grad():  # a long and a short one of each: by distance the long ones would be nearer to each other
        ffn[0].weight.copy_(ways[way] * torch.tensor([[10.0], [10], [10], [0.1], [0.1], [0.1]]))
    neurons = cluster_neurons(ffn, 3)
    assert sorted(neurons.flatten().tolist()) == list(range(H))
    assert all(way[a] == way[b] for a, b in neurons.tolist())
    gated = make("gated class")
    with torch.no_grad():  # the gates decide, not what they gate
        gated.gate.weight.copy_(ffn[0].weight)
    assert torch.equal(cluster_neurons(gated, 3), neurons)
    assert torch.equal(cluster_neurons(make(), 2, seed=4), cluster_neurons(make(), 2, seed=4))


def test_more_tau_is_more_work_and_nothing_is_taken_away():
    converted, x = to_dynamic_k(make(), 6, tau=0.0), items(40, D)
    layer = routed_layer(converted)
    randomised(layer.scorer)
    chosen, loads = [], []
    for tau in (0.0, 0.2, 0.5, 0.8, 0.95, 1.0):
        layer.selector = Threshold(tau)
        routing = converted(x)[1]
        chosen.append(routing.dense().bool())
        loads.append(int(routing.load().sum()))
    assert all((less <= more).all() for less, more in itertools.pairwise(chosen))
    assert loads == sorted(loads)
    assert loads[0] == 40
    assert loads[-1] == 240
    assert len(set(loads)) > 4


def test_the_choice_ignores_the_scale_of_the_norms():
    converted, x = to_dynamic_k(make(), 6, tau=0.6), items(40, D)
    scorer = randomised(routed_layer(converted).scorer)
    before = converted(x)[1]
    with torch.no_grad():
        for parameter in (scorer.mlp.second.weight, scorer.mlp.second.bias):
            parameter.mul_(1e-3)
    after = converted(x)[1]
    close(after.logits, 1e-3 * before.logits)
    close(after.dense(), before.dense())
    assert (before.logits >= 0).all()


def test_norms_are_of_the_experts_outputs():
    bank, x = routed_layer(to_dynamic_k(make("gated class"), 3, 0.5)).bank, items(5, D)
    close(expert_norms(bank, x), torch.stack([bank.run(e, x).square().sum(-1).sqrt() for e in range(3)], -1))
    windows = items(5, 2, D)
    per_row = torch.stack([expert_norms(bank, windows[:, i]) for i in range(2)])
    close(expert_norms(bank, windows), per_row.square().sum(0).sqrt())


def test_the_router_learns_the_norms_and_it_alone():
    converted, x = to_dynamic_k(make(), 3, tau=0.5, router_hidden=16), items(64, D)
    layer = routed_layer(converted)
    norms = expert_norms(layer.bank, x)
    assert not norms.requires_grad
    optimiser = torch.optim.Adam(layer.scorer.parameters(), lr=0.02)
    history = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = norm_error(layer.route(RouteInput(x)), norms)
        loss.backward()
        optimiser.step()
        history.append(loss.item())
    assert history[-1] < 0.1 * history[0]
    assert all(p.grad is None for p in layer.bank.parameters())


def test_norm_error_by_hand_and_over_valid_items_only():
    layer = routed_layer(to_dynamic_k(make(), 3, tau=0.5))
    x, norms, mask = items(5, D), items(5, 3, seed=2).abs(), torch.tensor([1, 1, 0, 1, 0]).bool()
    routing = layer.route(RouteInput(torch.where(mask[:, None], x, torch.nan), mask))
    want = (routing.logits[mask] - norms[mask]).square().mean()
    loss = norm_error(routing, torch.where(mask[:, None], norms, torch.nan))
    close(loss, want)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in layer.scorer.parameters())
    assert norm_error(routing, routing.logits.detach()) == 0

    def of_weight(weight):
        hidden = torch.tanh(x @ layer.scorer.mlp.first.weight.detach().T)
        logits = (hidden @ weight.T).abs()
        empty = torch.zeros(0, dtype=torch.int64)
        return norm_error(Routing(logits, logits, empty, empty, empty, logits[:0, 0], empty.bool(), mask=mask), norms)

    assert torch.autograd.gradcheck(of_weight, layer.scorer.mlp.second.weight.detach().clone().requires_grad_())


def test_sparser_activations_by_descent():
    ffn, x = make("relu without offsets"), items(64, D)
    optimiser = torch.optim.SGD(ffn.parameters(), lr=0.5)
    values = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = hoyer_square(hidden_activations(ffn, x))
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert 1 <= values[-1] < values[0] - 0.5
    assert ffn[2].weight.grad is None


# learned masks


def test_masks_are_open_at_first_and_hard_ones_are_exact():
    logits = (items(E, H) / 2).requires_grad_()
    hard = sample_masks(logits, noise=False)
    assert torch.equal(hard, torch.ones(E, H, dtype=torch.float64))
    median = -torch.log(torch.log(torch.tensor(2.0, dtype=torch.float64)))
    hard, soft = (sample_masks(logits - 3, noise=False, hard=h) for h in (True, False))
    assert torch.equal(hard, (logits + median > 0).double())
    assert 0 < hard.sum() < E * H
    close(soft, torch.sigmoid((logits + median) / 0.4))
    weights = items(E, H, seed=2)
    straight = torch.autograd.grad((hard * weights).sum(), logits)[0]
    close(straight, torch.autograd.grad((soft * weights).sum(), logits)[0])
    assert torch.autograd.gradcheck(lambda z: sample_masks(z - 3, noise=False, hard=False), logits)


def test_noise_follows_the_gumbel_distribution():
    torch.manual_seed(0)
    for logit in (-4.0, -3.0, -2.0):
        share = sample_masks(torch.full((40000,), logit)).mean()
        want = 1 - torch.exp(-torch.exp(torch.tensor(logit + 3)))  # P(g > -(logit + 3))
        assert share.item() == pytest.approx(want.item(), abs=0.01)


def test_the_network_looks_along_the_layers_both_ways():
    torch.manual_seed(0)
    network = MaskNetwork([6, 4, 8], E, width=8).double()
    before = network()
    assert [tuple(z.shape) for z in before] == [(E, 6), (E, 4), (E, 8)]
    assert all(torch.equal(a, b) for a, b in zip(before, network(), strict=True))
    for changed in (0, 2):
        other = copy.deepcopy(network)
        other.inputs[changed, 1] += 1
        differs = torch.stack([(a != b).any(-1) for a, b in zip(before, other(), strict=True)])
        assert differs.tolist() == [[False, True, False]] * 3  # every layer, one expert
    assert "inputs" in network.state_dict()
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("shape", [(9, D), (9, 2, D)])
def test_a_masked_bank_in_one_pass_is_its_experts_one_by_one(activation, shape):
    masks, results = items(E, H, seed=5), []
    for executor in ("loop", "grouped", "dense", "padded"):
        own = masks.clone().requires_grad_()
        bank = MaskedBank(randomised(StackedFFN(1, D, H, O, activation)), own)
        layer = MoELayer(randomised(LinearScorer(D, E)), bank, selector=TopK(2), executor=executor)
        x = items(*shape).requires_grad_()
        y, _ = layer(x)
        results.append(
            [y, *torch.autograd.grad(y.square().sum(), [x, own, bank.ffn.w_in_EDH, *layer.scorer.parameters()])]
        )
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            close(two, one)
    assert torch.autograd.gradcheck(lambda m: MaskedBank(bank.ffn, m).run(1, x.detach()), own)


def test_an_experts_size_is_what_its_mask_leaves_open():
    masks = torch.tensor([[1.0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    bank = MaskedBank(StackedFFN(1, D, H, O, "swiglu"), masks)
    assert [bank.expert_parameters(e) for e in range(2)] == [2 * (2 * D + 2 + O), 6 * (2 * D + 2 + O)]


@pytest.mark.parametrize("name", FFNS)
def test_open_masks_give_the_dense_network(name):
    ffn, x = make(name), items(9, D)
    layer = unchanged(ffn, lambda f: MaskedLayer(f, E))
    assert layer.training
    close(layer(x)[0], run(ffn, x))
    close(layer(x, torch.ones(E, H))[0], run(ffn, x))
    assert not any(p.requires_grad for p in layer.ffn.parameters())


def hard_masks(*widths):
    """One mask per width: that many neurons, from place ``3 e`` on."""
    masks = torch.zeros(len(widths), H, dtype=torch.float64)
    for expert, width in enumerate(widths):
        masks[expert, (3 * expert + torch.arange(width)) % H] = 1
    return masks


@pytest.mark.parametrize("name", FFNS)
def test_hard_masks_give_slices(name):
    ffn, x, masks = make(name), items(9, D), hard_masks(3, 2, 4)
    layer = MaskedLayer(ffn, E).eval()
    randomised(layer.layer.scorer)
    y, routing = layer(x, masks)
    dense, expert = read_ffn(ffn), layer.layer.scorer(RouteInput(x)).logits.argmax(-1)
    want = (dense.hidden(x) * masks[expert]) @ dense.weights.w_out
    close(y, want if dense.weights.b_out is None else want + dense.weights.b_out)
    assert torch.equal(routing.expert, expert)
    assert (routing.weight == 1).all()
    assert len(expert.unique()) > 1


def test_the_choice_is_hard_and_its_gradient_that_of_the_soft_one():
    layer, x, masks = MaskedLayer(make(), E), items(9, D), hard_masks(3, 2, 4).requires_grad_()
    randomised(layer.layer.scorer)
    torch.manual_seed(0)
    y, routing = layer(x, masks)
    weights, router = items(9, O, seed=4), layer.layer.scorer.scorer.linear.weight
    got = torch.autograd.grad((y * weights).sum(), [router, masks], retain_graph=True)
    soft = MaskedBank(layer.ffn, masks).mix(x, routing.probs)
    close(got[0], torch.autograd.grad((soft * weights).sum(), router)[0])
    close(got[1], torch.autograd.grad((MaskedBank(layer.ffn, masks).mix(x, routing.dense()) * weights).sum(), masks)[0])
    assert got[0].abs().sum() > 0
    layer.eval()
    assert torch.equal(layer(x, masks)[0], layer(x, masks)[0])


def test_masked_items_harm_nobody():
    layer, x, mask = MaskedLayer(make(), E).eval(), items(5, D), torch.tensor([1, 0, 1, 1, 1]).bool()
    masks = hard_masks(3, 2, 4).requires_grad_()
    clean = layer(x, masks)[0]
    y, routing = layer(torch.where(mask[:, None], x, torch.nan), masks, mask=mask)
    close(y[mask], clean[mask])
    assert not y[1].any()
    assert 1 not in routing.item
    y.square().sum().backward()
    assert masks.grad.isfinite().all()
    assert layer.layer.scorer.scorer.linear.weight.grad.isfinite().all()


def test_a_whole_model_works_under_masks():
    net, x = model(2), items(3, 4, D)
    moe = convert_ffns(net, lambda name, ffn: MaskedLayer(ffn, E)).eval()
    close(moe(x), net(x))
    masks = [torch.zeros(E, H, dtype=torch.float64), torch.ones(E, H, dtype=torch.float64)]
    with under_masks(moe, masks), routed_ffns(moe) as records:
        y = moe(x)
    with pytest.raises(RoutingError, match="no dense feed-forward network"):
        find_ffns(moe, lambda name, ffn: name != "2")  # what stands inside the experts is no FFN of the model
    closed = x + net[0].ffn.fc2.bias  # nothing but the offset is left of the first
    close(y, net[2](net[1](closed)))
    assert [len(r) for r in records.values()] == [1, 1]
    close(moe(x), net(x))


@pytest.mark.parametrize("name", FFNS)
def test_hardened_experts_are_slices(name):
    ffn, x = make(name), items(9, D)
    layer = MaskedLayer(ffn, E).eval()
    randomised(layer.layer.scorer)
    logits = items(E, H) - 3 - 2 * (1 - hard_masks(3, 3, 3)) * 10 + 10 * hard_masks(3, 3, 3)
    hard = harden(layer, logits)
    bank = routed_layer(hard).bank
    assert isinstance(bank, StackedFFN)
    assert bank.hidden == 3
    close(hard(x)[0], layer(x, sample_masks(logits, noise=False))[0])
    assert sum(p.numel() for p in bank.parameters()) < E * sum(p.numel() for p in ffn.parameters())


def test_narrower_masks_grow_to_the_widest_and_a_width_cuts():
    layer = MaskedLayer(make(), 2).eval()
    logits = torch.tensor([[9.0, 8, 7, 6, -8, -9], [-4, -9, 9, -5, -6, -7]])
    w_in = layer.ffn.w_in_EDH[0]
    for width, want in ((None, [[0, 1, 2, 3], [0, 2, 3, 4]]), (2, [[0, 1], [0, 2]]), (6, [list(range(6))] * 2)):
        bank = routed_layer(harden(layer, logits, width=width)).bank
        for expert, neurons in enumerate(want):
            close(bank.w_in_EDH[expert], w_in[:, neurons])
    assert routed_layer(harden(layer, torch.full((2, 6), -99.0))).bank.hidden == 1


def test_mask_losses_by_hand():
    masks = [torch.tensor([[1.0, 0, 0, 1], [1, 0, 0, 0]]), torch.tensor([[1.0] * 6, [0] * 6])]
    masks, floor = [mask.double() for mask in masks], 1e-3
    used = (2 + 6) / 10  # the widest of each layer
    assert parameter_budget(masks, 0.5).item() == pytest.approx(math.log((used + floor) / (0.5 + floor)))
    assert parameter_budget(masks[:1], 0.8).item() == pytest.approx(math.log((0.8 + floor) / (0.5 + floor)))
    assert parameter_budget(masks[:1], 0.5) == 0
    assert union_gap(masks[:1]).item() == pytest.approx(math.log((1 + floor) / (0.5 + floor)))
    close(union_gap(masks), union_gap(masks[:1]) / 2)
    assert union_gap(masks[1:]) == 0
    assert parameter_budget([torch.zeros(2, 4)]).isfinite()


def test_mask_losses_have_the_right_gradient():
    masks = (torch.rand(E, H, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: parameter_budget([m, m[:, :2]], 0.3), masks)
    assert torch.autograd.gradcheck(lambda m: union_gap([m, m[:2]]), masks)
    student, teacher = items(5, 2, 4).requires_grad_(), items(5, 2, 4, seed=2)
    assert torch.autograd.gradcheck(lambda z: prediction_kl(z, teacher), student)
    p, q = teacher.softmax(-1), student.softmax(-1)
    close(prediction_kl(student, teacher), (p * (p / q).log()).sum(-1).mean())
    assert prediction_kl(student, student + 3) < 1e-12
    teacher.requires_grad_()
    assert torch.autograd.grad(prediction_kl(student, teacher), teacher, allow_unused=True) == (None,)


def learned_masks(union_weight):
    torch.manual_seed(0)
    network = MaskNetwork([12], 4, width=16)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
    for _ in range(200):
        masks = [sample_masks(logits) for logits in network()]
        loss = 16 * parameter_budget(masks, 0.5) + union_weight * union_gap(masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return sample_masks(network()[0], noise=False)


def test_masks_learn_the_budget_and_to_lose_no_neuron():
    covered = {}
    for union_weight in (0.0, 3.0):
        masks = learned_masks(union_weight)
        assert 5 <= masks.sum(-1).max() <= 6  # half of the neurons
        covered[union_weight] = masks.amax(0).mean().item()
    assert covered[3.0] > 0.8
    assert covered[0.0] < 0.7


# hostile input

ONES = torch.ones(H)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upcycle_ffn(make(), 0), "0 experts"),
        (lambda: upcycle_ffn(make(), 2, router_std=-1.0), "standard deviation -1.0"),
        (lambda: upcycle_ffn(nn.Linear(2, 2), 2), "cannot read a Linear"),
        (lambda: upcycle_ffn(make(), 2)(items(3, D + 1)), "5 channels"),
        (lambda: upcycle_ffn(make(), 2, selector=TopK(3))(items(3, D)), "k = 3 with 2 experts"),
        (lambda: upcycle_alternating(model(1)), "only the FFN '0.ffn'"),
        (lambda: upcycle_alternating(model(2), 2, 3), "k = 3 with 2 experts"),
        (lambda: upcycle_alternating(nn.Linear(2, 2)), "no dense feed-forward network"),
        (lambda: find_ffns(model(), ["0.norm"]), "cannot read a LayerNorm"),
        (lambda: find_ffns(model(), ["7.ffn"]), "no module '7.ffn'"),
        (lambda: find_ffns(model(), []), "no module ''"),
        (lambda: find_ffns(model(), lambda name, ffn: False), "no dense feed-forward network"),
        (lambda: routed_ffns(model()).__enter__(), "has no routed FFNs"),
        (lambda: recorded_inputs(model(), ["9"]).__enter__(), "no module '9'"),
        (lambda: neuron_importance({}, torch.sum, [items(1)]), "no parameters"),
        (lambda: neuron_importance({"a": make().requires_grad_(False)}, torch.sum, [items(1)]), "some are frozen"),
        (lambda: neuron_importance({"a": make()}, torch.sum, [items(1).requires_grad_()]), "does not depend"),
        (lambda: neuron_importance({"a": make()}, torch.sum, []), "no batch"),
        (lambda: deal_neurons(ONES, 4), "6 neurons, 0 of them shared, for 4 experts"),
        (lambda: deal_neurons(ONES, 2, 7), "7 of them shared"),
        (lambda: deal_neurons(ONES, 2, -2), "-2 of them shared"),
        (lambda: deal_neurons(ONES, 0), "for 0 experts"),
        (lambda: deal_neurons(ONES, 2, 2, 5), "use a width of 1 to 4"),
        (lambda: deal_neurons(ONES, 2, 2, 0), "use a width of 1 to 4"),
        (lambda: deal_neurons(ONES * torch.nan, 2), "one finite value per neuron"),
        (lambda: deal_neurons(ONES[None], 2), r"shape \(1, 6\)"),
        (lambda: split_by_importance(make(), torch.ones(5), 5), r"\(5,\) for 6 neurons"),
        (lambda: distillation_loss([ONES], [ONES, ONES], ONES, ONES), "the same layers"),
        (lambda: distillation_loss([ONES], [ONES[:3]], ONES, ONES), "the same layers"),
        (lambda: distillation_loss([ONES], [ONES], ONES, ONES[:3]), "two predictions for the same rows"),
        (lambda: cluster_neurons(make(), 4), "6 neurons for 4 experts"),
        (lambda: to_dynamic_k(make(), 3, tau=1.5), "tau = 1.5"),
        (lambda: to_dynamic_k(make(), 0, tau=0.5), "6 neurons for 0 experts"),
        (
            lambda: norm_error(MoELayer(ZeroScorer(2), StackedFFN(2, D, 3)).route(RouteInput(items(3, D))), ONES),
            "norms",
        ),
        (lambda: MaskNetwork([], 2), r"with \[\] neurons"),
        (lambda: MaskNetwork([4], 2, width=6), "multiple of 4"),
        (lambda: sample_masks(ONES, temperature=0.0), "temperature 0.0"),
        (lambda: MaskedBank(StackedFFN(1, D, H), torch.ones(2, 5)), r"\(2, 5\) for 1 FFN with 6 neurons"),
        (lambda: MaskedBank(StackedFFN(2, D, H), torch.ones(2, H)), "for 2 FFN"),
        (lambda: MaskedLayer(make(), 2)(items(3, D), torch.ones(3, 5)), r"masks of shape \(3, 5\)"),
        (lambda: MaskedLayer(make(), 2)(items(3, D), torch.ones(3, H)), r"masks of shape \(3, 6\)"),
        (lambda: under_masks(MaskedLayer(make(), 2), []).__enter__(), "0 masks for 1 masked layers"),
        (lambda: harden(MaskedLayer(make(), 2), torch.ones(3, H)), r"logits of shape \(3, 6\)"),
        (lambda: harden(MaskedLayer(make(), 2), torch.ones(2, H), width=7), "use 1 to 6"),
        (lambda: parameter_budget([]), "0 masks"),
        (lambda: parameter_budget([ONES[None]], 0.0), "a share of 0.0"),
        (lambda: union_gap([]), "no masks"),
        (lambda: prediction_kl(ONES, ONES[:2]), r"\(6,\) and \(2,\)"),
    ],
)
def test_bad_input_is_one_error_of_ours(call, message):
    with pytest.raises(RoutingError, match=message):
        call()
