"""Crop growth: sun and weather by their laws, scalars at their limits, water and biomass by balance, yield by cause."""

import numpy as np
import pytest

from terramoe.data.simulators.crop_growth import (
    BARE_NDVI,
    COVARIATES,
    DENSE_NDVI,
    PAR_SHARE,
    Crop,
    covariates,
    grow,
    harvest_index,
    intercepted_share,
    ndvi_of,
    temperature_scalar,
    water_scalar,
)
from terramoe.data.simulators.weather import (
    LAPSE,
    Weather,
    extraterrestrial_radiation,
    reference_evaporation,
    simulate_weather,
    vapour_pressure,
)
from terramoe.errors import ConfigError, DataError

SEASON = simulate_weather(np.linspace(28, 42, 30), np.linspace(0, 600, 30), 280, 300, 0)
CROP = Crop()


def steady(days=200, temperature=19.0, swing=8.0, rain=20.0, radiation=15.0, places=1):
    """Weather without weather."""
    shape = (places, days)
    full = [np.full(shape, v) for v in (temperature - swing / 2, temperature + swing / 2, rain, radiation, 0.7)]
    return Weather(*full, np.full(places, 40.0), np.arange(days) % 365 + 1)


# ---------------------------------------------------------------- weather


def test_sun_above_the_atmosphere_as_tabulated():
    """FAO paper 56: example 8 (3 September, 20 S: 32.2) and annex 2, table 2.6, mid-month."""
    np.testing.assert_allclose(extraterrestrial_radiation(-20.0, 246), 32.2, atol=0.05)
    assert extraterrestrial_radiation(70.0, 350) == 0  # polar night
    days = np.arange(1, 366)
    year = extraterrestrial_radiation(np.array([[0.0], [45.0]]), days).mean(axis=1)
    assert year[0] > year[1]
    assert abs(days[extraterrestrial_radiation(45.0, days).argmax()] - 172) < 4


def test_vapour_and_evaporation_by_hand():
    np.testing.assert_allclose(vapour_pressure([15, 25]), [1.705, 3.168], atol=1e-3)  # FAO paper 56, table 2.3
    weather = steady(days=1)
    above = 0.408 * extraterrestrial_radiation(40.0, 1)
    np.testing.assert_allclose(reference_evaporation(weather)[0, 0], 0.0023 * above * (19 + 17.8) * np.sqrt(8))


def test_weather_is_possible_reproducible_and_drawn_cause_by_cause():
    for field in SEASON[:5]:
        assert field.shape == (30, 300)
        assert np.isfinite(field).all()
    assert (SEASON.high > SEASON.low).all()
    assert (SEASON.rain >= 0).all()
    assert ((SEASON.humidity > 0) & (SEASON.humidity <= 1)).all()
    assert (SEASON.radiation <= extraterrestrial_radiation(SEASON.latitude[:, None], SEASON.day) * 0.78 + 1e-9).all()
    assert SEASON.day[0] == 280
    assert SEASON.day[86] == 1  # over the turn of the year
    again = simulate_weather(np.linspace(28, 42, 30), np.linspace(0, 600, 30), 280, 300, 0)
    np.testing.assert_array_equal(SEASON.rain, again.rain)
    wetter = simulate_weather(np.linspace(28, 42, 30), np.linspace(0, 600, 30), 280, 300, 0, wetness=2.0)
    np.testing.assert_allclose(wetter.rain, 2 * SEASON.rain)
    np.testing.assert_array_equal(wetter.high, SEASON.high)


def test_higher_is_colder_and_seasons_oppose_each_other():
    low, high = (simulate_weather([35.0], [e], 1, 365, 1) for e in (0.0, 1000.0))
    np.testing.assert_allclose(low.low - high.low, 1000 * LAPSE)
    north, south = (simulate_weather([x], [0.0], 1, 365, 1) for x in (45.0, -45.0))
    assert north.high[0, 180:220].mean() > north.high[0, :40].mean() + 10
    assert south.high[0, 180:220].mean() < south.high[0, :40].mean() - 10


def test_rain_comes_in_spells_and_wet_days_are_cooler_and_darker():
    many = simulate_weather(np.full(400, 50.0), np.zeros(400), 60, 200, 2)
    wet = many.rain > 0
    after_wet, after_dry = wet[:, 1:][wet[:, :-1]].mean(), wet[:, 1:][~wet[:, :-1]].mean()
    np.testing.assert_allclose(after_wet - after_dry, 0.35, atol=0.02)
    np.testing.assert_allclose(wet.mean(), 0.34, atol=0.01)  # 0.12 + 0.22: what the chain is asked for
    np.testing.assert_allclose(many.rain[wet].mean(), 7.0, rtol=0.02)
    assert many.radiation[wet].mean() < many.radiation[~wet].mean()
    middle = (many.low + many.high) / 2
    anomaly = middle + 1.5 * wet - (middle + 1.5 * wet).mean(axis=0)
    np.testing.assert_allclose(anomaly.std(), 3.0, rtol=0.03)
    lagged = (anomaly[:, 1:] * anomaly[:, :-1]).mean() / anomaly.var()
    np.testing.assert_allclose(lagged, 0.65, atol=0.02)


# ---------------------------------------------------------------- scalars


def test_light_saturates_in_leaves():
    assert intercepted_share(0.0) == 0
    np.testing.assert_allclose(intercepted_share(1e-6, 0.5), 5e-7, rtol=1e-5)
    np.testing.assert_allclose(intercepted_share(2.0, 0.5), 1 - np.exp(-1))
    # layers let through what is left: transmission multiplies
    np.testing.assert_allclose(1 - intercepted_share(5.0), (1 - intercepted_share(2.0)) * (1 - intercepted_share(3.0)))


def test_scalars_are_one_at_best_and_zero_at_the_ends():
    warm = temperature_scalar(np.linspace(-20, 50, 701), 0.0, 19.0, 35.0)
    assert warm.max() == 1
    assert ((warm >= 0) & (warm <= 1)).all()
    assert np.linspace(-20, 50, 701)[warm.argmax()] == pytest.approx(19.0)
    np.testing.assert_allclose(temperature_scalar(np.array([-5, 0, 35, 60]), 0, 19, 35), 0)
    np.testing.assert_allclose(water_scalar([0, 25, 50, 100], 100.0), [0, 0.5, 1, 1])


def test_index_runs_from_bare_soil_to_a_dense_canopy():
    np.testing.assert_allclose(ndvi_of([0.0, 100.0]), [BARE_NDVI, DENSE_NDVI])
    assert (np.diff(ndvi_of(np.linspace(0, 7, 30))) > 0).all()


# ---------------------------------------------------------------- growth


def test_biomass_never_falls_and_grows_by_intercepted_light_alone():
    growth = grow(SEASON)
    gain = np.diff(growth.biomass, axis=1)
    assert (gain >= 0).all()
    law = CROP.efficiency * PAR_SHARE * SEASON.radiation * growth.light * growth.warmth * growth.moisture
    alive = growth.stage < 1
    np.testing.assert_allclose(gain, (law * alive)[:, 1:], atol=1e-9)
    assert ((growth.harvest >= 0) & (growth.harvest <= CROP.harvest_index * growth.biomass[:, -1] + 1e-9)).all()
    assert (growth.stage[:, -1] == 1).any()


def test_water_is_balanced_day_by_day():
    for irrigated in (False, True):
        growth = grow(SEASON, irrigated=irrigated)
        before = np.concatenate([np.full((30, 1), 0.7 * CROP.root_zone), growth.water[:, :-1]], axis=1)
        change = SEASON.rain + growth.irrigation - growth.evaporation - growth.drainage
        np.testing.assert_allclose(growth.water - before, change, atol=1e-9)
        assert ((growth.water >= 0) & (growth.water <= CROP.root_zone + 1e-9)).all()
        assert (growth.irrigation.sum() > 0) == irrigated


def test_under_best_conditions_growth_is_efficiency_times_light():
    growth = grow(steady(radiation=20.0))
    full = growth.light > 0.9
    gain = np.diff(growth.biomass[0], prepend=growth.biomass[0, 0])
    rates = (gain / (growth.light[0] * PAR_SHARE * 20.0))[full[0] & (growth.stage[0] < 1)]
    np.testing.assert_allclose(rates, CROP.efficiency, rtol=1e-9)
    assert 3000 < 10 * growth.harvest[0] < 15000  # kg/ha


def test_drought_dark_and_cold_cost_yield_and_water_helps():
    best = grow(steady()).harvest
    assert grow(steady(rain=0.2)).harvest < 0.7 * best
    assert grow(steady(radiation=7.5)).harvest < 0.6 * best
    np.testing.assert_array_equal(grow(steady(temperature=-5.0)).harvest, 0)
    dry, wet = grow(steady(rain=0.2)), grow(steady(rain=0.2), irrigated=True)
    assert wet.harvest > 0.95 * best
    assert wet.irrigation.sum() > dry.irrigation.sum() == 0
    assert (grow(SEASON, irrigated=True).harvest >= grow(SEASON).harvest - 1e-9).all()


def test_light_use_is_linear_in_the_efficiency_where_leaves_do_not_feed_back():
    thin = Crop(specific_area=1e-12)
    double = Crop(specific_area=1e-12, efficiency=2 * CROP.efficiency)
    first, second = (np.diff(grow(steady(), crop).biomass[0]) for crop in (thin, double))
    np.testing.assert_allclose(second, 2 * first, rtol=1e-2, atol=1e-4)


def test_heat_counts_at_flowering_alone():
    weather, stage = steady(), grow(steady()).stage
    flowering = (stage[0] >= 0.5) & (stage[0] < 0.6)
    hot = {}
    for name, days in (("flowering", flowering), ("early", stage[0] < 0.4)):
        high = weather.high.copy()
        high[0, days] = CROP.heat + 3
        hot[name] = harvest_index(weather._replace(high=high), stage, CROP)[0]
    np.testing.assert_allclose(hot["early"], CROP.harvest_index)
    np.testing.assert_allclose(hot["flowering"], CROP.harvest_index * (1 - 3 * CROP.heat_loss))
    assert harvest_index(weather, np.minimum(stage, 0.45), CROP) == 0  # never flowered


def test_places_do_not_meet():
    alone = Weather(*(field[4:5] for field in SEASON[:5]), SEASON.latitude[4:5], SEASON.day)
    np.testing.assert_allclose(grow(alone).harvest, grow(SEASON).harvest[4:5], rtol=1e-12)


# ---------------------------------------------------------------- covariates


def test_covariates_summarise_spans_of_days():
    growth = grow(SEASON)
    seen = covariates(SEASON, growth, 0, step=8, noise=0.0, cloudy=0.0)
    assert seen.shape == (30, 37, len(COVARIATES))
    np.testing.assert_allclose(seen[:, 2, 0], ndvi_of(growth.lai[:, 23]))
    np.testing.assert_allclose(seen[:, 0, 1], ((SEASON.low + SEASON.high) / 2)[:, :8].mean(axis=1))
    np.testing.assert_allclose(seen[..., 2].sum(axis=1), SEASON.rain[:, :296].sum(axis=1))
    assert (np.diff(seen[:, -30:, 0].max(axis=1)) < 1).all()


def test_clouds_hide_the_index_alone_and_noise_has_its_spread():
    growth = grow(SEASON)
    seen, clean = (covariates(SEASON, growth, 1, noise=n, cloudy=c) for n, c in ((0.03, 0.3), (0.0, 0.0)))
    hidden = np.isnan(seen)
    np.testing.assert_allclose(hidden[..., 0].mean(), 0.3, atol=0.05)
    assert not hidden[..., 1:].any()
    np.testing.assert_allclose(np.nanstd(seen[..., 0] - clean[..., 0]), 0.03, rtol=0.1)
    np.testing.assert_array_equal(seen, covariates(SEASON, growth, 1))


def test_what_a_model_sees_tells_the_yield():
    growth = grow(SEASON)
    peak = np.nanmax(covariates(SEASON, growth, 0)[..., 0], axis=1)
    ripe = growth.stage[:, -1] == 1
    assert np.corrcoef(peak[ripe], growth.harvest[ripe])[0, 1] > 0.3


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: Crop(efficiency=-1.0), ConfigError),
        (lambda: Crop(best=40.0), ConfigError),
        (lambda: Crop(harvest_index=1.5), ConfigError),
        (lambda: intercepted_share(-0.1), ConfigError),
        (lambda: simulate_weather([95.0], [0.0], 1, 10, 0), ConfigError),
        (lambda: simulate_weather([45.0], [0.0, 1.0], 1, 10, 0), DataError),
        (lambda: simulate_weather([45.0], [0.0], 1, 0, 0), ConfigError),
        (lambda: simulate_weather([45.0], [0.0], 1, 10, 0, wetness=-1.0), ConfigError),
        (lambda: grow(steady()._replace(rain=np.zeros((1, 3)))), DataError),
        (lambda: grow(steady(rain=-1.0)), DataError),
        (lambda: grow(steady(swing=-1.0)), DataError),
        (lambda: covariates(SEASON, grow(SEASON), 0, step=400), ConfigError),
        (lambda: covariates(SEASON, grow(SEASON), 0, cloudy=2.0), ConfigError),
    ],
)
def test_impossible_input_is_refused(call, error):
    with pytest.raises(error):
        call()
