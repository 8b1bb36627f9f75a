"""Every metric against scikit-learn, to the last digits that floating point allows."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from terramoe.evaluation import (
    average_accuracy,
    bias,
    brier,
    confusion,
    f1,
    iou,
    kappa,
    log_loss,
    macro,
    mae,
    overall_accuracy,
    precision,
    r2,
    recall,
    reliability,
    rmse,
    weighted,
)

EXACT = {"rtol": 0, "atol": 1e-12}


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 80))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_confusion_metrics_equal_scikit_learn(seed, classes, size):
    generator = np.random.default_rng(seed)
    truth, guess = generator.integers(1, classes + 1, (2, size))
    counts, labels = confusion(truth, guess, classes), np.arange(1, classes + 1)
    seen = np.union1d(truth, guess)
    np.testing.assert_allclose(overall_accuracy(counts), oracle.accuracy_score(truth, guess), **EXACT)
    np.testing.assert_allclose(average_accuracy(counts), oracle.balanced_accuracy_score(truth, guess), **EXACT)
    if len(seen) > 1:
        np.testing.assert_allclose(kappa(counts), oracle.cohen_kappa_score(truth, guess), **EXACT)
    for ours, theirs, there in (
        (recall, oracle.recall_score, np.unique(truth)),
        (precision, oracle.precision_score, np.unique(guess)),
        (f1, oracle.f1_score, seen),
        (iou, oracle.jaccard_score, seen),
    ):
        ours = ours(counts)
        assert set((np.flatnonzero(~np.isnan(ours)) + 1).tolist()) == set(there.tolist())  # NaN just where undefined
        options = {"labels": labels, "zero_division": 0}
        np.testing.assert_allclose(np.nan_to_num(ours), theirs(truth, guess, average=None, **options), **EXACT)
        options["labels"] = there
        np.testing.assert_allclose(macro(ours), theirs(truth, guess, average="macro", **options), **EXACT)
    for ours, theirs in ((recall, oracle.recall_score), (f1, oracle.f1_score), (iou, oracle.jaccard_score)):
        expected = theirs(truth, guess, average="weighted", zero_division=0)
        np.testing.assert_allclose(weighted(ours(counts), counts), expected, **EXACT)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_probability_metrics_equal_scikit_learn(seed, classes, size):
    generator = np.random.default_rng(seed)
    probability = generator.dirichlet(np.ones(classes), size)
    truth = generator.integers(1, classes + 1, size)
    labels = np.arange(1, classes + 1)
    np.testing.assert_allclose(
        log_loss(probability, truth), oracle.log_loss(truth, probability, labels=labels), **EXACT
    )
    expected = oracle.brier_score_loss(truth, probability, labels=labels, scale_by_half=False)
    np.testing.assert_allclose(brier(probability, truth), expected, **EXACT)
    np.testing.assert_allclose(reliability(probability, truth).brier, expected, **EXACT)


@given(st.integers(0, 10_000), st.integers(2, 80))
@settings(max_examples=40, deadline=None)
def test_regression_metrics_equal_scikit_learn(seed, size):
    generator = np.random.default_rng(seed)
    truth, guess = generator.normal(3, 2, (2, size))
    np.testing.assert_allclose(rmse(truth, guess), oracle.root_mean_squared_error(truth, guess), **EXACT)
    np.testing.assert_allclose(mae(truth, guess), oracle.mean_absolute_error(truth, guess), **EXACT)
    np.testing.assert_allclose(r2(truth, guess), oracle.r2_score(truth, guess), rtol=1e-12)
    np.testing.assert_allclose(bias(truth, guess), guess.mean() - truth.mean(), **EXACT)


def test_bias_is_positive_if_too_much_is_estimated_and_rmse_holds_both_parts():
    truth = np.array([1.0, 2.0, 3.0])
    assert bias(truth, truth + 2) == 2
    guess = truth + np.array([1.0, 2.0, 0.0])
    assert rmse(truth, guess) ** 2 == pytest.approx(bias(truth, guess) ** 2 + np.var(guess - truth))


def test_what_does_not_exist_is_nan():
    nothing = np.array([])
    assert all(math.isnan(metric(nothing, nothing)) for metric in (rmse, mae, bias, r2))
    assert math.isnan(r2(np.ones(3), np.arange(3.0)))
    assert math.isnan(log_loss(np.zeros((0, 2)), np.zeros(0, dtype=int)))
    assert np.isnan(iou(confusion(np.array([1, 1]), np.array([1, 1]), 2))[1])
    assert math.isnan(macro(np.array([np.nan, np.nan])))


def test_a_truth_of_probability_zero_costs_infinitely():
    assert math.isinf(log_loss(np.array([[0.0, 1.0]]), np.array([1])))


def test_scores_work_on_stacks():
    counts = np.random.default_rng(0).integers(0, 9, (4, 2, 3, 3))
    np.testing.assert_allclose(iou(counts)[3, 1], iou(counts[3, 1]))
    np.testing.assert_allclose(weighted(iou(counts), counts)[3, 1], weighted(iou(counts[3, 1]), counts[3, 1]))
