"""The smoother on a quad-tree against linear algebra, filterpy and its limits."""

import numpy as np
import pytest
from filterpy.kalman import KalmanFilter
from scipy.stats import multivariate_normal

from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.kalman_tree import smooth
from terramoe.mixtures.quad_tree import Observation, TreeModel, depth_of, family, fractal_model, siblings, spread


def dense(model, shape, observations):
    """Mean, variance by level, left-out (mean, variance) and log-likelihood, from the joint covariance of all nodes.

    Every node is written as a sum of independent steps: x = mean + A e. Nodes of padding are left out: they are
    unseen children, which say nothing.
    """
    sizes = [tuple(-(-n // 2 ** (model.depth - m)) for n in shape) for m in range(model.depth + 1)]
    first = np.cumsum([0] + [h * w for h, w in sizes])
    loading, mean = np.zeros((first[-1], first[-1])), np.zeros(first[-1])
    for m, (height, width) in enumerate(sizes):
        for row in range(height):
            for column in range(width):
                node = first[m] + row * width + column
                if m == 0:
                    loading[node, node], mean[node] = model.root_variance**0.5, model.root_mean
                    continue
                parent = first[m - 1] + (row // 2) * sizes[m - 1][1] + column // 2
                loading[node] = model.transition[m - 1] * loading[parent]
                mean[node] = model.transition[m - 1] * mean[parent]
                loading[node, node] = model.process_variance[m - 1] ** 0.5
    covariance = loading @ loading.T
    index, value, noise, places = [], [], [], []
    for i, one in enumerate(observations):
        for place in np.argwhere(one.seen):
            index.append(first[model.depth - one.scale] + place[0] * one.value.shape[1] + place[1])
            value.append(one.value[tuple(place)])
            noise.append(one.variance[tuple(place)])
            places.append((i, *place))
    index, value, noise = np.array(index, dtype=int), np.array(value), np.array(noise)

    def condition(keep):
        on = index[keep]
        gain = np.linalg.solve(covariance[np.ix_(on, on)] + np.diag(noise[keep]), covariance[on]).T
        return mean + gain @ (value[keep] - mean[on]), np.diag(covariance - gain @ covariance[on])

    everything = np.arange(len(index))
    posterior = condition(everything)
    by_level = [tuple(p[a:b].reshape(s) for p in posterior) for a, b, s in zip(first, first[1:], sizes, strict=False)]
    left_out = {}
    for k, place in enumerate(places):
        left_out[place] = tuple(p[index[k]] for p in condition(np.delete(everything, k)))
    joint = multivariate_normal(mean[index], covariance[np.ix_(index, index)] + np.diag(noise))
    return by_level, left_out, joint.logpdf(value)


def scene(shape, scales, seed, noise=(0.05, 3.0), gaps=0.4, level=5.0):
    rng = np.random.default_rng(seed)
    observations = []
    for scale in scales:
        size = tuple(-(-n // 2**scale) for n in shape)
        value = np.where(rng.random(size) < gaps, np.nan, level + 3 * rng.standard_normal(size))
        observations.append(Observation(value, rng.uniform(*noise, size), scale))
    return observations


MODELS = {
    "one tree": (fractal_model(3, 0.7, 0.6, 4.0, 30.0), (8, 8), (0, 1, 0)),
    "transitions, a still level": (TreeModel(-2.0, 5.0, [2.0, 0.0, 1.3], [0.8, -1.1, 1.2]), (8, 8), (0, 2, 3)),
    "a forest with padding": (fractal_model(2, 1.1, 0.3, 0.0, 9.0), (5, 7), (0, 1, 2)),
    "leaves alone": (fractal_model(0, 1.0, 0.5, 3.0, 2.0), (3, 4), (0, 0)),
}


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_the_dense_gaussian(name):
    model, shape, scales = MODELS[name]
    observations = scene(shape, scales, seed=len(name))
    found = smooth(model, observations)
    by_level, left_out, log_likelihood = dense(model, shape, observations)
    assert len(found.mean) == model.depth + 1
    for mean, variance, (wanted_mean, wanted_variance) in zip(found.mean, found.variance, by_level, strict=True):
        np.testing.assert_allclose(mean, wanted_mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(variance, wanted_variance, rtol=0, atol=1e-10)
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-9)
    assert left_out
    for (index, *place), wanted in left_out.items():
        one = [part[tuple(place)] for part in found.left_out[index]]
        np.testing.assert_allclose(one, wanted, rtol=0, atol=1e-10)


def test_one_branch_equals_filterpys_filter():
    # a single column of nodes, one per level, seen from the root to its first leaf: an ordinary Kalman filter in time
    model = TreeModel(1.5, 4.0, [0.5, 2.0, 0.1, 1.0], [0.9, 1.3, -0.7, 1.1])
    rng, observations = np.random.default_rng(0), []
    values, noise = rng.normal(size=5), rng.uniform(0.1, 2, 5)
    values[2] = np.nan  # a gap: the filter predicts and goes on
    for level in range(5):
        value = np.full((2**level, 2**level), np.nan)
        value[0, 0] = values[level]
        observations.append(Observation(value, noise[level], 4 - level))
    oracle = KalmanFilter(dim_x=1, dim_z=1)
    oracle.x, oracle.P, oracle.H = np.array([[1.5]]), np.array([[4.0]]), np.array([[1.0]])
    log_likelihood = 0.0
    for level in range(5):
        if level:
            factor, step = model.transition[level - 1], model.process_variance[level - 1]
            oracle.predict(F=np.array([[factor]]), Q=np.array([[step]]))
        if level != 2:
            oracle.update(values[level], R=np.array([[noise[level]]]))
            log_likelihood += oracle.log_likelihood
    found = smooth(model, observations)
    assert found.mean[-1][0, 0] == pytest.approx(oracle.x.item(), abs=1e-10)
    assert found.variance[-1][0, 0] == pytest.approx(oracle.P.item(), abs=1e-10)
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-10)


def test_without_data_the_prior():
    model = TreeModel(7.0, 3.0, [4.0, 2.0], [0.5, 1.5])
    for observations in ([], [Observation(np.full((4, 4), np.nan), 1.0)]):
        found = smooth(model, observations, shape=(4, 4))
        for level, (mean, variance) in enumerate(zip(*model.prior(), strict=True)):
            np.testing.assert_allclose(found.mean[level], mean, rtol=1e-14)
            np.testing.assert_allclose(found.variance[level], variance, rtol=1e-14)
        assert found.log_likelihood == 0
    assert model.prior()[1].tolist() == [3.0, 0.25 * 3 + 4, 2.25 * (0.25 * 3 + 4) + 2]


def test_without_noise_the_data_and_no_digits_lost():
    model = fractal_model(3, 1.0, 0.5, 100.0, 1e6)
    truth = 100 + np.random.default_rng(0).normal(size=(8, 8))
    found = smooth(model, [Observation(truth, 1e-14)])
    np.testing.assert_allclose(found.mean[-1], truth, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.variance[-1], 1e-14, rtol=1e-10)
    # leaving one out stays exact, although the posterior is all its own observation: compare with its removal
    for place in [(0, 0), (3, 6)]:
        holed = truth.copy()
        holed[place] = np.nan
        other = smooth(model, [Observation(holed, 1e-14)])
        assert found.left_out[0][0][place] == pytest.approx(other.mean[-1][place], abs=1e-10)
        assert found.left_out[0][1][place] == pytest.approx(other.variance[-1][place], rel=1e-10)


def test_infinite_noise_is_a_gap_and_a_sensor_of_half_the_noise_is_two():
    model, (one,) = fractal_model(3, 0.5, 0.8, 5.0, 10.0), scene((8, 8), (0,), seed=3)
    bare = smooth(model, [one])
    drowned = smooth(model, [one, Observation(np.zeros((4, 4)), 1e90, 1)])
    np.testing.assert_allclose(drowned.mean[-1], bare.mean[-1], atol=1e-12)
    twice = smooth(model, [one, one])
    halved = smooth(model, [Observation(one.value, one.variance / 2)])
    for level in range(4):
        np.testing.assert_allclose(twice.mean[level], halved.mean[level], atol=1e-12)
        np.testing.assert_allclose(twice.variance[level], halved.variance[level], atol=1e-12)


def test_data_never_raise_the_variance_and_far_trees_do_not_talk():
    model = fractal_model(2, 1.0, 0.5, 0.0, 10.0)
    value = np.full((4, 8), np.nan)
    value[1, 1] = 20.0
    found = smooth(model, [Observation(value, 0.1)])
    prior = model.prior()[1][-1]
    assert (found.variance[-1][:, :4] < prior - 1e-3).all()
    np.testing.assert_allclose(found.variance[-1][:, 4:], prior)
    assert (found.mean[-1][:, 4:] == 0).all()
    assert found.mean[-1][1, 1] > found.mean[-1][0, 0] > found.mean[-1][3, 3] > 0  # nearer on the tree, more of it


def test_the_likelihood_finds_the_model():
    rng = np.random.default_rng(5)
    surface = np.full((1, 1), 50.0)
    truth = fractal_model(7, 0.8, 0.7, 50.0, 1.0)
    for step in truth.process_variance:
        surface = spread(surface) + step**0.5 * rng.standard_normal(np.array(surface.shape) * 2)
    seen = Observation(surface + 0.3 * rng.standard_normal(surface.shape), 0.09)
    heights = {
        (step, hurst): smooth(fractal_model(7, step, hurst, 50.0, 1.0), [seen]).log_likelihood
        for step in (0.4, 0.8, 1.6)
        for hurst in (0.4, 0.7, 1.0)
    }
    assert max(heights, key=heights.get) == (0.8, 0.7)
    found = smooth(truth, [seen])
    score = (found.mean[-1] - surface) / np.sqrt(found.variance[-1])
    assert score.std() == pytest.approx(1, abs=0.03)  # the variance is that of the error


def test_constant_shifts_and_units():
    model, observations = fractal_model(3, 0.7, 0.6, 4.0, 30.0), scene((8, 8), (0, 1), seed=9)
    found = smooth(model, observations)
    moved = [Observation(10 * one.value - 50, 100 * one.variance, one.scale) for one in observations]
    other = smooth(fractal_model(3, 7.0, 0.6, -10.0, 3000.0), moved)
    np.testing.assert_allclose(other.mean[-1], 10 * found.mean[-1] - 50, atol=1e-10)
    np.testing.assert_allclose(other.variance[-1], 100 * found.variance[-1], rtol=1e-12)
    values = sum(int(one.seen.sum()) for one in observations)
    assert other.log_likelihood == pytest.approx(found.log_likelihood - values * np.log(10), abs=1e-9)


def test_families():
    level = np.arange(24.0).reshape(4, 6)
    np.testing.assert_array_equal(family(siblings(level)), level)
    np.testing.assert_array_equal(siblings(level)[:, 0, 0], [0, 1, 6, 7])
    np.testing.assert_array_equal(siblings(spread(level)), np.stack([level] * 4))
    assert [depth_of((n, 1)) for n in (1, 2, 3, 8, 9)] == [0, 1, 2, 3, 4]


def test_an_observation_is_a_copy():
    value = np.zeros((2, 2))
    one = Observation(value, 1.0)
    value[:] = np.nan
    assert one.seen.all()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Observation(np.zeros((2, 2)), 0.0), DataError, "above 0"),
        (lambda: Observation(np.zeros((2, 2)), np.nan), DataError, "above 0"),
        (lambda: Observation(np.zeros((2, 2)), -1.0), DataError, "above 0"),
        (lambda: Observation(np.array([[np.inf]]), 1.0), DataError, "infinite"),
        (lambda: Observation(np.zeros(4), 1.0), DataError, r"shape \(4,\)"),
        (lambda: Observation(np.zeros((0, 4)), 1.0), DataError, "shape"),
        (lambda: Observation([["a"]], 1.0), DataError, "numeric"),
        (lambda: Observation(np.zeros((2, 2)), np.ones((3, 2))), DataError, "one shape"),
        (lambda: Observation(np.zeros((2, 2)), 1.0, -1), ConfigError, "scale"),
        (lambda: Observation(np.zeros((2, 2)), 1.0, True), ConfigError, "scale"),
        (lambda: TreeModel(0.0, 0.0, [1.0]), ConfigError, "root_variance"),
        (lambda: TreeModel(np.nan, 1.0, [1.0]), ConfigError, "root_mean"),
        (lambda: TreeModel(0.0, 1.0, [-1.0]), ConfigError, "process_variance"),
        (lambda: TreeModel(0.0, 1.0, [np.inf]), ConfigError, "process_variance"),
        (lambda: TreeModel(0.0, 1.0, "rough"), ConfigError, "process_variance"),
        (lambda: TreeModel(0.0, 1.0, [1.0], [0.0]), ConfigError, "transition"),
        (lambda: TreeModel(0.0, 1.0, [1.0], [1.0, 1.0]), ConfigError, "2 transitions"),
        (lambda: fractal_model(17, 1.0, 0.5, 0.0, 1.0), ConfigError, "depth"),
        (lambda: fractal_model(2.5, 1.0, 0.5, 0.0, 1.0), ConfigError, "depth"),
        (lambda: fractal_model(2, 0.0, 0.5, 0.0, 1.0), ConfigError, "step"),
        (lambda: fractal_model(2, 1.0, None, 0.0, 1.0), ConfigError, "hurst"),
    ],
)
def test_impossible_parts_are_refused(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_scenes_that_do_not_fit_are_refused():
    model = fractal_model(2, 1.0, 0.5, 0.0, 1.0)
    fine, coarse = Observation(np.zeros((4, 4)), 1.0), Observation(np.zeros((1, 1)), 1.0, 3)
    with pytest.raises(DataError, match="above the roots"):
        smooth(model, [fine, coarse])
    with pytest.raises(DataError, match="does not cover"):
        smooth(model, [fine, Observation(np.zeros((3, 2)), 1.0, 1)])
    with pytest.raises(DataError, match="does not cover"):
        smooth(model, [fine], shape=(8, 8))
    for shape in [None, (0, 4), (4,), "44", (4.0, 4.0)]:
        with pytest.raises(DataError, match="shape"):
            smooth(model, [], shape=shape)


def test_extremes_stay_finite():
    value = np.array([[1e50, -1e50], [0.0, 1e50]])
    for variance in (1e-100, 1e100):
        for step in (1e-100, 1e100):
            found = smooth(TreeModel(-1e50, 1e100, [step]), [Observation(value, variance)])
            parts = [*found.mean, *found.variance, *found.left_out[0], found.log_likelihood]
            assert all(np.isfinite(part).all() for part in parts)
