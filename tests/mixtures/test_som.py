"""Self-organising map: minisom's updates on complete data, and what missing components may and may not change."""

import numpy as np
import pytest
from minisom import MiniSom
from sklearn.utils.estimator_checks import parametrize_with_checks

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.som import SelfOrganizingMap, masked_distances, neighbourhood, train_batch, train_online
from terramoe.mixtures.som_regions import partition_units, region_logits


@parametrize_with_checks([SelfOrganizingMap((3, 3), epochs=3), SelfOrganizingMap((3, 2), epochs=2, method="online")])
def test_som_sklearn(estimator, check):
    check(estimator)


def series(rng, n, dates=12):
    """(n, dates): a seasonal curve of one of three crops with its own height and shift."""
    crop, t = rng.integers(0, 3, n), np.arange(dates)
    peak, width = np.array([3.0, 6.0, 9.0])[crop] + rng.normal(size=n) * 0.3, np.array([1.5, 2.0, 1.0])[crop]
    curve = rng.uniform(0.7, 1.0, n)[:, None] * np.exp(-0.5 * ((t - peak[:, None]) / width[:, None]) ** 2)
    return curve + 0.03 * rng.normal(size=curve.shape), crop


def with_gaps(rng, X, share):
    gaps = rng.random(X.shape) < share
    gaps[np.arange(len(X)), rng.integers(0, X.shape[1], len(X))] = False  # one date stays at least
    return np.where(gaps, np.nan, X), gaps


@pytest.mark.parametrize("shape", [(4, 5), (1, 6)])
def test_online_updates_are_those_of_minisom(shape):
    rng = np.random.default_rng(0)
    X, steps = rng.normal(size=(30, 3)), 200
    oracle = MiniSom(*shape, 3, sigma=1.5, learning_rate=0.4, random_seed=1)
    start = oracle.get_weights().reshape(-1, 3).copy()
    decay = 1 + np.arange(steps) / (steps / 2)
    order = np.arange(steps) % len(X)
    ours = train_online(start, shape, X, np.ones(X.shape, bool), order, 0.4 / decay, 1.5 / decay)
    oracle._learning_rate_decay_function = oracle._sigma_decay_function = lambda value, t, _: value / decay[t]
    oracle.train(X, steps)
    np.testing.assert_allclose(ours, oracle.get_weights().reshape(-1, 3), atol=1e-12)
    winners = masked_distances(ours, X, np.ones(X.shape, bool)).argmin(axis=1)
    np.testing.assert_array_equal(winners, [np.ravel_multi_index(oracle.winner(x), shape) for x in X])
    with np.errstate(all="raise"):
        np.testing.assert_allclose(
            neighbourhood(shape, 1.3)[2].reshape(shape), oracle._gaussian(np.unravel_index(2, shape), 1.3)
        )


@pytest.mark.parametrize("train", ["online", "batch"])
def test_what_stands_in_a_missing_component_changes_nothing(train):
    rng = np.random.default_rng(1)
    X, start = rng.normal(size=(20, 4)), rng.normal(size=(6, 4))
    present = rng.random(X.shape) > 0.4
    present[3] = False
    radius = np.array([2.0, 1.0, 0.5])

    def codebook(values, rows=slice(None)):
        values, seen = values[rows], present[rows]
        if train == "batch":
            return train_batch(start, (2, 3), values, seen, radius)
        order = np.arange(len(values))
        rate, spread = np.full(len(order), 0.3), np.full(len(order), 1.0)
        return train_online(start, (2, 3), values, seen, order, rate, spread)

    reference = codebook(X)
    for rubbish in (np.nan, 1e9):
        np.testing.assert_allclose(codebook(np.where(present, X, rubbish)), reference)
    np.testing.assert_allclose(codebook(X, np.arange(20) != 3), reference)  # an empty vector teaches nothing
    assert np.abs(reference - start).max() > 0.1


def test_only_present_components_move():
    start = np.zeros((4, 2))
    moved = train_online(
        start, (2, 2), np.array([[1.0, 5.0]]), np.array([[True, False]]), np.array([0]), np.ones(1), np.ones(1)
    )
    assert moved[0].tolist() == [1.0, 0.0]
    assert (moved[:, 1] == 0).all()
    batch = train_batch(start + 7, (2, 2), np.array([[1.0, 5.0]]), np.array([[True, False]]), np.ones(1))
    assert batch.tolist() == [[1.0, 7.0]] * 4  # nobody has the second component: it stays


def test_masked_distances_are_rescaled_sums_over_present_components():
    rng = np.random.default_rng(2)
    X, codebook, present = rng.normal(size=(9, 5)), rng.normal(size=(7, 5)), rng.random((9, 5)) > 0.5
    present[0], present[1] = True, False
    expected = [
        [
            5 / seen.sum() * sum((x[d] - w[d]) ** 2 for d in np.flatnonzero(seen)) if seen.any() else 0.0
            for w in codebook
        ]
        for x, seen in zip(X, present, strict=True)
    ]
    np.testing.assert_allclose(masked_distances(codebook, np.where(present, X, np.nan), present), expected, atol=1e-12)


def test_one_batch_step_is_the_weighted_mean_by_component():
    rng = np.random.default_rng(3)
    X, start, present = rng.normal(size=(15, 3)), rng.normal(size=(6, 3)), rng.random((15, 3)) > 0.3
    present[present.sum(axis=1) == 0] = True
    near = neighbourhood((3, 2), 0.8)[masked_distances(start, X, present).argmin(axis=1)]
    expected = [[np.average(X[:, d], weights=near[:, j] * present[:, d]) for d in range(3)] for j in range(6)]
    np.testing.assert_allclose(train_batch(start, (3, 2), X, present, np.array([0.8])), expected)


@pytest.mark.parametrize("method", ["batch", "online"])
def test_gaps_are_filled_better_than_by_the_mean(method):
    rng = np.random.default_rng(4)
    X, gaps = with_gaps(rng, series(rng, 300)[0], 0.3)
    truth, _ = series(rng, 200)
    unseen, hidden = with_gaps(rng, truth, 0.3)
    som = SelfOrganizingMap((6, 6), method=method, epochs=10, random_state=0).fit(X)
    filled = som.transform(unseen)
    np.testing.assert_array_equal(filled[~hidden], truth[~hidden])
    mean = np.broadcast_to(np.nanmean(X, axis=0), truth.shape)

    def error(guess):
        return np.sqrt(np.mean((guess - truth)[hidden] ** 2))

    assert error(filled) < 0.5 * error(mean)
    assert som.hits_.sum() == len(X)
    assert not np.isnan(som.transform(X)).any()
    assert gaps.any()


def test_filling_uses_the_best_units_and_keeps_the_winner():
    rng = np.random.default_rng(5)
    X = with_gaps(rng, series(rng, 60)[0], 0.4)[0]
    som = SelfOrganizingMap((4, 4), epochs=5, random_state=0).fit(X)
    gaps, nearest = np.isnan(X), som.distances(X).argsort(axis=1)
    np.testing.assert_allclose(som.transform(X)[gaps], som.codebook_[nearest[:, 0]][gaps])
    np.testing.assert_array_equal(som.winners(som.transform(X)), som.winners(X))
    som.n_best = 3
    np.testing.assert_allclose(som.transform(X)[gaps], som.codebook_[nearest[:, :3]].mean(axis=1)[gaps])


def test_map_is_deterministic_ordered_and_free_of_units():
    rng = np.random.default_rng(6)
    X = with_gaps(rng, series(rng, 120)[0], 0.2)[0]
    for method in ("batch", "online"):
        som = SelfOrganizingMap((5, 5), method=method, epochs=8, random_state=3)
        first = som.fit(X).codebook_
        np.testing.assert_array_equal(first, som.fit(X).codebook_)
        np.testing.assert_allclose(som.fit(X * 1e3 + 5).codebook_, first * 1e3 + 5, rtol=1e-6)
        assert np.abs(som.set_params(random_state=4).fit(X).codebook_ - first).max() > 1e-3
        gap = np.linalg.norm(first[:, None] - first[None], axis=2)
        beside = neighbourhood((5, 5), 0.5) > 0.1  # itself and the four next to it
        np.fill_diagonal(gap, np.nan)
        assert np.nanmean(gap[beside]) < 0.7 * np.nanmean(gap)


def test_vectors_without_any_value():
    rng = np.random.default_rng(7)
    X = np.vstack([series(rng, 40)[0], np.full((5, 12), np.nan)])
    som = SelfOrganizingMap((3, 3), epochs=3, random_state=0).fit(X)
    np.testing.assert_allclose(som.transform(X)[-5:], np.tile(X[:40].mean(axis=0), (5, 1)))
    assert som.hits_.sum() == 40
    assert som.winners(X)[-1] == som.winners(X[:40].mean(axis=0)[None])[0]
    assert not som.distances(X)[-1].any()


def test_hostile_som_input():
    with pytest.raises(RoutingError, match="component 1 is missing in all 4"):
        SelfOrganizingMap().fit(np.array([[1.0, np.nan]] * 4))
    with pytest.raises(RoutingError, match="component 0 is missing"):
        SelfOrganizingMap().fit(np.full((3, 2), np.nan))
    for bad in (np.empty((0, 3)), np.array([[np.inf, 1.0]])):
        with pytest.raises(ValueError):
            SelfOrganizingMap().fit(bad)
    lonely = SelfOrganizingMap((2, 2), epochs=2, random_state=0).fit([[1.0, 2.0]])
    np.testing.assert_allclose(lonely.transform([[np.nan, 2.0]]), [[1.0, 2.0]], atol=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 3)},
        {"shape": 4},
        {"method": "x"},
        {"epochs": 0},
        {"radius": (1, 2)},
        {"radius": (1, 0)},
        {"learning_rate": (0.1, 0.5)},
        {"learning_rate": (2.0, 0.1)},
        {"n_best": 0},
        {"n_best": 101},
    ],
)
def test_impossible_som_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SelfOrganizingMap(**wrong).fit(np.ones((3, 2)))


def test_regions_cover_the_map_and_each_has_samples():
    rng = np.random.default_rng(8)
    X, crop = series(rng, 150)
    som = SelfOrganizingMap((5, 5), epochs=8, random_state=0).fit(X)
    region = partition_units(som, 3, np.random.RandomState(0))
    assert region.shape == (25,)
    logits = region_logits(som, region, X)
    chosen = logits.argmax(axis=1)
    np.testing.assert_array_equal(chosen, region[som.winners(X)])
    assert set(chosen) == {0, 1, 2}
    table = np.array([[np.sum((chosen == r) & (crop == c)) for c in range(3)] for r in range(3)])
    assert table.max(axis=1).sum() > 0.85 * len(X)  # regions are crops, though no label was given
    constant = SelfOrganizingMap((3, 3), epochs=2, random_state=0).fit(np.ones((4, 2)))
    assert partition_units(constant, 5, np.random.RandomState(0)).max() <= 4
