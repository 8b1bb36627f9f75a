"""Scores of positive quantities over orders of magnitude."""

import numpy as np
import pytest
from scipy.stats import linregress

from terramoe.errors import DataError
from terramoe.evaluation.metrics_ocean import (
    log_log_slope,
    median_symmetric_accuracy,
    relative_rmse,
    symmetric_bias,
)

SCORES = (median_symmetric_accuracy, symmetric_bias, relative_rmse, log_log_slope)


def drawn(seed=0):
    generator = np.random.default_rng(seed)
    truth = np.exp(generator.normal(-3, 1.5, (40, 6)))
    return truth, truth**0.9 * np.exp(generator.normal(0.1, 0.4, truth.shape))


def test_perfect_answers():
    truth, _ = drawn()
    assert [score(truth, truth) for score in SCORES] == pytest.approx([0, 0, 0, 1])


def test_twice_and_half_are_equally_wrong():
    truth, _ = drawn()
    assert median_symmetric_accuracy(truth, 2 * truth) == pytest.approx(100)
    assert median_symmetric_accuracy(truth, truth / 2) == pytest.approx(100)
    assert symmetric_bias(truth, 2 * truth) == pytest.approx(100)
    assert symmetric_bias(truth, truth / 2) == pytest.approx(-100)


def test_symmetric_accuracy_is_a_median_of_ratios_that_neither_order_nor_one_outlier_changes():
    truth, answer = drawn()
    wanted = 100 * (np.median(np.maximum(answer / truth, truth / answer)) - 1)
    assert median_symmetric_accuracy(truth, answer) == pytest.approx(wanted, rel=1e-2)  # median of an even count
    assert median_symmetric_accuracy(answer, truth) == pytest.approx(median_symmetric_accuracy(truth, answer))
    worse = answer.copy()
    worst = np.argmax(np.abs(np.log(answer / truth)))
    worse.flat[worst] *= 1e6 if answer.flat[worst] > truth.flat[worst] else 1e-6
    assert median_symmetric_accuracy(truth, worse) == pytest.approx(median_symmetric_accuracy(truth, answer))


def test_relative_error_is_a_share_of_each_truth_and_neither_of_range_nor_of_mean():
    assert relative_rmse(np.array([1.0, 100.0]), np.array([2.11, 211.0])) == pytest.approx(1.11)
    truth, answer = drawn()
    rmse = np.sqrt(np.mean((answer - truth) ** 2))
    assert abs(relative_rmse(truth, answer) - rmse / np.ptp(truth)) > 0.1
    assert relative_rmse(10 * truth, 10 * answer) == pytest.approx(relative_rmse(truth, answer))


def test_slope_is_that_of_the_regression_in_logarithms():
    truth, answer = drawn()
    wanted = linregress(np.log10(truth.ravel()), np.log10(answer.ravel())).slope
    assert log_log_slope(truth, answer) == pytest.approx(wanted)
    assert log_log_slope(truth, 3 * truth**0.5) == pytest.approx(0.5)
    assert np.isnan(log_log_slope(np.full(3, 0.1), np.array([1.0, 2.0, 3.0])))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_what_is_not_above_0_is_refused_and_not_left_out(score, bad):
    truth, answer = drawn()
    answer[3, 2] = bad
    for pair in ((truth, answer), (answer, truth)):
        with pytest.raises(DataError):
            score(*pair)


@pytest.mark.parametrize("score", SCORES)
def test_unlike_shapes_and_nothing_are_refused(score):
    with pytest.raises(DataError):
        score(np.ones((3, 2)), np.ones(6))
    with pytest.raises(DataError):
        score(np.ones(0), np.ones(0))
