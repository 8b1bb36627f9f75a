"""The failure audit: the planted weak spot first, small strata marked, intervals over blocks."""

import math

import numpy as np
import pytest

from terramoe.evaluation import failure_audit
from terramoe.evaluation.strata import SMALL


def world(generator, blocks=40, pixels=30):
    """Pixels right at 80 %, at 50 % in season 2; each block has an ease of its own."""
    block = np.repeat(np.arange(blocks), pixels)
    season = block % 4
    sensor = np.arange(len(block)) % 2
    ease = np.repeat(0.15 * generator.normal(size=blocks), pixels)
    chance = np.where(season == 2, 0.5, 0.8) + ease
    return generator.random(len(block)) < chance, block, {"season": season, "sensor": sensor}


def test_the_planted_weak_spot_comes_first():
    for seed in range(5):
        correct, block, divisions = world(np.random.default_rng(seed))
        strata = failure_audit(correct, block, divisions, draws=400)
        assert (strata[0].division, strata[0].value) == ("season", 2)
        assert strata[0].accuracy.high < strata[0].rest
        assert len(strata) == 6
        values = [s.accuracy.value for s in strata]
        assert values == sorted(values)


def test_a_stratum_is_what_its_pixels_say():
    correct, block, divisions = world(np.random.default_rng(1))
    for stratum in failure_audit(correct, block, divisions, draws=100):
        inside = divisions[stratum.division] == stratum.value
        assert stratum.pixels == inside.sum()
        assert stratum.blocks == len(np.unique(block[inside]))
        assert stratum.accuracy.value == pytest.approx(correct[inside].mean())
        assert stratum.rest == pytest.approx(correct[~inside].mean())
        assert stratum.accuracy.low <= stratum.accuracy.value <= stratum.accuracy.high


def test_small_strata_are_marked_and_come_last_however_bad():
    correct, block, divisions = world(np.random.default_rng(2))
    region = np.where(block < SMALL - 1, 1, 0)
    correct = correct & (region == 0)
    strata = failure_audit(correct, block, divisions | {"region": region}, draws=100)
    assert [s.small for s in strata] == [False] * 7 + [True]
    assert (strata[-1].division, strata[-1].value, strata[-1].blocks) == ("region", 1, SMALL - 1)
    assert strata[-1].accuracy.value == 0


def test_the_interval_covers_the_truth_of_new_blocks():
    generator = np.random.default_rng(3)
    inside = 0
    for seed in range(100):
        correct, block, divisions = world(generator)
        stratum = next(
            s
            for s in failure_audit(correct, block, {"season": divisions["season"]}, draws=300, seed=seed)
            if s.value == 2
        )
        inside += stratum.accuracy.low <= 0.5 <= stratum.accuracy.high
    assert 80 <= inside <= 99  # ten blocks: a percentile interval is a little short of 95 %


def test_a_division_of_one_part_has_no_rest():
    correct, block, _ = world(np.random.default_rng(4))
    (whole,) = failure_audit(correct, block, {"all": np.zeros(len(block), int)}, draws=50)
    assert math.isnan(whole.rest)
