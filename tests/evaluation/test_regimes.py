"""How much of a planted truth routing found: against scikit-learn, against brute force, and at the extremes."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from terramoe.data.worlds import make_world
from terramoe.errors import DataError
from terramoe.evaluation.regimes import best_possible, nmi, regime_recovery


@pytest.mark.parametrize("seed", range(5))
def test_nmi_is_that_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    regime, expert = generator.integers(0, 4, (2, 20, 30))
    expert = np.where(generator.random((20, 30)) < 0.6, regime, expert)
    assert nmi(regime, expert) == pytest.approx(normalized_mutual_info_score(regime.ravel(), expert.ravel()))
    assert nmi(regime, expert) == pytest.approx(nmi(expert, regime))


def test_nmi_at_its_extremes():
    regime = np.repeat([0, 1, 2], 50)
    assert nmi(regime, (regime + 7) * 3) == pytest.approx(1)  # names do not matter
    assert nmi(regime, np.zeros_like(regime)) == 0
    assert nmi(np.zeros_like(regime), np.zeros_like(regime)) == 0
    assert nmi(regime, np.tile([0, 1], 75)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(DataError, match="one expert a pixel"):
        nmi(regime, regime[1:])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("experts", [2, 3, 4])
def test_the_best_is_the_best_of_all_assignments(seed, experts):
    counts = np.random.default_rng(seed).integers(1, 40, 5)
    regime = np.repeat(np.arange(5), counts)
    every = (np.array(a)[regime] for a in itertools.product(range(experts), repeat=5))
    best = best_possible(regime, experts)
    assert best == pytest.approx(max(nmi(regime, expert) for expert in every))
    assert best < 1


def test_no_assignment_that_splits_regimes_is_better():
    """Random assignments of single pixels, and hill climbing from the best: none passes it."""
    generator = np.random.default_rng(0)
    regime = np.repeat(np.arange(4), [30, 9, 5, 4])
    best = best_possible(regime, 2)
    for _ in range(300):
        chance = generator.random((4, 1)) ** 4
        assert nmi(regime, (generator.random(48) < chance[regime][:, 0]).astype(int)) <= best + 1e-12
    perfect = (regime > 0).astype(int)
    assert nmi(regime, perfect) == pytest.approx(best)
    for pixel in range(48):
        moved = perfect.copy()
        moved[pixel] ^= 1
        assert nmi(regime, moved) < best


def test_enough_experts_can_find_everything():
    regime = np.repeat(np.arange(3), [5, 50, 7])
    for experts in (3, 4, 100):
        assert best_possible(regime, experts) == pytest.approx(1)
    assert best_possible(np.repeat(np.arange(4), 10), 2) == pytest.approx(2 * 1 / (2 + 1))  # bits: 2 of regime, 1 found


def test_recovery_is_relative_to_the_best_and_leaves_unrouted_pixels_out():
    regime = np.repeat(np.arange(4), 10).reshape(8, 5)
    assert regime_recovery(regime // 2, regime, 2) == pytest.approx(1)
    assert nmi(regime, regime // 2) < 0.7
    assert regime_recovery(np.zeros_like(regime), regime, 2) == 0
    routed = np.where(np.arange(40).reshape(8, 5) % 3 == 0, -1, regime)
    assert regime_recovery(routed, regime, 4) == pytest.approx(1)


def test_on_a_world_an_oracle_finds_everything_and_a_coin_nothing():
    region = make_world("regimes", size=96).regime("region")
    oracle = np.array([2, 0, 3, 1])[region]
    assert regime_recovery(oracle, region, 4) == pytest.approx(1)
    generator = np.random.default_rng(0)
    assert regime_recovery(generator.integers(0, 4, region.shape), region, 4) < 0.01
    half = np.where(generator.random(region.shape) < 0.5, oracle, generator.integers(0, 4, region.shape))
    assert 0.1 < regime_recovery(half, region, 4) < 0.9


def test_what_cannot_be_answered_is_refused():
    regime = np.repeat(np.arange(3), 5)
    with pytest.raises(DataError, match="1 regimes occur"):
        best_possible(np.zeros(5, dtype=int), 2)
    with pytest.raises(DataError, match="13 regimes occur"):
        best_possible(np.arange(13), 2)
    with pytest.raises(DataError, match="1 experts"):
        regime_recovery(np.zeros_like(regime), regime, 1)
    with pytest.raises(DataError, match="up to 3 of 3"):
        regime_recovery(regime + 1, regime, 3)
    with pytest.raises(DataError, match="one shape"):
        regime_recovery(regime[:4], regime, 3)
