"""Prestack seismics: energy, limits and order of the reflections; the wavelet; travel times and gathers."""

import os
from pathlib import Path

import numpy as np
import pytest

from terramoe.data.simulators.acoustics import Waveguide, bottom_reflection
from terramoe.data.simulators.seismic import (
    Elastic,
    aki_richards,
    elastic_of,
    gardner_density,
    gathers,
    in_time,
    layered_section,
    low_frequency,
    ricker,
    shear_velocity,
    zoeppritz,
)
from terramoe.errors import ConfigError, DataError

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
SLOW, FAST = Elastic(2.5, 1.2, 2.2), Elastic(3.5, 1.9, 2.5)
ANGLES = np.linspace(0, 89, 179)


def impedance_contrast(upper, lower):
    first, second = upper.vp * upper.density, lower.vp * lower.density
    return (second - first) / (second + first)


def flux(upper, lower, angle, scattering):
    """Energy that leaves the interface over what arrives: evanescent waves carry none across."""
    slowness = np.sin(np.radians(angle)) / upper.vp

    def across(density, speed):
        return density * speed * np.sqrt(np.maximum(1 - (slowness * speed) ** 2, 0))

    media = (upper.density, upper.vp), (upper.density, upper.vs), (lower.density, lower.vp), (lower.density, lower.vs)
    leaving = sum(across(*medium) * np.abs(wave) ** 2 for medium, wave in zip(media, scattering, strict=True))
    return leaving / across(upper.density, upper.vp)


# ---------------------------------------------------------------- reflection


@pytest.mark.parametrize(
    ("upper", "lower"),
    [(SLOW, FAST), (FAST, SLOW), (Elastic(1.8, 0.4, 2.0), Elastic(6.0, 3.4, 2.8))],  # the last: S past critical too
)
def test_energy_is_conserved_at_all_angles_also_beyond_the_critical_ones(upper, lower):
    np.testing.assert_allclose(flux(upper, lower, ANGLES, zoeppritz(upper, lower, ANGLES)), 1, rtol=1e-12)


def test_at_normal_incidence_only_impedance_counts():
    waves = zoeppritz(SLOW, FAST, 0.0)
    expected = impedance_contrast(SLOW, FAST)
    np.testing.assert_allclose(waves.reflected_p, expected, rtol=1e-12)
    density_ratio = 2 * SLOW.vp * SLOW.density / (SLOW.vp * SLOW.density + FAST.vp * FAST.density)
    np.testing.assert_allclose(waves.transmitted_p, density_ratio, rtol=1e-12)
    np.testing.assert_allclose([waves.reflected_s, waves.transmitted_s], 0, atol=1e-14)


def test_no_contrast_means_no_reflection_and_full_transmission():
    waves = zoeppritz(SLOW, SLOW, ANGLES)
    np.testing.assert_allclose(waves.transmitted_p, 1, atol=1e-12)
    np.testing.assert_allclose(np.array([waves.reflected_p, waves.reflected_s, waves.transmitted_s]), 0, atol=1e-12)
    np.testing.assert_allclose(aki_richards(SLOW, SLOW, ANGLES), 0, atol=1e-15)


def test_free_surface_has_the_classical_reflection():
    """Against nearly vacuum: R = (4 p2 xi eta - (1/vs2 - 2 p2)2) / (sum of both), Aki and Richards 1980, eq. 5.27."""
    angle = np.arange(0, 89, 4.0)
    vacuum = Elastic(0.3, 0.1, 1e-9)
    p = np.sin(np.radians(angle)) / SLOW.vp
    xi, eta = (np.sqrt(1 / v**2 - p**2) for v in (SLOW.vp, SLOW.vs))
    first, second = 4 * p**2 * xi * eta, (1 / SLOW.vs**2 - 2 * p**2) ** 2
    np.testing.assert_allclose(
        zoeppritz(SLOW, vacuum, angle).reflected_p, (first - second) / (first + second), atol=1e-7
    )


def test_amplitudes_turn_complex_exactly_at_the_critical_angle():
    critical = np.degrees(np.arcsin(SLOW.vp / FAST.vp))
    before, after = zoeppritz(SLOW, FAST, critical - 0.1).reflected_p, zoeppritz(SLOW, FAST, critical + 0.1).reflected_p
    assert abs(before.imag) < 1e-12
    assert abs(after.imag) > 0.01


@pytest.mark.parametrize(("angle", "order"), [(0.0, 3), (15.0, 2), (30.0, 2)])
def test_aki_richards_is_right_to_first_order(angle, order):
    """The error falls with the square of the contrast, and with its cube at normal incidence."""
    errors = []
    for share in (0.02, 0.01, 0.005):
        sign = np.array([1.0, 0.7, -0.3]) * share
        upper, lower = (Elastic(*(np.array([2.5, 1.2, 2.2]) * (1 + s * sign))) for s in (-1, 1))
        errors.append(abs(zoeppritz(upper, lower, angle).reflected_p.real - aki_richards(upper, lower, angle)))
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, order, atol=0.35)


def test_nearly_fluid_media_reflect_like_water_over_a_fluid_bottom_also_in_phase():
    fluid = Elastic(1.5, 1e-4, 1.0), Elastic(1.65, 1e-4, 1.8)
    angle = np.array([0.0, 30.0, 60.0, 70.0, 80.0])  # critical at 65.4 degrees
    bottom = bottom_reflection(np.cos(np.radians(angle)), Waveguide(bottom_loss=0.0))
    assert (bottom.imag[3:] < -0.1).all()
    np.testing.assert_allclose(zoeppritz(*fluid, angle).reflected_p, bottom, atol=1e-4)


def test_aki_richards_by_hand_at_the_mean_of_both_angles():
    upper, lower = Elastic(2.0, 1.0, 2.2), Elastic(3.0, 1.0, 2.2)
    theta = (np.arcsin(0.4) + np.arcsin(0.6)) / 2
    angle = np.degrees(np.arcsin(0.4))
    np.testing.assert_allclose(aki_richards(upper, lower, angle), 1.0 / (2 * np.cos(theta) ** 2 * 2.5))


def test_rock_lines_by_hand():
    np.testing.assert_allclose(gardner_density(3.0), 0.31 * 3000**0.25)
    np.testing.assert_allclose(1.16 * shear_velocity([2.0, 4.0]) + 1.36, [2.0, 4.0])
    assert shear_velocity(3.5, "sandstone") > shear_velocity(3.5)
    mixed = elastic_of([3.0, 3.0], [True, False])
    np.testing.assert_allclose(mixed.vs, [0.804 * 3 - 0.856, (3 - 1.36) / 1.16])


# ---------------------------------------------------------------- wavelet


def test_ricker_has_mean_zero_and_its_peak_at_the_frequency():
    times = np.arange(-4096, 4096) * 0.0005
    wavelet = ricker(times, 30.0)
    assert abs(wavelet.sum()) < 1e-10
    assert wavelet.max() == wavelet[4096] == 1
    spectrum, frequencies = np.abs(np.fft.rfft(wavelet)), np.fft.rfftfreq(times.size, 0.0005)
    assert abs(frequencies[spectrum.argmax()] - 30) <= frequencies[1]
    shape = (frequencies / 30) ** 2 * np.exp(1 - (frequencies / 30) ** 2)  # its closed form
    np.testing.assert_allclose(spectrum / spectrum.max(), shape, atol=1e-3)


# ---------------------------------------------------------------- gathers


def two_layers(samples=301, at=150, upper=SLOW, lower=FAST):
    below = np.arange(samples) >= at
    return Elastic(*(np.where(below, b, a) for a, b in zip(upper, lower, strict=True)))


def test_one_interface_gives_one_wavelet_of_its_reflection():
    for exact in (False, True):
        traces = gathers(two_layers(), [0, 10, 25], 0.002, 30.0, exact=exact)
        assert traces.shape == (3, 301)
        law = zoeppritz(SLOW, FAST, [0, 10, 25])[0].real if exact else aki_richards(SLOW, FAST, [0, 10, 25])
        np.testing.assert_allclose(traces, law[:, None] * ricker((np.arange(301) - 150) * 0.002, 30.0), atol=1e-7)


def test_total_reflection_turns_the_phase_and_keeps_the_energy():
    angle = 60.0  # beyond the critical angle of P; S still passes
    amplitude = zoeppritz(SLOW, FAST, angle).reflected_p
    trace = gathers(two_layers(2001, 1000), [angle], 0.002, 30.0, exact=True)[0]
    wavelet = ricker((np.arange(2001) - 1000) * 0.002, 30.0)
    np.testing.assert_allclose((trace**2).sum() / (wavelet**2).sum(), abs(amplitude) ** 2, rtol=1e-3)
    spectrum = np.fft.rfft(np.fft.ifftshift(trace)) / np.fft.rfft(np.fft.ifftshift(wavelet))
    np.testing.assert_allclose(spectrum[100:160], np.conj(amplitude), rtol=0.01)  # NumPy's sign of time


def test_gathers_superpose_and_know_no_neighbours():
    rng = np.random.default_rng(0)
    vp = np.repeat(rng.uniform(2, 4, (3, 30)), 10, axis=1)
    ground = elastic_of(vp)
    together = gathers(ground, [5, 15], 0.002, 25.0)
    assert together.shape == (3, 2, 300)
    alone = gathers(Elastic(*(part[1] for part in ground)), [5, 15], 0.002, 25.0)
    np.testing.assert_allclose(together[1], alone, atol=1e-12)


def test_depth_becomes_two_way_time():
    vp = np.full((100, 2), 2.0)
    vp[50:, 1] = 4.0
    sample = in_time(np.repeat(np.arange(100)[:, None], 2, axis=1), vp, 0.01, 0.001, 2000)
    # row 50 starts after 0.5 km at 2 km/s, two ways: 0.5 s; row 75 of the second column 0.125 s later
    for column, row, time in ((0, 50, 0.5), (0, 75, 0.75), (1, 50, 0.5), (1, 75, 0.625)):
        assert abs(np.searchsorted(sample[column], row) * 0.001 - time) < 0.0011
    assert sample[0, -1] == 99  # the last row goes on


def test_simulated_section_is_layered_faster_below_and_reproducible():
    vp, sand = layered_section(120, 40, 3)
    assert vp.shape == sand.shape == (120, 40)
    assert 0.2 < sand.mean() < 0.8
    assert vp[-20:].mean() > vp[:20].mean() + 1
    assert (np.diff(vp, axis=0) == 0).mean() > 0.6
    np.testing.assert_array_equal(vp, layered_section(120, 40, 3)[0])
    assert (vp != layered_section(120, 40, 4)[0]).any()
    smooth = low_frequency(vp.T, 21)
    np.testing.assert_allclose(low_frequency(np.full((2, 50), 3.0)), 3.0)
    assert np.abs(np.diff(smooth)).max() < np.abs(np.diff(vp.T)).max() / 3


def test_marmousi_gathers_follow_their_section():
    path = DATA / "geo" / "marmousi_vp" / "poststack_model.npz"
    if path.exists():
        vp = np.load(path)["model"][:, ::80]
    else:
        vp, _ = layered_section(550, 10, 0)
    logs = Elastic(*(in_time(part, vp, 0.004, 0.002, 900) for part in elastic_of(vp)))
    traces = gathers(logs, [0, 15, 30], 0.002, 30.0)
    assert traces.shape == (10, 3, 900)
    assert np.isfinite(traces).all()
    exact = gathers(logs, [0, 15, 30], 0.002, 30.0, exact=True)
    worst = np.sqrt(((exact - traces) ** 2).mean(axis=(0, 2)) / (exact**2).mean(axis=(0, 2)))
    assert worst[0] < 0.01
    assert worst[0] < worst[1] < worst[2] < 0.5  # salt and faults: contrasts to 45 % part the two at wide angles


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: zoeppritz(Elastic(1.5, 0.0, 1.0), FAST, 10), ConfigError),  # a fluid
        (lambda: zoeppritz(SLOW, FAST, 90), ConfigError),
        (lambda: zoeppritz(SLOW, FAST, np.nan), ConfigError),
        (lambda: aki_richards(Elastic(1.2, 2.5, 2.2), FAST, 10), ConfigError),  # swapped velocities
        (lambda: shear_velocity(1.3), ConfigError),
        (lambda: shear_velocity(3.0, "granite"), ConfigError),
        (lambda: ricker(0.0, -1.0), ConfigError),
        (lambda: gathers(two_layers(), [0], 0.002, 300.0), ConfigError),  # above Nyquist
        (lambda: gathers(Elastic(np.ones(5), np.ones(4), np.ones(5)), [0], 0.002, 30.0), DataError),
        (lambda: in_time(np.ones((3, 4)), np.ones((4, 3)), 0.01, 0.001, 10), DataError),
        (lambda: layered_section(0, 10, 0), ConfigError),
    ],
)
def test_impossible_input_is_refused(call, error):
    with pytest.raises(error):
        call()
