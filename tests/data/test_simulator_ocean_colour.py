"""Ocean colour: limits, inverse and shape of the reflectance; closed forms of absorption; real cultures."""

import os
from pathlib import Path

import numpy as np
import pytest

from terramoe.data.simulators.ocean_colour import (
    backscattering_share,
    cdom_absorption,
    particle_backscattering,
    read_cultures,
    reflectance,
    stand_in_spectra,
    water_absorption,
    water_backscattering,
    water_samples,
)
from terramoe.errors import ConfigError, DataError

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
WAVES = np.arange(400.0, 701.0, 10.0)
EMIT = np.arange(403.0, 694.0, 7.4)


def test_dark_and_bright_limits():
    assert reflectance(0.5, 0.0) == 0
    small = 1e-9  # first order: R = 0.52 g0 bb / a
    np.testing.assert_allclose(reflectance(0.5, small), 0.52 * 0.0895 * small / 0.5, rtol=1e-6)
    below = 0.0895 + 0.1247  # nothing but scattering: u = 1
    np.testing.assert_allclose(reflectance(1e-12, 1.0), 0.52 * below / (1 - 1.7 * below), rtol=1e-9)


def test_reflectance_depends_on_the_ratio_alone_and_rises_with_scattering():
    a, b = np.array([0.01, 0.1, 1.0]), np.logspace(-4, 1, 50)
    np.testing.assert_allclose(reflectance(a[:, None], b), reflectance(7 * a[:, None], 7 * b), rtol=1e-12)
    assert (np.diff(reflectance(0.1, b)) > 0).all()
    assert (np.diff(reflectance(b, 0.01)) < 0).all()


def test_reflectance_can_be_inverted():
    u = np.linspace(0, 0.999, 200)
    np.testing.assert_allclose(backscattering_share(reflectance(1 - u, u)), u, atol=1e-12)


def test_water_is_clearest_in_the_blue_and_its_table_is_kept():
    assert WAVES[water_absorption(WAVES).argmin()] == 420
    np.testing.assert_allclose(water_absorption([440, 555, 700]), [0.00635, (0.0565 + 0.0619) / 2, 0.624])
    np.testing.assert_allclose(water_backscattering(500), 0.00144)
    np.testing.assert_allclose(water_backscattering(400) / water_backscattering(600), 1.5**4.32)
    clear = reflectance(water_absorption(WAVES), water_backscattering(WAVES))
    assert clear[0] > 20 * clear[-1]  # pure water is blue


def test_cdom_and_particles_by_their_closed_forms():
    np.testing.assert_allclose(cdom_absorption(440, 0.3, 0.02), 0.3)
    np.testing.assert_allclose(np.diff(np.log(cdom_absorption(WAVES, 0.3, 0.015))), -0.15)
    np.testing.assert_allclose(cdom_absorption(WAVES, 0.1) + cdom_absorption(WAVES, 0.2), cdom_absorption(WAVES, 0.3))
    np.testing.assert_allclose(particle_backscattering([550, 275], 0.01, 2.0), [0.01, 0.04])


def test_phytoplankton_darkens_the_blue():
    shape = stand_in_spectra(WAVES)[0]
    back = water_backscattering(WAVES) + particle_backscattering(WAVES, 0.005)
    poor, rich = (reflectance(water_absorption(WAVES) + c * shape, back) for c in (0.01, 0.5))
    assert (rich < poor).all()
    assert (rich / poor)[WAVES == 440] < (rich / poor)[WAVES == 560] / 2


def test_samples_are_reproducible_positive_and_of_the_stated_height():
    spectra = stand_in_spectra(EMIT)
    samples = water_samples(300, EMIT, spectra, 5)
    assert samples.reflectance.shape == samples.phytoplankton.shape == (300, EMIT.size)
    assert (samples.reflectance > 0).all()
    np.testing.assert_allclose(samples.phytoplankton.max(axis=1), 0.045 * samples.chlorophyll**0.68)
    np.testing.assert_array_equal(samples.reflectance, water_samples(300, EMIT, spectra, 5).reflectance)
    assert (samples.reflectance != water_samples(300, EMIT, spectra, 6).reflectance).all()
    quiet = water_samples(300, EMIT, spectra, 5, noise=0.0)  # switching noise off leaves the water alone
    np.testing.assert_array_equal(quiet.phytoplankton, samples.phytoplankton)
    np.testing.assert_allclose(np.std(np.log(samples.reflectance / quiet.reflectance)), 0.02, rtol=0.05)
    green = [np.median(samples.reflectance[samples.water == kind, 20]) for kind in (0, 2)]
    assert green[1] > 1.5 * green[0]  # turbid water is brighter
    assert set(samples.species) == {0, 1, 2}


def test_the_unit_of_the_shapes_does_not_matter():
    spectra = stand_in_spectra(EMIT)
    scaled = water_samples(20, EMIT, spectra * np.array([[5.0], [0.1], [30.0]]), 1)
    np.testing.assert_allclose(scaled.reflectance, water_samples(20, EMIT, spectra, 1).reflectance)


CULTURES = DATA / "geo" / "phyto_acs" / "processed_acs_bottle_11102023.csv"


@pytest.mark.skipif(not CULTURES.exists(), reason="shared/data is absent")
def test_real_cultures_make_real_waters():
    cultures = read_cultures(CULTURES)
    assert cultures.absorption.shape == (187, 83)
    assert len(set(cultures.species)) == 3
    assert len(set(cultures.experiment)) == 5
    assert (cultures.absorption >= 0).all()
    shape = cultures.absorption.mean(axis=0)
    blue, green, red = (np.interp(w, cultures.nanometres, shape) for w in (440, 600, 676))
    assert blue > red > green  # two bands of chlorophyll a
    inside = (cultures.nanometres >= 400) & (cultures.nanometres <= 700)
    samples = water_samples(50, cultures.nanometres[inside], cultures.absorption[:, inside], 0)
    assert np.isfinite(samples.reflectance).all()


def table(path, rows, head="exp,phyto,bottle,tp,datetime,wl,ap,chl_line_height"):
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_cultures_lose_their_baseline_whatever_the_order_of_rows(tmp_path):
    rows = [f"e,p,A,1,t,{w},{a},2.0" for w, a in ((740, 0.1), (400, 0.5), (675, 0.3), (735, 0.3))]
    cultures = read_cultures(table(tmp_path / "a.csv", rows))
    np.testing.assert_allclose(cultures.nanometres, [400, 675, 735, 740])
    np.testing.assert_allclose(cultures.absorption, [[0.3, 0.1, 0.1, 0.0]], atol=1e-12)
    np.testing.assert_allclose(cultures.chlorophyll, 2.0)


def test_broken_tables_of_cultures_are_refused(tmp_path):
    good = ["e,p,A,1,t,400,0.5,2.0", "e,p,A,1,t,500,0.4,2.0"]
    for number, (rows, head) in enumerate(
        [
            ([*good, "e,p,B,1,t,400,0.5,2.0"], None),  # one wavelength short
            ([*good, "e,p,B,1,t,400,0.5,2.0", "e,p,B,1,t,510,0.5,2.0"], None),  # another wavelength
            ([good[0].replace("0.5", "much")], None),
            ([good[0].replace("0.5", "nan")], None),
            (["1,2"], "wl,ap"),
            ([], None),
        ]
    ):
        path = table(tmp_path / f"{number}.csv", rows, *([head] if head else []))
        with pytest.raises(DataError):
            read_cultures(path)
    with pytest.raises(DataError):
        read_cultures(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: reflectance(0.0, 0.1), ConfigError),
        (lambda: reflectance(0.1, -0.1), ConfigError),
        (lambda: water_absorption(750), ConfigError),
        (lambda: cdom_absorption(440, -1), ConfigError),
        (lambda: backscattering_share(1.0), ConfigError),
        (lambda: water_samples(5, EMIT, -stand_in_spectra(EMIT), 0), ConfigError),
        (lambda: water_samples(5, EMIT, np.zeros((2, EMIT.size)), 0), DataError),
        (lambda: water_samples(5, EMIT, np.ones((2, 3)), 0), DataError),
        (lambda: water_samples(0, EMIT, stand_in_spectra(EMIT), 0), ConfigError),
    ],
)
def test_impossible_input_is_refused(call, error):
    with pytest.raises(error):
        call()
