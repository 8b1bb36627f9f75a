"""Rows from CSV, Parquet, NetCDF and rasters: the same numbers, whatever the file."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from conftest import write_tif

from terramoe.data.read_rows import read_rows
from terramoe.data.row_table import Columns, row_table
from terramoe.errors import DataError


@pytest.fixture
def frame():
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "lon": generator.uniform(-5, 5, 30),
            "lat": generator.uniform(40, 50, 30),
            "date": pd.date_range("2020-01-01", periods=30).astype(str),
            "cruise": np.repeat(["a", "b", "c"], 10),
            "t_1": generator.normal(size=30),
            "t_2": generator.normal(size=30),
            "depth": generator.normal(size=30),
        }
    )


COLUMNS = Columns(targets=("depth",), group="cruise")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_tables_are_read_alike(tmp_path, frame, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ";")
    table = read_rows(path, COLUMNS)
    assert table.feature_names == ("t_1", "t_2")
    np.testing.assert_allclose(table.features, frame[["t_1", "t_2"]])
    np.testing.assert_allclose(table.targets[:, 0], frame["depth"])
    np.testing.assert_allclose(table.places, frame[["lon", "lat"]])
    assert table.degrees
    assert table.times[0] == 18_262  # days from 1970 to 2020
    assert list(table.groups) == list(frame["cruise"])
    assert table.layout is None


def test_digest_tells_tables_apart(frame):
    table = row_table(frame, COLUMNS, name="t")
    assert table.digest() == row_table(frame.copy(), COLUMNS, name="another name").digest()
    other = frame.copy()
    other.loc[3, "t_1"] += 1e-9
    assert table.digest() != row_table(other, COLUMNS, name="t").digest()
    other = frame.assign(cruise="d")
    assert table.digest() != row_table(other, COLUMNS, name="t").digest()


def test_stars_name_several_columns_in_the_order_of_the_file(frame):
    table = row_table(frame, Columns(targets=("t_*",), features=("depth",)), name="t")
    assert table.target_names == ("t_1", "t_2")
    assert table.feature_names == ("depth",)


def test_classes_are_numbered_in_order_and_missing_ones_are_nan(frame):
    kinds = pd.Series([3.0, 1.0, np.nan, 1.0] * 7 + [3.0, 3.0])
    table = row_table(frame.assign(kind=kinds), Columns(targets=("kind",), classes=True), name="t")
    assert table.class_names == ("1", "3")
    np.testing.assert_array_equal(table.targets[:4, 0], [1, 0, np.nan, 0])


def test_rows_of_netcdf_are_points_of_the_targets_dimensions(tmp_path):
    generator = np.random.default_rng(0)
    spectra, wind = generator.normal(size=(4, 3, 5)), generator.normal(size=3)
    depth = generator.normal(size=(3, 5))
    data = xr.Dataset(
        {
            "Rrs": (("band", "lat", "lon"), spectra),
            "wind": (("lat",), wind),
            "depth": (("lat", "lon"), depth),
            "gain": (("band",), np.ones(4)),
        },
        {"lat": [1.0, 2.0, 3.0], "lon": np.arange(5.0), "band": [400, 500, 600, 700]},
    )
    data.to_netcdf(tmp_path / "a.nc")
    table = read_rows(tmp_path / "a.nc", Columns(targets=("depth",)))
    assert table.feature_names == ("Rrs_0", "Rrs_1", "Rrs_2", "Rrs_3", "wind")
    np.testing.assert_allclose(table.features[:, 2], spectra[2].ravel())
    np.testing.assert_allclose(table.features[:, 4], np.repeat(wind, 5))
    np.testing.assert_allclose(table.targets[:, 0], depth.ravel())
    np.testing.assert_allclose(table.places[7], [2.0, 2.0])
    assert dict(table.layout.dims) == {"lat": 3, "lon": 5}


def test_rows_of_a_raster_are_pixels(tmp_path):
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image[:, 0, 0] = -1
    write_tif(tmp_path / "a.tif", image, nodata=-1)
    write_tif(tmp_path / "b.tif", image[:1] * 2, nodata=-2)
    table = read_rows(tmp_path / "a.tif", Columns(), target_raster=tmp_path / "b.tif")
    assert table.feature_names == ("band_1", "band_2")
    assert table.target_names == ("target",)
    assert np.isnan(table.features[0]).all()
    assert np.isnan(table.targets[0, 0])
    np.testing.assert_allclose(table.features[5], [5, 17])
    np.testing.assert_allclose(table.targets[5, 0], 10)
    np.testing.assert_allclose(table.places[5], [500_015, 3_999_985])
    assert not table.degrees
    degrees = write_tif(tmp_path / "c.tif", image, crs="EPSG:4326", transform=Affine(0.1, 0, 10, 0, -0.1, 50))
    table = read_rows(degrees, Columns())
    np.testing.assert_allclose(table.places[5], [10.15, 49.85])
    assert table.degrees


def test_bad_input_is_one_clear_error(tmp_path, frame):
    path = tmp_path / "a.csv"
    frame.to_csv(path, index=False)
    write_tif(tmp_path / "a.tif", np.zeros((1, 3, 4), dtype=np.float32))
    write_tif(tmp_path / "b.tif", np.zeros((1, 3, 5), dtype=np.float32))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,b\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "broken.nc").write_bytes(b"no netcdf")
    for file, columns, more, what in (
        ("none.csv", Columns(), {}, "no such file"),
        ("empty.csv", Columns(), {}, "cannot be read"),
        ("header.csv", Columns(), {}, "no rows"),
        ("broken.parquet", Columns(), {}, "cannot be read"),
        ("broken.nc", Columns(), {}, "cannot be read"),
        ("a.csv", Columns(targets=("height",)), {}, "no column 'height'"),
        ("a.csv", Columns(features=("cruise",)), {}, "does not hold numbers"),
        ("a.csv", Columns(features=("t_1",), targets=("t_1",)), {}, "feature and target"),
        ("a.csv", Columns(time="cruise"), {}, "neither numbers nor dates"),
        ("a.csv", Columns(), {"max_gib": 1e-9}, "GiB"),
        ("a.csv", Columns(), {"target_raster": "b.tif"}, "needs a raster"),
        ("a.tif", Columns(), {"target_raster": tmp_path / "b.tif"}, "grid"),
    ):
        with pytest.raises(DataError, match=what):
            read_rows(tmp_path / file, columns, **more)
