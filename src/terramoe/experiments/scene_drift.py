"""Is a new image drawn as the reference was? Drift of routing, of features, of sensors and bands, seen by a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from terramoe.data import Raster
from terramoe.data.splits import block_ids
from terramoe.errors import DataError
from terramoe.evaluation import Drift, band_drift, class_shares, feature_drift, load_drift
from terramoe.inference import Predictor, predict_array

BLOCK = 16  # pixels; unit of all tests


@dataclass(frozen=True)
class SensorDrift:
    """One sensor, on the pixels that have it.

    Attributes:
        values: test of all its bands together; None where one of the images has too little of it.
        reference, new: share of the image's valid pixels that have it.
        drifted: the test or a band of its rings.
    """

    values: Drift | None
    reference: float
    new: float
    drifted: bool


@dataclass(frozen=True)
class SceneDrift:
    """What was found.

    Attributes:
        tests: "routing LAYER" and "features" (the model's class probabilities). They see a missing sensor, too.
        bands: p-value of each band, corrected for their number; NaN where its sensor could not be compared.
        shares: (K,) of the classes in the new image, from the model's probabilities, if only the shares changed.
        sensors: by name, where the model knows them.
        drifted: any test, sensor or band rings.
    """

    tests: dict[str, Drift]
    bands: np.ndarray
    shares: np.ndarray
    sensors: dict[str, SensorDrift]
    drifted: bool


@dataclass(frozen=True)
class _Seen:
    values: np.ndarray  # (N, bands) of valid pixels
    available: np.ndarray  # (N, sensors) bool
    probability: np.ndarray  # (N, K)
    blocks: np.ndarray  # (N,)
    loads: dict[str, np.ndarray]  # (blocks, E) by layer


def scene_drift(
    predictor: Predictor, reference: Raster, new: Raster, *, level: float = 0.05, seed: int = 0
) -> SceneDrift:
    """Compare two rasters of the model's bands; neither needs labels.

    The bands of each sensor are compared on the pixels that have the sensor. Their p-values are corrected within the
    sensor (Holm) and for the number of sensors (Bonferroni).

    Args:
        level: share of false alarms of each test.

    Raises:
        DataError: other bands than the model's, or fewer than two blocks of ``BLOCK`` pixels with data.
    """
    old, now = _see(predictor, reference), _see(predictor, new)
    tests = {
        f"routing {layer}": load_drift(load, now.loads[layer], level=level, seed=seed)
        for layer, load in old.loads.items()
    }
    tests["features"] = feature_drift(old.probability, now.probability, old.blocks, now.blocks, level=level, seed=seed)
    if not predictor.sensors:
        bands, sensors = band_drift(old.values, now.values, old.blocks, now.blocks), {}
    else:
        bands, sensors = _by_sensor(predictor, old, now, level, seed)
    drifted = any(test.drifted for test in tests.values()) or any(sensor.drifted for sensor in sensors.values())
    drifted = drifted or bool((bands < level).any())
    return SceneDrift(tests, bands, class_shares(now.probability, old.probability.mean(0)), sensors, drifted)


def _by_sensor(
    predictor: Predictor, old: _Seen, now: _Seen, level: float, seed: int
) -> tuple[np.ndarray, dict[str, SensorDrift]]:
    """The p-values of all bands, and every sensor."""
    bands, sensors = np.full(predictor.bands, np.nan), {}
    first = 0
    for number, (name, count) in enumerate(predictor.sensors):
        own, first = slice(first, first + count), first + count
        has = [seen.available[:, number] for seen in (old, now)]
        values = [seen.values[there, own] for seen, there in zip((old, now), has, strict=True)]
        blocks = [seen.blocks[there] for seen, there in zip((old, now), has, strict=True)]
        test = None
        if len(np.unique(blocks[0])) > 1 and len(blocks[1]):
            test = feature_drift(*values, *blocks, level=level, seed=seed)
            bands[own] = np.minimum(band_drift(*values, *blocks) * len(predictor.sensors), 1)
        drifted = test is not None and (test.drifted or bool((bands[own] < level).any()))
        sensors[name] = SensorDrift(test, *(float(there.mean()) for there in has), drifted)
    return bands, sensors


def _see(predictor: Predictor, raster: Raster) -> _Seen:
    image, valid = raster.read(0, 0, raster.height, raster.width)
    count = max(len(predictor.sensors), 1)
    available = valid & raster.read_available(0, 0, raster.height, raster.width, count)
    valid = valid & available.any(axis=0)
    if not valid.any():
        raise DataError("no pixel is valid", where=raster.path, fix="check the file's nodata value")
    tile = predict_array(predictor, image, valid, available=available)
    blocks = np.unique(block_ids(valid.shape, BLOCK)[valid], return_inverse=True)[1]
    loads = {}
    for layer, maps in tile.routing.items():
        expert = maps[0][valid].astype(int)
        routed = expert >= 0
        experts = len(predictor.system.expert_names(layer))
        loads[layer] = np.zeros((blocks.max() + 1, experts), dtype=np.int64)
        np.add.at(loads[layer], (blocks[routed], expert[routed]), 1)
    return _Seen(image[:, valid].T, available[:, valid].T, tile.probability[:, valid].T, blocks, loads)
