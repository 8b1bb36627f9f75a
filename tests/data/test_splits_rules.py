"""The rules of Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic structure
(2017, doi:10.1111/ecog.02881) on simulated data whose autocorrelation is known."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.signal import fftconvolve
from scipy.spatial.distance import pdist
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier

from terramoe.data.splits import (
    BlockSplit,
    KNNDMSplit,
    PointBlockSplit,
    PointKNNDM,
    RandomSplit,
    autocorrelation_range,
    variogram,
)
from terramoe.data.splits.autocorrelation import _pairs
from terramoe.errors import SplitError


def disk_average(generator, size, diameter):
    """White noise averaged over disks: correlated up to the diameter, and not at all beyond."""
    pad = int(diameter)
    noise = generator.normal(size=(size + 2 * pad, size + 2 * pad))
    at = np.arange(-pad, pad + 1)
    disk = (np.hypot(at[:, None], at) <= diameter / 2).astype(float)
    return fftconvolve(noise, disk, "valid")[:size, :size]


def mosaic(generator, size, side, classes=6):
    """Square tiles of random class, in a random position."""
    tiles = generator.integers(1, classes + 1, (size // side + 2, size // side + 2))
    row, column = generator.integers(0, side, 2)
    return np.kron(tiles, np.ones((side, side), dtype=int))[row : row + size, column : column + size]


@pytest.mark.parametrize("diameter", [8, 16, 30])
def test_the_range_of_values_is_the_width_of_the_window_they_were_averaged_over(diameter):
    found = [autocorrelation_range(disk_average(np.random.default_rng(s), 250, diameter), seed=s) for s in range(4)]
    assert np.mean(found) == pytest.approx(diameter, rel=0.2)


@pytest.mark.parametrize("side", [5, 12, 25])
def test_the_range_of_labels_is_about_the_side_of_their_tiles(side):
    """Pixels share a tile up to a lag between side and side times the square root of two, by direction."""
    found = [autocorrelation_range(mosaic(np.random.default_rng(s), 200, side), seed=s) for s in range(4)]
    assert 0.9 * side < np.mean(found) < 1.5 * side


def test_white_noise_has_no_range():
    generator = np.random.default_rng(0)
    assert autocorrelation_range(generator.normal(size=(150, 150))) <= 1.5
    assert autocorrelation_range(generator.integers(1, 5, (150, 150))) <= 1.5
    assert autocorrelation_range(np.ones((50, 50), dtype=int)) == 0  # one class alone: nothing varies


@pytest.mark.parametrize("seed", range(3))
def test_the_pairs_drawn_are_like_all_pairs_of_their_distance(seed):
    """Join counts of a raster small enough to count them all; within four standard errors at every lag."""
    labels = mosaic(np.random.default_rng(seed), 40, 7)
    pixels = np.argwhere(labels > 0)
    lags = np.round(pdist(pixels, "sqeuclidean")).astype(int)
    unlike = pdist(labels.reshape(-1, 1)) != 0
    exact = np.bincount(lags, weights=unlike) / np.maximum(np.bincount(lags), 1)  # by squared distance
    first, second, distance = _pairs(pixels.astype(float), np.random.default_rng(seed))
    expected = exact[np.round(distance**2).astype(int)]
    drawn = labels.ravel()[first] != labels.ravel()[second]
    bins = np.digitize(distance, np.geomspace(1, distance.max() * 1.001, 13))
    for number in np.unique(bins):
        here = bins == number
        spread = np.sqrt((expected[here] * (1 - expected[here])).sum()) / here.sum()
        assert drawn[here].mean() == pytest.approx(expected[here].mean(), abs=4 * spread)


def test_the_range_scales_with_the_coordinates_and_holds_on_the_earth():
    labels = mosaic(np.random.default_rng(0), 60, 10)
    pixels = np.argwhere(labels > 0).astype(float)
    raster = autocorrelation_range(labels)
    assert autocorrelation_range(labels.ravel(), pixels * 30) == pytest.approx(30 * raster)
    degree = np.radians(1) * 6_371_008.8
    assert autocorrelation_range(labels.ravel(), pixels * 1e-3, degrees=True) == pytest.approx(
        raster * degree / 1e3, rel=0.15
    )
    texts = np.array(["", "oats", "hay", "corn", "rye", "woods", "soy"])[labels.ravel()]
    assert autocorrelation_range(texts, pixels) == raster  # names of classes do as well as numbers


def test_a_sparse_sample_has_the_range_of_the_raster():
    generator = np.random.default_rng(0)
    labels = mosaic(generator, 300, 20)
    sparse = np.where(generator.random(labels.shape) < 0.01, labels, 0)
    assert autocorrelation_range(sparse) == pytest.approx(autocorrelation_range(labels), rel=0.25)


def test_what_does_not_level_off_reaches_half_the_extent():
    ramp = np.add.outer(np.arange(60.0), np.arange(60.0))
    assert autocorrelation_range(ramp) > 0.9 * np.hypot(59, 59) / 2


def test_a_model_is_fitted_to_the_curve():
    found = variogram(disk_average(np.random.default_rng(0), 250, 16))
    assert np.abs(found.model(found.distance) - found.semivariance).max() < 0.15
    assert found.model(np.array([1e6])) == pytest.approx(found.sill)
    assert found.nugget < 0.1 < 0.8 < found.sill < 1.2


def test_bad_input():
    with pytest.raises(SplitError, match="9 points"):
        variogram(np.ones((3, 3), dtype=int))
    with pytest.raises(SplitError, match="one place"):
        variogram(np.arange(20), np.zeros((20, 2)))


def smooth(generator, shape, scale=4):
    field = ndimage.gaussian_filter(generator.normal(size=shape), scale, mode="wrap")
    return field / field.std()


def world(generator, shape=(60, 60)):
    """Classes (H, W) from a smooth field, and six smooth features: two show it dimly, four do not know of it."""
    signal = smooth(generator, shape)
    dim = [signal + 0.8 * smooth(generator, shape) + 0.3 * generator.normal(size=shape) for _ in range(2)]
    return np.where(signal > 0, 2, 1), np.stack([*dim, *(smooth(generator, shape) for _ in range(4))])


def score(train, test):
    return (KNeighborsClassifier(1).fit(*train).predict(test[0]) == test[1]).mean()


@pytest.fixture(scope="module")
def errors():
    """Estimated minus true accuracy of a nearest-neighbour classifier, (worlds,) for each split. The truth is its
    accuracy on a fresh region of the same kind. For kNNDM the region lies 40 pixels to the east."""
    found = {"random": [], "block": [], "knndm": []}
    for seed in range(10):
        generator = np.random.default_rng(seed)
        (labels, image), (fresh_labels, fresh_image) = world(generator), world(generator)
        truth = score((image.reshape(6, -1).T, labels.ravel()), (fresh_image.reshape(6, -1).T, fresh_labels.ravel()))
        wide = np.pad(labels, ((0, 0), (0, 100)))
        region = np.zeros(wide.shape, dtype=bool)
        region[:, 100:] = True
        splitters = {"random": RandomSplit(3, 2 / 3), "block": BlockSplit(3, 20, 4), "knndm": KNNDMSplit(3, region)}
        for name, splitter in splitters.items():
            folds = [(s.train[:, :60], s.test[:, :60]) for s in splitter.masks(wide)]
            scores = [score(*((image[:, part].T, labels[part]) for part in fold)) for fold in folds]
            found[name].append(np.mean(scores) - truth)
    return {name: np.array(values) for name, values in found.items()}


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


def test_a_random_split_is_optimistic_on_autocorrelated_data(errors):
    assert errors["random"].mean() > 5 * standard_error(errors["random"])


@pytest.mark.parametrize("name", ["block", "knndm"])
def test_blocks_and_matched_distances_come_closer_to_the_truth(errors, name):
    gain = np.abs(errors["random"]) - np.abs(errors[name])
    assert gain.mean() > 5 * standard_error(gain)
    assert abs(errors[name].mean()) < 3 * standard_error(errors[name])  # no bias that ten worlds can show


def test_the_same_holds_for_a_table_of_points(errors):
    """Where points come in clusters, random folds are optimistic for the area between, and matched folds are not."""
    optimism = {"random": [], "block": [], "knndm": []}
    for seed in range(10):
        generator = np.random.default_rng(seed)
        labels, image = world(generator, (120, 120))
        centres = generator.integers(6, 114, (40, 1, 2))
        where = np.unique((centres + generator.integers(-2, 3, (40, 15, 2))).reshape(-1, 2), axis=0)
        area = np.argwhere(labels > 0)[::7]
        X, y = image[:, where[:, 0], where[:, 1]].T, labels[where[:, 0], where[:, 1]]
        truth = score((X, y), (image[:, area[:, 0], area[:, 1]].T, labels[area[:, 0], area[:, 1]]))
        cvs = {
            "random": KFold(5, shuffle=True, random_state=0),
            "block": PointBlockSplit(where, 20, 5, seed=seed),
            "knndm": PointKNNDM(where, area, 5, seed=seed),
        }
        for name, cv in cvs.items():
            predicted = np.empty_like(y)
            for train, test in cv.split(X, y):
                predicted[test] = KNeighborsClassifier(1).fit(X[train], y[train]).predict(X[test])
            optimism[name].append((predicted == y).mean() - truth)
    random, block, knndm = (np.array(optimism[name]) for name in ("random", "block", "knndm"))
    assert random.mean() > 5 * standard_error(random)
    for better in (block, knndm):
        gain = np.abs(random) - np.abs(better)
        assert gain.mean() > 3 * standard_error(gain)
