"""Cloud base simulator: the laws by themselves, and what each sensor can and cannot tell."""

import numpy as np
import pytest
from scipy.optimize import brentq

from terramoe.data.simulators.cloud_base import (
    FREEZING,
    INFRARED,
    SENSORS,
    Skies,
    air_temperature,
    brightness,
    cloud_base_table,
    condensation_level,
    emissivity,
    longwave,
    sky_states,
    vapour_above,
    vapour_density,
)
from terramoe.errors import ConfigError, DataError

BASE = {"base": 3.0, "top": 4.0, "convective": False, "surface": 290.0, "dew": 280.0, "lapse": 6.5, "optical": 5.0,
        "view": 0.0, "sun": 0.5}  # fmt: skip


def skies(**changes):
    values = {**BASE, **changes}
    length = max(np.size(v) for v in values.values())
    return Skies(**{name: np.array(np.broadcast_to(value, length)) for name, value in values.items()})


# ---------------------------------------------------------------- laws


def test_condensation_level_is_125_m_a_kelvin():
    np.testing.assert_allclose(condensation_level([290, 280, 280], [282, 280, 281]), [1.0, 0, 0])


def test_air_cools_by_the_lapse_rate_up_to_the_tropopause():
    found = air_temperature(skies(), np.array([[0.0, 2.0, 12.0, 20.0]]))
    np.testing.assert_allclose(found, [[290, 277, 212, 212]])


def test_vapour_of_saturated_air_at_20_degrees_is_17_grams():
    np.testing.assert_allclose(vapour_density(FREEZING + 20), 17.3, rtol=5e-3)


def test_the_column_is_the_integral_of_the_density():
    height = np.linspace(1, 60, 200_001)
    density = vapour_density(280.0) * np.exp(-height / 2)
    np.testing.assert_allclose(vapour_above(skies(), np.array([[1.0]]))[0, 0], np.trapezoid(density, height), rtol=1e-6)


def test_a_thick_cloud_above_the_vapour_shows_the_temperature_of_its_top():
    found = brightness(skies(top=11.5, base=11.0, optical=50.0))
    np.testing.assert_allclose(found[0, :3], 290 - 6.5 * 11.5, atol=0.1)


def test_no_cloud_shows_the_ground_through_dry_air_and_colder_air_in_the_bands_of_vapour():
    found = brightness(skies(optical=0.0, dew=230.0))[0]
    np.testing.assert_allclose(found[:3], 290, atol=0.1)
    moist = brightness(skies(optical=0.0))[0]
    assert (np.diff(moist) < 0).all()  # stronger absorption, seen from higher up
    assert moist[4] < 250


def test_brightness_is_beer_lambert_over_an_isothermal_gap():
    """Without lapse nothing can be told: all that emits is equally warm."""
    np.testing.assert_allclose(brightness(skies(lapse=0.0, optical=[0.3, 5.0])), 290, atol=1e-9)


def test_the_integration_over_height_has_converged(monkeypatch):
    from terramoe.data.simulators import cloud_base

    coarse = brightness(sky_states(50, 0))
    monkeypatch.setattr(cloud_base, "LEVELS", 1000)
    np.testing.assert_allclose(coarse, brightness(sky_states(50, 0)), atol=0.1)


def test_an_oblique_view_passes_more_vapour():
    straight, oblique = (brightness(skies(view=angle, optical=0.0))[0] for angle in (0.0, 60.0))
    assert (oblique < straight).all()
    dew = brentq(lambda kelvin: vapour_density(kelvin) - 2 * vapour_density(280.0), 280, 300)
    thicker = brightness(skies(optical=0.0, dew=dew))[0]  # twice the vapour is twice the path
    np.testing.assert_allclose(oblique, thicker, atol=1e-6)


def test_more_cloud_hides_more_of_the_ground():
    found = brightness(skies(optical=[0.0, 0.5, 1.0, 4.0]))
    assert (np.diff(found[:, 0]) < 0).all()
    share = (found[0, 0] - found[1:, 0]) / (found[0, 0] - brightness(skies(optical=1e3))[0, 0])
    np.testing.assert_allclose(share, emissivity([0.5, 1.0, 4.0]))


def test_the_ground_receives_more_from_a_lower_base_and_a_black_body_from_fog():
    found = longwave(skies(base=[0.5, 3.0, 9.0]))
    assert (np.diff(found) < 0).all()
    np.testing.assert_allclose(longwave(skies(base=0.0, optical=50.0)), 5.670374e-8 * 290**4, rtol=1e-6)


# ---------------------------------------------------------------- samples


def test_convective_bases_follow_the_ground_and_layers_do_not():
    made = sky_states(4000, 0)
    gap = made.base - condensation_level(made.surface, made.dew)
    assert np.std(gap[made.convective]) < 0.12
    assert np.std(gap[~made.convective]) > 2
    layer = ~made.convective
    assert abs(np.corrcoef(made.base[layer], (made.surface - made.dew)[layer])[0, 1]) < 0.05
    assert 0.45 < made.convective.mean() < 0.55
    assert (made.top > made.base).all()
    assert made.base.min() > 0
    assert made.top.max() <= 14


def test_table_has_57_named_sensors_and_repeats_by_seed():
    X, y, made = cloud_base_table(50, 3)
    assert X.shape == (50, 57)
    assert len(set(SENSORS)) == 57
    assert len(INFRARED) == 5
    np.testing.assert_array_equal(y, made.base)
    np.testing.assert_array_equal(X, cloud_base_table(50, 3)[0])
    assert not np.array_equal(X, cloud_base_table(50, 4)[0])
    assert np.isfinite(X).all()


def test_sensors_of_one_kind_are_correlated_and_the_last_three_tell_nothing():
    X, y, _ = cloud_base_table(3000, 0)
    name = {sensor: column for column, sensor in enumerate(SENSORS)}
    for kind in ("ir 10.8, pixel", "temperature, station"):
        assert np.corrcoef(X[:, name[f"{kind} 1"]], X[:, name[f"{kind} 2"]])[0, 1] > 0.95
    assert np.abs(np.corrcoef(X[:, -3:].T, y)[-1, :-1]).max() < 0.06


def test_missing_values_change_no_other():
    whole, _, _ = cloud_base_table(400, 0)
    holed, y, _ = cloud_base_table(400, 0, missing=0.1)
    gaps = np.isnan(holed)
    assert 0.09 < gaps.mean() < 0.11
    np.testing.assert_array_equal(whole[~gaps], holed[~gaps])
    assert np.isfinite(y).all()


def test_without_noise_the_stations_agree_on_the_air():
    X, _, made = cloud_base_table(20, 0, noise=0.0)
    np.testing.assert_allclose(X[:, SENSORS.index("temperature, station 3")], made.surface)
    np.testing.assert_allclose(X[:, SENSORS.index("dew point, station 5")], made.dew)
    np.testing.assert_allclose(X[:, SENSORS.index("longwave")], longwave(made))


@pytest.mark.parametrize(
    "settings", [{"samples": 0}, {"missing": -0.1}, {"missing": np.nan}, {"noise": -1}, {"convective": 2}]
)
def test_what_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError):
        cloud_base_table(**{"samples": 5, "seed": 0, **settings})


def test_a_table_of_gaps_alone_is_refused():
    with pytest.raises(DataError):
        cloud_base_table(5, 0, missing=1.0)
