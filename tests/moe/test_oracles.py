"""The recipes against independent implementations: the same weights give the same outputs and gradients."""

import numpy as np
import pytest
import torch

from terramoe.moe import FixedCapacity, LinearScorer, MoELayer, RouteInput, StackedFFN, TopK, objectives, weighing
from terramoe.moe.capacity import AdaptiveCapacity
from terramoe.moe.recipes import RECIPES

D, E, H, T = 16, 8, 24, 40


def items(seed=0):
    return torch.randn(T, D, generator=torch.Generator().manual_seed(seed))


def randomise(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def copy_gated(bank, gate_up, down):
    """Weights (E, 2H, D) and (E, D, H), applied as ``W x``, into a bank that applies ``x W``."""
    with torch.no_grad():
        bank.w_in_EDH.copy_(gate_up.mT)
        bank.w_out_EHD.copy_(down.mT)


def assert_same(ours, theirs, pairs, x):
    """Outputs, input gradients, and the gradients of (our parameter, their parameter, transform of theirs)."""
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y1, y2 = ours(x1), theirs(x2)
    torch.testing.assert_close(y1, y2, rtol=1e-4, atol=1e-5)
    direction = torch.linspace(-1, 1, y1.numel()).view_as(y1)
    (y1 * direction).sum().backward()
    (y2 * direction).sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad, rtol=1e-4, atol=1e-5)
    for mine, other, transform in pairs:
        torch.testing.assert_close(mine.grad, transform(other.grad), rtol=1e-4, atol=1e-5)


def same(grad):
    return grad


def swapped(grad):
    return grad.mT


def config(kind, **more):
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, kind)(hidden_size=D, num_experts_per_tok=2, **more)
    made._experts_implementation = "eager"
    return made


def test_mixtral():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    theirs = randomise(mixtral.MixtralSparseMoeBlock(config("MixtralConfig", intermediate_size=H, num_local_experts=E)))
    ours = RECIPES["mixtral"].build(D, E, H)
    copy_gated(ours.bank, theirs.experts.gate_up_proj, theirs.experts.down_proj)
    ours.scorer.linear.weight.data.copy_(theirs.gate.weight)
    assert_same(
        lambda x: ours(x)[0],
        lambda x: theirs(x[None])[0],
        [
            (ours.scorer.linear.weight, theirs.gate.weight, same),
            (ours.bank.w_in_EDH, theirs.experts.gate_up_proj, swapped),
            (ours.bank.w_out_EHD, theirs.experts.down_proj, swapped),
        ],
        items(),
    )


def test_olmoe():
    olmoe = pytest.importorskip("transformers.models.olmoe.modeling_olmoe")
    theirs = randomise(olmoe.OlmoeSparseMoeBlock(config("OlmoeConfig", intermediate_size=H, num_experts=E)))
    assert not theirs.gate.norm_topk_prob
    ours = RECIPES["olmoe"].build(D, E, H)
    copy_gated(ours.bank, theirs.experts.gate_up_proj, theirs.experts.down_proj)
    ours.scorer.linear.weight.data.copy_(theirs.gate.weight)
    pairs = [(ours.scorer.linear.weight, theirs.gate.weight, same)]
    assert_same(lambda x: ours(x)[0], lambda x: theirs(x[None])[0], pairs, items())


def test_qwen2_moe_is_the_layout_of_time_moe():
    qwen = pytest.importorskip("transformers.models.qwen2_moe.modeling_qwen2_moe")
    sizes = {
        "moe_intermediate_size": H,
        "shared_expert_intermediate_size": H,
        "num_experts": E,
        "norm_topk_prob": False,
    }
    theirs = randomise(qwen.Qwen2MoeSparseMoeBlock(config("Qwen2MoeConfig", **sizes)))
    ours = RECIPES["time-moe"].build(D, E, H)
    copy_gated(ours.layer.bank, theirs.experts.gate_up_proj, theirs.experts.down_proj)
    shared = theirs.shared_expert
    gate_up = torch.cat([shared.gate_proj.weight, shared.up_proj.weight])
    copy_gated(ours.shared.bank, gate_up[None], shared.down_proj.weight[None])
    ours.layer.scorer.linear.weight.data.copy_(theirs.gate.weight)
    ours.gate.linear.weight.data.copy_(theirs.shared_expert_gate.weight)
    pairs = [
        (ours.layer.scorer.linear.weight, theirs.gate.weight, same),
        (ours.gate.linear.weight, theirs.shared_expert_gate.weight, same),
    ]
    assert_same(lambda x: ours(x)[0], lambda x: theirs(x[None])[0], pairs, items())


def test_deepseek_v3_routes_with_bias_and_groups():
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    sizes = {"moe_intermediate_size": H, "n_routed_experts": E, "num_local_experts": E, "n_shared_experts": 1}
    made = config("DeepseekV3Config", n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True, **sizes)
    theirs = randomise(deepseek.DeepseekV3MoE(made))
    theirs.gate.e_score_correction_bias.copy_(torch.linspace(-0.4, 0.4, E))
    ours = RECIPES["deepseek-v3"].build(D, E, H, groups=4, limit=2, scale=2.5)
    copy_gated(ours.bank, theirs.experts.gate_up_proj, theirs.experts.down_proj)
    ours.scorer.linear.weight.data.copy_(theirs.gate.weight)
    unbiased = ours.route(RouteInput(items())).expert
    ours.selector.bias.copy_(theirs.gate.e_score_correction_bias)
    assert not torch.equal(ours.route(RouteInput(items())).expert, unbiased)  # the bias matters here
    pairs = [(ours.scorer.linear.weight, theirs.gate.weight, same)]
    assert_same(lambda x: ours(x)[0], lambda x: theirs(x[None])[0] - theirs.shared_experts(x), pairs, items())


@pytest.mark.parametrize("capacity", [64, 3])
def test_switch_with_and_without_dropped_items(capacity):
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    transformers = pytest.importorskip("transformers")
    made = transformers.SwitchTransformersConfig(
        d_model=D, d_ff=H, num_experts=E, expert_capacity=capacity, dropout_rate=0.0, router_jitter_noise=0.0
    )
    theirs = randomise(switch.SwitchTransformersSparseMLP(made)).eval()
    ours = RECIPES["switch"].build(D, E, H, jitter=0.0)
    # their capacity is absolute; ours the same number of places for T items
    ours.capacity = FixedCapacity(capacity * E / T) if capacity < T else AdaptiveCapacity()
    experts = [theirs.experts[f"expert_{e}"] for e in range(E)]
    with torch.no_grad():
        ours.bank.w_in_EDH.copy_(torch.stack([e.wi.weight.T for e in experts]))
        ours.bank.w_out_EHD.copy_(torch.stack([e.wo.weight.T for e in experts]))
        ours.scorer.scorer.linear.weight.copy_(theirs.router.classifier.weight)
    assert bool(ours.route(RouteInput(items())).dropped() > 0) == (capacity == 3)
    pairs = [(ours.scorer.scorer.linear.weight, theirs.router.classifier.weight, same)]
    assert_same(lambda x: ours(x)[0], lambda x: theirs(x[None])[0], pairs, items())


@pytest.mark.parametrize("factor", [float(E), 0.5])
def test_gshard_top2_with_capacity(factor):
    library = pytest.importorskip("mixture_of_experts")
    theirs = library.MoE(
        D, num_experts=E, hidden_dim=H, activation=torch.nn.GELU, second_policy_train="all",
        capacity_factor_train=factor, loss_coef=1.0,
    )  # fmt: skip
    theirs = randomise(theirs).train()
    ours = RECIPES["gshard"].build(D, E, H, random_second=False)
    # they count places of T * factor / E per choice of an item, rounded down, at least 4; ours for all pairs
    places = max(4, int(min(T, T * factor / E)))
    ours.capacity = FixedCapacity(places * E / (2 * T))
    with torch.no_grad():
        ours.bank.w_in_EDH.copy_(theirs.experts.w1)
        ours.bank.w_out_EHD.copy_(theirs.experts.w2)
        ours.bank.b_in_EH.zero_()
        ours.bank.b_out_ED.zero_()
        ours.scorer.linear.weight.copy_(theirs.gate.w_gating.T)
    routing = ours.route(RouteInput(items()))
    assert bool(routing.dropped() > 0) == (factor == 0.5)
    pairs = [
        (ours.scorer.linear.weight, theirs.gate.w_gating, swapped),
        (ours.bank.w_in_EDH, theirs.experts.w1, same),
    ]
    assert_same(lambda x: ours(x)[0], lambda x: theirs(x[None])[0][0], pairs, items())
    torch.testing.assert_close(objectives.gshard_balance(routing), theirs(items()[None])[1])


def test_st_moe_gating_weights_and_both_losses():
    library = pytest.importorskip("st_moe_pytorch")
    theirs = library.MoE(
        D, num_experts=E, gating_top_n=2, threshold_train=1e-9, capacity_factor_train=float(E),
        balance_loss_coef=1.0, router_z_loss_coef=1.0,
    ).train()  # fmt: skip
    x = items()
    layer = MoELayer(
        LinearScorer(D, E), StackedFFN(E, D, H), selector=TopK(2), weigh=weighing.renormalised,
    )  # fmt: skip
    layer.scorer.linear.weight.data.copy_(theirs.gate.to_gates.weight)
    routing = layer.route(RouteInput(x))
    _, combine, balance, z = theirs.gate(x[None])
    torch.testing.assert_close(combine[0].sum(-1), routing.dense(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(objectives.gshard_balance(routing), balance)
    torch.testing.assert_close(objectives.router_z(routing), z)


def test_switch_losses_of_transformers():
    switch = pytest.importorskip("transformers.models.switch_transformers.modeling_switch_transformers")
    layer = MoELayer(LinearScorer(D, E), StackedFFN(E, D, H), selector=TopK(1))
    routing = layer.route(RouteInput(items()))
    one = routing.expert.view(1, T, 1)
    theirs = switch.load_balancing_loss_func(routing.probs[None], one)
    torch.testing.assert_close(objectives.switch_balance(routing), theirs)
    torch.testing.assert_close(objectives.router_z(routing), switch.router_z_loss_func(routing.logits[None]))


def test_mixtral_balance_loss_is_k_times_ours():
    """Trap 2: four scales for one name; ours is 1 at balance for every k."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    layer = MoELayer(LinearScorer(D, E), StackedFFN(E, D, H), selector=TopK(2))
    routing = layer.route(RouteInput(items()))
    theirs = mixtral.load_balancing_loss_func((routing.logits,), num_experts=E, top_k=2)
    torch.testing.assert_close(objectives.switch_balance(routing) * 2, theirs)


def test_expert_choice_in_numpy():
    layer = RECIPES["expert-choice"].build(D, E, H)
    x = items()
    y, routing = layer(x)
    scores = routing.probs.detach().numpy()
    capacity = int(np.ceil(T * 2 / E))
    expected = np.zeros((T, D), dtype=np.float32)
    for e in range(E):
        chosen = np.argsort(-scores[:, e], kind="stable")[:capacity]
        expected[chosen] += scores[chosen, e, None] * layer.bank.run(e, x[chosen]).detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
