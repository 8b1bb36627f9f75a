"""What is distinctive in SpectralX, and the defects of its released code that ours must not have."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.evaluation import active_parameters, total_parameters
from terramoe.experiments.claims.spectralx import CROP, crops_of, gate_distance, trained_share, two_regions
from terramoe.moe import summarise
from terramoe.systems.spectralx import SpectralX, SpectralXConfig


def make(**changes):
    torch.manual_seed(0)
    return SpectralX(dataclasses.replace(SpectralX.tiny().config, **changes))


def gradient(parameter):
    return 0.0 if parameter.grad is None else float(parameter.grad.abs().max())


def leaves(loss):
    """Every tensor that a loss trains, found in its graph."""
    found, seen, nodes = [], set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    return found


def test_the_defaults_are_the_released_codes():
    config = SpectralXConfig(bands=32, classes=24)
    assert (config.dim, config.depth, config.cell, config.adapted) == (1024, 24, 16, (5, 11, 17, 23))
    assert (config.tokeniser_dim, config.queries_side**2, config.spectral_queries) == (512, 196, 196)
    assert (config.experts, config.top_k, config.bottleneck, config.expert_width) == (4, 2, 256, 32)
    assert (config.noise_floor, config.hidden_share) == (0.1, 0.75)


# ---------------------------------------------------------------- defects of the released code


@pytest.mark.parametrize("phase", ["pretraining", "segmentation"])
def test_the_balance_loss_is_in_the_loss_and_moves_both_routers(phase):
    """The released code comments it out."""
    system, batch = make(), SpectralX.tiny_batch(2, 0)
    system.set_pretraining(phase == "pretraining")
    losses = system.pretrain_loss(batch) if phase == "pretraining" else system.loss(system(batch), batch)
    losses["balance"].backward()
    for adapter in system.adapters.values():
        for router in adapter.mixture.scorer.scorers.values():
            assert gradient(router.scorer.linear.weight) > 0
            assert gradient(router.noise.weight) > 0
    assert make(balance=0.0).loss(system(batch), batch)["balance"] == 0


def test_the_task_alone_moves_both_routers_of_every_block():
    for top_k in (1, 2):
        system, batch = make(top_k=top_k), SpectralX.tiny_batch(2, 0)
        system.loss(system(batch), batch)["task"].backward()
        for adapter in system.adapters.values():
            for router in adapter.mixture.scorer.scorers.values():
                assert gradient(router.scorer.linear.weight) > 0


def test_small_gates_keep_their_weight_and_their_gradient():
    """The released code sets gates below 1e-4 to zero, in place."""
    adapter = make(experts=2, top_k=2).adapters["0"].eval()
    x, keys = torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.bool)
    for router in adapter.mixture.scorer.scorers.values():
        router.scorer.linear = torch.nn.Linear(8, 2)
        with torch.no_grad():
            router.scorer.linear.weight.zero_()
            router.scorer.linear.bias.copy_(torch.tensor([0.0, -11.0]))
    y, routing = adapter(x, keys, 2)
    small = 1 / (1 + math.exp(11))
    assert small < 1e-4
    torch.testing.assert_close(routing.weight.view(2, 4)[1], torch.full((4,), small), rtol=1e-4, atol=0)
    with torch.no_grad():
        adapter.mixture.bank.b_out_ED[1] += 20.0  # in log space a small gate may decide
    loud, _ = adapter(x, keys, 2)
    assert (loud - y).abs().max() > 1e-2
    loud.sum().backward()
    gate = adapter.mixture.scorer.scorers["spatial"].scorer.linear
    assert gradient(gate.bias) > 0


@pytest.mark.parametrize("phase", ["pretraining", "segmentation"])
def test_everything_that_is_trained_is_registered(phase):
    """The released code makes a list of modality shifts that no module knows of."""
    system, batch = make(), SpectralX.tiny_batch(2, 0)
    system.set_pretraining(phase == "pretraining")
    losses = system.pretrain_loss(batch) if phase == "pretraining" else system.loss(system(batch), batch)
    registered = {id(p) for p in system.parameters()}
    trained = leaves(sum(losses.values()))
    assert {id(p) for p in trained} <= registered
    assert any(p is system.shift for p in trained)
    sum(losses.values()).backward()
    assert (system.shift.grad.abs().amax(1) > 0).all()  # one shift for each attribute
    assert "shift" in system.state_dict()


@pytest.mark.parametrize("phase", ["pretraining", "segmentation"])
def test_the_tokeniser_learns_in_both_stages(phase):
    """The released code makes its parameters without gradients."""
    system, batch = make(), SpectralX.tiny_batch(2, 0)
    system.set_pretraining(phase == "pretraining")
    if phase == "pretraining":
        system.pretrain_loss(batch)["reconstruction"].backward()
    else:
        system.loss(system(batch), batch)["task"].backward()
    stuck = [name for name, p in system.tokeniser.named_parameters() if gradient(p) == 0]
    assert stuck == []


def test_routers_do_not_start_in_a_tie():
    """The released code starts them at zero: in evaluation all tokens then go to the same two adapters."""
    system = make().eval()
    routing = system(SpectralX.tiny_batch(4, 0)).routings["block 0"]
    assert (routing.load() > 0).sum() > 2
    assert (routing.logits.std(1) > 0).all()


# ---------------------------------------------------------------- the three trainings


def test_stage_one_does_not_move_the_body_and_the_body_does_not_move_stage_one():
    system, batch = make(), SpectralX.tiny_batch(2, 0)
    system.set_pretraining(True)
    losses = system.pretrain_loss(batch)
    assert set(losses) == {"body", "reconstruction", "balance"}
    body = {id(p) for p in system.body.parameters()}
    assert {id(p) for p in leaves(losses["body"])} <= body | {id(p) for p in system.decoder.parameters()}
    assert not {id(p) for p in leaves(losses["reconstruction"])} & body
    losses["body"].backward()
    assert all(gradient(p) > 0 for p in system.body.blocks.parameters() if p.ndim > 1)
    assert all(p.requires_grad for p in system.body.parameters())


@pytest.mark.parametrize("tune", ["adapter", "head", "full"])
def test_what_stage_two_trains(tune):
    system, batch = make(tune=tune), SpectralX.tiny_batch(2, 0)
    output = system(batch)
    sum(system.loss(output, batch).values()).backward()
    parts = {name for name, p in system.named_parameters() if gradient(p) > 0}
    moved = {name.partition(".")[0] for name in parts}
    expected = {"head": {"head"}, "full": {"head", "body", "tokeniser", "shift"}}
    assert moved == expected.get(tune, {"head", "tokeniser", "shift", "adapters", "refine"})
    assert len(output.routings) == (2 if tune == "adapter" else 0)
    share = trained_share(system)
    assert share == {"head": 0, "full": 1}.get(tune, share)
    assert 0.2 < share < 0.8 or tune != "adapter"


def test_at_the_papers_size_few_parameters_are_trained():
    with torch.device("meta"):
        system = SpectralX(SpectralXConfig(bands=32, classes=24))
    assert trained_share(system) < 0.06


def test_hidden_patches_are_not_seen():
    """What stands in a hidden patch is what is to be predicted, and changes no prediction."""
    system, image = make(hidden_share=0.5).eval(), SpectralX.tiny_batch(1, 0)["image"]
    valid = torch.ones(1, 14, 11, dtype=torch.bool)
    shown, predicted = [], []
    system.tokeniser.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[1]))
    system.rebuild.register_forward_hook(lambda module, inputs, output: predicted.append(output))

    def reconstruct(values):
        torch.manual_seed(3)
        return system._reconstruct(values, valid)[0]

    loss = reconstruct(image)
    hidden = ~shown[0]
    assert 0.3 < hidden.float().mean() < 0.7
    torch.testing.assert_close(loss, (predicted[0] - image).abs().movedim(1, -1)[hidden].mean())
    assert reconstruct(torch.where(hidden[:, None], 1e3, image)) > 100 * loss
    assert torch.equal(predicted[0], predicted[1])
    reconstruct(torch.where(hidden[:, None], image, image + 1))
    assert not torch.equal(predicted[0], predicted[2])


# ---------------------------------------------------------------- tokens and routing


def test_each_half_of_the_tokens_asks_its_own_router_over_one_bank():
    system, batch = make().eval(), SpectralX.tiny_batch(2, 0)
    before = system(batch).routings["block 0"]
    tokens = 4 * 3 + 4  # 14 x 11 pixels in cells of 4, and four spectral tokens
    assert before.num_items == 2 * tokens
    assert before.keys["task"].view(2, tokens).sum(1).tolist() == [4, 4]
    with torch.no_grad():
        system.adapters["0"].mixture.scorer.scorers["spectral"].scorer.linear.weight.neg_()
    after = system(batch).routings["block 0"]
    spectral = before.keys["task"] == 1
    assert torch.equal(before.logits[~spectral], after.logits[~spectral])
    torch.testing.assert_close(after.logits[spectral], -before.logits[spectral])


def test_a_shared_bank_is_counted_once():
    system, batch = make().eval(), SpectralX.tiny_batch(2, 0)
    active = active_parameters(system, summarise(system(batch).routings))
    bank = sum(p.numel() for p in system.adapters["0"].mixture.bank.parameters())
    assert active == total_parameters(system) - 2 * bank // 2  # two blocks; two of four adapters


def test_the_map_of_experts_is_that_of_the_spatial_tokens():
    system, batch = make().eval(), SpectralX.tiny_batch(2, 0)
    output = system(batch)
    places = output.layouts["block 1"].to_pixels(torch.arange(32))
    assert places.shape == (2, 14, 11)
    assert places[0, 0, 0] == 0
    assert places[1, 0, 0] == 16
    assert places[0, 13, 10] == 11
    assert places[1, 4, 0] == 16 + 3


def test_wavelengths_matter_and_may_be_unknown():
    batch, system = SpectralX.tiny_batch(1, 0), make().eval()
    other = make(wavelengths=(900.0, 560.0, 660.0, 830.0, 0.0)).eval()
    other.load_state_dict(system.state_dict())
    assert not torch.allclose(system(batch).prediction, other(batch).prediction)
    assert make(wavelengths=()).eval()(batch).prediction.isfinite().all()


def test_the_picked_feature_is_one_place_and_its_choice_learns():
    refine = make().refine
    x, low = torch.randn(1, 6, 16), torch.randn(1, 9, 12)
    valid, low_valid = torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 9, dtype=torch.bool)
    y = refine(x, valid, low, low_valid)
    best = (refine.queries @ refine.key(low)[0].T).argmax(1)
    unused = [i for i in range(9) if i not in best.tolist()]
    changed = low.clone()
    changed[:, unused] *= 0.99  # still not the best places
    torch.testing.assert_close(refine(x, valid, changed, low_valid), y)
    y.sum().backward()
    assert gradient(refine.queries) > 0
    low_valid[:, best] = False
    assert not torch.allclose(refine(x, valid, low, low_valid), y)


def test_a_window_without_data_is_finite_and_not_routed():
    system, batch = make().eval(), SpectralX.tiny_batch(2, 0)
    batch["valid"][1] = False
    output = system(batch)
    assert output.prediction.isfinite().all()
    assert not output.routings["block 0"].valid().view(2, -1)[1].any()
    batch["valid"][:] = False
    system.set_pretraining(True)
    losses = system.pretrain_loss(batch)
    assert losses["body"] == losses["reconstruction"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "top_k must be in 1..4"),
        ({"adapted": (0, 2)}, "adapted must name blocks 0..1"),
        ({"wavelengths": (500.0,)}, "wavelengths must be"),
        ({"tune": "all"}, "tune must be"),
        ({"cell": 3}, "an even cell"),
        ({"refine_queries": 0}, "use at least 1 of each"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


# ---------------------------------------------------------------- the claim


def test_region_b_is_no_neighbour_of_what_trains():
    scene = two_regions()
    assert set(np.unique(scene.domains[scene.official == 1])) == {1}
    assert set(np.unique(scene.domains[scene.official == 3])) == {2}
    rows = [np.flatnonzero((scene.official == kind).any(1)) for kind in (1, 3)]
    assert rows[1].min() - rows[0].max() == CROP // 2 + 1
    crops = crops_of(scene.image, scene.official == 3)
    assert crops.shape[1:] == (32, CROP, CROP)
    assert len(crops) >= 4


def test_equal_gates_are_at_no_distance_and_opposite_ones_at_one():
    system = make(experts=2, top_k=1).eval()
    crops = SpectralX.tiny_batch(2, 0)["image"]
    for adapter in system.adapters.values():
        for router in adapter.mixture.scorer.scorers.values():
            router.scorer.linear = torch.nn.Linear(8, 2)
            torch.nn.init.zeros_(router.scorer.linear.weight)
            with torch.no_grad():
                router.scorer.linear.bias.copy_(torch.tensor([5.0, -5.0]))
    assert gate_distance(system, crops) == pytest.approx(0, abs=1e-6)
    for adapter in system.adapters.values():
        with torch.no_grad():
            adapter.mixture.scorer.scorers["spectral"].scorer.linear.bias.neg_()
    assert gate_distance(system, crops) == pytest.approx(1)
