"""Organisations of routers, banks, tasks, layers and models: invariants, gradients, oracles, hostile input."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from terramoe.errors import RoutingError
from terramoe.moe import (
    All,
    FixedCapacity,
    LinearScorer,
    ModuleBank,
    MoELayer,
    RandomK,
    RouteInput,
    StackedFFN,
    TopK,
    ZeroScorer,
    weighing,
)
from terramoe.moe.experts.activations import ACTIVATIONS
from terramoe.moe.organisation import (
    CGCLevel,
    FeatureGate,
    MixtureMaps,
    ModelMixture,
    MultiGate,
    PreGatedStack,
    ProgressiveExtraction,
    SharedPlusRouted,
    SigmoidGate,
    TaskEmbeddingScorer,
    TaskGates,
    build_extraction,
    disagreement_maps,
    extract_task,
    task_weights,
    weighted_loss,
)

D, E = 4, 3
SHAPES = {"rows": (7, D), "windows": (5, 2, 3, D), "one item": (1, D)}


def items(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_layer(selector=None, scorer=None, seed=0, **options):
    torch.manual_seed(seed)
    return MoELayer(scorer or LinearScorer(D, E), StackedFFN(E, D, 5), selector=selector, **options).double()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def grads_of(outputs, inputs):
    """Gradients of a fixed weighted sum of the outputs; zeros where there is none."""
    total = sum((y * items(*y.shape, seed=9)).sum() for y in outputs)
    found = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)]


# Shared and routed


def make_shared(gate=None, **options):
    torch.manual_seed(3)
    return SharedPlusRouted(nn.Linear(D, D), make_layer(**options), gate).double()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gated", [False, True])
def test_output_is_shared_plus_routed(gated, shape):
    model, x = make_shared(SigmoidGate(D) if gated else None), items(*SHAPES[shape])
    y, routing = model(x)
    gate = torch.sigmoid(x @ model.gate.linear.weight.T) if gated else 1
    close(y, gate * model.shared(x) + model.layer(x)[0])
    close(model(x, routing)[0], y)


def test_a_dropped_item_keeps_its_shared_part_and_a_masked_one_is_zero():
    model, x = make_shared(SigmoidGate(D), capacity=FixedCapacity(0.3)), items(12, D)
    mask = torch.arange(12) != 1
    x[1] = torch.nan
    y, routing = model(x, mask=mask)
    dropped = routing.dropped_items()
    assert dropped.any()
    close(y[dropped], (model.gate(x) * model.shared(x))[dropped])
    assert (y[1] == 0).all()
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_shared_plus_routed_gradcheck():
    model = make_shared(SigmoidGate(D), selector=All(), executor="loop")
    assert torch.autograd.gradcheck(lambda x: model(x)[0], (items(3, D).requires_grad_(),))


def test_outputs_of_different_width_are_refused():
    model = SharedPlusRouted(nn.Linear(D, 1).double(), make_layer())  # would broadcast
    with pytest.raises(RoutingError, match="shared expert gives"):
        model(items(5, D))


def test_agrees_with_the_qwen2_block():
    config = pytest.importorskip("transformers").Qwen2MoeConfig(
        hidden_size=D,
        num_experts=E,
        num_experts_per_tok=2,
        moe_intermediate_size=5,
        shared_expert_intermediate_size=6,
        norm_topk_prob=False,
    )
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    torch.manual_seed(0)
    block = Qwen2MoeSparseMoeBlock(config).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.uniform_(-1, 1)
    layer = MoELayer(LinearScorer(D, E), StackedFFN(E, D, 5, activation="swiglu", bias=False))
    model = SharedPlusRouted(block.shared_expert, layer, SigmoidGate(D)).double()
    with torch.no_grad():
        layer.scorer.linear.weight.copy_(block.gate.weight)
        layer.bank.w_in_EDH.copy_(block.experts.gate_up_proj.transpose(1, 2))
        layer.bank.w_out_EHD.copy_(block.experts.down_proj.transpose(1, 2))
        model.gate.linear.weight.copy_(block.shared_expert_gate.weight)
    mine, theirs = items(11, D).requires_grad_(), items(11, D).requires_grad_()
    got, want = model(mine)[0], block(theirs[None])[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # the block routes in float32
    torch.testing.assert_close(*(grads_of([y], [x])[0] for y, x in ((got, mine), (want, theirs))), rtol=1e-4, atol=1e-5)


# One bank, a router per task


def make_gates(tasks=("land", "water"), selector=None, **options):
    torch.manual_seed(2)
    return make_layer(selector, TaskGates({task: LinearScorer(D, E) for task in tasks}), **options)


def single(layer, task):
    return MoELayer(layer.scorer.scorers[task], layer.bank, selector=layer.selector, capacity=layer.capacity)


@pytest.mark.parametrize("selector", [TopK(1), TopK(2), All()], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_task_gets_what_its_own_layer_would_give(selector, shape):
    layer, x = make_gates(selector=selector, capacity=FixedCapacity(0.7)), items(*SHAPES[shape]).requires_grad_()
    inputs = (x, *layer.parameters())
    outputs = MultiGate(layer)(x)
    want = {task: single(layer, task)(x) for task in layer.scorer.tasks}
    for task, (y, routing) in outputs.items():
        close(y, want[task][0])
        assert torch.equal(routing.expert, want[task][1].expert)
    got = grads_of([y for y, _ in outputs.values()], inputs)
    for a, b in zip(got, grads_of([y for y, _ in want.values()], inputs), strict=True):
        close(a, b)


def test_every_pair_is_run_once():
    class Counting(ModuleBank):
        rows = 0

        def run(self, expert, x):
            Counting.rows += x.shape[0]
            return super().run(expert, x)

    bank = Counting(nn.Linear(D, D).double() for _ in range(E))
    scorers = {task: LinearScorer(D, E) for task in "abc"}
    MultiGate(MoELayer(TaskGates(scorers), bank, selector=All()).double())(items(7, D))
    assert Counting.rows == 7 * E


def test_mmoe_formula_and_its_two_limits():
    layer, x = make_gates(selector=All()), items(7, D)
    for task, (y, _) in MultiGate(layer)(x).items():
        gate = layer.scorer.scorers[task].linear(x).softmax(-1)
        close(y, torch.einsum("te,etd->td", gate, layer.bank.run_all(x)))
    one = make_gates(("only",), All())
    close(MultiGate(one)(x)["only"][0], single(one, "only")(x)[0])  # one task: the plain mixture
    twins = layer.scorer.scorers
    twins["water"].load_state_dict(twins["land"].state_dict())
    both = MultiGate(layer)(x)
    assert torch.equal(both["land"][0], both["water"][0])  # identical gates: a shared bottom


def test_a_mixed_batch_goes_by_each_items_own_task():
    layer, x, task = make_gates(), items(9, D), torch.arange(9) % 2
    y, _ = layer(x, keys={"task": task})
    outputs = MultiGate(layer)(x)
    for i, name in enumerate(layer.scorer.tasks):
        close(y[task == i], outputs[name][0][task == i])


def test_a_task_leaves_other_tasks_routers_alone():
    layer, x = make_gates(), items(9, D)
    y, _ = MultiGate(layer)(x, tasks=["land"])["land"]
    y.square().sum().backward()
    assert (layer.scorer.scorers["land"].linear.weight.grad != 0).any()
    assert (layer.scorer.scorers["water"].linear.weight.grad == 0).all()


def test_multi_gate_masks_and_gradcheck():
    layer, x = make_gates(selector=All()), items(5, D)
    mask = torch.arange(5) != 2
    outputs = MultiGate(layer)(torch.where(mask[:, None], x, torch.nan), mask=mask)
    for task, (y, _) in MultiGate(layer)(x[mask]).items():
        close(outputs[task][0][mask], y)
        assert (outputs[task][0][2] == 0).all()
    assert all(g.isfinite().all() for g in grads_of([y for y, _ in outputs.values()], list(layer.parameters())))
    nobody = MultiGate(layer)(x, mask=torch.zeros(5, dtype=torch.bool))
    assert all((y == 0).all() for y, _ in nobody.values())
    x = items(3, D).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(y for y, _ in MultiGate(layer)(x).values()), (x,))


def test_multi_gate_refuses():
    layer, x = make_gates(), items(4, D)
    for task in (torch.tensor([0, 1, 2, 0]), torch.tensor([-1, 0, 0, 0]), torch.zeros(4), torch.zeros(4, 1).long()):
        with pytest.raises(RoutingError, match="task"):
            layer(x, keys={"task": task})
    with pytest.raises(RoutingError, match="'task' is missing"):
        layer(x)
    with pytest.raises(RoutingError, match="no task"):
        TaskGates({})
    with pytest.raises(RoutingError, match="LinearScorer"):
        MultiGate(make_layer())
    for bad in ([], ["fire"]):
        with pytest.raises(RoutingError, match="tasks"):
            MultiGate(layer)(x, tasks=bad)
    with pytest.raises(RoutingError, match="empty"):
        MultiGate(layer)(x[:0])
    with pytest.raises(RoutingError, match="NaN"):
        MultiGate(layer)(torch.full_like(x, torch.nan))


# CGC and PLE


def make_ple(own=2, shared=2, levels=2, tasks=("a", "b")):
    torch.manual_seed(4)
    return build_extraction(tasks, D, 5, own, shared, levels).double()


def own_parameters(model, task, level=-1):
    return list(model.levels[level].own[task].parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_level_mixes_own_experts_on_the_task_and_shared_ones_on_the_shared_input(shape):
    level = make_ple().levels[0]
    inputs = {name: items(*SHAPES[shape], seed=i) for i, name in enumerate(("a", "b", "shared"))}
    features, routings = level(inputs)
    parts = {task: level.own[task].run_all(inputs[task]) for task in "ab"}
    common = level.shared.run_all(inputs["shared"])
    gates = {**level.gates, "shared": level.shared_gate}
    seen = {"a": [parts["a"], common], "b": [parts["b"], common], "shared": [parts["a"], parts["b"], common]}
    for name, outputs in seen.items():
        weight = gates[name](RouteInput(inputs[name])).logits.softmax(-1)
        close(routings[name].dense(), weight)
        mixed = sum(w[:, None] * y.flatten(1) for w, y in zip(weight.T, torch.cat(outputs), strict=True))
        close(features[name].flatten(1), mixed)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_tasks_loss_moves_the_other_tasks_experts_below_the_last_level_only(levels):
    model = make_ple(levels=levels)
    outputs, routings = model(items(6, D))
    assert [set(r) for r in routings] == [{"a", "b", "shared"}] * (levels - 1) + [{"a", "b"}]
    for one, other in (("a", "b"), ("b", "a")):
        for level in range(levels):
            foreign = grads_of([outputs[one]], own_parameters(model, other, level))
            moved = any((g != 0).any() for g in foreign)
            assert moved == (level < levels - 1), (level, levels)
            assert any((g != 0).any() for g in grads_of([outputs[one]], own_parameters(model, one, level)))


def test_without_own_experts_it_is_mmoe():
    model, x = make_ple(own=0, shared=E, levels=1), items(7, D)
    outputs, (routings,) = model(x)
    level = model.levels[0]
    mmoe = MultiGate(MoELayer(TaskGates(dict(level.gates)), level.shared, selector=All()))(x)
    for task in "ab":
        close(outputs[task], mmoe[task][0])
        close(routings[task].dense(), mmoe[task][1].dense())


def test_tasks_may_have_different_numbers_of_own_experts():
    torch.manual_seed(0)
    level = CGCLevel(
        {"a": LinearScorer(D, 3), "b": LinearScorer(D, 1)}, {"a": StackedFFN(2, D, 5)}, StackedFFN(1, D, 5)
    ).double()
    x = items(6, D)
    y = level({"a": x, "b": x, "shared": x}).features
    close(y["b"], level.shared.run(0, x))  # one expert to choose from
    assert not torch.equal(y["a"], y["b"])


def test_one_level_is_the_bottom_of_two_and_weights_sum_to_one():
    two, x = make_ple(), items(6, D)
    bottom, top = two.levels
    outputs, routings = two(x)
    middle, _ = bottom(dict.fromkeys(("a", "b", "shared"), x))
    want, _ = ProgressiveExtraction([top]).levels[0](middle)
    for task in "ab":
        close(outputs[task], want[task])
    for routing in itertools.chain.from_iterable(level.values() for level in routings):
        close(routing.dense().sum(-1), torch.ones(6, dtype=torch.float64))


def test_ple_masks_gradcheck_and_checkpointing():
    model, x = make_ple(), items(5, D)
    mask = torch.arange(5) != 2
    outputs, _ = model(torch.where(mask[:, None], x, torch.nan), mask=mask)
    for task, y in model(x[mask])[0].items():
        close(outputs[task][mask], y)
        assert (outputs[task][2] == 0).all()
    assert all(g.isfinite().all() for g in grads_of(outputs.values(), list(model.parameters())))
    small = items(2, D).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(model(x)[0].values()), (small,))
    inputs = [small, *model.parameters()]
    want = grads_of(model(small)[0].values(), inputs)
    again = grads_of(checkpoint(lambda x: tuple(model(x)[0].values()), small, use_reentrant=False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(want, again, strict=True))


def test_ple_refuses():
    level, last = make_ple().levels
    for levels in ([], [level], [last, last], [level, level]):
        with pytest.raises(RoutingError, match="shared gate"):
            ProgressiveExtraction(levels)
    with pytest.raises(RoutingError, match="different tasks"):
        ProgressiveExtraction([level, make_ple(tasks=("b", "a"), levels=1).levels[0]])
    with pytest.raises(RoutingError, match="inputs for"):
        level({"a": items(3, D), "b": items(3, D)})
    with pytest.raises(RoutingError, match="gates for"):
        CGCLevel({"shared": LinearScorer(D, 1)}, {}, StackedFFN(1, D, 5))
    with pytest.raises(RoutingError, match="gates for"):
        CGCLevel({"a": LinearScorer(D, 1)}, {"b": StackedFFN(1, D, 5)}, StackedFFN(1, D, 5))
    with pytest.raises(RoutingError, match="2 logits for 1 experts"):
        CGCLevel({"a": LinearScorer(D, 2)}, {}, StackedFFN(1, D, 5))(dict.fromkeys(("a", "shared"), torch.zeros(2, D)))
    with pytest.raises(RoutingError, match="NaN"):
        make_ple()(torch.full((3, D), torch.nan, dtype=torch.float64))


def test_joint_loss_weights_tasks_and_their_own_sample_spaces():
    weights = task_weights({"a": 2.0, "b": 1.0}, {"a": 0.5, "b": 1.0}, step=3)
    assert weights == {"a": 0.25, "b": 1.0}
    losses = {"a": torch.tensor([1.0, 2.0, torch.nan]), "b": torch.tensor([3.0, 5.0, 7.0])}
    masks = {"a": torch.tensor([True, True, False])}
    assert float(weighted_loss(losses, weights, masks)) == 0.25 * 1.5 + 5
    assert float(weighted_loss({"a": losses["a"]}, weights, {"a": torch.zeros(3, dtype=torch.bool)})) == 0


# Pre-gated


def make_stack(depth=3, prefetch=None, norms=True):
    layers = [make_layer(TopK(2), seed=i) for i in range(depth)]
    return PreGatedStack(layers, [nn.LayerNorm(D) for _ in layers] if norms else None, prefetch).double()


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_each_layer_is_routed_on_what_the_layer_before_it_sees(depth):
    model, x = make_stack(depth), items(7, D)
    y, routings = model(x)
    h, seen = x, []
    for layer, norm, routing in zip(model.layers, model.norms, routings, strict=True):
        seen.append(norm(h))
        h = h + layer(seen[-1], routing)[0]
    close(y, h)
    for index, routing in enumerate(routings):
        close(routing.logits, model.layers[index].scorer.linear(seen[max(index - 1, 0)]))


def test_the_choice_does_not_depend_on_the_experts_of_the_layer_before():
    model, x = make_stack(3), items(7, D)
    before = model(x)[1]
    with torch.no_grad():
        model.layers[1].bank.w_out_EHD.mul_(-50)
    after = model(x)[1]
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(before, after, strict=True))
    with torch.no_grad():
        model.layers[0].bank.w_out_EHD.mul_(-50)
    assert not torch.equal(model(x)[1][2].logits, after[2].logits)


def test_experts_are_announced_before_the_layer_ahead_runs():
    events = []
    model = make_stack(3, lambda index, routing: events.append(("known", index)))
    for index, layer in enumerate(model.layers):
        layer.bank.check_width = lambda x, index=index: events.append(("run", index))
    model(items(5, D))
    want = [("known", 0), ("known", 1), ("run", 0), ("known", 2), ("run", 1), ("run", 2)]
    assert events == want


def test_pre_gated_masks_gradients_and_checkpointing():
    model, x = make_stack(3), items(6, D)
    mask = torch.arange(6) != 3
    y, _ = model(torch.where(mask[:, None], x, torch.nan), mask=mask)
    close(y[mask], model(x[mask])[0])
    assert y[3].isnan().all()  # it keeps its value
    assert all(g.isfinite().all() for g in grads_of([y[mask]], list(model.parameters())))
    x.requires_grad_()
    inputs = [x, *model.parameters()]
    assert all((g != 0).any() for g in grads_of([model(x)[0]], inputs))
    want, got = model(x), checkpoint(model, x, use_reentrant=False)
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(want[1], got[1], strict=True))
    pairs = zip(grads_of([want[0]], inputs), grads_of([got[0]], inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_pre_gated_refuses():
    for layers, norms in (([], None), ([make_layer()], [])):
        with pytest.raises(RoutingError, match="layers and"):
            PreGatedStack(layers, norms)


# Whole models


class Segmenter(nn.Module):
    def __init__(self, features, classes=3, stride=1):
        super().__init__()
        self.body, self.top = nn.Conv2d(2, features, 3, stride, 1), nn.Conv2d(features, classes, 1)

    def forward(self, image):
        features = self.body(image).relu()
        return features, nn.functional.interpolate(self.top(features), image.shape[-2:])


def make_mixture(num_classes=None, head=None):
    torch.manual_seed(6)
    models = [Segmenter(4), Segmenter(5, stride=2)]
    return ModelMixture(models, FeatureGate([4, 5], num_classes, 6), head).double()


@pytest.mark.parametrize("num_classes", [None, 3])
def test_mixture_is_the_weighted_sum_of_logits(num_classes):
    model, image = make_mixture(num_classes), items(2, 2, 6, 8)
    maps = model(image)
    assert maps.weights.shape == ((2, 2) if num_classes is None else (2, 2, 3))
    close(maps.weights.sum(1), torch.ones_like(maps.weights[:, 0]))
    close(maps.expert_logits, torch.stack([m(image)[1] for m in model.models]))
    for b, c in itertools.product(range(2), range(3)):
        weight = maps.weights[b] if num_classes is None else maps.weights[b, :, c]
        close(maps.logits[b, c], sum(w * part for w, part in zip(weight, maps.expert_logits[:, b, c], strict=True)))
    close(model(image[1:]).logits, maps.logits[1:])  # images do not mix


def test_equal_models_are_their_mixture_and_one_model_is_itself():
    torch.manual_seed(0)
    model, image = Segmenter(4).double(), items(2, 2, 6, 8)
    for models in ([model], [model, model, model]):
        maps = ModelMixture(models, FeatureGate([4] * len(models)).double())(image)
        close(maps.logits, model(image)[1])
        assert not disagreement_maps(maps).experts.any()


def test_frozen_models_leave_the_gate_and_head_to_learn():
    model = make_mixture(3, nn.Conv2d(3, 3, 3, padding=1))
    model.models.requires_grad_(False)
    model(items(2, 2, 6, 8)).logits.square().sum().backward()
    assert all(p.grad is None for p in model.models.parameters())
    assert all((p.grad != 0).any() for part in (model.gate, model.head) for p in part.parameters())
    assert torch.autograd.gradcheck(lambda x: make_mixture()(x).logits, (items(1, 2, 3, 4).requires_grad_(),))


def test_disagreement_maps_by_hand():
    def one_hot(*classes):  # logits (1, C, 1, W)
        return nn.functional.one_hot(torch.tensor(classes), 4).T[None, :, None].double()

    expert_logits = torch.stack([one_hot(0, 1, 2, 0), one_hot(0, 1, 3, 1)])
    found = disagreement_maps(MixtureMaps(one_hot(0, 2, 3, 2), torch.full((1, 2), 0.5), expert_logits))
    assert found.experts[0, 0].tolist() == [False, False, True, True]
    assert found.mixture[:, 0, 0].tolist() == [[False, True, True, True], [False, True, False, True]]
    assert found.new_class[0, 0].tolist() == [False, True, False, True]
    log2 = float(torch.tensor(2.0).double().log())
    torch.testing.assert_close(found.vote_entropy[0, 0], torch.tensor([0, 0, log2, log2]).double())


def test_model_mixture_refuses():
    with pytest.raises(RoutingError, match="no models"):
        ModelMixture([], nn.Identity())
    with pytest.raises(RoutingError, match="models give logits"):
        ModelMixture([Segmenter(4), Segmenter(4, classes=2)], FeatureGate([4, 4]))(torch.zeros(1, 2, 4, 4))
    with pytest.raises(RoutingError, match="gate gives weights"):
        ModelMixture([Segmenter(4)] * 2, FeatureGate([4, 4], 5))(torch.zeros(1, 2, 4, 4))


# Task-level routing


def make_task_layer(selector=None, bank=None, tasks=4, dim=None, **options):
    torch.manual_seed(7)
    bank = bank or StackedFFN(E, D, 5)
    scorer = TaskEmbeddingScorer(tasks, E, 6, dim)
    return MoELayer(scorer, bank, selector=selector or TopK(2), **options).double()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_extracted_network_equals_the_layer_on_its_task(activation, bias, k):
    layer = make_task_layer(TopK(k), StackedFFN(E, D, 5, 6, activation, bias=bias))
    for task, shape in itertools.product(range(4), SHAPES.values()):
        x = items(*shape).requires_grad_()
        want, _ = layer(x, keys={"task": torch.full(shape[:1], task)})
        dense = extract_task(layer, task)
        got = dense(x)
        close(got, want)
        close(grads_of([got], [x])[0], grads_of([want], [x])[0])
    inner = 2 if ACTIVATIONS[activation].gated else 1
    size = k * 5 * (D * inner + 6) + (k * 5 * inner + 6 if bias else 0)
    assert sum(p.numel() for p in dense.parameters()) == size  # this task's experts and nothing else


@given(task=st.integers(0, 3), k=st.integers(1, E), renormalise=st.booleans())
@settings(max_examples=20, deadline=None)
def test_extraction_from_any_modules_and_weighing(task, k, renormalise):
    bank = ModuleBank(nn.Sequential(nn.Linear(D, D), nn.Tanh()) for _ in range(E))
    layer = make_task_layer(TopK(k), bank, weigh=weighing.renormalised if renormalise else weighing.raw)
    x = items(6, D)
    dense = extract_task(layer, task)
    close(dense(x), layer(x, keys={"task": torch.full((6,), task)})[0])
    with torch.no_grad():
        before = dense(x)
        for p in layer.parameters():
            p.add_(1)
    assert torch.equal(dense(x), before)  # copies


def test_all_items_of_a_task_share_their_experts_unless_items_count():
    x, task = items(40, D), torch.arange(40) % 4
    alone = make_task_layer().route(RouteInput(x, keys={"task": task})).dense()
    for t in range(4):  # the same experts; sums over experts may round differently at different places of a batch
        assert torch.equal(alone[task == t] > 0, (alone[t] > 0).expand(10, -1))
        torch.testing.assert_close(alone[task == t], alone[t].expand(10, -1), rtol=1e-6, atol=0)
    layer = make_task_layer(dim=D)
    both = layer.route(RouteInput(x, keys={"task": task})).logits
    scorer = layer.scorer
    want = torch.cat([scorer.embedding(task), x], 1) @ torch.cat([scorer.linear.weight, scorer.item_linear.weight], 1).T
    close(both, want)


def test_only_the_tasks_own_embedding_and_experts_learn():
    layer = make_task_layer(TopK(1))
    y, routing = layer(items(6, D), keys={"task": torch.full((6,), 2)})
    y.square().sum().backward()
    assert (layer.scorer.embedding.weight.grad.abs().amax(1) > 0).tolist() == [False, False, True, False]
    used = torch.zeros(E, dtype=torch.bool).index_fill(0, routing.expert, True)
    assert torch.equal(layer.bank.w_in_EDH.grad.abs().amax((1, 2)) > 0, used)


def test_extraction_refuses_what_is_not_the_tasks_alone():
    for layer in (
        make_task_layer(capacity=FixedCapacity(1.0)),
        make_task_layer(dim=D),
        make_layer(scorer=ZeroScorer(E)),
        make_task_layer(RandomK(1)),
    ):
        with pytest.raises(RoutingError):
            extract_task(layer, 0)
    with pytest.raises(RoutingError, match="4 tasks"):
        extract_task(make_task_layer(), 4)
    with pytest.raises(RoutingError, match="'task' is missing"):
        make_task_layer()(items(3, D))
    with pytest.raises(RoutingError, match="float64"):
        make_task_layer()(items(3, D), keys={"task": torch.zeros(3, dtype=torch.float64)})


@pytest.mark.parametrize("build", [make_shared, lambda: MultiGate(make_gates()), make_task_layer])
def test_checkpointing_changes_neither_routing_nor_gradients(build):
    model, x = build(), items(9, D).requires_grad_()
    keys = {"task": torch.arange(9) % 2}

    def run(x):
        out = model(x, keys=keys)
        out = list(out.values()) if isinstance(out, dict) else [out]
        return [y for y, _ in out], [r.expert for _, r in out], [r.weight for _, r in out]

    inputs = [x, *model.parameters()]
    want, got = run(x), checkpoint(run, x, use_reentrant=False)
    for part in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(want[part], got[part], strict=True))
    for a, b in zip(grads_of(want[0], inputs), grads_of(got[0], inputs), strict=True):
        assert torch.equal(a, b)
