"""Temperature, conformal sets and selective answers: oracles, brute force, coverage by simulation."""

import math

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from scipy import special, stats
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from terramoe.errors import ConfigError, DataError
from terramoe.evaluation import fit_conformal, fit_temperature, log_loss, reliability, risk_coverage, soften


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its logits."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.is_fitted_ = True
        return self

    def predict_proba(self, X):
        return special.softmax(X, axis=1)

    def predict(self, X):
        return self.classes_[X.argmax(1)]


def answers(generator, items, classes=4, sharpness=2.0):
    """Logits, and a truth drawn from their softmax."""
    logits = sharpness * generator.normal(size=(items, classes))
    truth = (special.softmax(logits, 1).cumsum(1) > generator.random((items, 1))).argmax(1) + 1
    return logits, truth


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_that_was_planted_is_found(temperature):
    logits, truth = answers(np.random.default_rng(0), 20_000)
    found = fit_temperature(logits * temperature, truth)
    assert found == pytest.approx(temperature, rel=0.03)
    softened = soften(logits * temperature, found)
    assert (softened.argmax(1) == logits.argmax(1)).all()
    assert reliability(softened, truth).ece < 0.015
    assert log_loss(softened, truth) <= log_loss(special.softmax(logits * temperature, 1), truth) + 1e-9


def test_the_temperature_is_that_of_scikit_learn():
    logits, truth = answers(np.random.default_rng(1), 500)
    logits = 3 * logits
    number = truth - 1  # scikit-learn 1.9 fits well only if labels are 0..K-1
    theirs = CalibratedClassifierCV(FrozenEstimator(Given().fit(logits, number)), method="temperature")
    theirs.fit(logits, number)
    ours = soften(logits, fit_temperature(logits, truth))
    np.testing.assert_allclose(ours, theirs.predict_proba(logits), atol=1e-3)
    assert log_loss(ours, truth) <= log_loss(theirs.predict_proba(logits), truth) + 1e-12  # ours is no worse an optimum


def test_a_temperature_of_nothing_is_an_error():
    with pytest.raises(DataError, match="0 pixels"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=int))
    with pytest.raises(DataError, match="1 logits that are not finite"):
        fit_temperature(np.array([[np.inf, 0.0]]), np.array([1]))


@pytest.mark.parametrize("kind", ["lac", "aps"])
@pytest.mark.parametrize("error", [0.05, 0.1, 0.3])
def test_sets_are_those_of_mapie(kind, error, monkeypatch):
    generator = np.random.default_rng(2)
    logits, truth = answers(generator, 311)
    new, _ = answers(generator, 200)
    theirs = SplitConformalClassifier(
        Given().fit(logits, truth), confidence_level=1 - error, conformity_score=kind, random_state=5
    ).conformalize(logits, truth)
    _, expected = theirs.predict_set(new)
    drawn = np.random.RandomState(5).uniform(size=311)

    class SameDraws:
        def random(self, size):
            return drawn[:size]

    monkeypatch.setattr(np.random, "default_rng", lambda seed: SameDraws())
    ours = fit_conformal(special.softmax(logits, 1), truth, error=error, kind=kind)
    np.testing.assert_array_equal(ours.sets(special.softmax(new, 1)), expected[:, :, 0])


def miss_rate(sets, truth):
    return 1 - np.take_along_axis(sets, truth[:, None] - 1, axis=1).mean()


@pytest.mark.parametrize(("kind", "items"), [("lac", 19), ("lac", 200), ("aps", 40)])
def test_coverage_is_as_promised_even_of_a_bad_model_and_few_items(kind, items):
    generator = np.random.default_rng(3)
    misses, draw = [], np.random.default_rng(4) if kind == "aps" else None
    for run in range(400):
        logits, truth = answers(generator, items + 50)
        probability = special.softmax(4 * logits + 2 * generator.normal(size=logits.shape), 1)
        rule = fit_conformal(probability[:items], truth[:items], error=0.2, kind=kind, seed=run)
        misses.append(miss_rate(rule.sets(probability[items:], draw), truth[items:]))
    allowed = 3 * np.std(misses) / math.sqrt(400)
    assert np.mean(misses) <= 0.2 + allowed
    assert np.mean(misses) >= 0.2 - 1 / (items + 1) - allowed  # and not wider than need be


def test_aps_without_a_draw_is_never_empty_and_covers_no_less():
    generator = np.random.default_rng(5)
    logits, truth = answers(generator, 300)
    probability = special.softmax(logits, 1)
    rule = fit_conformal(probability[:150], truth[:150], kind="aps")
    whole, drawn = rule.sets(probability[150:]), rule.sets(probability[150:], generator)
    assert whole.any(1).all()
    assert (whole >= drawn).all()
    assert (whole != drawn).any()


def test_per_class_every_class_is_covered():
    generator = np.random.default_rng(6)
    truth = generator.choice([1, 2, 3], 30_000, p=[0.8, 0.15, 0.05])
    logits = np.eye(3)[truth - 1] + np.array([1.5, 0, -1]) + generator.normal(size=(30_000, 3))  # rare ones look poor
    probability = special.softmax(logits, 1)
    old, new = np.arange(30_000) < 15_000, np.arange(30_000) >= 15_000
    whole, classwise = (
        fit_conformal(probability[old], truth[old], per_class=flag).sets(probability[new]) for flag in (False, True)
    )
    of_class = {k: truth[new] == k for k in (1, 2, 3)}
    assert miss_rate(whole[of_class[3]], truth[new][of_class[3]]) > 0.3
    for k, inside in of_class.items():
        allowed = 4 * math.sqrt(0.09 / (truth[old] == k).sum() + 0.09 / inside.sum())
        assert miss_rate(classwise[inside], truth[new][inside]) == pytest.approx(0.1, abs=allowed)


def test_with_blocks_a_pixel_of_a_new_block_is_covered_and_without_it_is_not():
    """Eight blocks of 50 pixels each, right or wrong together: pixels make the threshold too sure of itself."""
    generator = np.random.default_rng(7)
    misses = {True: [], False: []}
    for _ in range(400):
        hard = np.repeat(generator.random(9), 50)
        p = np.clip(1 - hard + 0.02 * generator.normal(size=450), 0, 1)
        probability, truth = np.stack([p, 1 - p], 1), np.ones(450, dtype=int)
        old, block = slice(0, 400), np.repeat(np.arange(8), 50)
        for known in misses:
            rule = fit_conformal(probability[old], truth[old], error=0.15, blocks=block if known else None)
            misses[known].append(miss_rate(rule.sets(probability[400:]), truth[400:]))
    assert np.mean(misses[True]) <= 0.15 + 3 * np.std(misses[True]) / 20
    assert np.mean(misses[False]) > np.mean(misses[True]) + 0.03


def test_too_few_items_give_sets_of_everything():
    rule = fit_conformal(np.array([[0.9, 0.1]] * 5), np.ones(5, dtype=int), error=0.1)
    assert rule.sets(np.array([[1.0, 0.0]])).all()
    absent = fit_conformal(np.tile([0.9, 0.1], (50, 1)), np.ones(50, dtype=int), error=0.1, per_class=True)
    assert np.isinf(absent.threshold[1])


@pytest.mark.parametrize("options", [{"kind": "raps"}, {"error": 0}, {"error": 1.5}])
def test_sets_that_cannot_be_are_errors(options):
    with pytest.raises(ConfigError):
        fit_conformal(np.array([[0.5, 0.5]]), np.array([1]), **options)
    with pytest.raises(DataError, match="no item"):
        fit_conformal(np.zeros((0, 2)), np.zeros(0, dtype=int))


def test_risk_against_coverage_by_brute_force():
    generator = np.random.default_rng(8)
    confidence, correct = generator.random(60), generator.random(60) < 0.7
    curve = risk_coverage(confidence, correct)
    for answered in (1, 7, 30, 60):
        surest = np.argsort(-confidence)[:answered]
        assert curve.coverage[answered - 1] == pytest.approx(answered / 60)
        assert curve.risk[answered - 1] == pytest.approx((~correct[surest]).mean())
    assert curve.aurc == pytest.approx(curve.risk.mean())
    assert curve.risk_at(0.5) == pytest.approx(curve.risk[29])
    assert curve.risk_at(1) == pytest.approx((~correct).mean())
    reachable = [c for c, r in zip(curve.coverage, curve.risk, strict=True) if r <= 0.2]
    assert curve.coverage_at(0.2) == max(reachable, default=0)


def test_ties_share_their_errors_so_that_order_does_not_matter():
    generator = np.random.default_rng(9)
    confidence, correct = generator.integers(0, 4, 80) / 4, generator.random(80) < 0.6
    curve = risk_coverage(confidence, correct)
    shuffled = generator.permutation(80)
    np.testing.assert_allclose(risk_coverage(confidence[shuffled], correct[shuffled]).risk, curve.risk)
    np.testing.assert_allclose(risk_coverage(np.ones(80), correct).risk, (~correct).mean())


def test_a_perfect_ranking_has_no_excess_and_a_useless_one_the_error_rate_everywhere():
    correct = np.arange(100) >= 30
    perfect = risk_coverage(correct.astype(float), correct)
    assert perfect.excess == pytest.approx(0, abs=1e-12)
    assert perfect.coverage_at(0) == pytest.approx(0.7)
    useless = risk_coverage(np.zeros(100), correct)
    assert useless.aurc == pytest.approx(0.3)
    worst = risk_coverage(1.0 - correct, correct)
    assert worst.excess > useless.excess > 0
    assert worst.coverage_at(0.1) == 0
    with pytest.raises(DataError, match="no item"):
        risk_coverage(np.zeros(0), np.zeros(0, dtype=bool))


def test_the_promise_of_lac_is_exact_for_continuous_scores():
    """Coverage over calibration draws follows a beta distribution; its mean is known to the last digit."""
    items, error = 39, 0.25
    covered = stats.beta(math.ceil((items + 1) * (1 - error)), items + 1 - math.ceil((items + 1) * (1 - error)))
    generator = np.random.default_rng(10)
    found = []
    for _ in range(500):
        p = generator.random(items)
        rule = fit_conformal(np.stack([p, 1 - p], 1), np.ones(items, dtype=int), error=error)
        found.append(rule.threshold[0])  # scores are uniform: the threshold is the coverage
    assert np.mean(found) == pytest.approx(covered.mean(), abs=4 * covered.std() / math.sqrt(500))
    assert stats.kstest(found, covered.cdf).pvalue > 0.001
