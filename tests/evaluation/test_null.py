"""The simulations behind the statistics, in small; ``make null`` runs them in full."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from terramoe.evaluation import overall_accuracy
from terramoe.experiments.null import (
    RECOMMENDED,
    comparisons,
    false_positive_rate,
    family_error_rate,
    leak_flagged,
    power,
    probe_rates,
    run_null,
)
from terramoe.experiments.simulated_errors import ErrorWorld, simulate_errors

SMALL = ErrorWorld(blocks=6, seeds=4)


def allowed(runs):
    return stats.binom.ppf(0.995, runs, 0.05) / runs


@pytest.mark.parametrize("world", [SMALL, replace(SMALL, seeds=9, folds=3), replace(SMALL, luck=0.1)], ids=str)
def test_equal_systems_are_called_different_at_most_at_the_nominal_rate(world):
    assert false_positive_rate(world, 200) <= allowed(200)


def test_a_verdict_is_rarer_than_a_small_p_value():
    found = list(comparisons(SMALL, 0.0, 200, seed=1))
    assert sum(c.verdict in ("better", "worse") for c in found) <= sum(c.p_value < 0.05 for c in found)


def test_families_hold_their_rate():
    assert family_error_rate(SMALL, 60) <= allowed(60)


def test_two_points_are_found_at_the_recommended_size_and_not_at_a_small_one():
    assert power(RECOMMENDED, 40) >= 0.7  # 0.85 in 400 simulations; 0.7 is below that by less than 3 standard errors
    assert power(SMALL, 40) < 0.5


def test_the_simulated_accuracy_and_effect_are_what_was_asked_for():
    world = ErrorWorld(blocks=10, seeds=3)
    generator = np.random.default_rng(2)
    pairs = []
    for _ in range(60):
        counts = simulate_errors(world, [3.0, 0.0], generator).counts
        pairs.append([overall_accuracy(c.sum(0)) for c in counts])
    better, plain = np.transpose(pairs)
    assert 100 * (better - plain).mean() == pytest.approx(3, abs=0.5)
    assert plain.mean() == pytest.approx(0.7, abs=0.01)
    assert np.corrcoef(better, plain)[0, 1] > 0.5  # paired: hard places are hard for both


def test_neighbours_are_alike_and_folds_share_no_block():
    errors = simulate_errors(replace(SMALL, folds=2), [0.0], np.random.default_rng(3))
    tested = [set(errors.block_of_row[errors.seed_of_row == seed].tolist()) for seed in range(4)]
    assert tested[0] == tested[2]
    assert not tested[0] & tested[1]
    assert len(tested[0] | tested[1]) == 36
    accuracy = errors.counts[0][:, 0, 0] / errors.counts[0].sum((1, 2))
    pixels = errors.counts[0].sum((1, 2))[0]
    assert accuracy.var() > 3 * 0.7 * 0.3 / pixels  # independent pixels would give 0.7 * 0.3 / pixels


def test_the_leaky_split_is_flagged():
    assert leak_flagged()


def test_the_probe_finds_and_stays_silent():
    found, alarms = probe_rates(8)
    assert found >= 0.75
    assert alarms <= 0.25


def test_the_record_is_json_and_progress_goes_elsewhere(capsys):
    said = []
    record = run_null(4, replace(SMALL, blocks=4), say=said.append)
    assert list(record) == ["false_positive_rate", "power", "leak_flagged", "probe_found", "probe_false_alarms"]
    assert record["leak_flagged"] is True
    json.loads(json.dumps(record))
    assert len(said) > 5
    assert capsys.readouterr().out == ""
