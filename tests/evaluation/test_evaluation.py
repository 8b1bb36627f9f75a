"""Scores against scikit-learn, intervals by coverage, verdicts by construction, the rest by extremes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from terramoe.evaluation import (
    active_parameters,
    average_accuracy,
    block_confusions,
    class_expert_alignment,
    compare,
    confusion,
    f1,
    interval,
    kappa,
    merge_blocks,
    overall_accuracy,
    precision,
    recall,
    reliability,
    resample,
    total_parameters,
)
from terramoe.moe import All, LinearScorer, ModuleBank, MoELayer, StackedFFN, TopK, summarise


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 80))
@settings(max_examples=50, deadline=None)
def test_scores_equal_scikit_learn(seed, classes, size):
    generator = np.random.default_rng(seed)
    truth, guess = generator.integers(1, classes + 1, (2, size))
    counts, labels = confusion(truth, guess, classes), np.arange(1, classes + 1)
    assert overall_accuracy(counts) == pytest.approx(oracle.accuracy_score(truth, guess), abs=1e-12)
    present = np.unique(truth)
    recalls = oracle.recall_score(truth, guess, labels=present, average=None, zero_division=0)
    assert average_accuracy(counts) == pytest.approx(recalls.mean(), abs=1e-12)
    if len(np.unique([truth, guess])) > 1:
        assert kappa(counts) == pytest.approx(oracle.cohen_kappa_score(truth, guess), abs=1e-12)
    np.testing.assert_allclose(
        np.nan_to_num(precision(counts)),
        oracle.precision_score(truth, guess, labels=labels, average=None, zero_division=0),
    )
    np.testing.assert_allclose(
        np.nan_to_num(f1(counts)),
        oracle.f1_score(truth, guess, labels=labels, average=None, zero_division=0),
        atol=1e-12,
    )


def test_scores_of_nothing_are_nan_and_absent_classes_do_not_count():
    nothing = confusion(np.array([], dtype=int), np.array([], dtype=int), 3)
    assert np.isnan([overall_accuracy(nothing), average_accuracy(nothing)]).all()
    counts = confusion(np.array([1, 1, 2]), np.array([1, 3, 2]), 3)
    assert np.isnan(recall(counts)[2])
    assert average_accuracy(counts) == pytest.approx(0.75)


def test_statistics_work_on_stacks():
    counts = np.random.default_rng(0).integers(0, 9, (4, 2, 3, 3))
    for statistic in (overall_accuracy, average_accuracy, kappa, recall, f1):
        np.testing.assert_allclose(statistic(counts)[3, 1], statistic(counts[3, 1]))


def test_block_confusions_sum_to_the_whole():
    generator = np.random.default_rng(0)
    truth, guess = generator.integers(1, 4, (2, 100))
    blocks = generator.integers(0, 7, 100)
    per_block = block_confusions(truth, guess, blocks, 3)
    assert per_block.shape == (7, 3, 3)
    assert (per_block.sum(0) == confusion(truth, guess, 3)).all()


def test_resampling_keeps_pairs_together():
    counts = np.random.default_rng(0).integers(0, 9, (6, 1, 2, 2))
    pair = resample(np.concatenate([counts, counts], axis=1), 50, seed=0)
    np.testing.assert_array_equal(pair[:, 0], pair[:, 1])


def blocks_of(accuracies, pixels=40):
    """Two-class counts, one block for each accuracy."""
    right = np.round(np.asarray(accuracies) * pixels)
    return np.stack([np.array([[r, pixels - r], [0, 0]]) for r in right])


def test_the_interval_covers_at_about_its_rate_and_pixels_would_not():
    generator = np.random.default_rng(0)
    inside = inside_pixels = 0
    for _ in range(150):
        counts = blocks_of(np.clip(generator.normal(0.7, 0.15, 30), 0, 1))
        found = interval(overall_accuracy, counts, draws=400)
        inside += found.low <= 0.7 <= found.high
        p, n = overall_accuracy(counts.sum(0)), counts.sum()
        inside_pixels += abs(p - 0.7) <= 1.96 * math.sqrt(p * (1 - p) / n)
    assert 0.87 <= inside / 150 <= 0.99
    assert inside_pixels / 150 < 0.8  # why blocks are drawn and not pixels


def test_an_interval_of_a_class_score_is_a_list():
    found = interval(recall, blocks_of([0.5, 0.7, 0.9]))
    assert found[0].value == pytest.approx(0.7)
    assert math.isnan(found[1].value)


@pytest.mark.parametrize(
    ("gain", "spread", "verdict"),
    [(0.05, 0.01, "better"), (-0.05, 0.01, "worse"), (0.0, 0.0, "tie"), (0.0, 0.2, "cannot tell")],
)
def test_verdicts(gain, spread, verdict):
    generator = np.random.default_rng(0)
    base = generator.uniform(0.5, 0.8, 60)
    other = base + gain + spread * generator.normal(size=60)
    pixels = 100_000
    found = compare(
        "A",
        "B",
        blocks_of(np.clip(other, 0, 1), pixels),
        blocks_of(base, pixels),
        np.repeat([0, 1, 2], 20),
        np.arange(60),
    )
    assert found.verdict == verdict
    assert found.sentence.lower().startswith(verdict)
    assert found.above + found.inside + found.below == pytest.approx(1)
    assert len(found.per_seed) == 3
    assert found.overall.low <= found.overall.value <= found.overall.high


def test_testing_the_same_blocks_again_does_not_shorten_the_interval():
    generator = np.random.default_rng(2)
    a, b = (blocks_of(generator.uniform(0.4, 0.9, 20)) for _ in range(2))
    once = compare("A", "B", a, b, np.zeros(20), np.arange(20))
    seeds, rows = np.repeat([0, 1, 2, 3], 20), np.tile(np.arange(20), 4)
    four_times = compare("A", "B", np.tile(a, (4, 1, 1)), np.tile(b, (4, 1, 1)), seeds, rows)
    assert four_times.overall.low == pytest.approx(once.overall.low)
    assert four_times.overall.high == pytest.approx(once.overall.high)
    assert (merge_blocks(np.tile(a, (4, 1, 1)), rows) == 4 * a).all()


def test_swapping_the_models_mirrors_the_comparison():
    generator = np.random.default_rng(1)
    a, b = (blocks_of(generator.uniform(0.4, 0.9, 20)) for _ in range(2))
    seeds, rows = np.zeros(20), np.arange(20)
    ab, ba = compare("A", "B", a, b, seeds, rows), compare("B", "A", b, a, seeds, rows)
    assert ab.overall.value == pytest.approx(-ba.overall.value)
    assert ab.overall.low == pytest.approx(-ba.overall.high)
    assert ab.above == ba.below


def test_calibrated_probabilities_have_no_error_and_bold_ones_do():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.5, 1, 60_000)
    truth = np.where(generator.random(60_000) < p, 1, 2)
    honest = reliability(np.stack([p, 1 - p], axis=1), truth)
    assert honest.ece < 0.01
    assert honest.count.sum() == 60_000
    bold = reliability(np.tile([1.0, 0.0], (60_000, 1)), truth)
    assert bold.ece == pytest.approx(1 - (truth == 1).mean())
    assert bold.brier == pytest.approx(2 * (truth == 2).mean())


def test_calibration_of_a_worked_example():
    found = reliability(np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), np.array([1, 2, 2]), bins=2)
    assert found.count.tolist() == [0, 3]
    assert found.ece == pytest.approx(abs(2 / 3 - 2.3 / 3))
    assert found.brier == pytest.approx((0.02 + 1.28 + 0.32) / 3)


def test_routing_that_follows_classes_is_told_from_routing_that_does_not():
    generator = np.random.default_rng(0)
    items = np.repeat(np.arange(60), 30)
    classes = np.repeat(generator.integers(1, 4, 60), 30)
    shape = {"num_classes": 3, "num_experts": 3}
    follows = class_expert_alignment(classes, classes - 1, items, **shape)
    assert follows.share == pytest.approx(1)
    assert follows.p_value < 0.01
    assert follows.information > follows.chance[1]
    assert follows.information == pytest.approx(oracle.mutual_info_score(classes, classes))
    p_values = [
        class_expert_alignment(
            classes, np.repeat(generator.integers(0, 3, 60), 30), items, draws=99, seed=s, **shape
        ).p_value
        for s in range(40)
    ]
    assert sum(p <= 0.05 for p in p_values) <= 6  # 5 % expected; shuffling pixels would give nearly all


def test_one_expert_for_all_tells_nothing():
    found = class_expert_alignment(np.array([1, 2, 1]), np.zeros(3, int), np.arange(3), num_classes=2, num_experts=4)
    assert found.information == pytest.approx(0, abs=1e-12)
    assert found.share == 0
    assert found.p_value == 1


@pytest.mark.parametrize(("selector", "used"), [(TopK(1), 1), (TopK(2), 2), (All(), 4)])
def test_active_parameters_of_equal_experts(selector, used):
    torch.manual_seed(0)
    layer = MoELayer(LinearScorer(6, 4), StackedFFN(4, 6, 8), selector=selector)
    expert = 6 * 8 + 8 + 8 * 6 + 6
    assert total_parameters(layer) == 24 + 4 * expert
    _, routing = layer(torch.randn(50, 6))
    assert active_parameters(layer, summarise({"a": routing})) == 24 + used * expert


def test_active_parameters_of_unequal_experts_follow_the_load():
    torch.manual_seed(0)
    bank = ModuleBank([torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Linear(50, 2))])
    layer = MoELayer(LinearScorer(2, 2), bank, selector=TopK(1))
    _, routing = layer(torch.randn(40, 2))
    load = routing.load() / 40
    expected = 4 + load[0] * 6 + load[1] * (150 + 102)
    assert active_parameters(layer, summarise({"a": routing})) == pytest.approx(float(expected), abs=1)


def test_a_bank_that_two_layers_share_counts_once():
    torch.manual_seed(0)
    bank = StackedFFN(4, 6, 8)
    layers = torch.nn.ModuleList(MoELayer(LinearScorer(6, 4), bank, selector=TopK(k)) for k in (1, 3))
    x = torch.randn(50, 6)
    statistics = summarise({str(number): layer(x)[1] for number, layer in enumerate(layers)})
    expert = bank.expert_parameters(0)
    assert active_parameters(layers, statistics) == 2 * 24 + 2 * expert  # one expert of the first, three of the second
