"""One raster per sensor as one raster: bands in order, who is missing where, and grids that do not fit."""

import numpy as np
import pytest
from affine import Affine
from conftest import write_tif

from terramoe.data import fit_normaliser, load_scene, open_stack, sensor_files
from terramoe.errors import DataError

GENERATOR = np.random.default_rng(0)
HSI = GENERATOR.normal(size=(3, 12, 9)).astype(np.float32)
LIDAR = GENERATOR.normal(size=(1, 12, 9)).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    hsi, lidar = HSI.copy(), LIDAR.copy()
    hsi[:, :2] = -9999  # the first rows have LiDAR only, the last columns neither
    lidar[:, :, 7:] = -9999
    hsi[:, :, 8] = -9999
    labels = GENERATOR.integers(1, 4, size=(1, 12, 9)).astype(np.uint8)
    write_tif(tmp_path / "labels.tif", labels)
    return {
        "hsi": str(write_tif(tmp_path / "hsi.tif", hsi, nodata=-9999)),
        "lidar": str(write_tif(tmp_path / "lidar.tif", lidar, nodata=-9999)),
    }


def test_bands_follow_each_other_and_gaps_are_known(files):
    raster, sensors = open_stack(files)
    with raster:
        assert sensors == (("hsi", 3), ("lidar", 1))
        assert (raster.bands, raster.height, raster.width) == (4, 12, 9)
        values, valid = raster.read(1, 2, 10, 7)
        available = raster.read_available(1, 2, 10, 7, 2)
    rows, columns = np.indices((10, 7)) + np.array([1, 2])[:, None, None]
    assert np.array_equal(available[0], (rows >= 2) & (columns < 8))
    assert np.array_equal(available[1], columns < 7)
    assert np.array_equal(valid, available.any(0))
    expected = np.concatenate([HSI, LIDAR])[:, 1:11, 2:9] * np.repeat(available, [3, 1], axis=0)
    assert np.array_equal(values, expected)


def test_a_model_gives_the_order_and_what_is_not_given_is_missing(files):
    wanted = (("lidar", 1), ("radar", 2), ("hsi", 3))
    raster, sensors = open_stack(files, sensors=wanted)
    with raster:
        values, _ = raster.read(4, 0, 3, 3)
        assert sensors == wanted
        assert np.array_equal(values[0], LIDAR[0, 4:7, :3])
        assert not values[1:3].any()
        assert np.array_equal(values[3:], HSI[:, 4:7, :3])
        assert raster.read_available(4, 0, 3, 3, 3).all((1, 2)).tolist() == [True, False, True]


def test_a_scene_knows_its_sensors(files, tmp_path):
    scene = load_scene(f"hsi={files['hsi']},lidar={files['lidar']}", tmp_path / "labels.tif")
    assert scene.sensors == (("hsi", 3), ("lidar", 1))
    assert scene.available.shape == (2, 12, 9)
    assert np.array_equal(scene.valid, scene.available.any(0))
    assert scene.crs is not None
    whole = load_scene(files["hsi"], tmp_path / "labels.tif")
    assert whole.sensors == ()
    assert whole.available is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scene.tif", None),
        ("a,b.tif", None),
        ("hsi=a.tif,lidar=b.tif", {"hsi": "a.tif", "lidar": "b.tif"}),
        ("hsi=a=b.tif", {"hsi": "a=b.tif"}),
    ],
)
def test_names_of_sensors(text, expected):
    assert sensor_files(text) == expected


def test_a_file_that_is_there_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "week=3.tif").touch()
    assert sensor_files("week=3.tif") is None


@pytest.mark.parametrize("text", ["hsi=a.tif,b.tif", "hsi=a.tif,hsi=b.tif", "=a.tif", "hsi=,lidar=b.tif"])
def test_a_file_without_a_name_of_its_own_is_refused(text):
    with pytest.raises(DataError, match="every file needs a sensor's name"):
        sensor_files(text)


def test_grids_must_agree(files, tmp_path):
    write_tif(tmp_path / "small.tif", LIDAR[:, :5])
    write_tif(tmp_path / "moved.tif", LIDAR, transform=Affine(10, 0, 500_010, 0, -10, 4_000_000))
    write_tif(tmp_path / "other.tif", LIDAR, crs="EPSG:32618")
    for name, message in (
        ("small.tif", "5 x 9 pixels beside 12 x 9"),
        ("moved.tif", "another origin"),
        ("other.tif", "another coordinate system"),
    ):
        with pytest.raises(DataError, match=f"{message}.*gdalwarp"):
            open_stack({**files, "lidar": str(tmp_path / name)})


def test_sensors_must_be_the_models(files):
    with pytest.raises(DataError, match=r"no sensor is called lidar.*use hsi"):
        open_stack(files, sensors=(("hsi", 3),))
    with pytest.raises(DataError, match="'lidar' has 1 bands, not 2"):
        open_stack(files, sensors=(("hsi", 3), ("lidar", 2)))
    with pytest.raises(DataError, match="no sensor is called nothing"):
        open_stack({})


def test_statistics_are_of_what_a_sensor_sees(files, tmp_path):
    scene = load_scene(f"hsi={files['hsi']},lidar={files['lidar']}", tmp_path / "labels.tif")
    train = scene.valid & (np.arange(12)[:, None] < 6)
    found = fit_normaliser(scene.image, train, seen=scene.seen)
    for band, sensor in enumerate([0, 0, 0, 1]):
        values = scene.image[band][train & scene.available[sensor]]
        assert found.offset[band] == pytest.approx(values.mean(), abs=1e-6)
        assert found.scale[band] == pytest.approx(values.std(), rel=1e-5)
    first_rows = scene.valid & (np.arange(12)[:, None] < 2)  # LiDAR only
    assert fit_normaliser(scene.image, first_rows, "minmax", scene.seen).offset[0] == 0
