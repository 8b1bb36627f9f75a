"""What is distinctive in AMoFE: attribute experts, the soft router with texture; and the measures of its claim."""

import dataclasses

import numpy as np
import pytest
import torch

from terramoe.data.normalise import fit_normaliser
from terramoe.data.worlds.fusion import three_regimes
from terramoe.errors import ConfigError
from terramoe.experiments.claims.amofe import expert_weights, near_borders
from terramoe.inference import Predictor, predict_array
from terramoe.moe import objectives
from terramoe.systems.amofe import AMoFE, AMoFEConfig, EdgeExpert, SpatialExpert, SpectralExpert


def make(**changes):
    torch.manual_seed(0)
    return AMoFE(dataclasses.replace(AMoFE.tiny().config, **changes))


def tiny_batch(**changes):
    return {**AMoFE.tiny_batch(2, 0), **changes}


def patch(valid=None):
    """Items (3, 5, 5, 8 + 1) with validity in the last channel."""
    x = torch.randn(3, 5, 5, 8)
    valid = torch.ones(3, 5, 5) if valid is None else valid
    return torch.cat([x * valid[..., None], valid[..., None]], dim=-1)


def test_every_patch_uses_all_three_attributes_with_weights_that_sum_to_one():
    output = make()(tiny_batch())
    weights = output.routings["attributes"].dense()
    assert make().expert_names("attributes") == ("spectral", "spatial", "edge")
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))


def test_the_mixture_is_what_the_layer_itself_would_give():
    system, batch = make(), tiny_batch(valid=torch.ones(2, 9, 8, dtype=torch.bool))
    fed = {}
    system.attributes.bank.experts[0].register_forward_pre_hook(lambda m, inputs: fed.update(x=inputs[0]))
    output = system(batch)
    expected, _ = system.attributes(fed["x"], output.routings["attributes"])
    torch.testing.assert_close(output.extras["contributions"].sum(0), expected)


def test_the_spectral_expert_does_not_see_where_a_pixel_is_and_the_others_do():
    torch.manual_seed(0)
    x, order = patch(), torch.randperm(25)

    def shuffled(y):
        return y.flatten(1, 2)[:, order].view_as(y)

    spectral = SpectralExpert(8, 8)
    torch.testing.assert_close(spectral(shuffled(x)), shuffled(spectral(x)))
    for other in (SpatialExpert(8, 8), EdgeExpert(8, 8)):
        assert not torch.allclose(other(shuffled(x)), shuffled(other(x)), atol=1e-3)


def test_the_spectral_expert_weighs_channels_by_the_whole_patch():
    torch.manual_seed(0)
    expert, x = SpectralExpert(8, 8), patch()
    changed = x.clone()
    changed[:, 0, 0, :-1] += 3
    moved = (expert(changed) - expert(x)).abs().amax((0, 3))
    assert (moved > 0).all()


def test_the_spatial_expert_reaches_three_pixels():
    torch.manual_seed(0)
    expert = SpatialExpert(8, 8)
    x = torch.cat([torch.randn(1, 9, 9, 8), torch.ones(1, 9, 9, 1)], dim=-1)
    changed = x.clone()
    changed[:, 4, 4, :-1] += 3
    rows, columns = (expert(changed) - expert(x))[0].abs().amax(-1).gt(1e-7).nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 7, 1, 7)


def test_the_edge_expert_sees_no_flat_field_and_its_filters_are_fixed():
    torch.manual_seed(0)
    expert = EdgeExpert(8, 8)
    flat = torch.cat([torch.ones(1, 5, 5, 8), torch.ones(1, 5, 5, 1)], dim=-1)
    torch.testing.assert_close(expert(flat), expert(torch.cat([7 * flat[..., :-1], flat[..., -1:]], dim=-1)))
    assert {name.split(".")[0] for name in expert.state_dict()} == {"enter", "mix", "leave"}


@pytest.mark.parametrize("kind", [SpectralExpert, SpatialExpert, EdgeExpert])
def test_experts_learn_nothing_from_invalid_pixels(kind):
    torch.manual_seed(0)
    expert = kind(8, 8)
    valid = (torch.rand(3, 5, 5) > 0.3).float()
    x = patch(valid)
    y = expert(x)
    junk = x.clone()
    junk[..., :-1] += 100 * (1 - valid[..., None])
    keep = valid.bool()
    torch.testing.assert_close(expert(junk)[keep], y[keep])


@pytest.mark.parametrize("kind", [SpectralExpert, SpatialExpert, EdgeExpert])
def test_nodata_looks_like_the_outside_of_a_patch(kind):
    torch.manual_seed(0)
    expert, valid = kind(8, 8), torch.zeros(3, 5, 5)
    valid[:, 1:4, 1:4] = 1
    x = patch(valid)
    torch.testing.assert_close(expert(x)[:, 1:4, 1:4], expert(x[:, 1:4, 1:4]))


def test_the_router_sees_texture_beside_the_pooled_features():
    batch = tiny_batch()
    rough = {**batch, "image": 3 * batch["image"]}
    for texture in (True, False):
        system = make(texture=texture).eval()
        with torch.no_grad():
            system.attributes.scorer.first.weight[:, : system.config.width] = 0  # blind to the features
        same = torch.allclose(system(batch).routings["attributes"].logits, system(rough).routings["attributes"].logits)
        assert same != texture


def test_decorrelation_is_the_objective_of_what_experts_contribute_and_trains_router_and_experts():
    system, batch = make(decorrelation=0.5), tiny_batch()
    output = system(batch)
    loss = system.loss(output, batch)["decorrelation"]
    torch.testing.assert_close(loss, 0.5 * objectives.output_correlation(output.extras["contributions"]))
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in system.attributes.scorer.parameters())
    assert all(expert.leave.weight.grad.abs().max() > 0 for expert in system.attributes.bank.experts)


@pytest.mark.parametrize("changes", [{"decorrelation": 0.0}, {"experts": ("edge",), "top_k": 1}])
def test_without_a_second_expert_or_a_weight_there_is_no_penalty(changes):
    system, batch = make(**changes), tiny_batch()
    assert system.loss(system(batch), batch).keys() == {"task"}


@pytest.mark.parametrize("sensor", [0, 1])
def test_what_stands_in_a_missing_sensor_changes_nothing(sensor):
    system, batch = make().eval(), tiny_batch()
    gone = torch.ones_like(batch["available"])
    gone[:, sensor] = False
    other = batch["image"].clone()
    other[:, (slice(0, 6), slice(6, 8))[sensor]] = 1e6
    found = [system({**batch, "image": image, "available": gone}).prediction for image in (batch["image"], other)]
    assert torch.equal(*found)
    assert not torch.equal(system({**batch, "available": torch.ones_like(gone)}).prediction, found[0])


@pytest.mark.parametrize("sensor", [0, 1])
def test_nobody_reads_a_missing_sensor(sensor):
    system, batch = make().eval(), tiny_batch()
    batch["available"] = torch.ones_like(batch["available"])
    batch["available"][:, sensor] = False
    before = system(batch).prediction
    torch.nn.init.constant_(system.enter[sensor].bias, 5.0)
    assert torch.equal(system(batch).prediction, before)


def test_both_sensors_read_each_other():
    """A change of one sensor's neighbour pixel reaches what the other sensor's pixel became, in both directions."""
    system = make()
    a, b = torch.randn(1, 25, 8, requires_grad=True), torch.randn(1, 25, 8, requires_grad=True)
    a_after, b_after = system.attention(a, b)
    assert torch.autograd.grad(a_after[0, 3].sum(), b, retain_graph=True)[0][0, 20].abs().max() > 0
    assert torch.autograd.grad(b_after[0, 3].sum(), a)[0][0, 20].abs().max() > 0


def test_a_prediction_depends_on_its_patch_alone():
    system = make().eval()
    image = torch.randn(1, 8, 9, 8)
    changed = image.clone()
    changed[..., 0, 0] += 5
    moved = (system({"image": image}).prediction != system({"image": changed}).prediction).any(1)[0]
    near = torch.zeros(9, 8, dtype=torch.bool)
    near[:3, :3] = True
    assert moved[near].all()
    assert not moved[~near].any()


def test_a_sparse_router_is_a_setting_and_the_twin_is_plain():
    config = AMoFEConfig(bands=(24, 4), classes=7)
    assert AMoFE.scaled(config, 4, 2).experts == ("spectral", "spatial", "edge", "spectral")
    twin = AMoFE.dense_twin(config)
    assert (twin.num_experts, twin.top_k) == (1, 1)
    assert AMoFE(twin).expert_names("attributes") == ("plain",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (6, 2, 1)}, "two numbers"),
        ({"patch": 1}, "at least 3"),
        ({"width": 7}, "multiple of heads"),
        ({"heads": 0}, "multiple of heads"),
        ({"experts": ("magic",)}, "some of spectral, spatial, edge"),
        ({"top_k": 4}, "top_k must be in 1..3"),
        ({"decorrelation": -0.1}, "0 or more"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_borders_are_where_another_class_is_near():
    labels = np.ones((7, 9), dtype=int)
    labels[:, 6:] = 2
    assert near_borders(labels)[3].tolist() == [False] * 4 + [True] * 4 + [False]
    assert not near_borders(np.ones((4, 4), dtype=int)).any()


def test_expert_weights_of_the_claim_are_those_of_the_routing_maps():
    scene, _ = three_regimes(48)
    every = np.ones(scene.labels.shape, dtype=bool)
    torch.manual_seed(0)
    system = AMoFE(dataclasses.replace(AMoFE.tiny().config, bands=(24, 4), classes=7)).eval()
    predictor = Predictor(
        "amofe", system, fit_normaliser(scene.image, every, "standard"), scene.class_values, scene.class_names, 32, 0,
        scene.sensors,
    )  # fmt: skip
    hide = np.zeros_like(every)
    hide[10:20, 5:9] = True
    weights = expert_weights(predictor, scene, hide)
    maps = predict_array(predictor, scene.image, scene.valid, hide=hide).routing["attributes"]
    seen = ~hide
    np.testing.assert_allclose(weights.sum(0)[seen], 1, rtol=1e-5)
    np.testing.assert_array_equal(weights.argmax(0)[seen], maps[0][seen])
    np.testing.assert_allclose(weights.max(0)[seen], maps[1][seen], rtol=1e-5)
