"""LoRA experts: all ways to run them agree, they start as nothing, and they go in and out of a model unharmed."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe import EXECUTORS, All, FixedCapacity, LinearScorer, MoELayer, RouteInput, TopK, ZeroScorer
from terramoe.moe.adapters import (
    BlendScorer,
    LoRALinear,
    add_lora_experts,
    merge_lora_experts,
    remove_lora_experts,
    routed,
)
from terramoe.moe.experts import lora
from terramoe.moe.experts.lora import LoRABank
from terramoe.moe.experts.tt_lora import TTLoRABank, contract, core_shapes, matrix_of, tt_svd
from terramoe.moe.output_gate import OutputGate, OutputGatedLayer, gate_balance
from terramoe.moe.scorers import AttributeScorer, EmbeddedKeyScorer, FixedNoiseScorer

BANKS = {
    "own A": lambda: LoRABank(4, 6, 5, 3),
    "shared A": lambda: LoRABank(4, 6, 5, 3, shared_a=True),
    "train": lambda: TTLoRABank(4, (2, 3), (5,), 2),
    "long train": lambda: TTLoRABank(4, (3, 2), (1, 5, 1), 3),
}
SELECTORS = {"top1": TopK(1), "top2": TopK(2), "all": All()}
CAPACITIES = {"dropless": None, "tight": FixedCapacity(0.6)}
SHAPES = {"rows": (13, 6), "windows": (13, 2, 3, 6), "one item": (1, 6), "no items": (0, 6)}
OTHERS = [name for name in EXECUTORS if name != "loop"]


def randomised(module, seed=3):
    """The module in float64 with every parameter random, so that no part is hidden behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def run(executor, bank, selector, capacity, shape, mask=None):
    torch.manual_seed(1)
    layer = MoELayer(LinearScorer(6, 4), BANKS[bank](), selector=selector, capacity=capacity, executor=executor)
    randomised(layer)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    routing = layer.route(RouteInput(x, mask))
    y = layer.executor(x, routing, layer.bank)
    (y * torch.linspace(1, 2, 5, dtype=torch.float64)).sum().backward()
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in layer.named_parameters()}
    return y.detach(), {**grads, "x": x.grad}


@pytest.mark.parametrize("limit", [0, 1e9], ids=["sorted", "one product"])
@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("masked", [False, True])
def test_executors_agree_with_the_loop(monkeypatch, limit, bank, selector, capacity, masked):
    monkeypatch.setattr(lora, "DENSE_ROWS_PER_CHOICE", limit)
    for shape in SHAPES.values():
        mask = torch.arange(shape[0]) % 4 != 1 if masked else None
        case = bank, SELECTORS[selector], CAPACITIES[capacity], shape, mask
        y_ref, grads_ref = run("loop", *case)
        for executor in OTHERS:
            if executor == "gather" and bank.endswith("train"):
                continue
            y, grads = run(executor, *case)
            torch.testing.assert_close(y, y_ref, rtol=1e-10, atol=1e-10)
            for name, grad in grads_ref.items():
                torch.testing.assert_close(
                    grads[name], grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, e=executor: f"{e}, {n}: {m}"
                )


def test_which_way_is_taken(monkeypatch):
    bank, x = LoRABank(8, 6, 6, 4), torch.randn(5, 6)
    layer, calls = MoELayer(LinearScorer(6, 8), bank), []
    monkeypatch.setattr(bank, "run_dense", lambda x, w: calls.append("dense") or x)
    layer(x)
    assert calls == ["dense"]
    wide = MoELayer(LinearScorer(6, 64), LoRABank(64, 6, 6, 4))
    monkeypatch.setattr(wide.bank, "run_sorted", lambda x, counts: calls.append("sorted") or x)
    wide(x)
    assert calls == ["dense", "sorted"]


@pytest.mark.parametrize("bank", BANKS)
def test_the_output_is_the_mixture_of_explicit_updates(bank):
    layer = randomised(MoELayer(LinearScorer(6, 4), BANKS[bank]()))
    x = torch.randn(9, 6, dtype=torch.float64)
    y, routing = layer(x)
    for item, weights in enumerate(routing.dense()):
        torch.testing.assert_close(y[item], layer.bank.merge(weights) @ x[item])
    one_hot = torch.eye(4, dtype=torch.float64)[2]
    torch.testing.assert_close(layer.bank.run(2, x), x @ layer.bank.merge(one_hot).T)


@pytest.mark.parametrize(("rs_scaling", "scale"), [(True, 16 / 2), (False, 16 / 4)])
def test_scale_by_hand(rs_scaling, scale):
    bank = LoRABank(2, 3, 2, 4, alpha=16, rs_scaling=rs_scaling)
    nn.init.ones_(bank.a_ERD)
    nn.init.ones_(bank.b_ERO)
    torch.testing.assert_close(bank.merge([1.0, 0.5]), torch.full((2, 3), 1.5 * 4 * scale))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("shared_a", [False, True])
def test_zero_at_the_start_but_not_dead(executor, shared_a):
    layer = MoELayer(LinearScorer(6, 4), LoRABank(4, 6, 5, 3, shared_a=shared_a), executor=executor)
    y, _ = layer(torch.randn(7, 6))
    assert (y == 0).all()
    y.sum().backward()
    assert layer.bank.b_ERO.grad.abs().sum() > 0


@given(experts=st.integers(1, 4), rank=st.integers(1, 3), shared_a=st.booleans())
@settings(max_examples=30, deadline=None)
def test_rank_of_the_mixture(experts, rank, shared_a):
    bank = randomised(LoRABank(experts, 16, 20, rank, shared_a=shared_a))
    weights = torch.linspace(0.5, 1.5, experts, dtype=torch.float64)
    # Random factors reach the bound; a shared A allows no more than its own rank.
    assert torch.linalg.matrix_rank(bank.merge(weights)) == (rank if shared_a else experts * rank)


@pytest.mark.parametrize("executor", ["auto", "loop", "grouped", "gather", "dense", "padded"])
def test_unselected_experts_get_no_gradient(executor):
    layer = randomised(MoELayer(ZeroScorer(4), LoRABank(4, 6, 5, 3), selector=TopK(2), executor=executor))
    x = torch.randn(7, 6, dtype=torch.float64)
    layer(x)[0].sum().backward()  # ties go to experts 0 and 1
    for parameter in (layer.bank.a_ERD, layer.bank.b_ERO):
        assert (parameter.grad[2:] == 0).all()
        assert (parameter.grad[:2] != 0).any()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_a_masked_item_harms_nobody(executor, junk):
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), LoRABank(4, 6, 5, 3), executor=executor)
    nn.init.normal_(layer.bank.b_ERO)
    x, mask = torch.randn(9, 6), torch.ones(9, dtype=torch.bool)
    clean, _ = layer(x)
    mask[4], x[4] = False, junk
    y, _ = layer(x, mask=mask)
    torch.testing.assert_close(y[mask], clean[mask])
    assert (y[4] == 0).all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.bank.parameters())


@pytest.mark.parametrize("shared_a", [False, True])
def test_gradients_by_finite_differences(shared_a):
    layer = randomised(MoELayer(LinearScorer(3, 3), LoRABank(3, 3, 2, 2, shared_a=shared_a)))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    values = {name: p.detach().clone().requires_grad_() for name, p in layer.named_parameters()}

    def output(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(values, parameters, strict=True)), x)[0]

    assert torch.autograd.gradcheck(output, (x, *values.values()))


# tensor trains


@given(
    ins=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    outs=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    rank=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_contraction_equals_the_reconstructed_matrix(ins, outs, rank):
    bank = randomised(TTLoRABank(2, ins, outs, rank, alpha=0.7))
    x = torch.randn(3, bank.dim, dtype=torch.float64)
    torch.testing.assert_close(bank.run(1, x), x @ bank.delta(1).T, rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in bank.parameters()) == 2 * bank.expert_parameters(0)
    assert bank.expert_parameters(0) == sum(a * s * b for a, s, b in core_shapes((*ins, *outs), rank))


def test_matrix_of_a_train_by_its_definition():
    cores = [torch.randn(s, dtype=torch.float64) for s in ((1, 2, 3), (3, 3, 2), (2, 4, 1))]
    matrix = matrix_of(cores, 2)
    for i in range(2):
        for j in range(3):
            for o in range(4):
                value = cores[0][:, i] @ cores[1][:, j] @ cores[2][:, o]
                torch.testing.assert_close(matrix[o, 3 * i + j], value.squeeze())


def test_parameter_count_by_hand():
    assert core_shapes((4, 4, 4, 4), 2) == [(1, 4, 2), (2, 4, 2), (2, 4, 2), (2, 4, 1)]
    assert TTLoRABank(3, (4, 4), (4, 4), 2).expert_parameters(0) == 8 + 16 + 16 + 8


@given(
    ins=st.lists(st.integers(1, 4), min_size=1, max_size=3), outs=st.lists(st.integers(1, 4), min_size=1, max_size=3)
)
@settings(max_examples=40, deadline=None)
def test_a_train_of_full_rank_holds_any_matrix(ins, outs):
    bank = randomised(TTLoRABank(2, ins, outs, 10**6, alpha=3.0))
    delta = torch.randn(bank.dim_out, bank.dim, dtype=torch.float64)
    untouched = bank.delta(0).clone()
    bank.set_delta(1, delta)
    torch.testing.assert_close(bank.delta(1), delta, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bank.delta(0), untouched)


def test_a_truncated_train_of_a_matrix_is_its_best_low_rank_form():
    matrix = torch.randn(6, 8, dtype=torch.float64)  # one core on either side: the train is a plain factorisation
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    best = u[:, :2] * s[:2] @ v[:2]
    cores = tt_svd(matrix, (8,), (6,), [2])
    torch.testing.assert_close(matrix_of(cores, 1), best)
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(contract(x, cores, 1), x @ best.T)


def test_a_fresh_train_is_zero_and_frozen_trains_stay():
    layer = MoELayer(LinearScorer(6, 3), TTLoRABank(3, (2, 3), (5,), 2), selector=TopK(1))
    assert (layer(torch.randn(4, 6))[0] == 0).all()
    randomised(layer).bank.requires_grad_(False)
    y, _ = layer(torch.randn(4, 6, dtype=torch.float64))
    y.sum().backward()
    assert all(p.grad is None for p in layer.bank.parameters())
    assert layer.scorer.linear.weight.grad.abs().sum() > 0


# in a model


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6, bias=False)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


def model():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(6, 2))


def wake(net):
    """Give every update random values, as training would."""
    for module in net.modules():
        if isinstance(module, LoRABank):
            nn.init.normal_(module.b_ERO, std=0.1)
    return net


def test_a_model_is_unchanged_at_the_start_and_after_removal():
    net, x = model(), torch.randn(3, 4, 6)
    before, state = net(x), copy.deepcopy(net.state_dict())
    names = add_lora_experts(net, lambda name, layer: name.endswith(("up", "down")), 4, 2)
    assert names == ["0.up", "0.down", "1.up", "1.down"]
    assert torch.equal(net(x), before)
    wake(net)
    assert not torch.allclose(net(x), before)
    assert remove_lora_experts(net) == names
    assert net.state_dict().keys() == state.keys()
    assert torch.equal(net(x), before)


@pytest.mark.parametrize(("freeze", "trained"), [("layer", {"0", "2"}), ("model", {"1"}), ("nothing", {"0", "1", "2"})])
def test_what_is_frozen(freeze, trained):
    net = model()
    add_lora_experts(net, ["1.up", "1.down"], 4, 2, freeze=freeze)
    wake(net)(torch.randn(3, 6)).sum().backward()
    with_grad = {name for name, p in net.named_parameters() if p.grad is not None}
    base = [name for name in with_grad if ".base." in name]
    assert bool(base) == (freeze == "nothing")
    assert {"1.up.experts.bank.a_ERD", "1.up.experts.bank.b_ERO", "1.up.experts.scorer.linear.weight"} <= with_grad
    plain = {name.split(".")[0] for name in with_grad if ".experts." not in name}
    assert plain == (trained if freeze == "nothing" else trained - {"1"})


def test_only_the_experts_learn():
    net, x = model(), torch.randn(32, 6)
    add_lora_experts(net, ["0.up"], 4, 2, freeze="model")
    frozen = {n: p.clone() for n, p in net.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.05)
    target = net(x).detach() + 0.1 * torch.sin(x[:, :2])
    losses = []
    for _ in range(60):
        loss = (net(x) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    now = dict(net.named_parameters())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())


def test_merging_item_independent_routing_changes_nothing():
    net, x = model().double(), torch.randn(3, 4, 6, dtype=torch.float64)
    keys = {"sensor": torch.tensor([[1.0, 0.0, 1.0]])}
    names = add_lora_experts(net, ["0.up", "1.down"], 4, 2, scorer=lambda dim, e: AttributeScorer("sensor", 3, e))
    wake(net)
    with routed(net, {"sensor": keys["sensor"].expand(3, 3)}):
        expected = net(x)
    assert merge_lora_experts(net, keys) == names
    assert not any(isinstance(m, LoRALinear) for m in net.modules())
    torch.testing.assert_close(net(x), expected)


def test_merging_leaves_out_the_noise_of_training():
    net, keys = model(), {"sensor": torch.tensor([[1.0, 0.0, 1.0]])}
    add_lora_experts(net, ["0.up"], 4, 2, scorer=lambda dim, e: FixedNoiseScorer(AttributeScorer("sensor", 3, e), 5.0))
    assert net[0].up.experts.training
    weights = net[0].up.mixture(keys)
    assert net[0].up.experts.training
    assert (weights > 0).sum() == 2
    assert net.eval()[0].up.mixture(keys).equal(weights)
    with pytest.raises(RoutingError, match="a single row for merging"):
        net[0].up.mixture({"sensor": torch.zeros(2, 3)})


def test_item_dependent_routing_is_not_merged():
    net = model()
    add_lora_experts(net, ["0.up", "1.down"], 4, 2)
    with pytest.raises(RoutingError, match="depend on the item"):
        merge_lora_experts(net)
    assert isinstance(net[0].up, LoRALinear)
    given_weights = net[0].up.merged(torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(given_weights.weight, net[0].up.base.weight)


def test_routings_are_collected_and_keys_are_given_inside_the_block_only():
    net = model()
    add_lora_experts(net, ["0.up", "1.up"], 3, 2, scorer=lambda dim, e: EmbeddedKeyScorer("task", 2, e))
    task = torch.tensor([0, 1, 0])
    with routed(net, {"task": task}) as records:
        net(torch.randn(3, 4, 6))
        net(torch.randn(3, 4, 6))
    assert list(records) == ["0.up", "1.up"]
    assert [len(r) for r in records.values()] == [2, 2]
    routing = records["0.up"][0]
    assert routing.keys["task"].tolist() == task.repeat_interleave(4).tolist()
    with pytest.raises(RoutingError, match="'task' is missing"):
        net(torch.randn(3, 4, 6))
    with pytest.raises(RoutingError, match=r"'task' has \(2,\)"), routed(net, {"task": task[:2]}):
        net(torch.randn(3, 4, 6))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_layer_in_two_places_stays_one_layer():
    net, x = model(), torch.randn(2, 6)
    net[1].up = net[0].up
    before = net(x)
    assert add_lora_experts(net, ["0.up", "1.up"], 2, 2) == ["0.up", "1.up"]
    assert net[0].up is net[1].up
    assert torch.equal(net(x), before)
    with routed(net) as records:
        net(x)
    assert {name: len(r) for name, r in records.items()} == {"0.up": 2}
    remove_lora_experts(net)
    assert net[0].up is net[1].up


def test_empty_input_and_single_rows_pass():
    net = model()
    add_lora_experts(net, ["0.up"], 2, 2)
    assert net(torch.empty(0, 6)).shape == (0, 2)
    assert net(torch.randn(6)).shape == (2,)


def test_experts_take_the_dtype_of_their_layer():
    net = model().bfloat16()
    add_lora_experts(net, ["0.up"], 2, 2)
    assert net(torch.randn(3, 6).bfloat16()).dtype == torch.bfloat16


# blended gate


def blend(layer_index, **options):
    torch.manual_seed(0)
    scorers = LinearScorer(6, 4), EmbeddedKeyScorer("task", 3, 4)
    return randomised(BlendScorer(*scorers, layer_index, 8, **options))


@pytest.mark.parametrize(("layer_index", "balance"), [(0, -2.0), (4, 0.0), (8, 2.0), (2, -1.0)])
def test_blend_is_a_mixture_of_probabilities(layer_index, balance):
    scorer = blend(layer_index)
    inp = RouteInput(torch.randn(5, 6, dtype=torch.float64), keys={"task": torch.tensor([0, 1, 2, 0, 1])})
    share = torch.sigmoid(torch.tensor(balance, dtype=torch.float64))
    token, task = (s(inp).logits.softmax(-1) for s in (scorer.token_scorer, scorer.task_scorer))
    expected = (1 - share) * token + share * task
    routing = MoELayer(scorer, LoRABank(4, 6, 5, 2).double()).route(inp)
    torch.testing.assert_close(routing.probs, expected)  # not softmax(probabilities), which is nearly uniform
    assert not torch.allclose(routing.probs, expected.softmax(-1), atol=0.05)


def test_blend_ends():
    inp = RouteInput(torch.randn(5, 6, dtype=torch.float64), keys={"task": torch.tensor([0, 1, 2, 0, 1])})
    for mu, part in ((-60, "token_scorer"), (60, "task_scorer")):
        scorer = blend(4, mu=float(mu))
        expected = getattr(scorer, part)(inp).logits.softmax(-1)
        torch.testing.assert_close(scorer(inp).logits.softmax(-1), expected)


def test_blend_is_finite_for_huge_logits():
    scorer = blend(4)
    x = torch.full((2, 6), 1e4, dtype=torch.float64, requires_grad=True)
    logits = scorer(RouteInput(x, keys={"task": torch.tensor([0, 1])})).logits
    logits.sum().backward()
    assert logits.isfinite().all()
    assert x.grad.isfinite().all()


# gate on outputs


def test_only_the_gate_learns():
    layer = OutputGatedLayer(randomised(LoRABank(3, 6, 5, 2)), randomised(OutputGate(3, 5)))
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    y, routing = layer(x)
    outputs = layer.bank.run_all(x)
    torch.testing.assert_close(y, sum(routing.probs[:, [e]] * outputs[e] for e in range(3)))
    y.square().sum().backward()
    assert all(p.grad is None for p in layer.bank.parameters())
    assert all(p.grad.abs().sum() > 0 for p in layer.gate.parameters())
    assert x.grad.abs().sum() > 0


def test_masked_experts_share_out_their_weight_in_proportion():
    gate = randomised(OutputGate(4, 5))
    outputs = torch.randn(4, 6, 2, 5, dtype=torch.float64)
    free = gate(outputs)
    torch.testing.assert_close(free.dense().sum(-1), torch.ones(6, dtype=torch.float64))
    masked = gate(outputs, torch.tensor([True, False, True, True]))
    rest = free.probs * torch.tensor([1.0, 0, 1, 1])
    torch.testing.assert_close(masked.dense(), rest / rest.sum(-1, keepdim=True))
    assert 1 not in masked.expert
    assert masked.demand().tolist() == [6, 0, 6, 6]


def test_the_gate_follows_its_formula_and_its_temperature():
    gate = randomised(OutputGate(3, 5, temperature=2.0))
    with torch.no_grad():
        gate.log_temperature.fill_(torch.log(torch.tensor(2.0)))
    outputs = torch.randn(3, 6, 5, dtype=torch.float64)
    features = torch.cat(list(outputs), dim=-1)
    logits = gate.linear(gate.norm(features))
    torch.testing.assert_close(gate(outputs).probs, (logits / 2).softmax(-1), rtol=1e-6, atol=1e-7)
    assert OutputGate(3, 5, temperature=0.5).log_temperature.exp().item() == pytest.approx(0.5)


def test_masked_items_of_the_output_gate_give_zero():
    layer = OutputGatedLayer(randomised(LoRABank(3, 6, 5, 2)), randomised(OutputGate(3, 5)))
    x, mask = torch.randn(4, 6, dtype=torch.float64), torch.tensor([True, False, True, True])
    clean, _ = layer(x)
    x[1] = torch.nan
    y, routing = layer(x, mask=mask)
    assert (y[1] == 0).all()
    torch.testing.assert_close(y[mask], clean[mask])
    assert 1 not in routing.item


def test_gate_balance_is_least_at_balance():
    even = OutputGate(4, 5)
    nn.init.zeros_(even.linear.weight)
    routings = [even(torch.randn(4, 6, 5)), even(torch.randn(4, 3, 5))]
    assert gate_balance(routings).item() == pytest.approx(4 * torch.log(torch.tensor(4.0)).item())
    uneven = OutputGate(4, 5)(torch.randn(4, 1, 5) * 10)
    assert gate_balance([uneven]) > gate_balance(routings)


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRABank(2, 3, 3, 0), "rank 0"),
        (lambda: LoRABank(0, 3, 3, 2), "0 experts"),
        (lambda: LoRABank(2, 3, 3, 1).run(0, torch.randn(2, 4)), "4 channels, the experts expect 3"),
        (lambda: MoELayer(ZeroScorer(2), LoRABank(2, 3, 3, 1))(torch.randn(2, 4)), "4 channels"),
        (lambda: MoELayer(ZeroScorer(2), LoRABank(2, 3, 3, 1), executor="dense")(torch.randn(2, 4)), "4 channels"),
        (lambda: MoELayer(ZeroScorer(2), LoRABank(2, 3, 3, 1), executor="padded")(torch.randn(2, 4)), "4 channels"),
        (lambda: MoELayer(ZeroScorer(2), LoRABank(2, 3, 3, 1), executor="gather")(torch.randn(2, 4)), "4 channels"),
        (lambda: LoRABank(2, 3, 3, 1).merge([1.0]), "for 2 experts"),
        (lambda: TTLoRABank(2, (), (3,), 1), "at least one factor"),
        (lambda: TTLoRABank(2, (3,), (3,), 0), "rank 0"),
        (lambda: TTLoRABank(2, (2, 2), (3,), 1).run(0, torch.randn(2, 3)), "3 channels, the experts expect 4"),
        (lambda: TTLoRABank(2, (2, 2), (3,), 1).merge([1.0]), "1 weights for 2"),
        (lambda: TTLoRABank(2, (2, 2), (3,), 1).set_delta(0, torch.zeros(4, 3)), r"expected \(3, 4\)"),
        (lambda: add_lora_experts(model(), ["0.left"], 2, 2), "no linear layer '0.left'"),
        (lambda: add_lora_experts(model(), lambda name, layer: False, 2, 2), "no linear layer was chosen"),
        (lambda: add_lora_experts(nn.Linear(3, 3), lambda name, layer: True, 2, 2), "no linear layer was chosen"),
        (lambda: add_lora_experts(Parent(), ["attention.out_proj"], 2, 2), "reads its weights"),
        (lambda: add_lora_experts(model(), ["0.up"], 2, 2, freeze="all"), "freeze = 'all'"),
        (lambda: add_lora_experts(model(), ["0.up"], 2, 0), "rank 0"),
        (lambda: remove_lora_experts(model()), "has no LoRA experts"),
        (lambda: merge_lora_experts(model()), "has no LoRA experts"),
        (lambda: BlendScorer(ZeroScorer(2), ZeroScorer(2), 5, 4), "layer 5 of 4"),
        (lambda: BlendScorer(ZeroScorer(2), ZeroScorer(3), 1, 4)(RouteInput(torch.randn(2, 3))), "same number"),
        (lambda: OutputGate(2, 3, temperature=0.0), "temperature 0.0"),
        (lambda: OutputGate(2, 3)(torch.randn(3, 4, 3)), r"expected \(2, items"),
        (lambda: OutputGate(2, 3)(torch.randn(2, 4, 3), torch.tensor([False, False])), "no expert is available"),
        (lambda: OutputGatedLayer(LoRABank(2, 3, 3, 1), OutputGate(3, 3)), "over 3 experts for a bank of 2"),
        (lambda: gate_balance([]), "no routings"),
    ],
)
def test_bad_input_is_one_error_of_ours(make, message):
    with pytest.raises(RoutingError, match=message):
        make()


def test_a_model_is_untouched_where_adding_fails():
    net = model()
    with pytest.raises(RoutingError):
        add_lora_experts(net, ["0.up", "nowhere"], 2, 2, freeze="model")
    with pytest.raises(RoutingError):
        add_lora_experts(net, ["0.up"], 2, 0, freeze="model")
    assert type(net[0].up) is nn.Linear
    assert all(p.requires_grad for p in net.parameters())


def test_adding_twice_does_not_nest():
    net = model()
    add_lora_experts(net, lambda name, layer: "up" in name, 2, 2)
    again = add_lora_experts(net, lambda name, layer: True, 2, 2)
    assert again == ["0.down", "1.down", "2"]
