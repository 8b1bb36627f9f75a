"""One raster per sensor as one raster: bands in order, who is missing where, and grids that do not fit."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import write_tif
from rasterio.warp import transform as transform_points
from rasterio.warp import transform_bounds

from terramoe.data import fit_normaliser, load_scene, open_stack, sensor_files
from terramoe.data.gdal import GdalPixels
from terramoe.data.sensor_stack import open_files
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


def other_grid(path, image, pixel, *, right=0, down=0, **profile):
    """An image whose upper left corner lies ``right`` and ``down`` metres from that of the others."""
    transform = Affine(pixel, 0, 500_000 + right, 0, -pixel, 4_000_000 - down)
    return str(write_tif(path, image.astype(np.float32), transform=transform, nodata=-9999, **profile))


def read_whole(files, **wanted):
    raster, sensors = open_stack(files, **wanted)
    with raster:
        size = (0, 0, raster.height, raster.width)
        return raster.read(*size)[0], raster.read_available(*size, len(sensors))


def test_finer_pixels_are_averaged_where_half_of_them_have_data(files, tmp_path):
    fine = GENERATOR.normal(size=(1, 48, 36))
    gaps = np.zeros((48, 36), dtype=bool)
    gaps[20:24, 20:22] = True  # half of the pixel 5, 5
    gaps[24:27, 20:23] = True  # nine sixteenths of the pixel 6, 5
    lidar = other_grid(tmp_path / "fine.tif", np.where(gaps, -9999, fine), 2.5)
    values, available = read_whole({"hsi": files["hsi"], "lidar": lidar})
    means = np.ma.array(fine[0], mask=gaps).reshape(12, 4, 9, 4).mean((1, 3))
    np.testing.assert_allclose(values[3][available[1]], means[available[1]], atol=1e-6)
    assert np.argwhere(~available[1]).tolist() == [[6, 5]]
    assert values[3, 6, 5] == 0


def test_coarser_pixels_are_interpolated_where_the_nearest_has_data(files, tmp_path):
    rows, columns = np.indices((4, 3))
    ramp = (3.0 * rows + columns)[None]
    ramp[0, 3, 2] = -9999
    values, available = read_whole({"hsi": files["hsi"], "lidar": other_grid(tmp_path / "coarse.tif", ramp, 30)})
    row, column = ((np.indices((12, 9)) + 0.5) / 3 - 0.5)[:, 1:-1, 1:-1]
    whole = np.s_[:7, :]  # away from the gap
    np.testing.assert_allclose(values[3, 1:-1, 1:-1][whole], (3 * row + column)[whole], atol=1e-5)
    missing = np.zeros((12, 9), dtype=bool)
    missing[9:, 6:] = True
    assert np.array_equal(~available[1], missing)
    assert values[3].max() <= 10  # of the gap's -9999 nothing is mixed in


def test_a_sensor_is_missing_where_its_raster_does_not_reach(files, tmp_path):
    """Moved by whole pixels the values stay; two rows and a column are beyond it, and it is seven columns wide."""
    lidar = other_grid(tmp_path / "moved.tif", LIDAR[:, :, :7], 10, right=10, down=20)
    values, available = read_whole({"hsi": files["hsi"], "lidar": lidar})
    expected = np.zeros((12, 9), dtype=bool)
    expected[2:, 1:8] = True
    assert np.array_equal(available[1], expected)
    np.testing.assert_allclose(values[3, 2:, 1:8], LIDAR[0, :10, :7], atol=1e-6)


def test_every_window_gives_the_same_bits_and_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    generator = np.random.default_rng(5)
    image = write_tif(tmp_path / "image.tif", generator.normal(size=(1, 300, 290)).astype(np.float32))
    fine = generator.normal(size=(2, 420, 700))
    files = {"image": str(image), "fine": other_grid(tmp_path / "fine.tif", fine, 7.1, down=3.3)}
    values, available = read_whole(files)
    read, sizes = GdalPixels.read, []
    monkeypatch.setattr(GdalPixels, "read", lambda self, *window: sizes.append(window[2:]) or read(self, *window))
    raster, _ = open_stack(files)
    with raster:
        for row, column, height, width in ((0, 0, 5, 300 - 10), (120, 100, 60, 45), (250, 130, 50, 1)):
            here = np.s_[:, row : row + height, column : column + width]
            assert np.array_equal(raster.read(row, column, height, width)[0], values[here])
            found = raster.read_available(row, column, height, width, 2)
            assert np.array_equal(found, available[here])
    assert available[1].any()
    assert not available[1].all()
    assert max(max(size) for size in sizes if size not in ((5, 290),)) < 128 * 10 / 7.1 + 10


def test_another_coordinate_system_is_transformed(files, tmp_path):
    """Metres east and south of the corner, in a raster of degrees, come out as such to a fifth of a pixel."""
    with rasterio.open(files["hsi"]) as source:
        west, south, east, north = transform_bounds(source.crs, "EPSG:4326", *source.bounds)
    pixel = (east - west) / 40
    transform = Affine(pixel, 0, west - 4 * pixel, 0, -pixel, north + 4 * pixel)
    rows = int((north - south) / pixel) + 9
    column, row = np.meshgrid(np.arange(48) + 0.5, np.arange(rows) + 0.5)
    x, y = transform_points(
        "EPSG:4326", "EPSG:32617", (transform.c + pixel * column).ravel(), (transform.f - pixel * row).ravel()
    )
    places = np.stack([np.array(x) - 500_000, 4_000_000 - np.array(y)]).reshape(2, rows, 48).astype(np.float32)
    path = write_tif(tmp_path / "degrees.tif", places, crs="EPSG:4326", transform=transform)
    values, available = read_whole({"hsi": files["hsi"], "places": str(path)})
    expected = 10 * (np.indices((12, 9))[::-1] + 0.5)
    assert available[1].all()
    np.testing.assert_allclose(values[3:], expected, atol=2)


def test_the_grid_is_that_of_the_models_first_sensor(files, tmp_path):
    coarse = other_grid(tmp_path / "coarse.tif", GENERATOR.normal(size=(1, 4, 3)), 30)
    wanted = (("hsi", 3), ("lidar", 1))
    for given in ({"lidar": coarse, "hsi": files["hsi"]}, {"hsi": files["hsi"], "lidar": coarse}):
        assert read_whole(given, sensors=wanted)[0].shape == (4, 12, 9)
    assert read_whole({"lidar": coarse, "hsi": files["hsi"]})[0].shape == (4, 4, 3)
    assert read_whole({"lidar": coarse}, sensors=wanted)[0].shape == (4, 4, 3)


def test_what_cannot_be_brought_onto_one_grid_is_refused(files, tmp_path):
    far = other_grid(tmp_path / "far.tif", LIDAR, 10, right=90)
    zone = str(write_tif(tmp_path / "zone.tif", LIDAR, crs="EPSG:32618"))
    np.save(tmp_path / "plain.npy", LIDAR[0, :5, :, None])
    plain = str(tmp_path / "plain.npy")
    for lidar, message in (
        (far, "do not overlap"),
        (zone, "do not overlap"),
        (plain, "5 x 9 pixels beside 12 x 9, and no georeference"),
    ):
        with pytest.raises(DataError, match=message):
            open_stack({"hsi": files["hsi"], "lidar": lidar})
    many = other_grid(tmp_path / "many.tif", np.ones((40, 4, 3)), 30)
    with pytest.raises(DataError, match=r"43 x 12 x 9 values of all sensors take .* the budget is 1e-05"):
        open_stack({"hsi": files["hsi"], "many": many}, max_gib=1e-5)


def test_one_file_or_several_are_opened_alike(files):
    with open_files(files["hsi"]) as raster:
        assert raster.bands == 3
    wanted = (("lidar", 1), ("hsi", 3))
    with open_files(f"hsi={files['hsi']},lidar={files['lidar']}", sensors=wanted) as raster:
        assert raster.read_available(0, 0, 12, 9, 2)[0].sum() == 12 * 7
    with pytest.raises(DataError, match="does not tell sensors apart"):
        open_files(f"hsi={files['hsi']}")


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
