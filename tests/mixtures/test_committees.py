"""Committees of perceptrons after SOM restoration: what is averaged, who is asked, and what gaps do."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from terramoe.errors import ConfigError, RoutingError
from terramoe.mixtures.committees import SomCommitteeClassifier

FAST = {"hidden": (8,), "shape": (3, 3), "som_epochs": 2, "max_iter": 30, "learning_rate": 0.1}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([SomCommitteeClassifier(**FAST), SomCommitteeClassifier("partitioned", n_regions=2, **FAST)])
def test_committee_sklearn(estimator, check):
    check(estimator)


def pixels(rng, n, gap):
    """(n, 12) two bands of six dates with clouds, and one of three crops."""
    crop, t = rng.integers(0, 3, n), np.arange(6)
    peak = np.array([1.0, 2.5, 4.0])[crop] + 0.3 * rng.normal(size=n)
    curve = np.exp(-0.5 * (t - peak[:, None]) ** 2)
    X = np.hstack([curve, 1 - 0.5 * curve]) + 0.15 * rng.normal(size=(n, 12))
    cloud = np.tile(rng.random((n, 6)) < gap, 2)
    return np.where(cloud, np.nan, X), np.array(["maize", "soy", "wheat"])[crop]


@pytest.fixture(scope="module", params=["committee", "partitioned", "bands"])
def fitted(request):
    mode = "partitioned" if request.param != "committee" else "committee"
    groups = [range(6), range(6, 12)] if request.param == "bands" else None
    model = SomCommitteeClassifier(
        mode, groups=groups, n_regions=3, hidden=(6, 8, 10), shape=(5, 5), max_iter=60, learning_rate=0.03
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.set_params(random_state=0).fit(*pixels(np.random.default_rng(0), 240, 0.3))


def test_prediction_is_the_mean_of_the_members(fitted):
    X, y = pixels(np.random.default_rng(1), 100, 0.3)
    members, proba = fitted.member_proba(X), fitted.predict_proba(X)
    assert members.shape == (100, 3, 3)
    np.testing.assert_allclose(members.sum(axis=2), 1)
    np.testing.assert_allclose(members.mean(axis=1), proba)
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(axis=1)], fitted.predict(X))
    assert np.abs(members[:, 0] - members[:, 1]).max() > 0.05  # the bootstraps differ
    assert fitted.score(X, y) > 0.8


def test_routing_says_who_was_asked(fitted):
    X = pixels(np.random.default_rng(2), 50, 0.3)[0]
    routing, members = fitted.routing(X), fitted.member_proba(X)
    weight = routing.dense().numpy()
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    if fitted.mode == "committee":
        np.testing.assert_allclose(weight, 1 / 3)
        np.testing.assert_allclose(np.einsum("nm,nmk->nk", weight, members), fitted.predict_proba(X))
        return
    assert routing.fixed_k == 1
    assert (routing.load() > 0).all()
    features = fitted.scaling_.apply(fitted.restore(X))
    for i, expert in enumerate(routing.expert.tolist()):  # the region's own committee, and no other, answered
        alone = [member.predict_proba(features[[i]])[0] for member in fitted.committees_[expert]]
        for m, (member, answer) in enumerate(zip(fitted.committees_[expert], alone, strict=True)):
            np.testing.assert_allclose(members[i, m, member.classes_], answer)
    winners = fitted.gate_map_.winners(fitted.restore(X))
    np.testing.assert_array_equal(routing.expert.numpy(), fitted.unit_region_[winners])


def test_restoration_keeps_what_was_seen_and_each_band_has_its_map(fitted):
    X = pixels(np.random.default_rng(3), 40, 0.3)[0]
    X[0] = np.nan
    restored = fitted.restore(X)
    seen = ~np.isnan(X)
    np.testing.assert_array_equal(restored[seen], X[seen])
    assert not np.isnan(restored).any()
    if fitted.groups is not None:
        other = X.copy()
        other[:, 6:] *= -3  # one band says nothing about the gaps of the other
        np.testing.assert_array_equal(fitted.restore(other)[:, :6], restored[:, :6])
        assert len(fitted.restorers_) == 2
    np.testing.assert_allclose(fitted.predict_proba(X).sum(axis=1), 1)


def test_neighbours_in_the_batch_do_not_matter(fitted):
    X = pixels(np.random.default_rng(4), 9, 0.3)[0]
    alone = np.concatenate([fitted.predict_proba(x[None]) for x in X])
    np.testing.assert_allclose(fitted.predict_proba(X), alone, atol=1e-12)


def test_a_region_of_one_class_and_a_rare_class():
    """A constant committee where a region holds one class; a class that most bootstraps miss keeps its column."""
    rng = np.random.default_rng(5)
    X = np.vstack([rng.normal(size=(30, 2)) * 0.1, 5 + rng.normal(size=(30, 2)) * 0.1])
    y = np.array([7] * 30 + [3] * 15 + [5] * 14 + [9])
    model = SomCommitteeClassifier(
        "partitioned", n_regions=2, hidden=(3,) * 6, shape=(2, 2), som_epochs=5, max_iter=5, random_state=0
    )
    with pytest.warns(ConvergenceWarning, match="6 of 12 members used all 5 epochs"):
        model.fit(X, y)
    members = [member for committee in model.committees_ for member in committee]
    assert {2 in member.classes_ for member in members} == {True, False}
    assert {3 in member.classes_ for member in members if 2 not in member.classes_} == {True, False}
    proba = model.predict_proba(X)
    assert proba.shape == (60, 4)
    np.testing.assert_allclose(proba[:30], np.tile([0.0, 0.0, 1.0, 0.0], (30, 1)))
    assert (proba[30:, 2] == 0).all()
    np.testing.assert_array_equal(model.predict(X[:30]), 7)


def test_more_regions_than_units_and_same_seed_same_model():
    X, y = pixels(np.random.default_rng(6), 60, 0.2)
    model = SomCommitteeClassifier("partitioned", n_regions=50, hidden=(2,), shape=(2, 2), max_iter=2, random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        first = model.fit(X, y).predict_proba(X)
        np.testing.assert_array_equal(first, model.fit(X, y).predict_proba(X))
        assert len(model.committees_) <= 4
        assert np.abs(model.set_params(random_state=2).fit(X, y).predict_proba(X) - first).max() > 1e-3


def test_hostile_committee_input(fitted):
    X, y = pixels(np.random.default_rng(7), 12, 0.0)
    with pytest.raises(RoutingError, match="missing in all 12"):
        SomCommitteeClassifier().fit(np.where(np.arange(12) == 4, np.nan, X), y)
    with pytest.raises(RoutingError, match="1 class"):
        SomCommitteeClassifier().fit(X, np.zeros(12))
    for bad_X, bad_y in ((X[:0], y[:0]), (X, y[:5]), (np.where(X > 0.5, np.inf, X), y)):
        with pytest.raises(ValueError):
            SomCommitteeClassifier().fit(bad_X, bad_y)
    with pytest.raises(ValueError, match="12 features"):
        fitted.predict(X[:, :5])
    for ask in ("predict", "predict_proba", "routing", "restore"):
        with pytest.raises(NotFittedError):
            getattr(SomCommitteeClassifier(), ask)(X)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "x"},
        {"n_regions": 0},
        {"hidden": ()},
        {"hidden": (0,)},
        {"alpha": -1},
        {"learning_rate": 0},
        {"max_iter": 0},
        {"groups": [[0, 1]]},
        {"groups": [[0, 1], [1, 2]]},
        {"groups": [[0, 1, 2], []]},
        {"shape": (0, 1)},
        {"n_best": 0},
        {"som_epochs": 0},
    ],
)
def test_impossible_committee_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).removeprefix("som_")):
        SomCommitteeClassifier(**wrong).fit(np.arange(12.0).reshape(4, 3), [0, 1, 0, 1])
