"""What is distinctive in HyperTransXNet, and the defects of its released code that ours must not have."""

import dataclasses
from collections import Counter

import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.moe.objectives import switch_balance
from terramoe.nets.dynamic_conv import DynamicDepthwiseConv
from terramoe.systems import build_control
from terramoe.systems.hypertransxnet import (
    Halving,
    HybridUnit,
    HyperTransXNet,
    HyperTransXNetConfig,
    TokenEnhancer,
    masked_mean,
)
from terramoe.tasks import pixel_cross_entropy


def make(**changes):
    torch.manual_seed(0)
    return HyperTransXNet(dataclasses.replace(HyperTransXNet.tiny().config, **changes))


def router_gradients(system):
    batch = HyperTransXNet.tiny_batch(2, 0)
    system.loss(system(batch), batch)["task"].backward()
    weights = [unit.moe.scorer.linear.weight for unit in system.units]
    return [0.0 if w.grad is None else float(w.grad.abs().max()) for w in weights]


def scalars(module):
    return sum(p.numel() for p in module.parameters())


def test_the_defaults_are_the_papers():
    config = HyperTransXNetConfig(bands=200, classes=16)
    assert (config.patch, config.reduced, config.width, config.blocks) == (15, 30, 64, 4)
    assert (config.experts, config.top_k, config.heads) == (4, 1, 8)
    system = HyperTransXNet(config)
    assert [unit.project.out_channels for unit in system.units] == [64, 128, 256, 512]
    assert system.classify.in_features == 1024


def test_the_size_is_the_released_ones_but_for_the_parts_that_differ():
    """Measured there: 13.34 million for 200 bands and 16 classes. Its kernels come from two full layers, C to C to 9 C;
    the token enhancer and the masks are missing."""
    system = HyperTransXNet(HyperTransXNetConfig(bands=200, classes=16))
    ours = 0
    theirs = 0
    for unit in system.units:
        width = unit.project.out_channels
        ours += scalars(unit.local) + scalars(unit.enhance) + scalars(unit.filters)
        theirs += width * width + width + 9 * width * width + 9 * width
    assert scalars(system) - ours + theirs == pytest.approx(13.34e6, abs=0.005e6)


@pytest.mark.parametrize("weigh", ["raw", "ones"])
def test_top_1_keeps_the_probability_so_that_the_router_learns(weigh):
    """The released code renormalises it to 1: the router's gradient is 0. "ones" is that control."""
    gradients = router_gradients(make(weigh=weigh))
    assert all(g > 1e-6 for g in gradients) if weigh == "raw" else gradients == [0.0, 0.0]


@pytest.mark.parametrize("weigh", ["raw", "renormalised"])
def test_top_2_routers_learn_however_they_weigh(weigh):
    system = make(top_k=2, weigh=weigh)
    assert all(g > 1e-6 for g in router_gradients(system))
    weights = system(HyperTransXNet.tiny_batch(2, 0)).routings["block1"].dense()
    total = weights.sum(1)[weights.any(1)]
    assert (total < 0.999).all() if weigh == "raw" else torch.allclose(total, torch.ones_like(total))


def test_the_gate_scales_what_the_expert_adds():
    system = make(top_k=1).eval()
    unit = system.units[0]
    x, valid, routed = torch.randn(3, 8, 5, 5), torch.ones(3, 5, 5).bool(), torch.ones(3).bool()
    out, routing = unit(x, valid, routed)
    mixed = []
    hook = unit.enhance.register_forward_hook(lambda m, i, y: mixed.append(y))
    unit(x, valid, routed)
    hook.remove()
    for patch in range(3):
        expert = unit.moe.bank.experts[int(routing.probs[patch].argmax())]
        added = expert(mixed[0][patch : patch + 1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)[0]
        torch.testing.assert_close(out[patch], x[patch] + routing.probs[patch].max() * added)


@pytest.mark.parametrize("top_k", [1, 2])
def test_only_chosen_experts_are_computed(top_k):
    """The released code computes all four for every patch."""
    system, batch = make(top_k=top_k).eval(), HyperTransXNet.tiny_batch(2, 0)
    rows, calls = Counter(), Counter()
    for unit in system.units:
        for number, expert in enumerate(unit.moe.bank.experts):

            def count(module, inputs, output, number=number, unit=unit):
                rows[unit, number] += len(inputs[0])
                calls[unit, number] += 1

            expert.register_forward_hook(count)
    routings = system(batch).routings.values()
    for unit, routing in zip(system.units, routings, strict=True):
        computed = [rows[unit, e] for e in range(4)]
        assert computed == routing.load().tolist()
        assert sum(computed) == top_k * int(batch["valid"].sum())
        assert all(calls[unit, e] == (computed[e] > 0) for e in range(4))


def test_an_expert_that_no_patch_chose_is_not_called():
    system, batch = make().eval(), HyperTransXNet.tiny_batch(1, 0)
    with torch.no_grad():
        for unit in system.units:
            unit.moe.scorer.linear.bias.copy_(torch.tensor([0.0, 99.0, 0.0, 0.0]))
    called = []
    for unit in system.units:
        for number, expert in enumerate(unit.moe.bank.experts):
            expert.register_forward_hook(lambda m, i, o, number=number: called.append(number))
    system(batch)
    assert called == [1, 1]


@pytest.mark.parametrize("frequency", [("channels",), ("width",), ("height", "width")])
def test_the_mask_starts_as_identity_and_is_learned(frequency):
    """In the released code the transform is followed by its inverse: the identity, for ever."""
    masked, identity = make(frequency=frequency), make(frequency=())
    found = identity.load_state_dict({k: v for k, v in masked.state_dict().items() if "filters" not in k})
    assert not found.missing_keys
    batch = HyperTransXNet.tiny_batch(2, 0)
    assert torch.equal(masked(batch).prediction, identity(batch).prediction)
    optimizer = torch.optim.Adam(masked.parameters(), lr=0.05)
    masked.loss(masked(batch), batch)["task"].backward()
    optimizer.step()
    for unit in masked.units:
        for learned_mask in unit.filters:
            assert (learned_mask.mask(5) - 1).abs().max() > 0.01
    identity.load_state_dict({k: v for k, v in masked.state_dict().items() if "filters" not in k})
    assert (masked(batch).prediction - identity(batch).prediction).abs().max() > 1e-3


def test_an_alternating_pattern_is_taken_out_by_a_mask_that_does_so():
    learned_mask = make(frequency=("width",)).units[0].filters[0]
    with torch.no_grad():
        learned_mask.change[:, -1, 0] = -1  # gain 0 at half a cycle per pixel
    pattern = (-1.0) ** torch.arange(6)
    x = torch.randn(1, 8, 6, 1).expand(1, 8, 6, 6)
    torch.testing.assert_close(learned_mask(x + pattern), x, atol=1e-5, rtol=0)


def test_every_block_halves_the_side_and_doubles_the_channels():
    x, valid = torch.randn(1, 4, 15, 15), torch.ones(1, 15, 15).bool()
    sides = []
    for width in (4, 8, 16, 32):
        x, valid = Halving(width)(x, valid)
        sides.append((x.shape[1], x.shape[-1], valid.shape[-1]))
    assert sides == [(8, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)]


def test_a_cell_is_valid_if_it_sees_a_valid_one():
    valid = torch.zeros(1, 5, 5).bool()
    valid[0, 0, 0] = True
    _, halved = Halving(4)(torch.randn(1, 4, 5, 5), valid)
    assert halved.nonzero().tolist() == [[0, 0, 0]]


def test_the_token_enhancer_is_squeezed_and_residual():
    enhancer = TokenEnhancer(32)
    assert enhancer.squeeze.out_channels == 4
    torch.nn.init.zeros_(enhancer.expand.weight)
    torch.nn.init.zeros_(enhancer.expand.bias)
    x = torch.randn(2, 32, 5, 5)
    assert torch.equal(enhancer(x, torch.ones(2, 5, 5).bool()), x)


def test_the_kernel_is_made_for_each_patch():
    unit = make().units[0]
    assert isinstance(unit.local, DynamicDepthwiseConv)
    kernels = unit.local.kernel(torch.randn(2, 8, 5, 5))
    assert not torch.allclose(kernels[0], kernels[1])


def test_a_patch_is_routed_as_a_whole_by_the_mean_of_its_valid_pixels():
    valid = torch.tensor([[[True, False], [True, True]]])
    x = torch.tensor([[[[3.0, 0.0], [6.0, 9.0]]]])
    assert masked_mean(x, valid).tolist() == [[6.0]]
    assert masked_mean(torch.zeros(1, 1, 2, 2), ~valid & valid).tolist() == [[0.0]]
    output = make()(batch := HyperTransXNet.tiny_batch(2, 0))
    assert {r.num_items for r in output.routings.values()} == {int(batch["valid"].sum())}


def test_a_prediction_depends_on_its_patch_alone():
    system, batch = make().eval(), HyperTransXNet.tiny_batch(1, 0)
    batch["valid"][:] = True
    before = system(batch).prediction
    batch["image"][0, :, 0, 0] += 5
    changed = (system(batch).prediction != before).any(1)[0]
    assert not changed[3:].any()
    assert not changed[:, 3:].any()
    assert changed[:3, :3].all()


def test_the_reduction_before_cutting_equals_the_one_after():
    """Patches of a batch as training draws them, and the same patches cut from the image."""
    system, batch = make().eval(), HyperTransXNet.tiny_batch(1, 0)
    window = {key: value[..., 2:7, 2:7] for key, value in batch.items()}
    window["valid"][0, 2, 2] = batch["valid"][0, 4, 4] = True
    whole = system(batch).prediction[0, :, 4, 4]
    window["wanted"] = torch.zeros(1, 5, 5).bool()
    window["wanted"][0, 2, 2] = True
    torch.testing.assert_close(system(window).prediction[0, :, 2, 2], whole)


def test_the_loss_is_cross_entropy_and_a_hundredth_of_the_mean_balance():
    system, batch = make(), HyperTransXNet.tiny_batch(2, 0)
    output = system(batch)
    losses = system.loss(output, batch)
    torch.testing.assert_close(losses["task"], pixel_cross_entropy(output.prediction, batch["mask"]))
    first, second = (switch_balance(r) for r in output.routings.values())
    torch.testing.assert_close(losses["balance"], 0.01 * (first + second) / 2)
    assert set(make(balance=0.0).loss(output, batch)) == {"task"}


def test_the_wide_twin_is_one_expert_with_the_width_of_all():
    config = HyperTransXNetConfig(bands=3, classes=2)
    wide = HyperTransXNet.dense_twin(config, equal="parameters")
    assert (wide.experts, wide.top_k, wide.multiplier) == (1, 1, 4)
    assert HyperTransXNet.dense_twin(config).experts == 1
    two = dataclasses.replace(config, experts=6, top_k=4, weigh="renormalised")
    wide = HyperTransXNet.dense_twin(two, equal="parameters")
    assert (wide.experts, wide.multiplier) == (3, 2)
    assert scalars(build_control(HyperTransXNet, config, "dense").units[0]) < scalars(HybridUnit(config, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 4}, "patch must be odd"),
        ({"width": 9}, "multiple of heads"),
        ({"heads": 0}, "multiple of heads"),
        ({"top_k": 5}, r"top_k must be in 1\.\.4"),
        ({"weigh": "magic"}, "one of raw, renormalised, ones"),
        ({"weigh": "renormalised"}, "constant 1 for top_k 1"),
        ({"frequency": ("depth",)}, "channels, height, width"),
        ({"balance": -1.0}, "balance must be 0 or more"),
        ({"blocks": 0}, "at least 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)
