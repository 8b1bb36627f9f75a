"""Warm rain: water and heat by balance, Kessler's rates by their closed forms, rain where air is lifted."""

import numpy as np
import pytest

from terramoe.data.simulators.warm_rain import (
    CONVERSION,
    DEPTH,
    GROUPS,
    HEAT,
    LATENT,
    SECONDS,
    THRESHOLD,
    VARIABLES,
    accretion,
    autoconversion,
    carry,
    cell_rows,
    condense,
    fall_speed,
    microphysics,
    rain_evaporation,
    saturation,
    simulate_rain,
)
from terramoe.errors import ConfigError

RAIN = simulate_rain(14, 0, size=24)


def field(rain, name):
    return rain.fields[:, VARIABLES.index(name)]


# ---------------------------------------------------------------- microphysics


def test_saturation_as_tabulated():
    """Bolton's formula: 6.11 hPa at 0 and 23.37 hPa at 20 degrees Celsius (Smithsonian tables: 6.107, 23.373)."""
    for celsius, vapour in ((0.0, 611.0), (20.0, 2337.0)):
        np.testing.assert_allclose(saturation(celsius + 273.15), 0.622 * vapour / (85_000 - vapour), rtol=1e-3)


def test_autoconversion_empties_the_excess_exponentially():
    cloud, seconds = 2e-3, 1.0
    for _ in range(1800):
        cloud = cloud - autoconversion(cloud) * seconds
    closed = THRESHOLD + (2e-3 - THRESHOLD) * np.exp(-CONVERSION * 1800)
    np.testing.assert_allclose(cloud, closed, rtol=1e-3)
    assert autoconversion(THRESHOLD) == 0


def test_accretion_grows_rain_by_its_closed_form():
    """d rain / dt = 2.2 cloud rain^(7/8) with a constant cloud: rain^(1/8) grows linearly."""
    rain, cloud, seconds = 1e-5, 1e-3, 0.5
    for _ in range(1200):
        rain = rain + accretion(cloud, rain) * seconds
    np.testing.assert_allclose(rain ** (1 / 8), 1e-5 ** (1 / 8) + 2.2 * cloud * 600 / 8, rtol=1e-3)
    assert accretion(cloud, 0.0) == 0


def test_drops_fall_and_dry_by_hand():
    np.testing.assert_allclose(fall_speed(1e-3), 36.34 * (1.05e-6) ** 0.1346, rtol=1e-12)
    assert 5 < fall_speed(1e-3) < 6.5  # m/s at 1 g/kg
    assert fall_speed(0.0) == 0
    full = float(saturation(288.0))
    assert rain_evaporation(full, 1e-3, 288.0) == 0
    assert rain_evaporation(1.1 * full, 1e-3, 288.0) == 0
    half, dry = rain_evaporation(0.5 * full, 1e-3, 288.0), rain_evaporation(0.0, 1e-3, 288.0)
    np.testing.assert_allclose(2 * half, dry)
    assert 1e-7 < half < 1e-5  # kg/kg/s: a tenth of the rain in minutes


@pytest.mark.parametrize("humidity", [0.6, 0.98, 1.3])
def test_condensation_keeps_water_and_heat_and_ends_at_saturation(humidity):
    temperature = np.linspace(275, 300, 6)
    vapour, cloud = humidity * saturation(temperature), np.linspace(0, 2e-3, 6)
    after = condense(temperature, vapour, cloud)
    np.testing.assert_allclose(after[1] + after[2], vapour + cloud, rtol=1e-12)
    np.testing.assert_allclose(HEAT * after[0] + LATENT * after[1], HEAT * temperature + LATENT * vapour, rtol=1e-12)
    assert (after[2] >= 0).all()
    cloudy = after[2] > 0
    np.testing.assert_allclose(after[1][cloudy], saturation(after[0])[cloudy], rtol=1e-3)
    assert (after[1] <= saturation(after[0]) * 1.001).all()


def test_a_step_keeps_water_and_lets_the_drops_fall():
    generator = np.random.default_rng(0)
    shape = (8, 8)
    temperature = generator.uniform(280, 292, shape)
    vapour = saturation(temperature) * generator.uniform(0.5, 1.1, shape)
    cloud, rain = generator.uniform(0, 2e-3, shape), generator.uniform(0, 2e-3, shape)
    warmer, *water, fallen = microphysics(temperature, vapour, cloud, rain, SECONDS)
    np.testing.assert_allclose(sum(water) + fallen, vapour + cloud + rain, rtol=1e-12)
    np.testing.assert_allclose(HEAT * warmer + LATENT * water[0], HEAT * temperature + LATENT * vapour, rtol=1e-12)
    assert all((part >= 0).all() for part in water)
    before = water[2] + fallen
    np.testing.assert_allclose(fallen, before * (1 - np.exp(-fall_speed(before) * SECONDS / DEPTH)), rtol=1e-9)


# ---------------------------------------------------------------- transport


@pytest.mark.parametrize("across", [-0.7, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("axis", [1, 2])
def test_air_is_carried_without_gain_or_new_extremes(across, axis):
    start = np.random.default_rng(1).uniform(0, 1, (3, 12, 12))
    moved = carry(start, across, axis)
    np.testing.assert_allclose(moved.sum((1, 2)), start.sum((1, 2)), rtol=1e-12)
    assert moved.min() >= start.min() - 1e-12
    assert moved.max() <= start.max() + 1e-12
    np.testing.assert_allclose(carry(np.ones((1, 8, 8)), across, axis), 1.0)
    if across == 1.0:
        np.testing.assert_allclose(moved, np.roll(start, 1, axis), atol=1e-12)


def test_transport_is_of_second_order():
    """Half a turn of a wave: with cells half as wide the mean error falls to a quarter."""
    errors = []
    for cells in (64, 128):
        x, steps = np.arange(cells) / cells, cells * 5 // 4
        moved = np.sin(2 * np.pi * x)[None]
        for _ in range(steps):
            moved = carry(moved, 0.4, 1)
        errors.append(np.abs(moved[0] - np.sin(2 * np.pi * (x - 0.4 * steps / cells))).mean())
    assert errors[1] < errors[0] / 3.5
    assert errors[1] < 1e-3


# ---------------------------------------------------------------- weather


def test_water_is_balanced_hour_by_hour():
    change, fell = np.diff(RAIN.water), RAIN.precipitation.mean(axis=(1, 2))
    np.testing.assert_allclose(change, RAIN.fed - fell, atol=1e-6)
    assert fell.max() > 0.01
    assert RAIN.fed.min() > 0


def test_the_six_groups_are_possible_and_hang_together():
    assert RAIN.fields.shape == (14, len(VARIABLES), 24, 24)
    assert len(GROUPS) == 6
    assert np.isfinite(RAIN.fields).all()
    assert (RAIN.precipitation >= 0).all()
    assert (field(RAIN, "relative humidity") < 1.05).all()
    assert (field(RAIN, "dew point") <= field(RAIN, "temperature") + 0.5).all()
    assert (field(RAIN, "cloud top pressure") < field(RAIN, "cloud base pressure")).all()
    cover, window = field(RAIN, "cover"), field(RAIN, "window channel")
    assert ((cover >= 0) & (cover <= 1)).all()
    assert np.corrcoef(cover.ravel(), window.ravel())[0, 1] < -0.5  # clouds are cold from above
    cloudy = field(RAIN, "liquid path") > 0.05
    np.testing.assert_allclose(field(RAIN, "relative humidity")[cloudy].mean(), 1.0, atol=0.02)
    for name in ("u", "v"):
        assert np.ptp(field(RAIN, name), axis=(1, 2)).max() == 0  # one wind for all


def test_it_rains_where_air_was_lifted_and_nowhere_else():
    flat = simulate_rain(6, 0, size=16, relief=0.0, lift=0.0)
    assert flat.precipitation.max() == 0
    low, high = (simulate_rain(12, 0, size=24, relief=relief, lift=0.0) for relief in (200.0, 400.0))
    assert low.precipitation.mean() < high.precipitation.mean()
    raining = high.precipitation > 0.1
    assert raining.any()
    assert field(high, "temperature")[raining].mean() < field(high, "temperature").mean() - 1  # rising air cools


def test_seeds_decide_all():
    np.testing.assert_array_equal(simulate_rain(3, 5, size=16).fields, simulate_rain(3, 5, size=16).fields)
    assert not np.array_equal(simulate_rain(3, 5, size=16).fields, simulate_rain(3, 6, size=16).fields)


def test_rows_stand_variable_by_variable_hour_by_hour():
    rows = cell_rows(RAIN, 5, 0, hours=3, reach=1)
    assert rows.values.shape == (11 * 5, len(VARIABLES) * 3 * 9)  # hours 2 to 12 have two before and one after
    assert (rows.hour.min(), rows.hour.max()) == (2, 12)
    values = rows.values.reshape(len(rows.hour), len(VARIABLES), 3, 3, 3)
    for n in (0, 17, 54):
        hour, row, column = rows.hour[n], rows.row[n], rows.column[n]
        around = [(row + d) % 24 for d in (-1, 0, 1)], [(column + d) % 24 for d in (-1, 0, 1)]
        for back in range(3):
            expected = RAIN.fields[hour - 2 + back][:, around[0]][:, :, around[1]]
            np.testing.assert_array_equal(values[n, :, back], expected)
        assert rows.target[n] == RAIN.precipitation[hour + 1, row, column]
        assert rows.now[n] == RAIN.precipitation[hour, row, column]


@pytest.mark.parametrize(
    "call",
    [
        lambda: simulate_rain(0),
        lambda: simulate_rain(2, size=4),
        lambda: simulate_rain(2, cell=100.0),
        lambda: simulate_rain(2, relief=-1.0),
        lambda: simulate_rain(2, lift=np.nan),
        lambda: saturation(20.0),
        lambda: cell_rows(RAIN, 0, 0),
        lambda: cell_rows(RAIN, 2, 0, hours=14),
        lambda: cell_rows(RAIN, 2, 0, reach=-1),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ConfigError):
        call()
