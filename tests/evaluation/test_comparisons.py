"""Differences between systems: errors against textbook formulas, false alarms by simulation, families by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from terramoe.errors import ConfigError, DataError
from terramoe.evaluation import (
    average_accuracy,
    compare,
    compare_all,
    compare_with_controls,
    estimate,
    holm,
    interval,
    kappa,
    merge_blocks,
    overall_accuracy,
    rank_systems,
    resample,
    tally,
)
from terramoe.evaluation.two_way import Estimate, influences

PIXELS = 100_000


def counts_of(accuracy):
    """(rows, 2, 2) counts of rows with these accuracies."""
    right = np.round(np.asarray(accuracy).ravel() * PIXELS)
    return np.stack([np.array([[r, PIXELS - r], [0, 0]]) for r in right])


def study(generator, *, seeds=5, blocks=30, seed_sd=1.5, block_sd=4.0, cell_sd=6.0, effect=0.0, folds=1):
    """Counts of two systems whose difference has random parts over seeds, blocks and cells, in points."""
    difference = (
        effect
        + seed_sd * generator.normal(size=(seeds, 1))
        + block_sd * generator.normal(size=(1, blocks))
        + cell_sd * generator.normal(size=(seeds, blocks))
    )
    base = generator.uniform(0.4, 0.6, (1, blocks)) + np.zeros((seeds, 1))
    seed, block = (axis.ravel() for axis in np.mgrid[:seeds, :blocks])
    kept = block % folds == seed % folds
    return counts_of(base + difference / 100)[kept], counts_of(base)[kept], seed[kept], block[kept]


def test_the_error_of_a_balanced_study_is_the_textbook_one():
    generator = np.random.default_rng(0)
    difference = generator.normal(size=(4, 9))
    seed, block = (axis.ravel() for axis in np.mgrid[:4, :9])
    found = estimate(lambda s: s[..., 0] / s[..., 1], np.stack([difference.ravel(), np.ones(36)], 1), seed, block)
    over_seeds = difference.mean(1).var(ddof=1) / 4
    over_blocks = difference.mean(0).var(ddof=1) / 9
    assert found.value == pytest.approx(difference.mean())
    assert found.error**2 == pytest.approx(over_seeds + over_blocks)
    satterthwaite = (over_seeds + over_blocks) ** 2 / (over_seeds**2 / 3 + over_blocks**2 / 8)
    assert found.freedom == pytest.approx(satterthwaite)
    reach = stats.t.ppf(0.975, satterthwaite) * found.error
    assert found.interval().high - found.value == pytest.approx(reach)


def test_the_influence_on_overall_accuracy_is_known_in_closed_form():
    counts = np.random.default_rng(0).integers(0, 50, (12, 3, 3))
    right, total = np.trace(counts, axis1=1, axis2=2), counts.sum((1, 2))
    expected = (right - overall_accuracy(counts.sum(0)) * total) / total.sum()
    np.testing.assert_allclose(influences(overall_accuracy, counts), expected, atol=1e-8)


@pytest.mark.parametrize("statistic", [overall_accuracy, average_accuracy, kappa])
def test_with_one_seed_the_error_is_that_of_the_bootstrap_over_blocks(statistic):
    generator = np.random.default_rng(1)
    counts = np.stack([generator.multinomial(200, generator.dirichlet(3 * np.ones(9))) for _ in range(60)])
    counts = counts.reshape(60, 3, 3)
    found = estimate(statistic, counts, np.zeros(60), np.arange(60))
    assert found.error == pytest.approx(statistic(resample(counts, 4000, 0)).std(), rel=0.08)
    assert found.freedom == 59


def rate_of(found):
    return sum(f.p_value < 0.05 for f in found) / len(found)


@pytest.mark.parametrize(
    "layout",
    [{}, {"blocks": 12}, {"seed_sd": 0}, {"cell_sd": 10, "block_sd": 0}, {"seeds": 9, "folds": 3}, {"seeds": 3}],
    ids=str,
)
def test_equal_systems_are_seldom_called_different(layout):
    generator = np.random.default_rng(3)
    found = [compare("A", "B", *study(generator, **layout)) for _ in range(200)]
    most = stats.binom.ppf(0.995, 200, 0.05) / 200
    assert rate_of(found) <= most
    assert sum(f.verdict in ("better", "worse") for f in found) / 200 <= most
    covered = sum(f.overall.low <= 0 <= f.overall.high for f in found) / 200
    assert covered >= 1 - most


def test_a_bootstrap_over_blocks_alone_would_call_them_different():
    """Why the seeds count: the trained models differ, the methods do not."""
    generator = np.random.default_rng(4)
    alarms = honest = 0
    for _ in range(100):
        a, b, seed, block = study(generator, seed_sd=2.5, blocks=60)
        both = merge_blocks(np.stack([a, b], 1), block)
        found = interval(lambda s: overall_accuracy(s[..., 0, :, :]) - overall_accuracy(s[..., 1, :, :]), both)
        alarms += not found.low <= 0 <= found.high
        honest += compare("A", "B", a, b, seed, block).p_value < 0.05
    assert alarms > 20
    assert honest <= stats.binom.ppf(0.995, 100, 0.05)


def test_a_planted_difference_is_found():
    generator = np.random.default_rng(5)
    found = [compare("A", "B", *study(generator, effect=4.0, blocks=60, seed_sd=0.5)) for _ in range(60)]
    assert rate_of(found) > 0.9
    assert np.mean([f.verdict == "better" for f in found]) > 0.8
    assert np.mean([f.above for f in found]) > 0.9


def test_the_other_way_round_everything_is_mirrored():
    a, b, seed, block = study(np.random.default_rng(6), effect=2)
    there, back = compare("A", "B", a, b, seed, block), compare("B", "A", b, a, seed, block)
    assert there.overall.low == pytest.approx(-back.overall.high)
    assert (there.above, there.below) == pytest.approx((back.below, back.above))
    assert there.p_value == pytest.approx(back.p_value)
    assert there.above + there.inside + there.below == pytest.approx(1)
    assert there.blocks == 30


def test_the_p_value_and_the_interval_agree():
    generator = np.random.default_rng(7)
    for _ in range(30):
        found = compare("A", "B", *study(generator, effect=2.5))
        assert (found.p_value < 0.05) == (not found.overall.low <= 0 <= found.overall.high)


def test_one_seed_says_that_it_speaks_of_two_models_only():
    a, b, seed, block = study(np.random.default_rng(8), seeds=1)
    assert "One seed" in compare("A", "B", a, b, seed, block).sentence
    a, b, seed, block = study(np.random.default_rng(8), seeds=2)
    assert "One seed" not in compare("A", "B", a, b, seed, block).sentence


def test_one_block_and_one_seed_tell_nothing_and_go_into_json():
    found = compare("A", "B", counts_of([0.9]), counts_of([0.1]), np.zeros(1), np.zeros(1))
    assert found.verdict == "cannot tell"
    assert (found.overall.low, found.overall.high) == (-100, 100)
    assert found.p_value == 1
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_equal_predictions_are_a_tie_with_certainty():
    a, _, seed, block = study(np.random.default_rng(9))
    found = compare("A", "B", a, a, seed, block)
    assert found.verdict == "tie"
    assert (found.overall.low, found.overall.high, found.p_value) == (0, 0, 1)
    assert found.inside == 1


def test_no_interval_leaves_what_is_possible():
    assert Estimate(50, 400, 1, limit=100).interval().high == 100
    assert math.isinf(Estimate(0, 1, 0).interval().high)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.3))
@settings(max_examples=100, deadline=None)
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values, level):
    adjusted = holm(p_values)
    rejected, order = set(), np.argsort(p_values, kind="stable")
    for step, index in enumerate(order):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(int(index))
    assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([]).size == 0


def family_counts(effects, generator, **layout):
    """Counts of several systems on the same blocks and seeds, each with noise of its own in every cell."""
    counts = {}
    for name, effect in effects.items():
        same = np.random.default_rng(11)
        a, _, seed, block = study(same, effect=effect, seed_sd=0.0, block_sd=0.0, cell_sd=0.0, **layout)
        noise = np.round(PIXELS * 0.02 * generator.normal(size=len(a)))
        a[:, 0, 0] += noise
        a[:, 0, 1] -= noise
        counts[name] = a
    return counts, seed, block


def test_a_family_has_its_wins_ties_and_losses():
    counts, seed, block = family_counts(
        {"ours": 0, "bad": -5, "same": 0, "good": 5}, np.random.default_rng(12), seeds=6, blocks=80
    )
    family = compare_with_controls("ours", counts, seed, block, rope=1.0)
    verdicts = {b: c.verdict for (_, b), c in family.comparisons.items()}
    assert verdicts == {"bad": "better", "same": "tie", "good": "worse"}
    tallies = family.tallies()
    assert (tallies["ours"].wins, tallies["ours"].ties, tallies["ours"].losses) == (1, 1, 1)
    assert (tallies["good"].wins, tallies["bad"].losses, tallies["same"].ties) == (1, 1, 1)
    league = compare_all(counts, seed, block, rope=1.0)
    assert len(league.comparisons) == 6
    assert (league.tallies()["good"].wins, league.tallies()["bad"].losses) == (3, 3)
    assert tally(["better", "tie", "better", "cannot tell"]).wins == 2


def test_a_verdict_that_does_not_stand_the_correction_is_taken_back():
    generator = np.random.default_rng(0)
    for _ in range(50):
        counts, seed, block = family_counts(
            dict.fromkeys([f"control {i}" for i in range(12)], 0.0) | {"ours": 0.55}, generator, blocks=20
        )
        family = compare_with_controls("ours", counts, seed, block, rope=0.0)
        for (a, b), found in family.comparisons.items():
            alone = compare(a, b, counts[a], counts[b], seed, block, rope=0.0)
            assert alone.p_value <= family.p_holm[a, b]
            if alone.verdict == "better" and family.p_holm[a, b] >= 0.05:
                assert found.verdict == "cannot tell"
                assert "12 comparisons" in found.sentence
                assert found.p_value == alone.p_value
                return
            assert found == alone
    pytest.fail("no borderline case was met")


def test_families_of_equal_systems_rarely_raise_an_alarm():
    generator = np.random.default_rng(14)
    alarms = 0
    for _ in range(100):
        counts, seed, block = family_counts(dict.fromkeys("abcde", 0.0), generator, blocks=15)
        alarms += min(compare_with_controls("a", counts, seed, block).p_holm.values()) < 0.05
    assert alarms <= stats.binom.ppf(0.995, 100, 0.05)


def test_a_system_without_counts_is_an_error():
    counts, seed, block = family_counts({"a": 0, "b": 0}, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="no counts of 'c'"):
        compare_with_controls("c", counts, seed, block)


@pytest.mark.parametrize(("systems", "factor"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_the_published_table(systems, factor):
    scores = np.random.default_rng(0).random((14, systems))
    found = rank_systems([str(i) for i in range(systems)], scores)
    assert found.distance == pytest.approx(factor * math.sqrt(systems * (systems + 1) / (6 * 14)), rel=1e-3)
    assert found.average.sum() == pytest.approx(systems * (systems + 1) / 2)
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)


def test_ranks_put_the_best_first_and_share_ties():
    found = rank_systems(["a", "b", "c"], np.array([[0.9, 0.5, 0.5], [0.8, 0.2, 0.2]]))
    np.testing.assert_allclose(found.average, [1, 2.5, 2.5])
    assert rank_systems(["a", "b", "c"], np.ones((4, 3))).p_value == 1
    with pytest.raises(DataError, match="2 systems"):
        rank_systems(["a", "b"], np.ones((4, 2)))
