"""Shallow-water sound: images against geometry and normal modes, the bottom's limits, ships and their recordings."""

import numpy as np
import pytest
from scipy.special import hankel1

from terramoe.data.simulators.acoustics import (
    NEPER,
    Waveguide,
    arrivals,
    bottom_reflection,
    pressure,
    receive,
    sea_absorption,
    snapshots,
)
from terramoe.data.simulators.ships import SHIPS, ship_samples, ship_signal, source_level
from terramoe.errors import ConfigError, DataError

RIGID = Waveguide(depth=100.0, bottom_density=1e12, bottom_loss=0.0)
SAND = Waveguide(depth=100.0)


# ---------------------------------------------------------------- paths


def test_first_paths_by_hand():
    paths = arrivals(RIGID, 30.0, [50.0], 1000.0, orders=0)
    vertical = np.array([20.0, 200 - 30 - 50, 30 + 50, 200 + 30 - 50])  # direct, bottom, surface, surface then bottom
    np.testing.assert_allclose(paths.length[0], np.hypot(vertical, 1000))
    np.testing.assert_allclose(paths.delay[0], np.hypot(vertical, 1000) / 1500)
    assert paths.surface.tolist() == [0, 0, 1, 1]
    assert paths.bottom.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(paths.amplitude[0] * paths.length[0], [1, 1, -1, -1], rtol=1e-9)


def test_bounces_alternate_and_the_direct_path_is_the_shortest():
    paths = arrivals(SAND, 40.0, [10.0, 90.0], 500.0, orders=5)
    assert paths.length.shape == (2, 24)
    assert (np.abs(paths.surface - paths.bottom) <= 1).all()
    assert (paths.delay.argmin(axis=1) == 0).all()


@pytest.mark.parametrize(("frequency", "distance"), [(50.0, 1500.0), (120.0, 400.0)])
def test_images_are_the_sum_of_normal_modes(frequency, distance):
    """Two exact solutions of one waveguide (rigid bottom, with absorption): 2 pi i / D sum sin sin H0."""
    absorption = 5.0
    z, source = np.array([20.0, 55.0, 90.0]), 36.0
    k = 2 * np.pi * frequency / 1500 + 1j * absorption * NEPER / 1000
    upright = (np.arange(1, 300) - 0.5) * np.pi / 100
    along = np.sqrt(k**2 - upright**2)
    modes = np.sin(upright * source) * np.sin(upright * z[:, None]) * hankel1(0, along * distance)
    images = pressure(arrivals(RIGID, source, z, distance, orders=1500), [frequency], absorption=absorption)
    np.testing.assert_allclose(images[:, 0], 2j * np.pi / 100 * modes.sum(axis=1), rtol=1e-8)


def test_reciprocity_and_the_silent_surface():
    forth = pressure(arrivals(SAND, 20.0, [70.0], 800.0, orders=60), [80.0])
    back = pressure(arrivals(SAND, 70.0, [20.0], 800.0, orders=60), [80.0])
    np.testing.assert_allclose(forth, back, rtol=1e-9)
    quiet = pressure(arrivals(SAND, 20.0, [0.0], 800.0, orders=60), [80.0])
    assert abs(quiet[0, 0]) < 1e-14


def test_bottom_in_its_limits():
    lossless = Waveguide(bottom_loss=0.0)
    critical = np.arccos(1500 / 1650)
    below, above = np.sin(np.linspace(0, critical - 1e-6, 50)), np.sin(np.linspace(critical + 0.05, np.pi / 2, 50))
    np.testing.assert_allclose(np.abs(bottom_reflection(below, lossless)), 1, rtol=1e-12)
    assert (np.abs(bottom_reflection(above, lossless)) < 0.9).all()
    np.testing.assert_allclose(bottom_reflection(1.0, lossless), (1.8 * 1650 - 1500) / (1.8 * 1650 + 1500))
    np.testing.assert_allclose(bottom_reflection(0.0, SAND), -1)
    decay = 1500 * np.sqrt((1650 / 1500) ** 2 * (1 - below**2) - 1)  # of the evanescent wave: it sets the phase
    turned = np.exp(-2j * np.arctan2(decay, 1.8 * 1650 * below))
    for loss in (0.0, 1e-7):
        np.testing.assert_allclose(bottom_reflection(below, Waveguide(bottom_loss=loss)), turned, atol=1e-4)
    assert (np.abs(bottom_reflection(below[1:], SAND)) < 1).all()  # loss takes energy
    same = Waveguide(bottom_speed=1500.0, bottom_density=1.0, bottom_loss=0.0)
    np.testing.assert_allclose(bottom_reflection(above, same), 0, atol=1e-12)


def test_sea_absorbs_more_at_high_frequency():
    np.testing.assert_allclose(sea_absorption(1000.0), 0.0033 + 0.055 + 44 / 4101 + 3e-4)
    assert (np.diff(sea_absorption(np.logspace(0, 5, 50))) > 0).all()
    one = arrivals(RIGID, 50.0, [50.0], 1000.0, orders=0)
    lost = 20 * np.log10(abs(pressure(one, [500.0], absorption=0.0) / pressure(one, [500.0], absorption=3.0)))
    np.testing.assert_allclose(lost, 3.0, rtol=0.02)  # about 1 km for all four


def test_snapshots_have_the_field_in_their_covariance():
    field = pressure(arrivals(SAND, 20.0, np.linspace(5, 95, 8), 800.0), [80.0])[:, 0]
    data = snapshots(field, 20_000, 10.0, np.random.default_rng(0))
    covariance = data.T @ data.conj() / len(data)
    power = (np.abs(field) ** 2).mean()
    expected = np.outer(field, field.conj()) + 0.1 * power * np.eye(8)
    np.testing.assert_allclose(covariance, expected, atol=0.05 * power)


# ---------------------------------------------------------------- series


def test_a_click_arrives_once_a_path_at_its_time():
    rate = 8000.0
    signal = np.zeros(4000)
    signal[100] = 1.0
    paths = arrivals(RIGID, 30.0, [50.0], 300.0, orders=1)
    series = receive(signal, rate, paths)[0]
    times = 100 + (paths.delay[0] - paths.delay[0].min()) * rate
    for path, time in enumerate(times[:4]):
        near = slice(round(time) - 2, round(time) + 3)
        assert np.sign(series[near][np.abs(series[near]).argmax()]) == np.sign(paths.amplitude[0, path].real)
    np.testing.assert_allclose(series.sum(), paths.amplitude[0].real.sum(), atol=1e-5)
    assert np.abs(series[:80]).max() < 0.05 * np.abs(series).max()  # nothing comes before, nothing is wrapped around


def test_series_and_pressure_agree_for_a_tone():
    rate, frequency = 4000.0, 200.0
    times = np.arange(16000) / rate
    z = np.array([20.0, 60.0])
    paths = arrivals(SAND, 30.0, z, 900.0, orders=4)
    series = receive(np.cos(2 * np.pi * frequency * times), rate, paths)
    late = slice(8000, 12000)  # settled, and whole periods
    basis = np.exp(2j * np.pi * frequency * times[late])
    heard = 2 * (series[:, late] * basis).mean(axis=1)  # amplitude for exp(-i omega t)
    field = pressure(paths, [frequency])[:, 0] * np.exp(-2j * np.pi * frequency * paths.delay.min())
    np.testing.assert_allclose(heard, field, rtol=2e-3)


def test_paths_later_than_the_series_are_left_out():
    deep = arrivals(Waveguide(depth=3000.0), 10.0, [500.0], 1000.0, orders=3)
    signal = np.random.default_rng(0).standard_normal(500)
    assert np.isfinite(receive(signal, 1000.0, deep)).all()
    first = deep._replace(**{name: getattr(deep, name)[:, [0, 2]] for name in ("length", "delay", "amplitude")})
    heard, expected = receive(signal, 1000.0, deep), receive(signal, 1000.0, first)
    assert np.linalg.norm(heard - expected) < 0.03 * np.linalg.norm(expected)  # tails of delays between samples


# ---------------------------------------------------------------- ships


def test_merchant_level_by_hand_and_falling():
    np.testing.assert_allclose(source_level(100.0), 230 - 71.88 + 9.17 * np.log10(1 + (100 / 340) ** 2))
    assert (np.diff(source_level(np.logspace(1, 3.3, 50))) < 0).all()


def test_lines_stand_at_the_shaft_rates_and_background_has_none():
    rate = 1000.0
    series = ship_signal("cargo", 60.0, rate, np.random.default_rng(1), shaft=2.0)
    spectrum = np.abs(np.fft.rfft(series)) ** 2
    line = spectrum[round(8.0 * 60)]  # blade rate: 4 x 2 Hz
    assert line > 50 * np.median(spectrum[round(7.2 * 60) : round(7.8 * 60)])
    calm = ship_signal("background", 60.0, rate, np.random.default_rng(1), shaft=2.0)
    calm_spectrum = np.abs(np.fft.rfft(calm)) ** 2
    assert calm_spectrum[round(8.0 * 60)] < 20 * np.median(calm_spectrum[round(7.2 * 60) : round(7.8 * 60)])
    np.testing.assert_allclose([series.std(), calm.std()], 1)


def test_propellers_beat_the_noise_at_the_blade_rate():
    rate, shaft = 4000.0, 15.0
    for kind, beats in (("motorboat", True), ("background", False)):
        series = ship_signal(kind, 30.0, rate, np.random.default_rng(2), shaft=shaft)
        high = np.fft.irfft(np.fft.rfft(series) * (np.fft.rfftfreq(series.size, 1 / rate) > 900))  # above the lines
        envelope = np.abs(np.fft.rfft(high**2))
        at = round(SHIPS["motorboat"].blades * shaft * 30)
        assert (envelope[at] > 8 * np.median(envelope[at - 200 : at + 200])) == beats


def test_recordings_are_reproducible_and_of_one_ship_in_a_row():
    made = ship_samples(6, 4, Waveguide(depth=1200.0), seconds=0.25, rate=2000.0, clips=3)
    again = ship_samples(6, 4, Waveguide(depth=1200.0), seconds=0.25, rate=2000.0, clips=3)
    assert made.series.shape == (6, 500)
    assert made.source.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(made.kind[:3])) == len(set(made.kind[3:])) == 1
    np.testing.assert_array_equal(made.series, again.series)
    np.testing.assert_allclose(made.series.std(axis=1), 1, rtol=1e-5)
    assert ((made.distance >= 1000) & (made.distance <= 11000) & (made.depth >= 100) & (made.depth <= 1100)).all()
    assert np.abs(np.corrcoef(made.series) - np.eye(6)).max() < 0.9  # no recording repeats another


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Waveguide(depth=0.0), ConfigError),
        (lambda: arrivals(SAND, 120.0, [10.0], 100.0), ConfigError),
        (lambda: arrivals(SAND, 20.0, [-1.0], 100.0), ConfigError),
        (lambda: arrivals(SAND, 20.0, [20.0], 0.0), ConfigError),  # the receiver is the source
        (lambda: arrivals(SAND, 20.0, [10.0], 100.0, orders=-1), ConfigError),
        (lambda: bottom_reflection(1.1, SAND), ConfigError),
        (lambda: receive(np.ones((2, 3)), 100.0, arrivals(SAND, 20.0, [10.0], 100.0)), DataError),
        (lambda: receive([1.0, np.nan], 100.0, arrivals(SAND, 20.0, [10.0], 100.0)), DataError),
        (lambda: ship_signal("submarine", 1.0, 100.0, np.random.default_rng(0)), ConfigError),
        (lambda: ship_samples(2, 0, SAND), ConfigError),  # receivers below the bottom
    ],
)
def test_impossible_input_is_refused(call, error):
    with pytest.raises(error):
        call()
