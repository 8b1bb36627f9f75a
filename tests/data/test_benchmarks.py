"""Hyperspectral benchmarks: figures of the real files, the traps in how they are stored, files that are not ours."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from sklearn.ensemble import RandomForestClassifier

from terramoe.data import OfficialSplit, Scene, indian_pines
from terramoe.data.benchmarks import BENCHMARKS, SOURCES, open_benchmark
from terramoe.errors import ConfigError, DataError

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "hsi").exists(), reason="the shared hyperspectral scenes are not there")

COUNTS = {  # of each class, from 0 = unlabelled
    "houston2013-pixels": [0, 198, 190, 192, 188, 186, 182, 196, 191, 193, 191, 181, 192, 184, 181, 187],
    "muufl": [236, 1535, 1909, 1177, 2165, 1078],
    "samson": [295, 2836, 3592, 2302],
    "jasper": [361, 3412, 3310, 2256, 661],
    "indian-pines-disjoint": [10776, 46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93],
}
SHAPES = {
    "houston2013-pixels": (165, 1, 2832),
    "muufl": (69, 90, 90),
    "samson": (156, 95, 95),
    "jasper": (198, 100, 100),
    "indian-pines-disjoint": (200, 145, 145),
}


def spectrum(scene, name):
    return scene.image[:, scene.labels == scene.class_names.index(name) + 1].mean(axis=1)


def at(scene, nanometres):
    return int(np.abs(np.array(scene.wavelengths) - nanometres).argmin())


# ---------------------------------------------------------------- the real files


@needs_data
@pytest.mark.parametrize("name", SHAPES)
def test_every_hyperspectral_benchmark_is_a_whole_scene_with_the_known_figures(name):
    scene = open_benchmark(name, DATA)
    assert isinstance(scene, Scene)
    assert scene.image.shape == SHAPES[name]
    assert scene.image.dtype == np.float32
    assert scene.image.flags.c_contiguous
    assert scene.labels.dtype == np.int64
    assert scene.valid.all()
    np.testing.assert_array_equal(np.bincount(scene.labels.ravel()), COUNTS[name])
    assert len(scene.class_names) == scene.classes == len(COUNTS[name]) - 1
    low, high = (955, 9604) if name.startswith("indian") else (0, 1)
    assert (scene.image.min(), scene.image.max()) == (low, high)
    waves = np.array(scene.wavelengths)
    spectral = dict(scene.sensors)["hsi"]
    step = np.diff(waves[:spectral])
    overlaps = {"jasper": 2, "indian-pines-disjoint": 1}  # where one spectrometer of AVIRIS ends and the next begins
    assert (step < 0).sum() == overlaps.get(name, 0)
    assert np.median(step) == pytest.approx((waves[spectral - 1] - waves[0]) / spectral, rel=0.15)
    assert (waves[spectral:] == 0).all()


@needs_data
@pytest.mark.parametrize("name", ["muufl", "samson", "jasper"])
def test_neighbours_on_the_ground_are_neighbours_in_the_image(name):
    """Rows taken for columns, or labels turned against the image, would break this."""
    scene = open_benchmark(name, DATA)
    image = scene.image - scene.image.mean(axis=(1, 2), keepdims=True)
    for axis in (1, 2):
        step = np.diff(image, axis=axis)
        assert (step**2).mean() < 0.5 * (image**2).mean()  # twice the variance if there were no order
    labels = scene.labels
    assert (labels[1:] == labels[:-1]).mean() > 0.75
    assert (labels[:, 1:] == labels[:, :-1]).mean() > 0.75


@needs_data
def test_names_fit_the_spectra():
    for name, tree in (("samson", "tree"), ("jasper", "tree"), ("muufl", "trees")):
        scene = open_benchmark(name, DATA)
        leaves = spectrum(scene, tree)
        assert leaves[at(scene, 780)] > 2.5 * leaves[at(scene, 670)]  # the red edge, where the wavelengths say
        waves = np.array(scene.wavelengths)
        edge = (waves > 675) & (waves < 790)
        half = (leaves[at(scene, 670)] + leaves[at(scene, 790)]) / 2
        assert np.interp(half, leaves[edge], waves[edge]) == pytest.approx(720, abs=12)
        if "water" in scene.class_names:
            water = spectrum(scene, "water")
            assert water[at(scene, 850)] < 0.2 * min(
                spectrum(scene, other)[at(scene, 850)] for other in scene.class_names if other != "water"
            )
        if "soil" in scene.class_names:
            soil = spectrum(scene, "soil")
            assert soil[at(scene, 450)] < soil[at(scene, 670)] < soil[at(scene, 850)]
    jasper = open_benchmark("jasper", DATA)
    road = spectrum(jasper, "road")
    assert road[at(jasper, 450)] > 1.5 * spectrum(jasper, "soil")[at(jasper, 450)]  # the brightest in the blue
    muufl = open_benchmark("muufl", DATA)
    dsm = {name: np.median(muufl.image[64][muufl.labels == k]) for k, name in enumerate(muufl.class_names, start=1)}
    assert min(dsm["building"], dsm["trees"]) > 2 * max(dsm["grass"], dsm["bright ground"])
    green = spectrum(muufl, "grass")
    assert green[at(muufl, 780)] > 2 * green[at(muufl, 670)]


@needs_data
@pytest.mark.parametrize(
    ("name", "lines"),
    [("houston2013-pixels", (687, 762)), ("muufl", (762,)), ("indian-pines-disjoint", (687, 762, 940))],
)
def test_lines_of_the_air_lie_where_the_wavelengths_say(name, lines):
    """Oxygen at 687 and 762 nm, water vapour at 940 nm: the deepest channel nearby, against its shoulders."""
    scene = open_benchmark(name, DATA)
    spectral = dict(scene.sensors)["hsi"]
    waves, mean = np.array(scene.wavelengths[:spectral]), scene.image[:spectral].mean(axis=(1, 2))
    order = np.argsort(waves, kind="stable")
    waves, mean = waves[order], mean[order]
    for line in lines:
        near = np.flatnonzero(np.abs(waves - line) < 25)
        straight = np.interp(waves[near], waves[near[[0, -1]]], mean[near[[0, -1]]])
        assert waves[near][(mean[near] / straight).argmin()] == pytest.approx(line, abs=8)


@needs_data
def test_the_surface_model_comes_first_of_the_lidar_bands_of_muufl():
    scene = open_benchmark("muufl", DATA)
    assert scene.image[64].min() == pytest.approx(0.1475, abs=1e-4)
    assert scene.image[64].max() == pytest.approx(0.9442, abs=1e-4)
    for profile in scene.image[65:]:
        assert 0.97 < np.corrcoef(profile.ravel(), scene.image[64].ravel())[0, 1] < 0.999


@needs_data
def test_houston_trains_on_the_first_and_tests_on_the_last_of_each_class():
    scene = open_benchmark("houston2013-pixels", DATA)
    for value in range(1, 16):
        kinds = scene.official[scene.labels == value]
        assert (np.diff(kinds) >= 0).all()
        shares = np.bincount(kinds, minlength=4) / kinds.size
        np.testing.assert_allclose(shares[1:], [0.55, 0.1, 0.35], atol=0.011)
    assert (np.diff(scene.labels[0]) != 0).sum() + 1 == 594
    split = next(iter(OfficialSplit(scene.official).masks(scene.labels)))
    scores = {}
    for name, bands in (("hsi", slice(144)), ("lidar", slice(144, 165)), ("both", slice(165))):
        table = scene.image[bands, 0].T
        forest = RandomForestClassifier(50, random_state=0).fit(table[split.train[0]], scene.labels[split.train])
        scores[name] = (forest.predict(table[split.test[0]]) == scene.labels[split.test]).mean()
    assert scores["hsi"] == pytest.approx(0.61, abs=0.03)
    assert scores["lidar"] == pytest.approx(0.53, abs=0.03)
    assert scores["both"] == pytest.approx(0.75, abs=0.03)


@needs_data
def test_the_disjoint_map_gives_the_known_split_of_indian_pines():
    scene = open_benchmark("indian-pines-disjoint", DATA)
    split = next(iter(OfficialSplit(scene.official).masks(scene.labels)))
    assert (split.train.sum(), split.test.sum(), split.guard.sum()) == (5538, 4711, 0)
    assert set(np.unique(scene.labels[split.train])) == set(range(1, 17))
    np.testing.assert_array_equal(scene.image, indian_pines().image)
    trees = spectrum(scene, "Grass-trees")
    assert trees[at(scene, 800)] > 1.2 * trees[at(scene, 670)]  # of numbers with an offset of about 1000


# ---------------------------------------------------------------- without them


def write_samson(folder, cube, shares):
    path = folder / SOURCES["samson"][0].path
    path.parent.mkdir(parents=True)
    savemat(path, {"Y": cube, "S_GT": shares})


def test_columns_are_stored_one_after_the_other_and_mixed_pixels_have_no_label(tmp_path):
    row, column = np.indices((95, 95))
    cube = np.zeros((156, 95 * 95))
    cube[0], cube[1] = row.ravel(order="F") / 95, column.ravel(order="F") / 95
    shares = np.full((95, 95, 3), 0.25)
    shares[:10, :, 1], shares[10:30, :, 2] = 0.5, 0.51
    write_samson(tmp_path, cube, shares)
    scene = open_benchmark("samson", tmp_path)
    np.testing.assert_allclose(scene.image[0], row / 95, rtol=1e-6)
    np.testing.assert_allclose(scene.image[1], column / 95, rtol=1e-6)
    np.testing.assert_array_equal(scene.labels, np.where((row >= 10) & (row < 30), 3, 0))


@pytest.mark.parametrize(
    ("cube", "message"),
    [(np.zeros((9025, 156)), r"'Y' is \(9025, 156\)"), (np.full((156, 9025), np.nan), "holds NaN")],
)
def test_another_version_of_a_file_is_refused(tmp_path, cube, message):
    write_samson(tmp_path, cube, np.zeros((95, 95, 3)))
    with pytest.raises(DataError, match=message):
        open_benchmark("samson", tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_file_is_named_with_its_source_and_the_way_to_mend_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("TERRAMOE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        open_benchmark(name)
    for part in (
        Path(SOURCES[name][0].path).name,
        SOURCES[name][0].repository,
        SOURCES[name][0].terms,
        "TERRAMOE_DATA",
    ):
        assert part in str(caught.value)


def test_a_damaged_file_and_no_folder_and_unknown_names_are_refused(tmp_path, monkeypatch):
    path = tmp_path / SOURCES["jasper"][0].path
    path.parent.mkdir(parents=True)
    path.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DataError):
        open_benchmark("jasper", tmp_path)
    monkeypatch.delenv("TERRAMOE_DATA", raising=False)
    with pytest.raises(DataError, match="no folder"):
        open_benchmark("jasper")
    with pytest.raises(ConfigError, match="houston2013-pixels"):
        open_benchmark("pavia", tmp_path)
    assert set(SOURCES) == set(BENCHMARKS)
