"""Ground-penetrating radar: hyperbolas, loss and polarity by closed forms; alarms and features by what they tell."""

import numpy as np
import pytest

from terramoe.data.simulators.ground_radar import (
    LIGHT,
    Soil,
    Target,
    attenuation,
    b_scan,
    clutter,
    moveout,
    reflection,
    travel_time,
    wave_speed,
)
from terramoe.data.simulators.mines import OBJECTS, SOILS, edge_features, mine_alarms
from terramoe.data.simulators.seismic import ricker
from terramoe.errors import ConfigError, DataError

SAND = Soil(4.0, 0.0)
X, T = np.linspace(-1, 1, 41), np.arange(0, 25, 0.02)


# ---------------------------------------------------------------- rays


def test_speed_and_hyperbola_have_apex_and_asymptote():
    speed = wave_speed(4.0)
    np.testing.assert_allclose(speed, LIGHT / 2)
    times = travel_time(X, 0.3, 0.1, speed)
    assert X[times.argmin()] == pytest.approx(0.3)
    np.testing.assert_allclose(times.min(), 0.2 / speed)
    np.testing.assert_allclose(times**2, (0.2 / speed) ** 2 + (2 * (X - 0.3) / speed) ** 2)
    far = travel_time([1000.0, 1001.0], 0.3, 0.1, speed)
    np.testing.assert_allclose(np.diff(far), 2 / speed, rtol=1e-7)  # the limbs' slope


def test_separate_antennas_hear_later_and_symmetrically():
    together, apart = (travel_time(X, 0.0, 0.2, 0.1, s) for s in (0.0, 0.3))
    assert (apart[np.abs(X) < 0.3] > together[np.abs(X) < 0.3]).all()
    np.testing.assert_allclose(apart, apart[::-1])
    np.testing.assert_allclose(travel_time(0.0, 0.0, 0.2, 0.1, 0.3), 2 * np.hypot(0.15, 0.2) / 0.1)


def test_moveout_is_a_hyperbola_over_offset_and_agrees_with_a_point_below_the_midpoint():
    offsets = np.linspace(0, 3, 7)
    times = moveout(offsets, 0.5, 0.1)
    np.testing.assert_allclose(times**2, (1.0 / 0.1) ** 2 + (offsets / 0.1) ** 2)
    np.testing.assert_allclose(times, travel_time(0.0, 0.0, 0.5, 0.1, offsets))
    speed = np.sqrt(np.diff(offsets**2) / np.diff(times**2))  # what a common-midpoint survey measures
    np.testing.assert_allclose(speed, 0.1)


# ---------------------------------------------------------------- amplitudes


def test_loss_in_both_limits():
    thin = Soil(9.0, 1e-4)
    low = thin.conductivity / 2 * 376.730313668 / 3  # sigma / 2 sqrt(mu / eps), whatever the frequency
    np.testing.assert_allclose(attenuation(thin, [0.5, 2.0]), low, rtol=1e-4)
    metal = Soil(9.0, 10.0)
    skin = np.sqrt(np.pi * 1e6 * 4e-7 * np.pi * 10.0)  # sqrt(pi f mu sigma) for a good conductor
    np.testing.assert_allclose(attenuation(metal, 1e-3), skin, rtol=1e-3)
    assert attenuation(Soil(9.0, 0.0), 1.0) == 0
    assert attenuation(SOILS["wet clay"], 1.2) > 5 * attenuation(SOILS["dry sand"], 1.2)


def test_polarity_depends_on_the_soil_and_conductors_reflect_all():
    assert reflection(4.0, 4.0) == 0
    assert reflection(4.0, None) == -1
    np.testing.assert_allclose(reflection(4.0, 9.0), -0.2)
    np.testing.assert_allclose(reflection(9.0, 4.0), 0.2)
    rock = OBJECTS["rock"][0]
    assert reflection(SOILS["dry sand"].permittivity, rock) < 0 < reflection(SOILS["wet clay"].permittivity, rock)


def test_trace_over_a_target_is_its_pulse():
    target = Target(0.0, 0.1, -0.5)
    lossy = Soil(4.0, 0.01)
    trace = b_scan([0.0], T, lossy, [target], frequency=1.2)[0]
    expected = -0.5 * np.exp(-attenuation(lossy, 1.2) * 0.2) * ricker(T - 0.2 / wave_speed(4.0), 1.2)
    np.testing.assert_allclose(trace, expected, atol=1e-12)


def test_scan_follows_the_hyperbola_and_fades_along_it():
    scan = b_scan(X, T, SAND, [Target(0.2, 0.3, 1.0)])
    picked = T[scan.argmax(axis=1)]
    np.testing.assert_allclose(picked, travel_time(X, 0.2, 0.3, wave_speed(4.0)), atol=0.011)
    peak = scan.max(axis=1)
    assert X[peak.argmax()] == pytest.approx(0.2)
    assert (np.diff(peak[X >= 0.2]) < 0).all()
    leg = np.hypot(X - 0.2, 0.3)
    np.testing.assert_allclose(peak, (0.1 / leg) ** 2 * (0.3 / leg) ** 2, rtol=1e-2)


def test_deeper_targets_are_later_and_weaker_by_spreading_and_loss():
    depths = np.array([0.1, 0.2, 0.4])
    soil = Soil(4.0, 0.01)
    peaks = np.array([b_scan([0.0], T, soil, [Target(0.0, d, 1.0)]).max() for d in depths])
    np.testing.assert_allclose(peaks, (0.1 / depths) ** 2 * np.exp(-2 * depths * attenuation(soil, 1.2)), rtol=5e-3)


def test_scans_superpose_and_the_direct_wave_is_the_same_everywhere():
    first, second = Target(0.0, 0.1, 0.5), Target(0.3, 0.4, -0.2, 1.0)
    both = b_scan(X, T, SAND, [first, second])
    np.testing.assert_allclose(both, b_scan(X, T, SAND, [first]) + b_scan(X, T, SAND, [second]), atol=1e-14)
    direct = b_scan(X, T, SAND, [], separation=0.3, direct=2.0)
    assert (direct == direct[0]).all()
    np.testing.assert_allclose(T[direct[0].argmax()], 0.3 / LIGHT, atol=0.01)


# ---------------------------------------------------------------- alarms


def test_features_tell_the_limbs_of_a_hyperbola_apart():
    features = edge_features(b_scan(X, T, SAND, [Target(0.0, 0.2, 1.0)]), lags=50)
    assert features.shape == (41, 4)
    assert (features >= 0).all()
    left, right = features[8:18, 2:].sum(axis=0), features[-18:-8, 2:].sum(axis=0)  # 0.67 ns a step: a pulse is 0.8
    assert left[0] > 2 * left[1]
    assert right[1] > 2 * right[0]
    np.testing.assert_allclose(features, features[::-1][:, [0, 1, 3, 2]], atol=1e-9)  # mirrored: roles swap


def test_features_do_not_see_what_all_traces_share():
    scan = b_scan(X, T, SAND, [Target(0.0, 0.2, 1.0)])
    np.testing.assert_allclose(edge_features(scan + 3 * ricker(T - 1, 1.2)), edge_features(scan), atol=1e-12)


def test_alarms_are_reproducible_and_consistent():
    alarms = mine_alarms(60, 3)
    assert alarms.scans.shape == (60, 15, 200)
    assert np.isfinite(alarms.scans).all()
    names = list(OBJECTS)
    assert [OBJECTS[names[k]][2] for k in alarms.kind] == [bool(m) for m in alarms.mine]
    assert set(alarms.soil) == {0, 1}
    np.testing.assert_array_equal(alarms.scans, mine_alarms(60, 3).scans)
    assert (alarms.scans != mine_alarms(60, 4).scans).all()
    quiet = mine_alarms(60, 3, noise=0.0)  # noise has a stream of its own
    np.testing.assert_array_equal(quiet.kind, alarms.kind)
    np.testing.assert_allclose((alarms.scans - quiet.scans).std(), 0.01, rtol=0.02)


def test_metal_mines_stand_out_by_size_and_clay_swallows_signals():
    alarms = mine_alarms(150, 0, noise=0.0)
    energy = edge_features(alarms.scans)[..., 0].max(axis=1)
    metal = alarms.kind == list(OBJECTS).index("metal mine")
    assert np.median(energy[metal]) > 3 * np.median(energy[alarms.mine == 0])
    assert np.median(energy[metal & (alarms.soil == 0)]) > np.median(energy[metal & (alarms.soil == 1)])


def test_clutter_has_its_density_and_may_be_none():
    targets = clutter(X, 100.0, np.random.default_rng(0))
    assert abs(len(targets) - 260) < 60
    assert clutter(X, 0.0, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: wave_speed(0.5), ConfigError),
        (lambda: attenuation(Soil(4.0, -0.1), 1.0), ConfigError),
        (lambda: attenuation(Soil(4.0, 0.1), 0.0), ConfigError),
        (lambda: travel_time(X, 0.0, 0.0, 0.1), ConfigError),
        (lambda: b_scan(X, T, SAND, [Target(0.0, 0.1, 1.5)]), ConfigError),
        (lambda: b_scan(X, T, SAND, [Target(0.0, -0.1, 1.0)]), ConfigError),
        (lambda: mine_alarms(0, 0), ConfigError),
        (lambda: mine_alarms(2.5, 0), ConfigError),
        (lambda: edge_features(np.ones((2, 2))), DataError),
    ],
)
def test_impossible_input_is_refused(call, error):
    with pytest.raises(error):
        call()
