"""Prediction by patches: each pixel from its own neighbourhood, whatever the windows, and without missing sensors."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from terramoe.data import Normaliser, raster_of
from terramoe.errors import ConfigError
from terramoe.inference import Predictor, predict_array, predict_tiles
from terramoe.moe import All, LinearScorer, ModuleBank, MoELayer
from terramoe.nets import patches_of
from terramoe.systems import Output, System

GENERATOR = np.random.default_rng(3)
SENSORS = (("optical", 2), ("lidar", 1))


@dataclass(frozen=True)
class Config:
    bands: tuple[int, ...]
    classes: int
    patch: int


class PatchSystem(System):
    """Two heads on the flattened patch behind a router; a pixel without its LiDAR gets another bias."""

    Config = Config
    card = None
    multi_sensor = True

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.config = config
        width = 3 * config.patch**2
        heads = ModuleBank(nn.Linear(width, config.classes) for _ in range(2))
        self.layer = MoELayer(LinearScorer(width, 2), heads, selector=All())

    def forward(self, batch):
        patches = patches_of(batch, self.config.patch)
        y, routing = self.layer(patches.values.flatten(1), mask=patches.routed)
        y = y + patches.present[:, 1:]
        return Output(patches.to_image(y), {"heads": routing}, {"heads": patches.layout()})

    def loss(self, output, batch): ...

    @classmethod
    def tiny(cls): ...

    @classmethod
    def tiny_batch(cls, images, seed): ...

    @classmethod
    def dense_twin(cls, config, equal="compute"): ...

    @classmethod
    def scaled(cls, config, experts, top_k): ...

    def expert_names(self, layer): ...


def make_predictor(window=8, patch=3):
    normaliser = Normaliser((0.0,) * 3, (1.0,) * 3, "none")
    system = PatchSystem(Config((2, 1), 4, patch)).eval()
    return Predictor("patches", system, normaliser, (1, 2, 3, 4), tuple("abcd"), window, 0, SENSORS)


def make_image(height=21, width=18):
    valid = GENERATOR.random((height, width)) > 0.1
    image = GENERATOR.normal(size=(3, height, width)).astype(np.float32)
    return np.where(valid, image, np.float32(0)), valid


def whole(predictor, image, valid, available=None):
    """The oracle: the scene as one batch."""
    if available is None:
        available = np.ones((2, *valid.shape), dtype=bool)
    batch = {"image": image, "valid": valid, "available": available}
    with torch.no_grad():
        output = predictor.system({key: torch.from_numpy(value)[None] for key, value in batch.items()})
    probability = torch.softmax(output.prediction[0].double(), 0).numpy()
    return np.where(valid, probability, 0), output.routings["heads"].top_expert().numpy()


@pytest.mark.parametrize("patch", [1, 3, 7])
@pytest.mark.parametrize("window", [5, 8, 40])
def test_windows_do_not_show(patch, window):
    predictor = make_predictor(window, patch)
    image, valid = make_image()
    found = predict_array(predictor, image, valid)
    probability, experts = whole(predictor, image, valid)
    np.testing.assert_allclose(found.probability, probability, atol=1e-6)
    assert np.array_equal(found.valid, valid)
    assert found.routing["heads"][0][valid].tolist() == experts.tolist()
    assert (found.routing["heads"][:, ~valid] == -1).all()


@pytest.mark.parametrize("tile", [1, 7, 16])
def test_tiles_give_the_same_bits(tile):
    predictor = make_predictor()
    image, valid = make_image()
    expected = predict_array(predictor, image, valid)
    raster = raster_of("made", image, valid)
    for part in predict_tiles(predictor, raster, tile=tile):
        rows = slice(part.box.row, part.box.row + part.box.height)
        columns = slice(part.box.column, part.box.column + part.box.width)
        assert np.array_equal(part.probability, expected.probability[:, rows, columns])
        assert np.array_equal(part.routing["heads"], expected.routing["heads"][:, rows, columns])


def test_hidden_pixels_are_nodata_for_their_neighbours():
    predictor = make_predictor()
    image, valid = make_image()
    hide = GENERATOR.random(valid.shape) > 0.7
    found = predict_array(predictor, image, valid, hide=hide).probability
    junk = np.where(hide, np.float32(1e6), image)
    again = predict_array(predictor, junk, valid, hide=hide).probability
    assert np.array_equal(found, again)
    seen = valid & ~hide
    expected, _ = whole(predictor, np.where(seen, image, 0), seen)
    np.testing.assert_allclose(found[:, seen], expected[:, seen], atol=1e-6)


def test_a_missing_sensor_is_zero_and_said_to_be_missing():
    predictor = make_predictor()
    image, valid = make_image()
    found = predict_array(predictor, image, valid, missing=["lidar"]).probability
    without = image.copy()
    without[2] = 0
    available = np.stack([valid, np.zeros_like(valid)])
    np.testing.assert_allclose(found, whole(predictor, without, valid, available)[0], atol=1e-6)
    junk = image.copy()
    junk[2] = 1e6
    assert np.array_equal(found, predict_array(predictor, junk, valid, missing=["lidar"]).probability)


def test_a_sensor_may_miss_pixels_only():
    predictor = make_predictor(patch=1)
    image, valid = make_image()
    available = np.stack([GENERATOR.random(valid.shape) > 0.5, GENERATOR.random(valid.shape) > 0.5]) & valid
    found = predict_array(predictor, image, valid, available=available)
    assert np.array_equal(found.valid, available.any(0))  # a pixel that no sensor has is nodata
    for combination in (available[0] & available[1], available[0] & ~available[1], ~available[0] & available[1]):
        shown = image * np.repeat(available, [2, 1], axis=0)
        expected, _ = whole(predictor, shown, available.any(0), available)
        np.testing.assert_allclose(found.probability[:, combination], expected[:, combination], atol=1e-6)


@pytest.mark.parametrize(
    ("missing", "message"),
    [(["radar"], "no sensor radar.*sensors:.*optical"), (["lidar", "optical"], "every sensor is taken away")],
)
def test_sensors_that_cannot_be_taken_away(missing, message):
    image, valid = make_image()
    with pytest.raises(ConfigError, match=message):
        predict_array(make_predictor(), image, valid, missing=missing)
