"""The audit: what it measures agrees with brute force, each leak raises its flag, and nothing else does."""

import csv
import json
from dataclasses import asdict, replace
from datetime import date

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.model_selection import KFold

from terramoe.data import (
    BlockSplit,
    FieldSplit,
    GroupSplit,
    KNNDMSplit,
    LeaveGroupOut,
    PointBlockSplit,
    PointTable,
    RandomSplit,
    Scene,
    audit_scene,
    audit_split,
    audit_table,
    autocorrelation_range,
    indian_pines,
    read_points,
)
from terramoe.data.audit_measures import extrapolation_share
from terramoe.data.audit_table import fold_of, hull_points
from terramoe.errors import DataError, SplitError


def made(seed=0, size=72, scale=4):
    """A scene of smooth classes with smooth spectra: neighbours are near copies."""
    generator = np.random.default_rng(seed)

    def field():
        values = ndimage.gaussian_filter(generator.normal(size=(size, size)), scale)
        return values / values.std()

    labels = np.digitize(field(), (-0.5, 0.5)) + 1
    image = np.stack([labels + 1.5 * field() for _ in range(3)]).astype(np.float32)
    labels[generator.random(labels.shape) < 0.3] = 0
    valid = np.ones(labels.shape, dtype=bool)
    valid[:, -6:] = False
    labels[~valid] = 0
    return Scene("made", image, valid, labels.astype(np.int64), (1, 2, 3), ("a", "b", "c"))


@pytest.fixture(scope="module")
def smooth():
    return made()


def test_distances_and_w_agree_with_brute_force(smooth):
    split = next(BlockSplit(block=12, guard=2).masks(smooth.labels))
    found = audit_split(smooth, split, radius=2)
    test = cdist(np.argwhere(split.test), np.argwhere(split.train)).min(axis=1)
    deployment = cdist(np.argwhere(smooth.valid), np.argwhere(smooth.labels > 0)).min(axis=1)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    assert found.guard_distance == pytest.approx(test.min())
    assert found.guard_distance > 2
    assert found.median_distance == pytest.approx(np.median(test))
    np.testing.assert_allclose(found.test_distances, np.quantile(test, levels))
    np.testing.assert_allclose(found.deployment_distances, np.quantile(deployment, levels))
    assert found.wasserstein == pytest.approx(wasserstein_distance(test, deployment))
    assert found.label_range == autocorrelation_range(smooth.labels)
    assert (found.train, found.guard, found.test) == (split.train.sum(), split.guard.sum(), split.test.sum())


def test_the_area_of_deployment_can_be_named(smooth):
    split = next(BlockSplit(block=12, guard=2).masks(smooth.labels))
    corner = np.zeros(smooth.labels.shape, dtype=bool)
    corner[:, -1] = True
    found = audit_split(smooth, split, radius=2, area=corner)
    assert found.deployment_distances[0] >= 6  # the last columns hold no label
    with pytest.raises(SplitError, match="deployment area is empty"):
        audit_split(smooth, split, radius=2, area=~np.ones_like(corner))


def test_a_random_split_of_autocorrelated_data_is_a_leak_and_large_blocks_are_not(smooth):
    rows = audit_scene(smooth, {"random": RandomSplit(), "block": BlockSplit(block=24, guard=2)}, radius=2)
    leaky, blocks = rows
    assert leaky.leaks
    assert any("their patches overlap" in line for line in leaky.leak_flags)
    assert any("the place alone scores" in line for line in leaky.leak_flags)
    assert not blocks.leaks
    assert blocks.leak_flags == ()
    assert leaky.leaks == bool(leaky.leak_flags)


def test_blocks_smaller_than_the_range_of_autocorrelation_are_warned_of(smooth):
    reach = autocorrelation_range(smooth.labels)
    for block in (int(0.6 * reach), int(1.4 * reach)):
        (found,) = audit_scene(smooth, {"block": BlockSplit(block=block, guard=2)}, radius=2)
        assert any("smaller than the range" in line for line in found.warnings) == (block < reach)


def test_a_split_that_tests_nearer_than_the_map_is_used_is_a_leak(smooth):
    labels = np.where(np.arange(72) < 20, smooth.labels, 0)  # all labels in the west
    west = replace(smooth, labels=labels)
    rows = audit_scene(west, {"random": RandomSplit(3, 0.5), "knndm": KNNDMSplit(area=west.valid)}, radius=0)
    assert any("nearer places" in line for line in rows[0].leak_flags)
    assert rows[1].wasserstein < rows[0].wasserstein


def test_a_split_that_tests_farther_away_is_called_pessimistic(smooth):
    (found,) = audit_scene(smooth, {"block": BlockSplit(block=24, guard=6)}, radius=6)
    assert any("pessimistic" in line for line in found.warnings)


def test_environmental_extrapolation_is_flagged(smooth):
    """A ramp from west to east: eastern pixels lie outside what western ones span."""
    image = smooth.image.copy()
    image[0] += 0.5 * np.arange(72)
    ramp = replace(smooth, image=image)
    halves = np.where(np.arange(72) < 40, 1, 2) * np.ones((72, 1), dtype=int)
    east, random = audit_scene(ramp, {"group": GroupSplit(halves, guard=2), "random": RandomSplit(2, 0.5)}, radius=2)
    assert any("extrapolation" in line for line in east.warnings)
    assert east.extrapolation > 0.8
    assert not any("extrapolation" in line for line in random.warnings)
    assert random.extrapolation < 0.05


@pytest.mark.parametrize("features", [3, 200])
def test_many_noisy_features_do_not_add_up_to_extrapolation(features):
    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(1000, features)), generator.normal(size=(2000, features))
    share = extrapolation_share(train, test)
    assert share < 3 * 2 * min(10, features) / 1001
    assert extrapolation_share(train, test + 100) == 1
    train[0, 0] = np.nan  # missing values are no reason to fail
    assert extrapolation_share(train, train) == 0


def test_classes_never_trained_are_named(smooth):
    rare = smooth.labels.copy()
    rare[:3, :3] = 4
    scene = replace(smooth, labels=rare, class_values=(1, 2, 3, 4), class_names=("a", "b", "c", "rare"))
    fold = next(s for s in BlockSplit(block=12, guard=2).masks(rare) if s.test[0, 0])
    found = audit_split(scene, fold, radius=2)
    assert found.missing == (4,)
    assert "classes tested but never trained: rare" in found.warnings


def test_an_audit_is_plain_data(smooth):
    (found,) = audit_scene(smooth, {"block": BlockSplit()}, radius=2)
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["leaks"] is found.leaks


def test_a_fold_of_one_training_class_is_audited(smooth):
    halves = np.where(np.arange(72) < 36, 1, 2) * np.ones((72, 1), dtype=int)
    labels = np.where(smooth.labels > 0, halves, 0)
    scene = replace(smooth, labels=labels, class_values=(1, 2), class_names=("west", "east"))
    (found,) = audit_scene(scene, {"group": GroupSplit(halves)}, radius=0)
    assert found.coordinates == found.logistic == found.majority == 0


def test_indian_pines_in_numbers():
    scene = indian_pines()
    new = scene.labels == 0
    splitters = {
        "random": RandomSplit(),
        "block": BlockSplit(3, 16, 4),
        "field": FieldSplit(3, 4),
        "knndm": KNNDMSplit(area=new),
    }
    random, block, field, knndm = audit_scene(scene, splitters, radius=4, area=new)
    assert random.coordinates > 0.95
    assert random.coordinates > block.coordinates > knndm.coordinates > field.coordinates
    assert knndm.wasserstein < 0.5 * min(random.wasserstein, block.wasserstein, field.wasserstein)
    assert random.leaks
    assert not block.leaks
    assert not field.leaks
    assert 25 < block.label_range < 60  # fields are 20 to 40 pixels wide


# tables


def write_csv(path, rows, header, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def points(seed=0, count=400):
    """Points in clusters, classes and features from smooth fields."""
    generator = np.random.default_rng(seed)
    scene = made(seed, 100, 5)
    centres = generator.integers(5, 90, (count // 10, 1, 2))
    where = (centres + generator.integers(-2, 3, (count // 10, 10, 2))).reshape(-1, 2)
    labels = np.digitize(scene.image[0][tuple(where.T)], (1.5, 2.5)) + 1
    features = scene.image[:, where[:, 0], where[:, 1]].T.astype(float)
    features = features + 0.5 * generator.normal(size=features.shape)
    groups = np.where(where[:, 0] < 50, "north", "south")
    return PointTable("made", where.astype(float), False, labels, ("a", "b", "c"), features, groups, where[:, 1] * 1.0)


def test_an_audit_of_a_table_agrees_with_brute_force():
    table = points()
    splitter = PointBlockSplit(table.coordinates, 20, 4, guard=3)
    (found,) = audit_table(table, {"block": splitter})
    train, test = next(splitter.split(table.coordinates, table.labels))
    distance = cdist(table.coordinates[test], table.coordinates[train]).min(axis=1)
    deployment = cdist(hull_points(table.coordinates), table.coordinates).min(axis=1)
    assert (found.train, found.test) == (len(train), len(test))
    assert found.guard == len(table.labels) - len(train) - len(test) > 0
    assert found.guard_distance == pytest.approx(distance.min())
    assert found.guard_distance > 3
    assert found.wasserstein == pytest.approx(wasserstein_distance(distance, deployment))
    np.testing.assert_allclose(found.test_distances, np.quantile(distance, (0.05, 0.25, 0.5, 0.75, 0.95)))
    assert found.shared_places == 0
    assert found.shared_groups == 2
    times = table.times
    assert found.time_gap == np.abs(times[test][:, None] - times[train]).min()
    json.dumps(asdict(found), allow_nan=False)


def test_random_folds_of_clustered_points_leak_and_blocks_do_not():
    table = points()
    block = autocorrelation_range(table.labels, table.coordinates)
    splitters = {
        "random": KFold(4, shuffle=True, random_state=0),
        "block": PointBlockSplit(table.coordinates, block, 4, guard=2),
    }
    random, blocks = audit_table(table, splitters)
    assert any("very place" in line for line in random.leak_flags)
    assert any("nearer places" in line for line in random.leak_flags)
    assert not blocks.leaks


def test_a_table_without_features_groups_or_times():
    table = replace(points(), features=None, groups=None, times=None)
    (found,) = audit_table(table, {"random": KFold(4, shuffle=True, random_state=0)})
    assert found.logistic is found.extrapolation is found.shared_groups is found.time_gap is None


def test_any_fold_can_be_audited():
    table = points()
    splitter = LeaveGroupOut(table.groups)
    for fold, name in enumerate(("north", "south", "north")):  # counted anew after the last
        train, test = fold_of(table, splitter, fold)
        assert set(table.groups[test]) == {name}
        (found,) = audit_table(table, {"group": splitter}, fold=fold)
        assert (found.train, found.test) == (len(train), len(test))
        assert found.shared_groups == 0


def test_points_of_the_hull_lie_within_it():
    triangle = np.array([[0, 0], [4, 0], [0, 4.0]])
    found = hull_points(triangle, 500)
    assert found.shape == (500, 2)
    assert (found.sum(axis=1) <= 4 + 1e-9).all()
    assert (found >= 0).all()
    assert found.sum(axis=1).max() > 3.5
    with pytest.raises(SplitError, match="span no area"):
        hull_points(np.array([[0, 0], [1, 1], [2, 2.0]]))


ROWS = [
    ["10.5", "50.1", "oats", "1", "N", "2024-05-01"],
    ["10.6", "50.2", "hay", "", "S", "2024-06-01"],
    ["10.7", "50.3", "oats", "3", "S", "2024-07-01"],
    ["10.7", "50.3", "hay", "3", "S", "2024-07-01"],
    ["", "50.4", "hay", "4", "N", "2024-08-01"],  # no longitude
    ["10.9", "50.5", "NA", "5", "N", "2024-08-01"],  # no class
    ["10.9", "50.5", "hay", "5", "N", ""],  # no date
]
HEADER = ["lon", "lat", "crop", "ndvi", "region", "date"]
COLUMNS = {"x": "lon", "y": "lat", "label": "crop", "features": ["ndvi"], "group": "region", "time": "date"}


def check(table):
    assert table.degrees
    assert table.unit == "m"
    assert table.dropped == 3
    assert table.class_names == ("hay", "oats")
    assert table.labels.tolist() == [2, 1, 2, 1]
    np.testing.assert_array_equal(table.features, [[1], [np.nan], [3], [3]])
    assert table.groups.tolist() == ["N", "S", "S", "S"]
    np.testing.assert_array_equal(table.times - table.times[0], [0, 31, 61, 61])
    np.testing.assert_array_equal(table.coordinates[0], [10.5, 50.1])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_text_table_is_read(tmp_path, delimiter):
    check(read_points(write_csv(tmp_path / "t.csv", ROWS, HEADER, delimiter), **COLUMNS))


def test_a_parquet_table_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    columns = dict(zip(HEADER, zip(*ROWS, strict=True), strict=True))
    numbers = {k: [float(v) if v else None for v in columns[k]] for k in ("lon", "lat", "ndvi")}
    dates = {"date": pyarrow.array([date.fromisoformat(v) if v else None for v in columns["date"]], pyarrow.date32())}
    parquet.write_table(pyarrow.table({**columns, **numbers, **dates}), tmp_path / "t.parquet")
    check(read_points(tmp_path / "t.parquet", **COLUMNS))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="damaged"):
        read_points(tmp_path / "broken.parquet", **COLUMNS)


def test_without_pyarrow_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("terramoe.data.point_table.find_spec", lambda name: None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"needs pyarrow.*Fix: pip install pyarrow"):
        read_points(tmp_path / "t.parquet", **COLUMNS)


def test_projected_coordinates_and_numbers_as_times(tmp_path):
    rows = [[str(i), str(2 * i), "ab"[i % 2], str(i / 2)] for i in range(10)]
    path = write_csv(tmp_path / "t.csv", rows, ["x", "y", "c", "t"])
    table = read_points(path, x="x", y="y", label="c", time="t")
    assert not table.degrees
    assert table.features is None
    np.testing.assert_array_equal(table.times, np.arange(10) / 2)
    assert read_points(path, x="x", y="y", label="c", degrees=True).degrees


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "color"}, "there is no column 'color'.*use one of lon, lat, crop"),
        ({"features": ["region"]}, "column 'region' does not hold numbers"),
        ({"time": "crop"}, "neither numbers nor dates"),
        ({"label": "lon"}, "numbers to be regressed cannot be audited"),
        ({"label": "ndvi", "features": ["lat"]}, "2 classes|classes in"),
        ({"x": "crop"}, "does not hold numbers"),
    ],
)
def test_bad_columns(tmp_path, change, message):
    path = write_csv(tmp_path / "t.csv", ROWS, HEADER)
    with pytest.raises(DataError, match=message):
        read_points(path, **{**COLUMNS, **change})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is no column 'lon'"),
        (b"lon,lat,crop,ndvi,region,date\n", "no rows"),
        (b"lon,lat,crop,ndvi,region,date\n1,2,oats\n", "row 2 has another number of cells"),
        (b"\xff\xfe\x00\x01", "no UTF-8"),
        (b"lon,lat,crop,ndvi,region,date\n1,2,oats,1,N,2024-01-01\n1,2,oats,1,N,2024-01-01\n", "1 classes"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_points(tmp_path / "t.csv", **COLUMNS)
    with pytest.raises(DataError, match="no such file"):
        read_points(tmp_path / "none.csv", **COLUMNS)


def test_swapped_latitude_and_longitude_are_told(tmp_path):
    path = write_csv(
        tmp_path / "t.csv", [["10", "120", "a"], ["10", "121", "b"], ["9", "1", "a"], ["9", "1", "b"]], "pqc"
    )
    with pytest.raises(SplitError, match="a latitude is 121"):
        read_points(path, x="p", y="q", label="c", degrees=True)
