"""Two elevation sensors over given terrain: geometry, noise statistics, gaps, and what they refuse."""

import numpy as np
import pytest

from terramoe.data.simulators.topography import (
    LaserScan,
    RadarPair,
    laser_heights,
    phase_variance,
    radar_coherence,
    radar_heights,
)
from terramoe.data.worlds.terrain import elevation
from terramoe.errors import ConfigError, DataError


def terrain():
    """A real elevation model where matplotlib brought it, else a simulated one; and the metres of its pixels."""
    try:
        from matplotlib import cbook

        return cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(float), 80.0
    except (ImportError, OSError, ValueError):
        return elevation(256, 130.0, np.random.default_rng(0)), 80.0


def ramp(slope, toward, shape=(40, 40), pixel=10.0):
    """A plane of ``slope`` degrees that rises to the east, west, north or south."""
    rows, columns = np.indices(shape) * pixel
    distance = {"east": columns, "west": -columns, "south": rows, "north": -rows}[toward]
    return 500 + np.tan(np.radians(slope)) * distance


def test_both_sensors_tell_the_truth_about_their_noise():
    ground, pixel = terrain()
    cover = np.linspace(0, 1, ground.shape[1]) * np.ones((ground.shape[0], 1))
    radar = radar_heights(ground, pixel, RadarPair(scale=0), 0, cover)
    laser = laser_heights(ground, pixel, LaserScan(), 0, cover)
    for seen in (radar, laser):
        there = ~np.isnan(seen.value)
        assert 0.1 < there.mean() <= 1
        score = (seen.value - ground)[there] / np.sqrt(seen.variance[there])
        assert score.mean() == pytest.approx(0, abs=4 / there.sum() ** 0.5)
        assert score.std() == pytest.approx(1, abs=0.02)
        steady = seen.variance[there] < np.median(seen.variance[there])
        assert score[steady].std() == pytest.approx(score[~steady].std(), abs=0.03)  # not only on average
    assert np.median(radar.variance) > 20 * np.median(laser.variance)


def test_coarse_pixels_are_block_means_also_at_the_edge():
    ground = np.random.default_rng(0).uniform(100, 200, (9, 14))
    pair = RadarPair(scale=2, ambiguity=1e-6, canopy_loss=0.0, baseline=0.0)
    seen = radar_heights(ground / 100, 1000.0, pair, 0)
    assert seen.value.shape == (3, 4)
    assert seen.scale == 2
    for row in range(3):
        for column in range(4):
            block = ground[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert seen.value[row, column] == pytest.approx(block.mean() / 100, abs=1e-5)


def test_flat_bare_ground_has_the_textbook_error():
    pair = RadarPair(scale=0, ambiguity=50.0, looks=4.0, flat_coherence=0.7)
    seen = radar_heights(np.zeros((64, 64)), 10.0, pair, 3)
    std = 50 / (2 * np.pi) * np.sqrt((1 - 0.49) / (2 * 4 * 0.49))
    np.testing.assert_allclose(np.sqrt(seen.variance), std, rtol=1e-12)
    assert seen.value.std() == pytest.approx(std, rel=0.05)
    assert (np.diff(phase_variance(np.linspace(0.1, 1, 10), 2.0)) < 0).all()
    assert phase_variance(1.0, 1.0) == 0


def test_slopes_toward_the_radar_lose_coherence_and_fold_over():
    pair = RadarPair(incidence=35.0, flat_coherence=0.8, baseline=0.2)

    def at(slope, toward):
        return radar_coherence(ramp(slope, toward), 10.0, pair)[20, 20]

    assert at(0, "east") == pytest.approx(0.8)
    tangent = np.tan(np.radians(35.0))
    lost = 0.2 * tangent / np.tan(np.radians(15.0)) - 0.2  # what a slope of 20 degrees adds to the shift
    assert at(20, "east") == pytest.approx(0.8 * (1 - lost))
    assert 0.8 > at(10, "east") > at(20, "east") > at(28, "east") > at(36, "east") == 0  # looking east: layover
    assert at(20, "west") == pytest.approx(0.8)  # it falls away, and the spectra lie closer
    assert at(54, "west") > at(56, "west") == 0  # beyond 55 degrees in shadow
    assert at(20, "north") == pytest.approx(at(20, "south")) == pytest.approx(0.8)
    folded = radar_heights(ramp(36, "east"), 10.0, pair, 0)
    assert np.isnan(folded.value).all()
    assert np.isfinite(folded.variance).all()


def test_vegetation_takes_coherence_and_returns():
    ground, cover = np.zeros((80, 80)), np.repeat([0.0, 1.0], 40) * np.ones((80, 1))
    pair, scan = RadarPair(scale=0, canopy_loss=0.6), LaserScan(share=0.5, canopy_loss=0.9, gap=0)
    coherence = radar_coherence(ground, 10.0, pair, cover)
    np.testing.assert_allclose(coherence[:, 40:], 0.4 * coherence[:, :40], rtol=1e-12)
    radar, laser = radar_heights(ground, 10.0, pair, 0, cover), laser_heights(ground, 10.0, scan, 0, cover)
    assert (radar.variance[:, 40:] > 4 * radar.variance[:, :40]).all()
    returns = ~np.isnan(laser.value)
    assert returns[:, :40].mean() == pytest.approx(0.5, abs=0.04)
    assert returns[:, 40:].mean() == pytest.approx(0.05, abs=0.02)


def test_flight_lines_leave_gaps():
    scan = LaserScan(share=1.0, swath=10, gap=6)
    flown = ~np.isnan(laser_heights(np.zeros((5, 160)), 1.0, scan, 4).value)
    assert (flown == flown[:1]).all()
    assert flown[0].mean() == 10 / 16
    np.testing.assert_array_equal(flown[0], np.roll(flown[0], 16))
    full = LaserScan(share=1.0, swath=10, gap=0)
    assert not np.isnan(laser_heights(np.zeros((5, 160)), 1.0, full, 4).value).any()


def test_on_slopes_the_laser_is_as_good_as_its_place():
    seen = laser_heights(ramp(45, "east"), 10.0, LaserScan(noise=0.3, position_noise=0.4), 0)
    np.testing.assert_allclose(seen.variance[1:-1, 1:-1], 0.3**2 + 0.4**2, rtol=1e-9)


def test_draws_are_reproducible_and_laws_independent():
    ground, pixel = terrain()
    ground = ground[:64, :64]
    one, again, other = (laser_heights(ground, pixel, LaserScan(gap=0), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.value, again.value)
    assert (np.isnan(one.value) != np.isnan(other.value)).mean() > 0.2
    sparse = laser_heights(ground, pixel, LaserScan(gap=0, share=0.2), 1)
    both = ~np.isnan(sparse.value)
    np.testing.assert_array_equal(sparse.value[both], one.value[both])  # fewer returns, but the same ones
    radar, (first, second) = RadarPair(), (radar_heights(ground, pixel, RadarPair(), seed) for seed in (1, 2))
    assert radar.scale == first.scale == 1
    assert (first.value != second.value).all()


FLAT = np.zeros((4, 4))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: radar_heights(np.full((4, 4), np.nan), 10.0, RadarPair(), 0), DataError, "NaN"),
        (lambda: radar_heights(np.full((4, 4), 1e9), 10.0, RadarPair(), 0), DataError, "no heights"),
        (lambda: laser_heights(np.zeros(4), 10.0, LaserScan(), 0), DataError, "no image"),
        (lambda: laser_heights(np.zeros((1, 4)), 10.0, LaserScan(), 0), DataError, "no image"),
        (lambda: laser_heights([["a", "b"]], 10.0, LaserScan(), 0), DataError, "no image"),
        (lambda: laser_heights(FLAT, 0.0, LaserScan(), 0), ConfigError, "pixel"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(), 0, 1.5), ConfigError, "vegetation"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(), 0, np.zeros((4, 3))), DataError, "vegetation"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(noise=0.0), 0), ConfigError, "noise"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(share=1.1), 0), ConfigError, "share"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(swath=0), 0), ConfigError, "swath"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(gap=2.5), 0), ConfigError, "gap"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(scale=-1), 0), ConfigError, "scale"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(scale=99), 0), ConfigError, "scale"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(incidence=90.0), 0), ConfigError, "incidence"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(flat_coherence=1.0), 0), ConfigError, "flat_coherence"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(least_coherence=0.0), 0), ConfigError, "least_coherence"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(looks=0), 0), ConfigError, "looks"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(ambiguity="far"), 0), ConfigError, "ambiguity"),
        (lambda: radar_heights(FLAT, 10.0, RadarPair(), -1), ConfigError, "seed"),
        (lambda: laser_heights(FLAT, 10.0, LaserScan(), 0.5), ConfigError, "seed"),
    ],
)
def test_hostile_input_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()
