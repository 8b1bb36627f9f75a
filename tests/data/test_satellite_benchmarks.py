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
    assert scene.band_names[:2] + scene.band_names[-2:] == ("2015 Q3", "2015 Q4", "2017 Q4", "height")
    assert -1 <= scene.image[:10].min() < scene.image[:10].max() <= 1
    assert (scene.image[10].min(), scene.image[10].max()) == (664, 801)
    for year in (2016, 2017):
        assert median(scene, "forest", f"{year} Q3") > 0.2 + median(scene, "forest", f"{year} Q1")
    assert median(scene, "artificial", "2017 Q3") < median(scene, "forest", "2017 Q3")


# ---------------------------------------------------------------- without them


def paths_of(name, folder):
    paths = [folder / source.path for source in SATELLITE_SOURCES[name]]
    paths[0].parent.mkdir(parents=True)
    return paths


def write_landsat7(folder, size=(443, 489)):
    """Bands of 51, but for row 0 without data in the last band only; herbaceous in rows 0 to 9."""
    *bands, labelled = paths_of("nc-landsat7", folder)
    for path in bands:
        values = np.full((1, *size), 51, np.float32)
        values[0, 0] = -99999 if path == bands[-1] else 51
        write_tif(path, values, nodata=-99999)
    labels = np.full((1, *size), -99999, np.float32)
    labels[0, :10], labels[0, 10:20], labels[0, 20] = 3, 7, 2
    write_tif(labelled, labels, nodata=-99999, crs="EPSG:3358", transform=Affine(28.5, 0, 0, 0, -28.5, 0))


def test_a_pixel_that_one_band_lacks_is_invalid_and_its_label_is_lost(tmp_path):
    write_landsat7(tmp_path)
    scene = open_benchmark("nc-landsat7", tmp_path)
    assert not scene.valid[0].any()
    assert scene.valid[1:].all()
    assert not scene.image[:, 0].any()
    np.testing.assert_allclose(scene.image[:, 1:], 0.2)
    assert [scene.labels[row, 0] for row in (0, 1, 9, 10, 20, 21)] == [0, 2, 2, 6, 0, 0]


def test_a_raster_of_another_size_is_refused(tmp_path):
    write_landsat7(tmp_path, size=(443, 488))
    with pytest.raises(DataError, match="443 x 488 values, not 1 x 443 x 489"):
        open_benchmark("nc-landsat7", tmp_path)


def test_clouds_are_read_from_the_bits_of_the_quality_band(tmp_path):
    *bands, quality = paths_of("landsat8-clouds", tmp_path)
    for path in bands:
        write_tif(path, np.full((1, 603, 627), 23658 if path.stem in ("l8_B10", "l8_B11") else 10000, np.uint16))
    flags = np.full((1, 603, 627), 0b0101 << 12, np.uint16)
    wanted = {0b1101: 3, 0b1111: 3, 0b0111: 2, 0b0101: 1, 0b1001: 0, 0b1011: 0, 0b0001: 0}  # cloud, then cirrus
    flags[0, 0, : len(wanted)] = np.array(list(wanted)) << 12
    flags[0, 1, 0] |= 1 << 5  # the water flag says nothing of clouds
    flags[0, 1, 1] |= 1  # no data
    write_tif(quality, flags)
    scene = open_benchmark("landsat8-clouds", tmp_path)
    assert scene.labels[0, : len(wanted)].tolist() == list(wanted.values())
    assert scene.labels[1, :3].tolist() == [1, 0, 1]
    assert scene.valid[1, :3].tolist() == [True, False, True]
    np.testing.assert_allclose(scene.image[:8, 0, 0], 0.1, rtol=1e-5)
    assert scene.image[8, 0, 0] == pytest.approx(288.27, abs=0.01)  # band 10: 8.0065 W / (m2 sr um)


def write_slovenia(folder, dates, ndvi, clear):
    ndvi_path, clear_path, cover_path, height_path, dates_path = paths_of("slovenia-ndvi", folder)
    np.save(ndvi_path, ndvi[..., None].astype(np.float32))
    np.save(clear_path, clear[..., None])
    cover = np.full((101, 100, 1), 2, np.uint16)
    cover[1:5, :, 0] = np.array([0, 1, 3, 8])[:, None]
    np.save(cover_path, cover)
    np.save(height_path, np.full((101, 100, 1), 700, np.float32))
    dates_path.write_text(json.dumps(dates))


DATES = [f"2016-{1 + 3 * (i % 4):02}-15T10:00:00" for i in range(68)]  # not in order, as a list of any dates may be


def test_what_lies_under_clouds_never_enters_a_quarter(tmp_path):
    clear = np.random.default_rng(0).random((68, 101, 100)) < 0.5
    clear[:4] = True
    clear[1::4, 0, 0] = False  # no clear date in the second quarter
    season = 0.2 * (np.arange(68) % 4)
    write_slovenia(tmp_path, DATES, np.where(clear, season[:, None, None], -9), clear)
    scene = open_benchmark("slovenia-ndvi", tmp_path)
    assert scene.band_names == ("2016 Q1", "2016 Q2", "2016 Q3", "2016 Q4", "height")
    assert np.argwhere(~scene.valid).tolist() == [[0, 0]]
    np.testing.assert_allclose(scene.image[:4, 1, 1], [0, 0.2, 0.4, 0.6], atol=1e-6)
    assert scene.image[:4, scene.valid].min() >= 0
    assert scene.labels[:6, 0].tolist() == [0, 0, 0, 2, 4, 1]
    assert scene.labels[0, 1] == 1


@pytest.mark.parametrize("dates", [DATES[:-1], ["yesterday"] * 68, 7])
def test_another_list_of_dates_is_refused(tmp_path, dates):
    write_slovenia(tmp_path, dates, np.zeros((68, 101, 100)), np.ones((68, 101, 100), dtype=bool))
    with pytest.raises(DataError, match="dates"):
        open_benchmark("slovenia-ndvi", tmp_path)


def test_a_damaged_array_is_refused(tmp_path):
    write_slovenia(tmp_path, DATES, np.zeros((68, 101, 100)), np.ones((68, 101, 100), dtype=bool))
    path = tmp_path / SATELLITE_SOURCES["slovenia-ndvi"][0].path
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        open_benchmark("slovenia-ndvi", tmp_path)
    np.save(path, np.zeros((68, 101, 100, 1))[:67])
    with pytest.raises(DataError, match=r"\(67, 101, 100, 1\), not"):
        open_benchmark("slovenia-ndvi", tmp_path)
