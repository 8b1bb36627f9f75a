"""Attributions add up, ignore what the model ignores, are silent in nodata, and come out the same twice."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from conftest import make_scene
from linear_system import LinearSystem, predictor_of
from torch import nn

from terramoe.data import raster_of
from terramoe.errors import ConfigError, DataError
from terramoe.experiments import Plan, SplitSettings, train_on_scene
from terramoe.experiments.attribution import METHODS, ExplainSettings, attribute, hold_choices
from terramoe.experiments.explain import explain
from terramoe.inference import predict_array
from terramoe.inference.windows import touching
from terramoe.moe import LinearScorer, ModuleBank, MoELayer, TopK
from terramoe.reporting.explain_figures import explanation_figure
from terramoe.systems import Output
from terramoe.systems.mixturers import MixtureRS
from terramoe.training import TrainSettings

captum = pytest.importorskip("captum", reason="the extra 'explain' is not installed")
WEIGHTS = np.array([[1.0, -2.0, 0.5, 0.0], [0.5, 1.0, -1.0, 0.0], [-1.0, 0.25, 2.0, 0.0]])
PIECES = {"patch": 4, "band_group": 1}


@pytest.fixture(scope="module")
def raster(scene):
    return raster_of("made", scene.image, scene.valid)


@pytest.fixture(scope="module")
def linear(scene):
    return predictor_of(LinearSystem(WEIGHTS), scene)


@pytest.fixture(scope="module")
def trained(scene):
    """MambaMoE, a little trained, with windows of 16 pixels."""
    plan = Plan(
        model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2},
        train=TrainSettings(steps=30, steps_per_epoch=10, batch=1, crop=16, learning_rate=1e-2),
        split=SplitSettings(block=8, guard=2),
    )
    return train_on_scene(plan, scene, plan.folds(scene)[0], 0)[0]


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_of_a_linear_model_the_attributions_are_weight_times_value(scene, raster, linear, method):
    settings = ExplainSettings(method=method, steps=4, **PIECES)
    found = explain(linear, raster, row=20, column=30, target=2, settings=settings)
    expected = WEIGHTS[1] * scene.image[:, 20, 30]
    np.testing.assert_allclose(found.by_band, expected, atol=1e-5)
    assert found.by_band[3] == 0
    assert found.score == pytest.approx(expected.sum(), abs=1e-5)
    assert found.baseline == 0
    if method == "integrated-gradients":
        at = (20 - found.box.row, 30 - found.box.column)
        others = np.delete(found.attribution.reshape(4, -1), np.ravel_multi_index(at, found.valid.shape), axis=1)
        assert not others.any()
        assert found.gap == pytest.approx(0, abs=1e-5)


def test_of_a_linear_model_saliency_is_the_absolute_weight(raster, linear):
    found = explain(linear, raster, row=20, column=30, target=1, settings=ExplainSettings(method="saliency"))
    np.testing.assert_allclose(found.by_band, np.abs(WEIGHTS[0]))
    assert np.count_nonzero(found.by_pixel) == 1


def test_grad_cam_weighs_activations_by_their_mean_gradient(scene, raster):
    """One inner convolution of two channels, then a sum: the weights are known."""
    system = LinearSystem(np.eye(3, 2))
    inner = nn.Conv2d(4, 2, 1, bias=False)
    system.conv = nn.Sequential(inner, nn.Conv2d(2, 3, 1, bias=False))
    found = explain(
        predictor_of(system, scene), raster, row=20, column=30, target=1, settings=ExplainSettings(method="grad-cam")
    )
    window = (slice(None), *(slice(start, start + 16) for start in (found.box.row, found.box.column)))
    activations = np.einsum("cb,bhw->chw", inner.weight[:, :, 0, 0].detach().numpy(), scene.image[window])
    slopes = system.conv[1].weight[0, :, 0, 0].detach().numpy() / 256  # of one pixel, averaged over the window
    expected = np.maximum(np.einsum("c,chw->hw", slopes, activations), 0)
    np.testing.assert_allclose(found.attribution[0], np.where(found.valid, expected, 0), atol=1e-6)
    assert found.by_band is None
    with pytest.raises(ConfigError, match=r"no layer 'nothing'.*conv\.1"):
        explain(
            predictor_of(system, scene),
            raster,
            row=20,
            column=30,
            settings=ExplainSettings(method="grad-cam", layer="nothing"),
        )


def test_without_an_inner_convolution_grad_cam_asks_for_a_layer(raster, linear):
    with pytest.raises(ConfigError, match=r"no convolution.*--layer"):
        explain(linear, raster, row=20, column=30, settings=ExplainSettings(method="grad-cam"))
    named = ExplainSettings(method="grad-cam", layer="conv")
    assert explain(linear, raster, row=20, column=30, settings=named).attribution.shape == (1, 16, 16)


@pytest.mark.parametrize("method", METHODS)
def test_nodata_gets_nothing_even_of_a_model_that_reads_it(scene, method):
    spread = predictor_of(LinearSystem(WEIGHTS, spread=True), scene)
    layer = "conv" if method == "grad-cam" else None
    settings = ExplainSettings(method=method, steps=4, layer=layer, **PIECES)
    found = explain(spread, raster_of("made", scene.image, scene.valid), row=3, column=3, target=2, settings=settings)
    assert not found.valid[:3, :3].any()
    assert not found.attribution[:, :3, :3].any()
    assert found.attribution.any()


@pytest.mark.parametrize("place", [{"row": 33, "column": 40}, {"target": 3}])
def test_integrated_gradients_are_complete(raster, trained, place):
    """Within 5 %: the gradient jumps wherever a ReLU opens, so the sum over a path of 100 steps is not exact."""
    found = explain(trained, raster, **place, settings=ExplainSettings(steps=100))
    difference = found.score - found.baseline - found.rerouted
    assert abs(difference) > 0.3
    assert found.attribution.sum() == pytest.approx(difference, rel=0.05)
    assert found.gap == pytest.approx(difference - found.attribution.sum(dtype=np.float64))


class Routed(nn.Module):
    """One item an image: its mean spectrum. The bias of the router prefers expert 0, the image expert 1."""

    def __init__(self):
        super().__init__()
        scorer = LinearScorer(2, 2, bias=True)
        scorer.linear.weight.data = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        scorer.linear.bias.data = torch.tensor([1.0, 0.0])
        self.experts = [nn.Linear(2, 1), nn.Linear(2, 1)]
        for expert, weight, bias in zip(self.experts, ([3.0, 0.0], [1.0, 2.0]), (5.0, -1.0), strict=True):
            expert.weight.data, expert.bias.data = torch.tensor([weight]), torch.tensor([bias])
        self.layer = MoELayer(scorer, ModuleBank(self.experts), selector=TopK(1))

    def forward(self, images):
        return self.layer(images.mean((2, 3)))[0][:, 0]


def test_a_choice_that_changes_on_the_path_is_held_and_told_apart():
    system, image = Routed().eval(), torch.full((1, 2, 2, 2), 2.0)
    settings = ExplainSettings(steps=64)

    def score(module, images):
        return module(images)

    made, held = attribute(system, score, image, 1, settings)
    with torch.no_grad():
        whole, start = float(system(image)), float(system(torch.zeros_like(image)))
    assert made.sum() == pytest.approx(whole - held, abs=1e-4)
    assert held == pytest.approx(-1 / (1 + np.e), abs=1e-5)  # expert 1 at the start, with its probability there
    assert start == pytest.approx(5 * np.e / (1 + np.e), abs=1e-5)  # expert 0
    free = captum.attr.IntegratedGradients(system).attribute(image, n_steps=64)
    assert abs(free.sum() - (whole - start)) > 0.5  # without holding, the jump is lost
    assert isinstance(system.layer.selector, TopK)  # the model itself is as it was


def test_held_choices_repeat_those_of_every_call_of_a_layer():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Routed().layer

        def forward(self, x):
            return self.layer(x)[1].expert.tolist(), self.layer(-x)[1].expert.tolist()

    x = torch.tensor([[3.0, 3.0], [-3.0, -3.0]])
    system = Twice()
    held = hold_choices(system, lambda copied: copied(x))
    assert system(x) == held(x) == held(torch.zeros(2, 2)) == ([1, 0], [0, 1])
    assert system(torch.zeros(2, 2)) == ([0, 0], [0, 0])


SENSORS = (("hsi", 3), ("lidar", 1))


class Several(LinearSystem):
    """Reads all bands of a pixel, even those that ``available`` says are missing, and adds 5 where LiDAR is there."""

    multi_sensor = True

    def forward(self, batch):
        return Output(self.conv(batch["image"]) + 5.0 * batch["available"][:, 1:], {})


@pytest.fixture(scope="module")
def several():
    weights = np.concatenate([WEIGHTS[:, :3], [[3.0], [-2.0], [1.0]]], axis=1)
    generator = np.random.default_rng(1)
    image = generator.normal(size=(4, 24, 24)).astype(np.float32)
    available = np.ones((2, 24, 24), dtype=bool)
    available[1, :, 12:] = False
    available[0, 20:] = False
    scene = make_scene(24, 24)
    predictor = dataclasses.replace(predictor_of(Several(weights), scene), sensors=SENSORS)
    return weights, predictor, image, raster_of("made", image, available.any(0), available), available


@pytest.mark.parametrize("method", ["integrated-gradients", "saliency", "occlusion"])
@pytest.mark.parametrize(("row", "column", "has"), [(5, 5, (1, 1)), (5, 18, (1, 0)), (22, 5, (0, 1))])
def test_a_sensor_gets_the_sum_of_its_bands_and_nothing_where_it_is_missing(several, method, row, column, has):
    weights, predictor, image, raster, available = several
    settings = ExplainSettings(method=method, steps=4, patch=1, band_group=10)
    found = explain(predictor, raster, row=row, column=column, target=1, settings=settings)
    one = np.abs(weights[0]) if method == "saliency" else weights[0] * image[:, row, column]
    expected = {"hsi": has[0] * one[:3].sum(), "lidar": has[1] * one[3]}
    assert found.by_sensor == pytest.approx(expected, abs=1e-5)
    if method != "saliency":
        assert found.baseline == 5 * has[1]  # the LiDAR is as missing at the start of the path
        assert sum(found.by_sensor.values()) == pytest.approx(found.score - found.baseline, abs=1e-5)
    box = found.box
    window = np.s_[:, box.row : box.row + box.height, box.column : box.column + box.width]
    assert np.array_equal(found.available, available[window])
    assert np.array_equal(found.seen, np.repeat(available, [3, 1], axis=0)[window])
    assert not found.attribution[~found.seen].any()


def test_of_a_model_without_sensors_none_is_summed(raster, linear, several):
    found = explain(linear, raster, row=20, column=30, settings=ExplainSettings(method="saliency"))
    assert (found.sensors, found.by_sensor, found.available) == ((), None, None)
    assert found.seen is found.valid
    _, predictor, _, two, _ = several
    cam = ExplainSettings(method="grad-cam", layer="conv")
    mapped = explain(predictor, two, row=5, column=5, settings=cam)
    assert mapped.by_sensor is None
    assert mapped.seen is mapped.valid


def test_of_an_occluded_piece_nothing_is_lost_to_its_nodata(scene, raster, linear):
    """Nine of the sixteen pixels of the piece have no data."""
    settings = ExplainSettings(method="occlusion", patch=4, band_group=1)
    found = explain(linear, raster, row=3, column=3, target=2, settings=settings)
    np.testing.assert_allclose(found.by_band, WEIGHTS[1] * scene.image[:, 3, 3], atol=1e-5)


def test_two_sensors_of_a_routed_system_add_up():
    """MixtureRS, of which most pixels lack a sensor."""
    system = MixtureRS.tiny()
    batch = {name: value[0].numpy() for name, value in MixtureRS.tiny_batch(1, 3).items()}
    predictor = dataclasses.replace(
        predictor_of(system, dataclasses.replace(make_scene(9, 8), image=batch["image"]), overlap=0),
        sensors=(("hsi", 6), ("lidar", 2)),
    )
    quick = ExplainSettings(method="saliency")
    valid = batch["valid"] & batch["available"].any(0)
    image = np.where(valid, batch["image"], 0)
    row, column = np.argwhere(valid & batch["available"][0] & ~batch["available"][1])[0]
    made = raster_of("made", image, valid, batch["available"])
    found = explain(predictor, made, row=row, column=column, settings=ExplainSettings(steps=64))
    assert abs(found.gap) < 0.02 * np.abs(found.attribution).sum()
    assert not found.attribution[~found.seen].any()
    junk = np.where(np.repeat(batch["available"], [6, 2], axis=0), image, 1e6).astype(np.float32)
    seen = [
        explain(predictor, raster_of("made", pixels, valid, batch["available"]), row=row, column=column, settings=quick)
        for pixels in (image, junk)
    ]
    assert np.array_equal(seen[0].attribution, seen[1].attribution)


@pytest.mark.parametrize("method", METHODS)
def test_it_comes_out_the_same_twice_and_leaves_the_model_alone(raster, trained, method):
    before = {name: value.clone() for name, value in trained.system.state_dict().items()}
    settings = ExplainSettings(method=method, steps=8, **PIECES)
    one, two = (explain(trained, raster, row=20, column=30, settings=settings) for _ in range(2))
    assert np.array_equal(one.attribution, two.attribution)
    assert (one.score, one.baseline, one.rerouted) == (two.score, two.baseline, two.rerouted)
    after = trained.system.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    assert all(p.grad is None for p in trained.system.parameters())


def test_the_routing_beside_it_is_that_of_the_map_of_experts(scene, raster, trained):
    whole = predict_array(trained, scene.image, scene.valid)
    for row, column in ((5, 5), (20, 30), (47, 55)):
        found = explain(trained, raster, row=row, column=column, settings=ExplainSettings(method="saliency"))
        at = (row - found.box.row, column - found.box.column)
        for layer, maps in whole.routing.items():
            np.testing.assert_array_equal(found.routing[layer][:, at[0], at[1]], maps[:, row, column])


def test_a_class_is_explained_where_it_is_most_common(scene, raster, trained):
    whole = predict_array(trained, scene.image, scene.valid).probability.argmax(0) + 1
    whole[~scene.valid] = 0
    target = int(np.bincount(whole.ravel())[1:].argmax()) + 1
    found = explain(trained, raster, target=target, settings=ExplainSettings(method="saliency"))

    def pixels(box):
        return (whole[box.row : box.row + 16, box.column : box.column + 16] == target).sum()

    windows = touching(dataclasses.replace(found.box, row=0, column=0, height=48, width=56), 48, 56, 16, 8)
    assert found.box in windows
    assert pixels(found.box) == max(pixels(box) for box in windows)
    assert (found.row, found.column) == (None, None)
    assert found.region.any()
    assert not (found.region & ~found.valid).any()


def test_a_raster_smaller_than_a_window_is_explained_on_its_own_pixels(scene, trained):
    small = raster_of("small", scene.image[:, 10:20, 10:22], scene.valid[10:20, 10:22])
    found = explain(trained, small, row=9, column=11, settings=ExplainSettings(steps=4))
    assert (found.box.row, found.box.column, found.box.height, found.box.width) == (0, 0, 10, 12)
    assert found.attribution.shape == (4, 10, 12)
    assert all(maps.shape == (5, 10, 12) for maps in found.routing.values())


def test_what_cannot_be_explained_is_one_clear_error(scene, raster, linear, monkeypatch):
    cases = [
        (DataError, "outside of 48 x 56", {"row": 48, "column": 0}),
        (DataError, "row 0, column 0 has no data", {"row": 0, "column": 0}),
        (ConfigError, "neither pixel nor class", {}),
        (ConfigError, "neither pixel nor class", {"row": 3}),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message):
            explain(linear, raster, **arguments)
    with pytest.raises(DataError, match="has 2 bands, the model was trained on 4"):
        explain(linear, raster_of("two", scene.image[:2], scene.valid), row=20, column=20)
    never = predictor_of(LinearSystem([[1e3] * 4, [-1e3] * 4, [0] * 4]), scene)
    positive = raster_of("positive", np.abs(scene.image) + 1, scene.valid)
    with pytest.raises(DataError, match="class number 2 is predicted nowhere"):
        explain(never, positive, target=2)
    with pytest.raises(ConfigError, match="no method 'magic'"):
        ExplainSettings(method="magic")
    with pytest.raises(ConfigError, match="steps is 0"):
        ExplainSettings(steps=0)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ConfigError, match=r"captum is missing.*pip install 'terramoe\[explain\]'"):
        explain(linear, raster, row=20, column=30)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [{"row": 20, "column": 30}, {"target": 1}])
def test_the_figure_can_be_drawn(raster, trained, method, place):
    found = explain(trained, raster, **place, settings=ExplainSettings(method=method, steps=4, **PIECES))
    experts = {layer: trained.system.expert_names(layer) for layer in found.routing}
    assert explanation_figure(found, "why", ["a", "b", "c", "d"], experts)[:4] == b"\x89PNG"
