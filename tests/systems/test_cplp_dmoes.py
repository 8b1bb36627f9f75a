"""What is distinctive in CPLP-DMoEs: the mixture of bands, the gate over fusions, candidates; and its claim's scene."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from terramoe.data.worlds.fusion import xor_fusion
from terramoe.errors import ConfigError
from terramoe.experiments.claims.cplp_dmoes import GUARD, few_labels
from terramoe.systems.cplp_dmoes import BandMixture, CPLPDMoEs, CPLPDMoEsConfig, SensorNetwork
from terramoe.tasks.partial_labels import partial_label_loss


def make(**changes):
    torch.manual_seed(0)
    return CPLPDMoEs(dataclasses.replace(CPLPDMoEs.tiny().config, **changes))


def tiny_batch(**changes):
    return {**CPLPDMoEs.tiny_batch(2, 0), **changes}


def gate_gradient(system):
    return [p.grad.abs().max().item() for p in system.fusion.scorer.parameters()]


def test_the_experts_are_six_fusions_of_which_two_are_used():
    config = CPLPDMoEsConfig(bands=(144, 1), classes=15)
    assert (config.patch, config.width, config.heads, config.experts, config.top_k) == (11, 64, 4, 6, 2)
    names = CPLPDMoEs.tiny().expert_names("fusion")
    assert names == ("concat", "sum", "product", "gated", "attention", "bilinear")


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_task_trains_the_gate(top_k):
    """A single choice whose weight is normalised to 1 would leave the gate without gradient."""
    system, batch = make(top_k=top_k), tiny_batch()
    system.loss(system(batch), batch)["task"].backward()
    assert gate_gradient(system)[0] > 0


@pytest.mark.parametrize("bands", [slice(0, 6), slice(6, 7)])
def test_the_gate_sees_both_sensors(bands):
    system, batch = make().eval(), tiny_batch()
    changed = batch["image"].clone()
    changed[:, bands] += 1
    before, after = (system({**batch, "image": image}).routings["fusion"] for image in (batch["image"], changed))
    assert not torch.allclose(before.logits, after.logits)


def test_the_gate_is_noisy_in_training_only():
    system, batch = make(), tiny_batch()
    assert not torch.equal(system(batch).routings["fusion"].logits, system(batch).routings["fusion"].logits)
    system.eval()
    assert torch.equal(system(batch).routings["fusion"].logits, system(batch).routings["fusion"].logits)


def test_weights_of_a_patch_sum_to_one():
    routing = make()(tiny_batch()).routings["fusion"]
    torch.testing.assert_close(routing.dense().sum(1), torch.ones(routing.num_items))


def test_entropy_is_high_over_the_batch_and_low_for_a_patch():
    """A balance that looked at one of the two only would be satisfied by an undecided gate, or by a single expert."""
    system, batch = make(entropy_weight=0.5), tiny_batch()
    output = system(batch)
    p = output.routings["fusion"].probs
    losses = system.loss(output, batch)
    mean, each = torch.special.entr(p.mean(0)).sum(), torch.special.entr(p).sum(1).mean()
    torch.testing.assert_close(losses["balance"], 0.5 * (math.log(6) - mean))
    torch.testing.assert_close(losses["certainty"], 0.5 * each)


def test_equal_band_weights_are_a_plain_convolution():
    torch.manual_seed(0)
    mixture = BandMixture(bands=5, width=6, heads=3)
    for parameter in mixture.gate.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(4, 5, 3, 3)
    y, weights = mixture(x, torch.ones(4, 3, 3, dtype=torch.bool))
    torch.testing.assert_close(weights, torch.full((4, 3, 5), 0.2))
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, mixture.maps.flatten(0, 1)[:, :, None, None]))


def test_each_head_weighs_the_bands_by_the_mean_spectrum_of_what_is_seen():
    torch.manual_seed(0)
    mixture = BandMixture(bands=5, width=6, heads=3)
    seen = torch.rand(4, 3, 3) > 0.4
    x = torch.where(seen[:, None], torch.randn(4, 5, 3, 3), 0)
    _, weights = mixture(x, seen)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 3))
    assert not torch.allclose(weights[:, 0], weights[:, 1])
    spectrum = torch.stack([image[:, where].mean(1) for image, where in zip(x, seen, strict=True)])
    pixel, one = spectrum[:, :, None, None], torch.ones(4, 1, 1, dtype=torch.bool)
    torch.testing.assert_close(mixture(pixel, one)[1], weights)


def test_bands_are_all_in_use_by_every_head():
    assert (make()(tiny_batch()).extras["band_weights"] > 0).all()


def test_a_sensor_that_sees_nothing_gives_one_constant():
    torch.manual_seed(0)
    network = SensorNetwork(8, depth=1)
    nothing = torch.zeros(2, 5, 5, dtype=torch.bool)
    a, b = network(torch.randn(2, 8, 5, 5), nothing)
    assert torch.equal(a, b)


def test_what_stands_in_a_missing_sensor_changes_nothing():
    system, batch = make().eval(), tiny_batch()
    gone = batch["available"].clone()
    gone[:, 1], gone[:, 0] = False, True
    other = batch["image"].clone()
    other[:, 6] = 1e6
    found = [system({**batch, "image": image, "available": gone}) for image in (batch["image"], other)]
    assert torch.equal(found[0].prediction, found[1].prediction)
    present = {**batch, "available": torch.ones_like(gone)}
    assert not torch.equal(system({**present, "image": other}).prediction, system(present).prediction)


def test_a_prediction_depends_on_its_patch_alone():
    system = make().eval()
    image = torch.randn(1, 7, 9, 8)
    changed = image.clone()
    changed[..., 0, 0] += 5
    moved = (system({"image": image}).prediction != system({"image": changed}).prediction).any(1)[0]
    near = torch.zeros(9, 8, dtype=torch.bool)
    near[:3, :3] = True
    assert moved[near].all()
    assert not moved[~near].any()


@pytest.mark.parametrize("pseudo", ["candidates", "hard"])
def test_patches_without_label_train_and_labelled_ones_do_not_count_as_such(pseudo):
    system, batch = make(pseudo=pseudo), tiny_batch()
    output = system(batch)
    assert system.loss(output, batch)["pseudo"] > 0
    labelled = {**batch, "mask": batch["mask"].clamp_min(0)}
    assert system.loss(output, labelled)["pseudo"] == 0


def test_without_pseudo_labels_there_is_no_such_loss():
    system, batch = make(pseudo="none"), tiny_batch()
    assert system.loss(system(batch), batch).keys() == {"task", "balance", "certainty"}


def test_hard_labels_are_the_likeliest_class_alone():
    system, batch = make(pseudo="hard", pseudo_weight=2.0), tiny_batch(mask=torch.full((2, 9, 8), -1))
    output = system(batch)
    logits = output.extras["logits"]
    likeliest = logits == logits.amax(1, keepdim=True)
    expected = 2 * partial_label_loss(logits, likeliest, torch.ones(len(logits), dtype=torch.bool))
    torch.testing.assert_close(system.loss(output, batch)["pseudo"], expected)


def test_candidates_do_not_punish_what_they_leave_open():
    """Where two classes are alike likely, a hard label chooses one of them; candidates keep both."""
    logits = torch.tensor([[2.0, 1.99, -9.0]], requires_grad=True)
    system = make()
    output = dataclasses.replace(
        system(tiny_batch()), extras={"logits": logits, "fused": torch.ones(1, 8), "pixel": torch.tensor([0])}
    )
    routing = dataclasses.replace(output.routings["fusion"], mask=torch.tensor([True]))
    output = dataclasses.replace(output, routings={"fusion": routing})
    found = {}
    for pseudo in ("candidates", "hard"):
        system.config = dataclasses.replace(system.config, pseudo=pseudo)
        (found[pseudo],) = torch.autograd.grad(system._pseudo(output, torch.full((1, 1, 1), -1)), logits)
    assert found["candidates"][0, 1].abs() < 1e-4
    assert found["hard"][0, 1] > 0.05


def test_the_twin_is_a_network_that_can_do_more_than_a_linear_map():
    config = CPLPDMoEsConfig(bands=(144, 1), classes=15)
    twin = CPLPDMoEs.dense_twin(config)
    assert twin.experts == twin.top_k == 1
    # Of width D = 64 the six fusions have 48,000 parameters and the gate 1,536; a hidden unit takes 3 D + 1.
    assert twin.dense_hidden == round((48_000 / 3 + 1_536 - 64) / 193) == 91
    assert CPLPDMoEs.dense_twin(config, equal="parameters").dense_hidden == round((48_000 - 64) / 193)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (6,)}, "two numbers"),
        ({"patch": 4}, "odd"),
        ({"width": 10}, "multiple"),
        ({"heads": 0}, "at least 1"),
        ({"fusions": ("magic",)}, "some of concat"),
        ({"fusions": ()}, "some of concat"),
        ({"top_k": 7}, "top_k must be in 1..6"),
        ({"dense_hidden": 8}, "top_k must be in 1..1"),
        ({"pseudo": "soft"}, "candidates, hard or none"),
        ({"pseudo_weight": -1.0}, "0 or more"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_few_labels_keeps_training_away_from_the_test_and_leaves_the_rest_unlabelled():
    scene = few_labels(xor_fusion(48), labels=3)
    train, test = scene.official == 1, scene.official == 3
    assert np.bincount(scene.labels[train], minlength=7)[1:].tolist() == [3] * 6
    assert 0.2 < test.mean() < 0.5
    a, b = np.argwhere(train), np.argwhere(test)
    assert np.abs(a[:, None] - b[None]).max(2).min() > GUARD
    assert np.array_equal(few_labels(xor_fusion(48), labels=3).official, scene.official)
