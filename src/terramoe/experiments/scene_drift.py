"""Is a new image drawn as the reference was? Drift of routing, of features and of bands, seen by a trained model."""

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
class SceneDrift:
    """What was found.

    Attributes:
        tests: "routing LAYER" and "features" (the model's class probabilities).
        bands: p-value of each band, corrected for their number.
        shares: (K,) of the classes in the new image, from the model's probabilities, if only the shares changed.
        drifted: any test or band rings.
    """

    tests: dict[str, Drift]
    bands: np.ndarray
    shares: np.ndarray
    drifted: bool


@dataclass(frozen=True)
class _Seen:
    values: np.ndarray  # (N, bands) of valid pixels
    probability: np.ndarray  # (N, K)
    blocks: np.ndarray  # (N,)
    loads: dict[str, np.ndarray]  # (blocks, E) by layer


def scene_drift(
    predictor: Predictor, reference: Raster, new: Raster, *, level: float = 0.05, seed: int = 0
) -> SceneDrift:
    """Compare two rasters of the model's bands; neither needs labels.

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
    bands = band_drift(old.values, now.values, old.blocks, now.blocks)
    drifted = any(test.drifted for test in tests.values()) or bool((bands < level).any())
    return SceneDrift(tests, bands, class_shares(now.probability, old.probability.mean(0)), drifted)


def _see(predictor: Predictor, raster: Raster) -> _Seen:
    image, valid = raster.read(0, 0, raster.height, raster.width)
    if not valid.any():
        raise DataError("no pixel is valid", where=raster.path, fix="check the file's nodata value")
    tile = predict_array(predictor, image, valid)
    blocks = np.unique(block_ids(valid.shape, BLOCK)[valid], return_inverse=True)[1]
    loads = {}
    for layer, maps in tile.routing.items():
        expert = maps[0][valid].astype(int)
        routed = expert >= 0
        experts = len(predictor.system.expert_names(layer))
        loads[layer] = np.zeros((blocks.max() + 1, experts), dtype=np.int64)
        np.add.at(loads[layer], (blocks[routed], expert[routed]), 1)
    return _Seen(image[:, valid].T, tile.probability[:, valid].T, blocks, loads)
