"""Rasters of one surface on one quad-tree grid: scales, gaps, origins, and grids that do not nest."""

import numpy as np
import pytest
from affine import Affine
from conftest import write_tif

from terramoe.data.surfaces import open_surfaces, read_surface
from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.kalman_bank import check_scene
from terramoe.mixtures.quad_tree import leaf_shape

FINE = np.arange(12 * 20, dtype=np.float32).reshape(1, 12, 20)
EAST, NORTH = 500_000.0, 4_000_000.0


def grid(pixel=10.0, row=0.0, column=0.0):
    """A grid that begins so many fine pixels below and right of the finest."""
    return Affine(pixel, 0, EAST + 10 * column, 0, -pixel, NORTH - 10 * row)


def write(path, array, **form):
    return str(write_tif(path, np.asarray(array, dtype=np.float32), **{"transform": grid(), **form}))


def pair(tmp_path, coarse, **form):
    fine = write(tmp_path / "fine.tif", FINE, nodata=5)
    return {"fine": fine, "coarse": write(tmp_path / "coarse.tif", coarse, **form)}


NOISE = {"fine": 0.5, "coarse": 2.0}


def test_nodata_are_gaps_and_the_order_is_the_users(tmp_path):
    files = pair(tmp_path, np.ones((1, 3, 5)), transform=grid(40))
    found = open_surfaces(f"coarse={files['coarse']},fine={files['fine']}", NOISE)
    assert found.names == ("coarse", "fine")
    assert found.noise == (2.0, 0.5)
    assert [one.scale for one in found.observations] == [2, 0]
    assert (found.grid, found.offset) == ((12, 20), (0, 0))
    fine = found.observations[1]
    assert np.isnan(fine.value[0, 5])
    assert fine.seen.sum() == 239
    assert fine.variance[0, 0] == 0.25
    assert found.crs.to_epsg() == 32617
    assert found.transform == grid()
    check_scene(found.observations)
    assert leaf_shape(found.observations) == (12, 20)
    with pytest.raises(ConfigError, match="no sensor"):
        found.index("radar")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (-4, -8), (-3, -1), (4, 8), (5, 3)])
def test_a_coarse_raster_may_begin_anywhere_on_the_fine_borders(tmp_path, row, column):
    coarse = 1 + np.arange(6 * 8, dtype=np.float32).reshape(1, 6, 8)
    found = open_surfaces(pair(tmp_path, coarse, transform=grid(40, row, column)), NOISE)
    fine, other = found.observations
    assert other.scale == 2
    assert found.offset == (-row % 4, -column % 4)
    assert np.array_equal(found.crop(fine.value), np.where(FINE[0] == 5, np.nan, FINE[0]), equal_nan=True)
    assert np.array_equal(found.crop(found.lay(FINE[0])), FINE[0])
    leaves = found.crop(other.value.repeat(4, axis=0).repeat(4, axis=1))
    expected = np.full((12, 20), np.nan)
    for y, x in np.ndindex(12, 20):
        at = ((y - row) // 4, (x - column) // 4)
        if 0 <= at[0] < 6 and 0 <= at[1] < 8:
            expected[y, x] = coarse[0][at]
    assert np.array_equal(leaves, expected, equal_nan=True)


def test_rasters_without_coordinates_share_their_corner(tmp_path):
    np.save(tmp_path / "fine.npy", FINE[0])
    np.save(tmp_path / "coarse.npy", np.ones((2, 3), dtype=np.float32))
    found = open_surfaces({name: tmp_path / f"{name}.npy" for name in NOISE}, NOISE)
    assert [one.scale for one in found.observations] == [0, 3]
    assert found.transform is None
    np.save(tmp_path / "coarse.npy", np.ones((5, 3), dtype=np.float32))
    with pytest.raises(DataError, match="do not nest"):
        open_surfaces({name: tmp_path / f"{name}.npy" for name in NOISE}, NOISE)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"transform": grid(30)}, "3 x 3 times"),
        ({"transform": grid(20, 0.5)}, "between those of the finest"),
        ({"transform": Affine(20, 0, EAST, 0, -40, NORTH)}, "2 x 4 times"),
        ({"transform": Affine(20, 0, EAST, 0, 20, NORTH)}, "do not nest"),
        ({"transform": grid(20), "crs": "EPSG:32618"}, "another coordinate system"),
        ({"transform": Affine(20, 3, EAST, 0, -20, NORTH)}, "rotated"),
        ({"transform": grid(20, 400, 400)}, "elsewhere"),
    ],
)
def test_grids_that_do_not_fit_are_refused_with_the_fix(tmp_path, form, text):
    with pytest.raises(DataError, match=text) as error:
        open_surfaces(pair(tmp_path, np.ones((1, 6, 10)), **form), NOISE)
    assert "coarse.tif" in str(error.value)
    assert error.value.fix


def test_middle_sensors_must_nest_in_the_coarsest(tmp_path):
    files = pair(tmp_path, np.ones((1, 3, 5)), transform=grid(40))
    files["middle"] = write(tmp_path / "middle.tif", np.ones((1, 5, 9)), transform=grid(20, 1, 1))
    with pytest.raises(DataError, match="between those of a coarser"):
        open_surfaces(files, NOISE | {"middle": 1.0})


def test_other_input_that_cannot_be(tmp_path):
    files = pair(tmp_path, np.ones((1, 6, 10)), transform=grid(20))
    for noise, text in (({"fine": 1.0}, "no noise"), (NOISE | {"x": 1}, "no raster"), (NOISE | {"fine": 0}, "is 0")):
        with pytest.raises(ConfigError, match=text):
            open_surfaces(files, noise)
    with pytest.raises(DataError, match="no names"):
        open_surfaces(files["fine"], NOISE)
    with pytest.raises(DataError, match="2 bands"):
        open_surfaces(pair(tmp_path, np.ones((2, 6, 10)), transform=grid(20)), NOISE)
    with pytest.raises(DataError, match="no such file"):
        open_surfaces({**files, "fine": "none.tif"}, NOISE)
    np.save(tmp_path / "bare.npy", np.ones((6, 10), dtype=np.float32))
    with pytest.raises(DataError, match="no georeference"):
        open_surfaces({"fine": files["fine"], "coarse": tmp_path / "bare.npy"}, NOISE)


def test_the_truth_must_lie_on_the_users_grid(tmp_path):
    files = pair(tmp_path, np.ones((1, 6, 8)), transform=grid(40, -3, -1))
    found = open_surfaces(files, NOISE)
    assert np.array_equal(read_surface(files["fine"], found), np.where(FINE[0] == 5, np.nan, FINE[0]), equal_nan=True)
    for shift in (grid(10, 1), grid(20)):
        with pytest.raises(DataError, match="another grid"):
            read_surface(write(tmp_path / "truth.tif", FINE, transform=shift), found)
    with pytest.raises(DataError, match="another grid"):
        read_surface(files["coarse"], found)
