"""Ultraviolet radiance over ozone: Beer-Lambert, conservation of flux, single scattering, and what each cause does."""

import numpy as np
import pytest

from terramoe.data.simulators import ozone
from terramoe.data.simulators.ozone import (
    HEIGHTS,
    WAVELENGTHS,
    Scenes,
    henyey_greenstein,
    n_values,
    noisy,
    ozone_absorption,
    ozone_climatology,
    ozone_scenes,
    radiance,
    rayleigh_depth,
)
from terramoe.data.simulators.two_stream import layer_sources, two_stream
from terramoe.errors import ConfigError, DataError

BASE = {"ozone": 300.0, "sun": 40.0, "view": 20.0, "azimuth": 90.0, "albedo": 0.05, "latitude": 45.0,
        "aerosol": 0, "depth": 0.1}  # fmt: skip


def scenes(**changes):
    values = {**BASE, **changes}
    length = max(np.size(v) for v in values.values())
    return Scenes(**{name: np.broadcast_to(value, length) for name, value in values.items()})


def reflected(**changes):
    made = scenes(**changes)
    return np.pi * radiance(made) / np.cos(np.radians(made.sun))[:, None]


# ---------------------------------------------------------------- coefficients


def test_absorption_keeps_dobsons_slits_and_falls_steeply():
    np.testing.assert_allclose(ozone_absorption([311.5, 332.4]), np.log(10) * np.array([0.873, 0.040]))
    fall = ozone_absorption(np.arange(306, 380.0))
    assert (np.diff(fall) < 0).all()
    assert fall[0] / fall[-1] > 1e3


def test_air_scatters_by_about_the_fourth_power():
    np.testing.assert_allclose(rayleigh_depth([350, 400]), [0.630, 0.360], rtol=2e-3)
    power = -np.diff(np.log(rayleigh_depth([320, 360]))) / np.diff(np.log([320, 360]))
    assert 4.0 < power < 4.5


def test_climatology_is_poor_at_the_equator_and_rich_in_polar_spring():
    column, height = ozone_climatology(np.array([0.0, 60.0, -60.0]), 90)
    np.testing.assert_allclose(column[0], 235)
    assert column[1] > 350 > column[2] > 250
    assert height[0] == 26
    assert height[1] == height[2] < 21


def test_henyey_greenstein_has_mean_one_and_its_asymmetry():
    nodes, weights = np.polynomial.legendre.leggauss(200)
    phase = henyey_greenstein(nodes, 0.7)
    np.testing.assert_allclose([(weights @ phase) / 2, (weights @ (phase * nodes)) / 2], [1, 0.7], rtol=1e-10)


# ---------------------------------------------------------------- two-stream


def slab(depth, single, asymmetry, sun, albedo, layers=60):
    depth = np.full((1, 1, layers), depth / layers)
    slant = np.concatenate([np.zeros((1, 1, 1)), depth.cumsum(-1)], -1) / sun
    beam = layer_sources(slant, depth)
    up, down = two_stream(depth, np.full_like(depth, single), np.full_like(depth, asymmetry), beam, slant,
                          np.array([sun]), np.array([albedo]))  # fmt: skip
    return up[0, 0], down[0, 0], sun * np.exp(-slant[0, 0])


@pytest.mark.parametrize("albedo", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("sun", [0.2, 0.9])
def test_without_absorption_the_net_flux_is_the_same_at_all_heights(albedo, sun):
    up, down, direct = slab(1.7, 1.0, 0.3, sun, albedo)
    net = direct + down - up
    np.testing.assert_allclose(net, net[0], atol=1e-13)
    np.testing.assert_allclose(net[-1], (1 - albedo) * (direct + down)[-1], atol=1e-13)
    assert down[0] == 0
    assert (up >= 0).all()


def test_conservative_slab_has_eddingtons_reflectance():
    """1 - R = [(2 + 3 mu) + (2 - 3 mu) exp(-tau / mu)] / (4 + 3 (1 - g) tau) over black ground."""
    for depth, sun, asymmetry in ((0.5, 0.6, 0.0), (3.0, 0.8, 0.0), (3.0, 0.5, 0.4)):
        up, _, _ = slab(depth, 1.0, asymmetry, sun, 0.0, layers=2000)
        passed = ((2 + 3 * sun) + (2 - 3 * sun) * np.exp(-depth / sun)) / (4 + 3 * (1 - asymmetry) * depth)
        np.testing.assert_allclose(1 - up[0] / sun, passed, rtol=1e-5)


def test_without_scattering_only_beer_and_lambert_are_left():
    up, down, direct = slab(0.8, 0.0, 0.0, 0.7, 0.3)
    assert np.abs(down).max() < 0.15 * up[-1]  # Eddington's closure, made for scattering, turns a little of it back
    np.testing.assert_allclose(direct[-1], 0.7 * np.exp(-0.8 / 0.7))


def test_layer_integrals_by_quadrature_and_in_thin_layers():
    path, depth = np.array([0.2, 0.9, 0.9 + 1e-9]), np.array([0.5, 1e-9])
    nodes = np.linspace(0, 1, 100_001)
    expected = 0.5 * np.trapezoid(np.exp(-(0.2 + 0.7 * nodes)), nodes)
    np.testing.assert_allclose(layer_sources(path, depth), [expected, 1e-9 * np.exp(-0.9)], rtol=1e-8)


# ---------------------------------------------------------------- radiance


def test_without_air_the_ground_is_seen_as_it_is(monkeypatch):
    monkeypatch.setattr(ozone, "rayleigh_depth", lambda waves: np.full(np.shape(waves), 1e-9))
    np.testing.assert_allclose(
        reflected(ozone=0.0, depth=0.0, albedo=[0.0, 0.3, 1.0]).T, [[0, 0.3, 1.0]] * 9, atol=1e-7
    )


def test_absorbing_air_follows_beer_and_lambert_both_ways(monkeypatch):
    """Without scattering the logarithm is linear in ozone, with the slope of both slant paths."""
    monkeypatch.setattr(ozone, "rayleigh_depth", lambda waves: np.full(np.shape(waves), 1e-12))
    columns = np.array([0.0, 100.0, 200.0, 400.0])
    logs = -np.log(reflected(ozone=columns, depth=0.0, albedo=0.01, sun=10.0, view=10.0))
    airmass = 2 / np.cos(np.radians(10))
    np.testing.assert_allclose(logs[0], np.log(100), rtol=1e-6)
    expected = columns[1:, None] / 1000 * ozone_absorption(WAVELENGTHS) * airmass
    np.testing.assert_allclose(logs[1:] - logs[0], expected, rtol=2e-3)  # the curvature of the shells takes a little
    np.testing.assert_allclose(logs[3] - logs[2], logs[2] - logs[0], rtol=1e-3)  # additive


def test_thin_air_scatters_once(monkeypatch):
    thin = 1e-5
    monkeypatch.setattr(ozone, "rayleigh_depth", lambda waves: np.full(np.shape(waves), thin))
    made = scenes(ozone=0.0, depth=0.0, albedo=0.0, azimuth=[0.0, 90.0, 180.0], sun=50.0, view=40.0)
    mu0, mu = np.cos(np.radians(50)), np.cos(np.radians(40))
    turn = -mu * mu0 + np.sin(np.radians(50)) * np.sin(np.radians(40)) * np.cos(np.radians([0, 90, 180]))
    once = thin * 0.75 * (1 + turn**2) / (4 * np.pi) / mu
    np.testing.assert_allclose(radiance(made)[:, 0], once, rtol=1e-4)


def test_conservative_atmosphere_over_white_ground_looks_white():
    """Ozone-free air over albedo 1 sends all light back: reflectance near 1 from every side."""
    seen = reflected(ozone=0.0, depth=0.0, albedo=1.0, sun=[0.0, 30.0, 60.0], view=30.0)
    np.testing.assert_allclose(seen, 1, atol=0.1)
    np.testing.assert_allclose(seen.mean(axis=0), 1, atol=0.04)


def test_more_ozone_less_light_and_most_at_short_waves():
    seen = reflected(ozone=np.arange(150.0, 500.0, 25.0))
    assert (np.diff(seen, axis=0) < 0).all()
    loss = np.log(seen[0] / seen[-1])
    assert (np.diff(loss) < 0).all()
    assert loss[0] > 30 * loss[-1] > 0


def test_albedo_and_slant_paths_act_as_they_should():
    assert (np.diff(reflected(albedo=np.linspace(0, 1, 6)), axis=0) > 0).all()
    # at 312.5 nm the longer path through ozone wins, at 360 nm the longer path through scattering air
    low_sun = reflected(sun=[30.0, 75.0])
    assert low_sun[1, 0] < low_sun[0, 0]
    assert low_sun[1, -1] > low_sun[0, -1]


def test_profile_matters_where_ozone_lies_among_the_air():
    """High ozone (equator) shades more of the scattering air than low ozone (pole); at 360 nm nothing changes."""
    seen = reflected(latitude=[0.0, 90.0], sun=75.0)
    assert seen[0, 0] < 0.97 * seen[1, 0]
    np.testing.assert_allclose(seen[0, -1], seen[1, -1], rtol=2e-3)


def test_rural_aerosol_absorbs_more_than_maritime():
    seen = reflected(aerosol=[0, 1], depth=0.5, albedo=0.5)
    assert (seen[1] < seen[0]).all()


def test_layers_add_up_to_the_columns_they_come_from():
    waves = np.array([312.5, 350.0])
    air, absorbed, particles = ozone._depths(scenes(depth=0.3, latitude=[10.0, -70.0]), waves)
    assert all((part >= 0).all() for part in (air, absorbed, particles))
    np.testing.assert_allclose(air.sum(-1), np.tile(rayleigh_depth(waves), (2, 1)))
    np.testing.assert_allclose(absorbed.sum(-1), np.tile(0.3 * ozone_absorption(waves), (2, 1)))
    np.testing.assert_allclose(particles.sum(-1), np.tile([0.3 * (350 / 312.5) ** 1.3, 0.3], (2, 1)))


def test_shells_shorten_the_paths_of_a_low_sun_and_not_those_of_a_high_one():
    depth = np.ones((1, 1, HEIGHTS.size - 1))
    flat = depth.cumsum(-1)
    np.testing.assert_allclose(ozone._slant(depth, np.array([0.0])), flat, rtol=1e-12)
    np.testing.assert_allclose(ozone._slant(depth, np.array([30.0])), flat / np.cos(np.radians(30)), rtol=0.01)
    low = ozone._slant(depth, np.array([86.0]))[0, 0, -1] / (flat[0, 0, -1] / np.cos(np.radians(86)))
    assert 0.5 < low < 0.9
    length = ozone._slant(-np.diff(HEIGHTS)[None, None], np.array([80.0]))[0, 0, -1]  # of the ray from top to ground
    ground, top = ozone.EARTH, ozone.EARTH + HEIGHTS[0]
    sine, cosine = np.sin(np.radians(80)), np.cos(np.radians(80))
    np.testing.assert_allclose(length, np.sqrt(top**2 - (ground * sine) ** 2) - ground * cosine, rtol=1e-10)


def test_light_is_symmetric_in_azimuth_and_scenes_do_not_meet():
    seen = radiance(scenes(azimuth=[60.0, -60.0]))
    np.testing.assert_allclose(seen[0], seen[1], rtol=1e-12)
    made = ozone_scenes(40, 2)
    alone = radiance(Scenes(*(field[7:8] for field in made)))
    np.testing.assert_allclose(radiance(made)[7:8], alone, rtol=1e-12)


def test_scenes_are_reproducible_and_ozone_can_be_told_from_them():
    made = ozone_scenes(400, 0)
    for first, second in zip(made, ozone_scenes(400, 0), strict=True):
        np.testing.assert_array_equal(first, second)
    light = radiance(made)
    assert (light > 0).all()
    values = n_values(noisy(light, 0), made.sun)
    paths = 1 / np.cos(np.radians(made.sun)) + 1 / np.cos(np.radians(made.view))
    slant_column = (values[:, 1] - values[:, 4]) / paths
    assert np.corrcoef(slant_column[made.sun < 70], made.ozone[made.sun < 70])[0, 1] > 0.8


@pytest.mark.parametrize(
    "changes",
    [
        {"sun": 89.0},
        {"view": 80.0},
        {"albedo": 1.2},
        {"ozone": -1.0},
        {"ozone": np.nan},
        {"aerosol": 2},
        {"depth": -0.1},
    ],
)
def test_impossible_scenes_are_refused(changes):
    with pytest.raises(ConfigError):
        radiance(scenes(**changes))


def test_impossible_input_is_refused():
    with pytest.raises(ConfigError):
        ozone_absorption(300)
    with pytest.raises(ConfigError):
        ozone_scenes(0, 0)
    with pytest.raises(DataError):
        radiance(scenes()._replace(sun=np.array([10.0, 20.0])))
