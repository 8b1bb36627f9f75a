"""Drift by sensor: what a sensor does not see is no data of it, and each is judged by itself."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_scene
from linear_system import LinearSystem, predictor_of

from terramoe.data import raster_of
from terramoe.errors import DataError
from terramoe.experiments.scene_drift import scene_drift
from terramoe.systems import Output

SENSORS = (("hsi", 3), ("lidar", 1))
WEIGHTS = [[1.0, -2.0, 0.5, 1.0], [0.5, 1.0, -1.0, -1.0], [-1.0, 0.25, 2.0, 0.5]]
RIGHT = np.arange(112) >= 80  # has no LiDAR


class Several(LinearSystem):
    """Reads the bands of the sensors that are there."""

    multi_sensor = True

    def forward(self, batch):
        seen = batch["available"].repeat_interleave(torch.tensor([3, 1]), dim=1)
        return Output(self.conv(torch.where(seen, batch["image"], 0)), {})


@pytest.fixture(scope="module")
def scene():
    return make_scene(height=96, width=112)


@pytest.fixture(scope="module")
def model(scene):
    return dataclasses.replace(predictor_of(Several(WEIGHTS), scene), sensors=SENSORS)


def raster(scene, change=lambda image: image, lidar=~RIGHT):
    available = np.stack([scene.valid, scene.valid & lidar])
    return raster_of("made", change(scene.image.copy()), scene.valid, available)


def add(bands, amount, columns=slice(None)):
    def change(image):
        image[bands, :, columns] += amount
        return image

    return change


def test_only_the_sensor_that_changed_rings(scene, model):
    for bands, expected in ((slice(3, 4), "lidar"), (slice(0, 3), "hsi")):
        found = scene_drift(model, raster(scene), raster(scene, add(bands, 2.0)))
        assert [name for name, sensor in found.sensors.items() if sensor.drifted] == [expected]
        assert (found.bands < 0.05).tolist() == [expected == "hsi"] * 3 + [expected == "lidar"]
        assert found.drifted
    same = scene_drift(model, raster(scene), raster(scene))
    assert not same.drifted
    assert not any(sensor.drifted for sensor in same.sensors.values())


def test_what_a_sensor_does_not_see_changes_nothing(scene, model):
    expected = scene_drift(model, raster(scene), raster(scene))
    junk = scene_drift(model, raster(scene), raster(scene, add(3, 1e6, RIGHT)))
    assert junk.tests == expected.tests
    assert junk.sensors == expected.sensors
    np.testing.assert_array_equal(junk.bands, expected.bands)
    np.testing.assert_array_equal(junk.shares, expected.shares)
    lidar = junk.sensors["lidar"]
    assert lidar.reference == lidar.new == pytest.approx((scene.valid & ~RIGHT).sum() / scene.valid.sum())


def test_a_missing_sensor_is_not_compared_but_the_others_are(scene, model):
    gone = raster(scene, add(slice(0, 3), 2.0), lidar=np.zeros_like(RIGHT))
    for pair in ((raster(scene), gone), (gone, raster(scene))):
        found = scene_drift(model, *pair)
        assert found.sensors["lidar"].values is None
        assert not found.sensors["lidar"].drifted
        assert np.isnan(found.bands[3])
        assert found.sensors["hsi"].drifted
    nothing = raster_of("none", scene.image, scene.valid, np.zeros((2, *scene.valid.shape), dtype=bool))
    with pytest.raises(DataError, match="no pixel is valid"):
        scene_drift(model, raster(scene), nothing)


def test_a_model_without_sensors_has_none(scene):
    plain = predictor_of(LinearSystem(WEIGHTS), scene)
    image = raster_of("made", scene.image, scene.valid)
    found = scene_drift(plain, image, image)
    assert found.sensors == {}
    assert not found.drifted
    assert found.bands.shape == (4,)
