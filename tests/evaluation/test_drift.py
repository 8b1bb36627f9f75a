"""Drift: false alarms at their rate where blocks are alike within themselves, real changes found; recalibration."""

import numpy as np
import pytest
from scipy import special, stats
from scipy.spatial.distance import cdist

from terramoe.errors import DataError
from terramoe.evaluation import (
    adjust_shares,
    band_drift,
    class_shares,
    feature_drift,
    load_drift,
    log_loss,
    recalibrate,
    reliability,
)

OLD, OTHER = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.15, 0.25, 0.3, 0.3])


def loads(generator, blocks, shares):
    """Each block has a load of its own about the shares."""
    return np.stack([generator.multinomial(60, generator.dirichlet(6 * shares)) for _ in range(blocks)])


def features(generator, blocks, shift=0.0, spread=1.0):
    centres = shift + spread * generator.normal(size=(blocks, 1, 3))
    block = np.repeat(np.arange(blocks), 12)
    return (centres + 0.5 * generator.normal(size=(blocks, 12, 3))).reshape(-1, 3), block


def most(runs, level=0.05):
    return stats.binom.ppf(0.995, runs, level)


@pytest.mark.parametrize(("reference", "new"), [(12, 6), (40, 10), (20, 40)])
def test_load_alarms_are_false_at_their_rate(reference, new):
    generator = np.random.default_rng(0)
    alarms = sum(
        load_drift(loads(generator, reference, OLD), loads(generator, new, OLD), draws=199, seed=seed).drifted
        for seed in range(200)
    )
    assert alarms <= most(200)
    assert alarms > 0  # a threshold that nothing reaches would be no test


def test_pixels_taken_as_independent_would_raise_the_alarm_nearly_always():
    generator = np.random.default_rng(1)
    tables = [[loads(generator, 20, OLD).sum(0), loads(generator, 20, OLD).sum(0)] for _ in range(50)]
    assert sum(stats.chi2_contingency(table).pvalue < 0.05 for table in tables) > 25


def test_a_changed_load_is_found():
    generator = np.random.default_rng(2)
    found = [load_drift(loads(generator, 30, OLD), loads(generator, 20, OTHER), draws=199) for _ in range(30)]
    assert sum(f.drifted for f in found) >= 27
    assert all(f.drifted == (f.p_value < 0.05) or abs(f.p_value - 0.05) < 0.02 for f in found)
    expert_lost = loads(generator, 20, OLD) * np.array([0, 1, 1, 1])
    assert load_drift(loads(generator, 30, OLD), expert_lost).drifted


def test_the_divergence_is_bounded_and_zero_for_equal_loads():
    apart = load_drift(np.array([[5, 0], [7, 0]]), np.array([[0, 9]]))
    assert apart.statistic == pytest.approx(np.log(2))
    assert load_drift(np.array([[5, 5], [7, 7]]), np.array([[1, 1]])).statistic == pytest.approx(0, abs=1e-12)


def test_feature_and_band_alarms_are_false_at_their_rate():
    generator = np.random.default_rng(3)
    energy = bands = 0
    for seed in range(150):
        (x, x_block), (y, y_block) = features(generator, 20), features(generator, 15)
        energy += feature_drift(x, y, x_block, y_block, draws=99, seed=seed).drifted
        bands += (band_drift(x, y, x_block, y_block) < 0.05).any()
    assert energy <= most(150)
    assert bands <= most(150)
    assert energy > 0


@pytest.mark.parametrize("change", [{"shift": 1.0}, {"spread": 3.0}], ids=str)
def test_changed_features_are_found_also_if_only_their_spread_changed(change):
    generator = np.random.default_rng(4)
    found = 0
    for _ in range(20):
        (x, x_block), (y, y_block) = features(generator, 25), features(generator, 25, **change)
        found += feature_drift(x, y, x_block, y_block, draws=99).drifted
    assert found >= 17


def test_the_band_that_changed_is_named():
    generator = np.random.default_rng(5)
    (x, x_block), (y, y_block) = features(generator, 30), features(generator, 30)
    p_values = band_drift(x, y + np.array([0, 2.0, 0]), x_block, y_block)
    assert p_values[1] < 0.01
    assert min(p_values[0], p_values[2]) > 0.05


def test_the_energy_distance_by_its_definition():
    generator = np.random.default_rng(6)
    (x, x_block), (y, y_block) = features(generator, 5), features(generator, 4, shift=1)
    spread = np.concatenate([x, y]).std(0)
    found = feature_drift(x, y, x_block, y_block, draws=9)
    a, b = x / spread, y / spread
    assert found.statistic == pytest.approx(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())
    few = feature_drift(x, y, x_block, y_block, draws=9, most=20)
    assert few.statistic != pytest.approx(found.statistic)


def test_drift_of_nothing_is_an_error():
    with pytest.raises(DataError, match="1 reference and 1 new"):
        load_drift(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(DataError, match="2 reference and 0 new"):
        feature_drift(np.ones((2, 2)), np.ones((0, 2)), np.arange(2), np.arange(0))


def place(generator, shares, items, sharpness=2.0):
    """Logits of a calibrated model trained where all classes are equally common, and the truth in a place."""
    truth = generator.choice(len(shares), items, p=shares)
    x = generator.normal(size=(items, len(shares))) + sharpness * np.eye(len(shares))[truth]
    return sharpness * x, truth + 1


def test_the_class_shares_of_a_new_place_are_found_without_labels():
    generator = np.random.default_rng(7)
    equal = np.full(3, 1 / 3)
    logits, truth = place(generator, [0.7, 0.25, 0.05], 20_000)
    probability = special.softmax(logits, 1)
    found = class_shares(probability, equal)
    np.testing.assert_allclose(found, [0.7, 0.25, 0.05], atol=0.02)
    better = adjust_shares(probability, equal, found)
    assert log_loss(better, truth) < log_loss(probability, truth) - 0.05
    assert (better.argmax(1) + 1 == truth).mean() > (probability.argmax(1) + 1 == truth).mean()
    np.testing.assert_allclose(better.sum(1), 1)


def test_shares_that_did_not_change_are_left_alone():
    generator = np.random.default_rng(8)
    logits, _ = place(generator, np.full(3, 1 / 3), 20_000)
    np.testing.assert_allclose(class_shares(special.softmax(logits, 1), np.full(3, 1 / 3)), 1 / 3, atol=0.02)


def test_expectation_maximisation_ends_at_the_largest_likelihood():
    generator = np.random.default_rng(9)
    logits, _ = place(generator, [0.6, 0.4], 400)
    probability, old = special.softmax(logits, 1), np.array([0.5, 0.5])
    found = class_shares(probability, old)[0]
    grid = np.linspace(0.001, 0.999, 2001)
    likelihood = [np.log(probability @ (np.array([g, 1 - g]) / old)).sum() for g in grid]
    assert found == pytest.approx(grid[np.argmax(likelihood)], abs=1e-3)


def test_recalibration_mends_temperature_and_shares_together():
    generator = np.random.default_rng(10)
    equal = np.full(3, 1 / 3)
    held_out, truth = place(generator, equal, 8000)
    new, new_truth = place(generator, [0.1, 0.2, 0.7], 8000)
    found = recalibrate(3 * new, equal, 3 * held_out, truth)  # a model three times too sure
    assert found.temperature == pytest.approx(3, rel=0.05)
    np.testing.assert_allclose(found.new, [0.1, 0.2, 0.7], atol=0.03)
    before, after = special.softmax(3 * new, 1), found.apply(3 * new)
    assert reliability(after, new_truth).ece < 0.02 < reliability(before, new_truth).ece
    assert log_loss(after, new_truth) < log_loss(before, new_truth)


def test_a_class_that_was_never_trained_is_an_error():
    with pytest.raises(DataError, match=r"classes \[2\] have no share"):
        class_shares(np.full((4, 2), 0.5), np.array([1.0, 0.0]))
