"""Splits of tables of points: guards in space and time against brute force, and use as scikit-learn's cv."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import haversine_distances
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut, cross_val_score

from terramoe.data.splits import LeaveGroupOut, PointBlockSplit, PointKNNDM, nearest, positions_of
from terramoe.data.splits.points import point_block_ids
from terramoe.errors import SplitError

RADIUS = 6_371_008.8


def distances(coordinates, others, degrees):
    """All distances, by another road than the library's."""
    if not degrees:
        return cdist(coordinates, others)
    return RADIUS * haversine_distances(np.radians(coordinates[:, ::-1]), np.radians(others[:, ::-1]))


def table(seed, rows=120, degrees=False):
    generator = np.random.default_rng(seed)
    places = generator.random((rows, 2)) * ((20, 12) if degrees else (2e6, 1.2e6)) + ((170, -6) if degrees else (0, 0))
    if degrees:
        places[:, 0] = (places[:, 0] + 180) % 360 - 180  # across the date line
    X = generator.normal(size=(rows, 3))
    return places, X, generator.integers(0, 3, rows), generator.integers(0, 5, rows)


places = st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=1, max_size=8).map(np.array)


@given(ours=places, theirs=places)
@settings(max_examples=80, deadline=None)
def test_distances_on_the_earth_are_great_circles(ours, theirs):
    found = nearest(positions_of(ours, degrees=True), positions_of(theirs, degrees=True))
    np.testing.assert_allclose(found, distances(ours, theirs, True).min(axis=1), rtol=1e-6, atol=0.2)


def test_known_great_circles():
    def between(a, b):
        return nearest(positions_of(np.array([a]), degrees=True), positions_of(np.array([b]), degrees=True))[0]

    assert between((0, 0), (0, 90)) == pytest.approx(np.pi / 2 * RADIUS)
    assert between((179.5, 0), (-179.5, 0)) == pytest.approx(np.radians(1) * RADIUS)  # across the date line
    assert between((10, 60), (11, 60)) == pytest.approx(0.5 * np.radians(1) * RADIUS, rel=1e-4)  # cos 60°
    assert between((0, 0), (180, 0)) == pytest.approx(np.pi * RADIUS)


@given(
    seed=st.integers(0, 99),
    degrees=st.booleans(),
    guard=st.one_of(st.none(), st.floats(0, 150_000)),
    folds=st.integers(2, 5),
)
@settings(max_examples=30, deadline=None)
def test_blocks_of_points_are_tested_once_and_a_guard_takes_what_is_near(seed, degrees, guard, folds):
    where, X, y, _ = table(seed, degrees=degrees)
    splitter = PointBlockSplit(where, 200_000, folds, guard=guard, degrees=degrees)
    blocks = point_block_ids(where, 200_000, degrees=degrees)
    tested = np.zeros(len(where), dtype=int)
    for train, test in splitter.split(X, y):
        tested[test] += 1
        rest = np.setdiff1d(np.arange(len(where)), test)
        near = distances(where[rest], where[test], degrees).min(axis=1)
        expected = rest if guard is None else rest[near > guard]
        np.testing.assert_array_equal(train, expected)
        assert not set(blocks[train]) & set(blocks[test])
    assert (tested == 1).all()
    assert splitter.get_n_splits() == folds


@pytest.mark.parametrize("latitude", [0, 45, 70, 89.9])
def test_blocks_on_the_earth_are_about_square_at_any_latitude(latitude):
    generator = np.random.default_rng(0)
    where = np.stack([generator.random(8000) * 360 - 180, np.full(8000, float(latitude))], axis=1)
    side = 100_000 if latitude < 80 else 5_000
    blocks = point_block_ids(where, side, degrees=True)
    around = 2 * np.pi * RADIUS * np.cos(np.radians(latitude))
    assert len(np.unique(blocks)) == pytest.approx(around / side, rel=0.05, abs=3)
    for block in np.unique(blocks):
        inside = where[blocks == block]
        assert distances(inside, inside, True).max() < 1.1 * side


def test_classes_are_spread_over_the_folds():
    where, X, _, _ = table(0, rows=3000)
    y = (np.random.default_rng(1).random(3000) < 0.05).astype(int)  # a rare class
    counts = [y[test].sum() for _, test in PointBlockSplit(where, 100_000, 3).split(X, y)]
    assert max(counts) - min(counts) <= 5


def test_points_at_one_place_are_parted_by_a_guard_of_zero():
    where = np.repeat(np.random.default_rng(0).random((30, 2)), 2, axis=0)
    groups = np.tile([0, 1], 30)
    X = np.zeros((60, 1))
    with pytest.raises(SplitError, match="the guard leaves no training point"):
        list(LeaveGroupOut(groups, coordinates=where, guard=0).split(X))
    train, _ = next(LeaveGroupOut(groups, coordinates=where).split(X))
    assert len(train) == 30


@pytest.mark.parametrize("seed", range(5))
def test_without_a_guard_groups_are_left_out_as_scikit_learn_does(seed):
    _, X, y, groups = table(seed)
    names = np.array(["spring", "summer", "autumn", "winter", "none"])[groups]
    ours = list(LeaveGroupOut().split(X, y, names))
    theirs = list(LeaveOneGroupOut().split(X, y, names))
    assert len(ours) == len(theirs) == LeaveGroupOut(names).get_n_splits() == LeaveGroupOut().get_n_splits(groups=names)
    for mine, their in zip(ours, theirs, strict=True):
        for a, b in zip(mine, their, strict=True):
            np.testing.assert_array_equal(a, b)


@given(seed=st.integers(0, 99), degrees=st.booleans(), guard=st.floats(0, 80_000), days=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_guards_in_space_and_time_each_hold(seed, degrees, guard, days):
    where, X, y, groups = table(seed, rows=150, degrees=degrees)
    dates = np.datetime64("2024-02-20") + np.random.default_rng(seed).integers(0, 700, 150).astype("timedelta64[D]")
    splitter = LeaveGroupOut(groups, None, where, guard, degrees, dates, days)
    for fold, (train, test) in enumerate(splitter.split(X, y)):
        np.testing.assert_array_equal(test, np.flatnonzero(groups == fold))
        apart = np.abs(dates[:, None] - dates[test]).min(axis=1) / np.timedelta64(1, "D")
        far = distances(where, where[test], degrees).min(axis=1)
        np.testing.assert_array_equal(train, np.flatnonzero((groups != fold) & (apart > days) & (far > guard)))


def test_a_season_left_out_needs_no_coordinates():
    months = np.arange(36) % 12
    seasons = months // 3
    train, test = next(LeaveGroupOut(seasons, times=np.arange(36.0), time_guard=1).split(np.zeros((36, 1))))
    assert months[test].tolist() == [0, 1, 2] * 3
    kept = (months >= 4) & (months <= 10)  # April and December lie next to the season,
    kept[35] = True  # but no January follows the last December
    assert train.tolist() == np.flatnonzero(kept).tolist()


def test_knndm_of_points_matches_and_keeps_its_guard():
    generator = np.random.default_rng(0)
    where = (generator.random((10, 1, 2)) * 8 + generator.normal(scale=0.05, size=(10, 15, 2))).reshape(-1, 2)
    area = generator.random((2000, 2)) * 8
    splitter = PointKNNDM(where, area, 4, guard=1_000, degrees=True)
    match = splitter.match()
    assert match.wasserstein < 0.6 * match.random
    tested = np.zeros(150)
    for train, test in splitter.split(np.zeros((150, 1))):
        tested[test] += 1
        near = distances(where[train], where[test], True).min(axis=0)
        assert near.min() > 1_000
        np.testing.assert_allclose(match.test[test], near, rtol=1e-6)
    assert (tested == 1).all()


def test_all_are_cv_of_scikit_learn():
    where, X, y, groups = table(0)
    cvs = [
        PointBlockSplit(where, 200_000, 4, guard=10_000),
        PointKNNDM(where, where + 5_000, 4),
        LeaveGroupOut(groups),
        LeaveGroupOut(groups, n_splits=3, coordinates=where, guard=1_000),
    ]
    for cv in cvs:
        scores = cross_val_score(LogisticRegression(), X, y, cv=cv)
        assert len(scores) == cv.get_n_splits(X, y)
        assert np.isfinite(scores).all()
        search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}, cv=cv).fit(X.tolist(), y)  # lists will do
        assert search.n_splits_ == len(scores)
    scores = cross_val_score(LogisticRegression(), X, y, groups=groups, cv=LeaveGroupOut())
    assert len(scores) == 5
    assert len(cross_val_score(Ridge(), X, X[:, 0], cv=cvs[0])) == 4  # regression


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w, g: PointBlockSplit(w[:5], 1.0), "120 rows, 5 coordinates"),
        (lambda w, g: PointBlockSplit(w, -1.0), "block is -1"),
        (lambda w, g: PointBlockSplit(w, 1e9), "1 blocks hold labels, for 5 folds"),
        (lambda w, g: PointBlockSplit(w, 1e5, guard=1e9), "the guard leaves no training point"),
        (lambda w, g: PointBlockSplit(w, 1e5, time_guard=3), "there is a guard but there are no times"),
        (lambda w, g: PointBlockSplit(w, 1e5, degrees=True), "a latitude is"),
        (lambda w, g: PointBlockSplit(w[:, :1], 1e5), "coordinates have shape"),
        (lambda w, g: PointBlockSplit(np.where(w == w[3], np.nan, w), 1e5), "not finite"),
        (lambda w, g: LeaveGroupOut(), "there are no groups"),
        (lambda w, g: LeaveGroupOut(np.zeros(120)), "1 groups"),
        (lambda w, g: LeaveGroupOut(g[:7]), "120 rows, 7 groups"),
        (lambda w, g: LeaveGroupOut(g, guard=5), "there is a guard but there are no coordinates"),
        (lambda w, g: PointKNNDM(w, np.zeros((0, 2))), "0 points in the deployment area"),
    ],
)
def test_bad_settings(make, message):
    where, X, y, groups = table(0)
    with pytest.raises(SplitError, match=message):
        list(make(where, groups).split(X, y))
