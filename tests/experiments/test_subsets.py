"""Every subset of sensors: scored on the same pixels, equal to a by-hand count, in record, card and report."""

import dataclasses

import numpy as np
import pytest
import torch
from linear_system import LinearSystem, predictor_of

from terramoe.data import Scene, Split
from terramoe.data.splits import block_ids
from terramoe.experiments.subsets import measures_of, score_subsets, subset_grid, subsets_of
from terramoe.systems import Output

SIZE = 24
SENSORS = (("hsi", 2), ("lidar", 1), ("radar", 1))


class Answering(LinearSystem):
    """Class scores = weights @ bands, for several sensors."""

    multi_sensor = True

    def forward(self, batch):
        return Output(self.conv(torch.where(batch["valid"][:, None], batch["image"], 0)), {})


def make_scene(available=None):
    """Four classes: the first band tells 1 and 2 from the rest, LiDAR odd from even; radar repeats LiDAR, weaker."""
    generator = np.random.default_rng(0)
    labels = generator.integers(1, 5, size=(SIZE, SIZE))
    high, odd = np.where(labels > 2, 1.0, -1.0), np.where(labels % 2, 1.0, -1.0)
    image = np.stack([high, 0 * high, odd, 0.5 * odd]).astype(np.float32)
    valid = np.ones((SIZE, SIZE), bool)
    names = tuple("abcd")
    return Scene("made", image, valid, labels, (1, 2, 3, 4), names, sensors=SENSORS, available=available)


def make_predictor(scene):
    weights = [[-2, 0, 1, 1], [-2, 0, -1, -1], [2, 0, 1, 1], [2, 0, -1, -1]]
    return dataclasses.replace(predictor_of(Answering(weights), scene, overlap=0), sensors=scene.sensors)


def make_split(scene):
    test = np.zeros((SIZE, SIZE), bool)
    test[:, 8:] = True
    return Split("made", 0, ~test, test, np.zeros_like(test), block_ids(test.shape, 8))


def accuracies(scene):
    found = score_subsets(make_predictor(scene), scene, make_split(scene))
    assert all(counts.sum() == SIZE * (SIZE - 8) for counts in found.values())
    return {present: counts.sum(0).trace() / counts.sum() for present, counts in found.items()}


def test_subsets_are_all_but_none():
    assert subsets_of(["a", "b"]) == [("a", "b"), ("a",), ("b",)]
    assert len(subsets_of("abcd")) == 15


def test_each_subset_knows_what_its_sensors_tell():
    found = accuracies(make_scene())
    half = {("hsi",), ("lidar",), ("radar",), ("lidar", "radar")}
    assert set(found) == half | {("hsi", "lidar"), ("hsi", "radar")}
    for present, accuracy in found.items():
        if present in half:
            assert 0.3 < accuracy < 0.7
        else:
            assert accuracy == 1


def test_a_pixel_without_any_sensor_left_is_an_error():
    available = np.ones((3, SIZE, SIZE), bool)
    available[0, :12] = False
    found = accuracies(make_scene(available))
    assert found[("hsi", "lidar")] == pytest.approx(0.5, abs=0.3)
    assert found[("hsi",)] < 0.5 * 0.7


def test_a_model_of_one_sensor_has_no_subsets():
    scene = make_scene()
    predictor = predictor_of(LinearSystem([[1, 0, 0, 0], [0, 1, 0, 0]]), scene)
    assert score_subsets(predictor, scene, make_split(scene)) == {}


def test_the_grid_pools_runs_block_by_block():
    scene = make_scene()
    counts = score_subsets(make_predictor(scene), scene, make_split(scene))
    blocks = np.unique(make_split(scene).blocks[make_split(scene).test])
    grid = subset_grid({"ours": [(counts, blocks)] * 2, "twin": [(counts, blocks)]})
    assert list(grid) == subsets_of(["hsi", "lidar", "radar"])[1:]
    ours, twin = grid[("lidar",)]["ours"], grid[("lidar",)]["twin"]
    assert (ours.value, ours.low, ours.high) == (twin.value, twin.low, twin.high)  # the same blocks twice say no more
    assert ours.low < ours.value < ours.high
    assert measures_of(counts)["accuracy, lidar only"] == pytest.approx(ours.value)
    assert subset_grid({"one sensor": [({}, blocks)]}) == {}
