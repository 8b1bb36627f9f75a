"""Reading: every format, by window, and every kind of bad file."""

import struct

import numpy as np
import pytest
import rasterio
import scipy.io
from conftest import TRANSFORM, write_tif

from terramoe.data import load_scene, open_raster, read_labels
from terramoe.errors import DataError

GENERATOR = np.random.default_rng(0)
CUBE = GENERATOR.normal(size=(5, 37, 41)).astype(np.float32)
LAYOUTS = {
    "striped.tif": {},
    "tiled.tif": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
    "bsq": {"driver": "ENVI", "interleave": "bsq"},
    "bil": {"driver": "ENVI", "interleave": "bil"},
    "bip": {"driver": "ENVI", "interleave": "bip"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_window_equals_the_whole(tmp_path, name):
    path = write_tif(tmp_path / name, CUBE, **LAYOUTS[name])
    with open_raster(path) as raster:
        assert (raster.bands, raster.height, raster.width) == CUBE.shape
        assert raster.crs.to_epsg() == 32617
        assert raster.transform == TRANSFORM
        for _ in range(10):
            row, column = GENERATOR.integers(0, 30, 2)
            values, valid = raster.read(row, column, 7, 11)
            np.testing.assert_array_equal(values, CUBE[:, row : row + 7, column : column + 11])
            assert valid.all()


def test_an_envi_header_leads_to_its_data(tmp_path):
    write_tif(tmp_path / "scene.img", CUBE, driver="ENVI")
    with open_raster(tmp_path / "scene.hdr") as raster:
        np.testing.assert_array_equal(raster.read(0, 0, 37, 41)[0], CUBE)
    (tmp_path / "scene.img").unlink()
    with pytest.raises(DataError, match="no data file beside it"):
        open_raster(tmp_path / "scene.hdr")


def test_matlab_and_numpy_hold_rows_columns_bands(tmp_path):
    by_pixel = CUBE.transpose(1, 2, 0)
    scipy.io.savemat(tmp_path / "a.mat", {"cube": by_pixel, "note": "text", "gain": 2.0})
    np.save(tmp_path / "a.npy", by_pixel)
    for name in ("a.mat", "a.npy"):
        with open_raster(tmp_path / name) as raster:
            np.testing.assert_array_equal(raster.read(2, 3, 20, 10)[0], CUBE[:, 2:22, 3:13])


def test_nodata_nan_and_infinity_become_invalid_zeros(tmp_path):
    cube = CUBE.copy()
    cube[0, 1, 1], cube[4, 2, 2], cube[1, 3, 3] = -9999, np.nan, np.inf
    path = write_tif(tmp_path / "a.tif", cube, nodata=-9999)
    with open_raster(path) as raster:
        values, valid = raster.read(0, 0, 37, 41)
    assert np.argwhere(~valid).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert (values[:, ~valid] == 0).all()
    assert np.isfinite(values).all()


def bad_files(folder):
    """name -> (what the error must say)."""
    good = write_tif(folder / "good.tif", GENERATOR.normal(size=(3, 300, 300)).astype(np.float32), compress="deflate")
    content = good.read_bytes()
    (folder / "empty.tif").write_bytes(b"")
    (folder / "noise.tif").write_bytes(b"II*\x00" + bytes(range(200)))
    (folder / "text.tif").write_text("hello")
    (folder / "truncated.tif").write_bytes(content[: len(content) // 2])
    corrupt = bytearray(content)
    corrupt[len(content) // 3 : 2 * len(content) // 3] = b"\xff" * (2 * len(content) // 3 - len(content) // 3)
    (folder / "corrupt.tif").write_bytes(corrupt)
    vrt = '<VRTDataset rasterXSize="300" rasterYSize="300"><VRTRasterBand dataType="Float32" band="1"><SimpleSource>'
    vrt += f"<SourceFilename>{good}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    (folder / "vrt.tif").write_text(vrt)
    with rasterio.open(
        folder / "huge.tif", "w", driver="GTiff", height=200_000, width=200_000, count=1, dtype="uint8", sparse_ok=True,
        tiled=True, bigtiff="yes",
    ):  # fmt: skip
        pass
    (folder / "folder.tif").mkdir()
    scipy.io.savemat(folder / "flat.mat", {"labels": np.ones((4, 4))})
    scipy.io.savemat(folder / "two.mat", {"a": np.ones((4, 4, 2)), "b": np.ones((4, 4, 2))})
    scipy.io.savemat(folder / "objects.mat", {"a": np.full((2, 2, 2), "x", dtype=object)})
    (folder / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(128) + b"\x89HDF\r\n\x1a\n")
    (folder / "broken.mat").write_bytes(
        b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49) + b"\xff" * 9
    )
    np.save(folder / "objects.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    np.save(folder / "line.npy", np.zeros(5))
    return {
        "missing.tif": "no such file",
        "folder.tif": "a folder",
        "empty.tif": "empty",
        "noise.tif": "corrupt or truncated",
        "text.tif": "no GeoTIFF, ENVI or PNG",
        "truncated.tif": "corrupt or truncated",
        "corrupt.tif": "corrupt or truncated.*bands 1..3, rows 0..299",
        "vrt.tif": "no GeoTIFF, ENVI or PNG",
        "huge.tif": "149.0 GiB, the budget is 64",
        "flat.mat": "no numeric 3-D arrays",
        "two.mat": "several numeric 3-D arrays.*a .*b ",
        "objects.mat": "no numeric 3-D",
        "new.mat": "MATLAB 7.3",
        "broken.mat": "cannot be read|no numeric",
        "objects.npy": "Python objects",
        "line.npy": "no numeric",
    }


def test_bad_files_give_one_line_with_what_where_and_fix(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(DataError, match=message) as caught, open_raster(tmp_path / name) as raster:
            raster.read(0, 0, raster.height, raster.width)
        text = str(caught.value)
        assert "\n" not in text
        assert name in text
        assert "Fix:" in text


def test_a_pickled_array_is_never_unpickled(tmp_path):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return open, (str(trap), "w")

    np.save(tmp_path / "trap.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        open_raster(tmp_path / "trap.npy")
    assert not trap.exists()
    np.load(tmp_path / "trap.npy", allow_pickle=True)[0, 0].close()
    assert trap.exists()  # the trap itself works


def labels_file(folder, values, **profile):
    return write_tif(folder / "labels.tif", np.asarray(values)[None], **profile)


def test_labels_keep_values_and_lose_nodata(tmp_path):
    values = np.array([[0, 1, 255], [7, 2, 255]], dtype=np.uint8)
    read = read_labels(labels_file(tmp_path, values, nodata=255), height=2, width=3)
    assert read.tolist() == [[0, 1, 0], [7, 2, 0]]
    scipy.io.savemat(tmp_path / "gt.mat", {"gt": values % 200, "n": 3.0})
    assert read_labels(tmp_path / "gt.mat", height=2, width=3).tolist() == [[0, 1, 55], [7, 2, 55]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[1, -2]], dtype=np.int16), "from -2 to 1"),
        (np.array([[1.5, 2]], dtype=np.float32), "not whole numbers"),
        (np.array([[1, 70_000]], dtype=np.int32), "to 70000"),
        (np.array([[1, 2, 3]], dtype=np.uint8), "labels are 1 x 3, the image is 1 x 2"),
    ],
)
def test_bad_labels(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        read_labels(labels_file(tmp_path, values), height=1, width=2)


def test_a_label_raster_has_one_band(tmp_path):
    write_tif(tmp_path / "a.tif", np.zeros((2, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match="has 1 band, this has 2"):
        read_labels(tmp_path / "a.tif", height=4, width=4)


def test_a_scene_from_files_equals_the_scene(files, scene):
    read = load_scene(files / "image.tif", files / "labels.tif")
    np.testing.assert_array_equal(read.image, scene.image)
    np.testing.assert_array_equal(read.valid, scene.valid)
    np.testing.assert_array_equal(read.labels, scene.labels)
    assert read.class_values == scene.class_values
    assert read.crs == scene.crs


def test_bad_scenes(tmp_path, files):
    with pytest.raises(DataError, match="label value 30 with 2 class names"):
        load_scene(files / "image.tif", files / "labels.tif", class_names=["a", "b"])
    one = write_tif(tmp_path / "one.tif", np.ones((1, 48, 56), dtype=np.uint8))
    with pytest.raises(DataError, match="1 classes are labelled"):
        load_scene(files / "image.tif", one)
    blank = write_tif(tmp_path / "blank.tif", np.full((2, 48, 56), np.nan, dtype=np.float32))
    with pytest.raises(DataError, match="no pixel is valid"):
        load_scene(blank, files / "labels.tif")
    with pytest.raises(DataError, match=r"the budget is 1e-05"):
        load_scene(files / "image.tif", files / "labels.tif", max_gib=1e-5)
