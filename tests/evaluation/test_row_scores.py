"""Scores of values from sums over blocks: against scikit-learn, and against simulation."""

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from terramoe.evaluation.row_scores import block_moments, compare_values, value_scores


def simulated(seed, ratio=1.0, seeds=3, blocks=20, rows=400):
    """Moments of two models whose errors have standard deviations in this ratio, over seeds that share blocks."""
    generator = np.random.default_rng(seed)
    block = generator.integers(0, blocks, rows)
    truth = generator.normal(size=(rows, 2))
    shared = generator.normal(size=(blocks, 2))[block]
    found = []
    for scale in (ratio, 1.0):
        errors = [0.5 * shared + generator.normal(size=(rows, 2)) for _ in range(seeds)]
        found.append([block_moments(truth, truth + scale * e, np.ones((rows, 2)), block) for e in errors])
    names = np.unique(block)
    return *(np.concatenate(f) for f in found), np.repeat(np.arange(seeds), len(names)), np.tile(names, seeds)


def test_scores_are_scikit_learns():
    generator = np.random.default_rng(0)
    truth, block = generator.normal(size=(200, 2)), generator.integers(0, 9, 200)
    prediction = truth + generator.normal(size=(200, 2)) * [1, 2] + [0, 0.5]
    std = np.tile([1.0, 2.0], (200, 1))
    scores = value_scores(block_moments(truth, prediction, std, block), np.zeros(9), np.arange(9))
    for k, s in enumerate(scores):
        assert s.rmse.value == pytest.approx(root_mean_squared_error(truth[:, k], prediction[:, k]))
        assert s.mae == pytest.approx(mean_absolute_error(truth[:, k], prediction[:, k]))
        assert s.r2 == pytest.approx(r2_score(truth[:, k], prediction[:, k]))
        assert s.bias == pytest.approx((prediction - truth)[:, k].mean())
        assert s.rmse.low < s.rmse.value < s.rmse.high
        assert s.coverage == pytest.approx(0.9, abs=0.06)
        assert s.rows == 200


def test_rows_that_are_nan_count_for_nothing():
    truth, prediction = np.array([[1.0], [np.nan], [3.0]]), np.array([[2.0], [0.0], [np.nan]])
    moments = block_moments(truth, prediction, np.ones((3, 1)), np.zeros(3))
    assert value_scores(moments, np.zeros(1), np.zeros(1))[0].rows == 1


def test_a_clear_difference_is_found_and_equal_models_are_not_told_apart():
    better = compare_values(*simulated(0, ratio=0.8))
    assert better.verdict == "better"
    assert better.difference.value == pytest.approx(-20, abs=4)
    worse = compare_values(*simulated(0, ratio=1.25))
    assert worse.verdict == "worse"
    assert len(worse.per_seed) == 3
    false = sum(compare_values(*simulated(s)).p_value < 0.05 for s in range(100))
    assert false <= 12  # 5 expected; a binomial with p = 0.05 exceeds 12 once in 1000
    same = simulated(0)
    tie = compare_values(same[0], same[0], *same[2:])
    assert tie.verdict == "tie"
    assert tie.difference.value == 0
