"""kNNDM: distances are what they should be, and match those of the deployment area better than other splits do."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from terramoe.data.splits import BlockSplit, KNNDMSplit, match_distances, wasserstein
from terramoe.data.splits.matching import UNITS
from terramoe.errors import SplitError


def clustered(seed, clusters=12, size=20, extent=1000.0):
    """Points in tight clusters, far apart: the sampling for which random folds are most wrong."""
    generator = np.random.default_rng(seed)
    centres = generator.random((clusters, 2)) * extent
    return (centres[:, None] + generator.normal(scale=5, size=(clusters, size, 2))).reshape(-1, 2)


def grid(extent=1000.0, step=25):
    return np.stack(np.meshgrid(np.arange(0, extent, step), np.arange(0, extent, step)), -1).reshape(-1, 2)


@given(
    ours=st.lists(st.floats(0, 100), min_size=1, max_size=12),
    theirs=st.lists(st.floats(0, 100), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_w_is_the_area_between_the_cumulative_curves(ours, theirs):
    at = np.linspace(0, 100, 40_001)[:-1] + 0.00125
    curves = [np.searchsorted(np.sort(side), at, "right") / len(side) for side in (ours, theirs)]
    area = np.abs(curves[0] - curves[1]).mean() * 100
    assert wasserstein(np.array(ours), np.array(theirs)) == pytest.approx(area, abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_the_distances_of_the_folds_are_those_of_brute_force(seed):
    points, area = clustered(seed), grid()
    match = match_distances(points, area, 5, seed=seed)
    pairs = cdist(points, points)
    other = match.fold[:, None] != match.fold[None, :]
    brute = np.where(other, pairs, np.inf).min(axis=1)
    np.testing.assert_allclose(match.test, brute)
    np.testing.assert_allclose(match.deployment, cdist(area, points).min(axis=1))
    assert match.wasserstein == pytest.approx(wasserstein(brute, match.deployment))


@pytest.mark.parametrize("seed", range(4))
def test_clustered_points_are_matched_far_better_than_by_random_folds(seed):
    match = match_distances(clustered(seed), grid(), 5, seed=seed)
    assert match.wasserstein < 0.5 * match.random
    assert match.clusters < 100  # of 240 points: clusters stay together


@pytest.mark.parametrize("seed", range(4))
def test_points_spread_at_random_over_the_area_need_no_clusters(seed):
    """For a random sample random folds are right, and whatever is chosen is as good."""
    points = np.random.default_rng(seed).random((400, 2)) * 1000
    match = match_distances(points, grid(), 5, seed=seed)
    assert match.wasserstein <= match.random < 0.15 * match.deployment.mean()


def test_an_area_far_away_asks_for_the_coarsest_folds():
    points = np.random.default_rng(0).random((300, 2)) * 100
    match = match_distances(points, grid(100) + 500, 3)
    assert match.clusters <= 4
    near = match_distances(points, points, 3)
    assert near.clusters > 100


@given(seed=st.integers(0, 100), n_splits=st.integers(2, 7))
@settings(max_examples=15, deadline=None)
def test_every_point_has_a_fold_and_no_fold_is_too_large(seed, n_splits):
    points = clustered(seed, clusters=6, size=9)
    match = match_distances(points, grid(), n_splits, seed=seed)
    counts = np.bincount(match.fold, minlength=n_splits)
    assert counts.min() > 0
    assert counts.max() <= max(0.5, 1.2 / n_splits) * len(points) + 1
    np.testing.assert_array_equal(match.fold, match_distances(points, grid(), n_splits, seed=seed).fold)


@pytest.mark.parametrize(
    "points", [np.zeros((UNITS + 500, 2)), np.stack([np.arange(UNITS + 500.0), np.zeros(UNITS + 500)], axis=1)]
)
def test_points_that_coincide_or_lie_on_a_line(points):
    match = match_distances(points, points + 3, 3)
    assert np.isfinite(match.wasserstein)
    assert set(match.fold) == {0, 1, 2}


def test_bad_input():
    with pytest.raises(SplitError, match="2 points for 3 folds"):
        match_distances(np.zeros((2, 2)), np.zeros((5, 2)), 3)
    with pytest.raises(SplitError, match="0 points in the deployment area"):
        match_distances(np.zeros((9, 2)), np.zeros((0, 2)), 3)
    labels = np.ones((6, 6), dtype=int)
    with pytest.raises(SplitError, match="the deployment area is"):
        list(KNNDMSplit(area=np.ones((2, 2), dtype=bool)).masks(labels))


def patches(seed, size=80, share=0.3):
    """Labelled patches, some far from others, on a raster."""
    generator = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(generator.normal(size=(size, size)), 4) > 0).astype(int) + 1
    blobs = ndimage.gaussian_filter(generator.normal(size=(size, size)), 6)
    labels[blobs < np.quantile(blobs, 1 - share)] = 0
    return labels


@pytest.mark.parametrize("guard", [0, 2])
def test_folds_of_a_raster_keep_their_promises(guard):
    labels = patches(0)
    splitter = KNNDMSplit(guard=guard, area=labels == 0)
    match = splitter.match(labels)
    tested, distances = np.zeros(labels.shape, dtype=int), np.zeros(labels.shape)
    for split in splitter.masks(labels):
        assert (split.train.astype(int) + split.test + split.guard == (labels > 0)).all()
        assert cdist(np.argwhere(split.train), np.argwhere(split.test), "chebyshev").min() > guard
        tested += split.test
        distances[split.test] = ndimage.distance_transform_edt(~split.train)[split.test]
    assert (tested == (labels > 0)).all()
    np.testing.assert_allclose(distances[labels > 0], match.test)  # matched with the guard in place
    np.testing.assert_allclose(match.deployment, ndimage.distance_transform_edt(labels == 0)[labels == 0])


@pytest.mark.parametrize("seed", range(3))
def test_patches_are_matched_better_than_by_random_pixels_or_blocks(seed):
    labels = patches(seed)
    found = KNNDMSplit(area=labels == 0).compare(labels, block=12)
    assert found["knndm"] < 0.6 * found["random"]
    assert found["knndm"] < found["block"]
    blocks = np.zeros(labels.shape)
    for split in BlockSplit(block=12, guard=0).masks(labels):
        blocks[split.test] = ndimage.distance_transform_edt(~split.train)[split.test]
    deployment = ndimage.distance_transform_edt(labels == 0)[labels == 0]
    assert found["block"] == pytest.approx(wasserstein(blocks[labels > 0], deployment))


def test_a_large_raster_is_matched_within_twenty_seconds():
    generator = np.random.default_rng(0)
    labels = (ndimage.gaussian_filter(generator.normal(size=(500, 500)), 8) > 0).astype(int) + 1
    blobs = ndimage.gaussian_filter(generator.normal(size=(500, 500)), 15)
    labels[blobs < np.quantile(blobs, 0.6)] = 0
    assert (labels > 0).sum() == pytest.approx(100_000, abs=1)
    started = time.process_time()
    match = KNNDMSplit(area=labels == 0).match(labels)
    assert time.process_time() - started < 20
    assert match.wasserstein < 0.4 * match.random
