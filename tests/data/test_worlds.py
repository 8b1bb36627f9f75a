"""Worlds: every law by its statistics, the world by its truth, and the planted truth by who finds it."""

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from terramoe.data import BlockSplit, Scene
from terramoe.data.worlds import (
    LIDAR,
    OPTICAL10,
    OPTICAL20,
    OPTICAL60,
    RADAR,
    RECIPES,
    Recipe,
    SpectralTable,
    make_world,
    spectra_from_table,
    stand_ins,
)
from terramoe.data.worlds.clouds import BRIGHTNESS, cloud_opacity, shadow_shift, veil
from terramoe.data.worlds.fields import cells, rough_field, smooth_field, stream
from terramoe.data.worlds.land_cover import COVERS, land_cover
from terramoe.data.worlds.lidar import RANGE_NOISE
from terramoe.data.worlds.phenology import DORMANT, PEAK, Calendar, greenness, season_of
from terramoe.data.worlds.radiometry import (
    DIFFUSE,
    cosine_of_incidence,
    illumination,
    region_radiometry,
    sun_position,
)
from terramoe.data.worlds.sensors import CHIP, area_mean, displace, missing_chips, point_spread
from terramoe.data.worlds.speckle import decibel, power, speckle
from terramoe.data.worlds.spectra import band_reflectance
from terramoe.data.worlds.terrain import HURST, elevation, slope_aspect
from terramoe.errors import ConfigError, DataError

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
LEAVES = DATA / "geo" / "leaf_spectra" / "spectral_data.csv.gz"
SIZE = 96  # a multiple of 60 m, so that the coarse grids end with the fine one

BARE = Recipe(
    about="no nuisance at all",
    shares={"needleleaf forest": 0.3, "grassland": 0.3, "bare soil": 0.2, "built-up": 0.2},
    sensors=(OPTICAL10,),
)


def generator(seed=0):
    return np.random.default_rng(seed)


def by_name(world, name):
    return world.sensors[name].values


# ---------------------------------------------------------------- the laws


def power_slope(field):
    """Exponent of frequency in the power of a square field, and its standard error."""
    size = len(field)
    spectrum = np.abs(np.fft.rfft2(field)) ** 2
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    fit = stats.linregress(np.log(frequency.ravel()[1:]), np.log(spectrum.ravel()[1:]))
    return fit.slope, fit.stderr


@pytest.mark.parametrize("exponent", [2.0, 3.0, 3.8])
def test_power_of_a_rough_field_falls_with_its_exponent(exponent):
    field = rough_field(128, exponent, generator())
    assert field.mean() == pytest.approx(0, abs=1e-12)
    assert field.std() == pytest.approx(1)
    slope, error = power_slope(field)
    assert abs(slope + exponent) < 5 * error
    assert error < 0.1


def test_terrain_is_fractal_with_the_relief_asked_for_and_slopes_of_planes_are_exact():
    ground = elevation(128, 40.0, generator())
    assert ground.std() == pytest.approx(40)
    assert ground.min() == 0
    slope, error = power_slope(ground)
    assert abs(slope + 2 * HURST + 2) < 5 * error
    south, east = np.indices((9, 11)) * 10.0
    for degrees in (0, 45, 100, 190, 300):
        steep, falls = np.radians(20), np.radians(degrees)
        plane = -np.tan(steep) * (east * np.sin(falls) - south * np.cos(falls))
        slope, aspect = slope_aspect(plane)
        np.testing.assert_allclose(slope, steep)
        np.testing.assert_allclose(np.cos(aspect - falls), 1)


def test_the_sun_stands_where_astronomy_puts_it():
    latitude = np.array([60.0, 45.0, -30.0])
    zenith, azimuth = sun_position(81, latitude, hour=12)  # equinox
    np.testing.assert_allclose(np.degrees(zenith), np.abs(latitude), atol=1e-9)
    np.testing.assert_allclose(np.degrees(azimuth), [180, 180, 0], atol=1e-9)
    assert np.degrees(sun_position(172, np.array([45.0]), hour=12)[0]) == pytest.approx(45 - 23.45, abs=0.01)
    morning, evening = (sun_position(81, np.array([45.0]), hour=h)[1] for h in (8, 16))
    assert np.degrees(morning) < 180 < np.degrees(evening)


def test_light_follows_the_cosine_law():
    zenith, azimuth = np.radians(50), np.radians(140)
    level = np.zeros((4, 4))
    np.testing.assert_array_equal(illumination(level, level, zenith, azimuth), 1)
    for steep in (10, 30):
        facing = illumination(np.radians(steep), azimuth, zenith, azimuth)
        expected = DIFFUSE + (1 - DIFFUSE) * np.cos(zenith - np.radians(steep)) / np.cos(zenith)
        assert facing == pytest.approx(expected)
    assert illumination(np.radians(60), azimuth + np.pi, zenith, azimuth) == DIFFUSE  # no sun at all
    assert illumination(level, level, zenith, azimuth, direct=0.0).max() == DIFFUSE


def test_terrain_neither_makes_nor_loses_sunlight():
    """Each pixel's surface is 1 / cos(slope) as large as its footprint; together they catch what the opening lets in,
    but for the tilt of the whole."""
    ground = elevation(64, 30.0, generator(3))
    zenith, azimuth = np.radians(40), np.radians(120)
    slope, aspect = slope_aspect(ground)
    caught = (cosine_of_incidence(slope, aspect, zenith, azimuth) / np.cos(slope)).mean()
    to_south, to_east = (g.mean() for g in np.gradient(ground, 10.0))
    tilt = np.sin(zenith) * (to_east * np.sin(azimuth) - to_south * np.cos(azimuth))
    assert caught == pytest.approx(np.cos(zenith) - tilt, abs=1e-12)
    assert np.degrees(slope).max() > 10


def test_classes_have_their_shares_to_the_pixel_however_rare():
    shares = {"water": 0.2, "sand": 0.002, "rock": 0.05, "grassland": 0.3, "wheat": 0.2, "bare soil": 0.248}
    ground = elevation(90, 30.0, generator())
    labels = land_cover(shares, ground, generator(1))
    counts = np.bincount(labels.ravel(), minlength=7)[1:]
    np.testing.assert_array_equal(counts[:-1], [round(share * 90 * 90) for share in list(shares.values())[:-1]])
    assert counts[1] == 16
    assert ground[labels == 1].max() <= ground[labels != 1].min()  # water lies lowest, sand next to it
    assert ground[labels == 2].max() <= ground[labels > 2].min()
    assert ground[labels == 3].min() >= ground[labels > 3].max()


def test_cells_are_the_nearest_points_and_rounds_even_them_out():
    raw, even = (np.bincount(cells(60, 9, generator(5), rounds=r).ravel(), minlength=9) for r in (0, 10))
    assert raw.sum() == even.sum() == 3600
    assert even.std() < 0.5 * raw.std()


def test_a_band_averages_the_spectrum():
    nanometres = np.arange(400.0, 2501.0, 5.0)
    table = SpectralTable(nanometres, {"flat": np.full(len(nanometres), 0.3), "ramp": nanometres / 5000})
    centres, widths = [492.4, 832.8, 1613.7], [66, 106, 91]
    seen = band_reflectance(table, centres, widths)
    np.testing.assert_allclose(seen["flat"], 0.3)
    np.testing.assert_allclose(seen["ramp"], np.array(centres) / 5000, rtol=1e-3)
    # a Gaussian response spreads a line by its own width: full width at half maximum from the second moment
    square = SpectralTable(nanometres, {"square": (nanometres - 1613.7) ** 2 / 1e7})
    assert band_reflectance(square, [1613.7], [91])["square"][0] * 1e7 == pytest.approx((91 / 2.35482) ** 2, rel=1e-3)


def test_stand_ins_have_the_shapes_they_stand_for():
    seen = band_reflectance(stand_ins(), [b.centre for b in OPTICAL10.bands], [b.width for b in OPTICAL10.bands])
    ndvi = {name: (v[3] - v[2]) / (v[3] + v[2]) for name, v in seen.items()}
    assert min(ndvi[n] for n in ("broadleaf", "needleleaf", "grass", "wheat", "maize", "soybean")) > 0.7
    assert max(ndvi[n] for n in ("dark soil", "bright soil", "sand", "roofs", "rock", "snow")) < 0.3
    assert ndvi["water"] < 0
    for leaf in ("broadleaf", "maize", "soybean"):
        assert seen[leaf][1] > max(seen[leaf][0], seen[leaf][2])  # the green peak
    assert all(v.min() >= 0 and v.max() <= 1 for v in stand_ins().reflectance.values())
    for cover in COVERS.values():
        assert {cover.green, cover.dormant} <= set(stand_ins().reflectance)


def test_measured_spectra_replace_the_stand_ins():
    nanometres = np.arange(450.0, 1706.0, 5.0)
    measured = np.linspace(0.2, 0.4, len(nanometres))
    table, base = spectra_from_table(nanometres, {"grass": measured}), stand_ins()
    inside = (table.nanometres >= 450) & (table.nanometres <= 1705)
    np.testing.assert_allclose(table.reflectance["grass"][inside], measured)
    last = np.flatnonzero(inside)[-1]
    beyond = table.reflectance["grass"][last:] / base.reflectance["grass"][last:]
    np.testing.assert_allclose(beyond, beyond[0])  # the stand-in's shape, joined without a step
    np.testing.assert_array_equal(table.reflectance["wheat"], base.reflectance["wheat"])
    grassland = replace(BARE, weeks=(26,))
    ours, theirs = (make_world(grassland, size=48, spectra=s) for s in (table, None))
    differ = (by_name(ours, "optical10") != by_name(theirs, "optical10")).any(axis=(0, 1))
    np.testing.assert_array_equal(differ, ours.labels == 2)


@pytest.mark.skipif(not LEAVES.exists(), reason="the shared leaf spectra are not there")
def test_a_world_grows_from_real_leaves():
    header = np.genfromtxt(LEAVES, delimiter=",", max_rows=1, dtype=str)
    nanometres = np.array([float(name.strip('"')[1:]) for name in header[4:]])
    leaves = np.genfromtxt(LEAVES, delimiter=",", skip_header=1, usecols=range(4, len(header)))
    assert leaves.shape == (45, 1401)
    with pytest.raises(DataError, match="divide percent by 100"):
        spectra_from_table(nanometres, {"maize": leaves.mean(0)})
    table = spectra_from_table(nanometres, {"maize": leaves.mean(0) / 100})
    recipe = replace(BARE, shares={"maize": 0.5, "bare soil": 0.5}, sensors=(OPTICAL10, OPTICAL20), weeks=(30,))
    world = make_world(recipe, size=48, spectra=table)
    near_infrared = by_name(world, "optical10")[0, 3][world.labels == 1]
    response = stats.norm(832.8, 106 / 2.35482).pdf(nanometres)
    leaf = np.average(leaves.mean(0) / 100, weights=response)
    green = float(greenness(COVERS["maize"].calendar, 7 * 30 - 3, 45.0))
    soil = band_reflectance(table, [832.8], [106])["dark soil"][0]
    np.testing.assert_allclose(near_infrared, green * leaf + (1 - green) * soil, rtol=1e-3)


@pytest.mark.parametrize(
    ("nanometres", "measured", "message"),
    [
        ([500, 450], {"grass": [0.1, 0.2]}, "do not increase"),
        ([0.45, 0.9], {"grass": [0.1, 0.2]}, "give nanometres"),
        ([450, 900], {"gras": [0.1, 0.2]}, "no material 'gras'"),
        ([450, 900], {"grass": [0.1]}, "for 2 wavelengths"),
        ([450, 900], {"grass": [0.1, np.nan]}, "outside 0..1"),
    ],
)
def test_bad_tables_are_refused(nanometres, measured, message):
    with pytest.raises(DataError, match=message):
        spectra_from_table(nanometres, measured)


def test_seasons_move_with_latitude_and_hemisphere():
    days = np.arange(0, 365, 0.5)
    trees = Calendar(110, 290)

    def peak(latitude):
        return days[greenness(trees, days, latitude).argmax()]

    def length(latitude):
        return greenness(trees, days, latitude).mean() * 365

    assert peak(45) == pytest.approx(200, abs=0.5)
    assert peak(60) - peak(45) == pytest.approx(2 * 15, abs=1)
    assert length(45) - length(60) == pytest.approx(4 * 15, abs=0.5)
    assert (peak(-45) - peak(45)) % 365 == pytest.approx(365 / 2, abs=0.5)
    assert greenness(trees, days, 0.0).min() > 0.35  # the tropics are hardly ever dormant
    np.testing.assert_allclose(greenness(trees, days + 365, 50.0), greenness(trees, days, 50.0))
    evergreen = greenness(Calendar(110, 290, 0.9), days, 45.0)
    assert evergreen.min() == pytest.approx(0.9, abs=1e-3)
    assert evergreen.max() <= 1
    assert season_of(200, np.array([45.0, -45.0])).tolist() == [PEAK, DORMANT]


@pytest.mark.parametrize("looks", [1, 4, 4.4, 20])
def test_speckle_has_mean_1_variance_1_over_looks_and_is_gamma(looks):
    draws = speckle((400, 500), looks, generator(int(10 * looks)))
    n = draws.size
    assert abs(draws.mean() - 1) < 4 * np.sqrt(1 / looks / n)
    error_of_variance = 1 / looks * np.sqrt((2 + 6 / looks) / n)  # the gamma law's kurtosis is 3 + 6 / L
    assert abs(draws.var() - 1 / looks) < 4 * error_of_variance
    assert stats.kstest(draws.ravel(), stats.gamma(looks, scale=1 / looks).cdf).pvalue > 0.01


@pytest.mark.parametrize("looks", [0, -4, float("nan")])
def test_speckle_without_looks_is_refused(looks):
    with pytest.raises(ConfigError, match="looks"):
        speckle((2, 2), looks, generator())
    with pytest.raises(ConfigError, match="looks"):
        replace(BARE, looks=looks)


def test_decibels_and_powers_are_inverse():
    np.testing.assert_allclose(decibel(power(np.array([-28.0, 0.0, 3.0]))), [-28, 0, 3])
    assert np.isfinite(decibel(np.zeros(1))).all()


def test_the_radar_of_a_world_is_backscatter_times_speckle():
    recipe = replace(BARE, sensors=(RADAR,), looks=5.0)
    noisy, clean = (by_name(make_world(r, size=SIZE), "radar")[0] for r in (recipe, replace(recipe, looks=1e9)))
    labels = make_world(recipe, size=SIZE).labels
    soil = decibel(clean[:, labels == 3]).mean(axis=1)
    np.testing.assert_allclose(soil, COVERS["bare soil"].radar[0], atol=1e-2)
    ratio = noisy / clean
    n = ratio.size
    assert abs(ratio.mean() - 1) < 4 * np.sqrt(1 / 5 / n)
    assert abs(ratio.var() - 1 / 5) < 4 / 5 * np.sqrt((2 + 6 / 5) / n)
    assert abs(np.corrcoef(ratio[0].ravel(), ratio[1].ravel())[0, 1]) < 4 / np.sqrt(n / 2)  # polarisations apart


def test_lidar_sees_class_heights_and_gets_nothing_back_from_water():
    shares = {"water": 0.2, "broadleaf forest": 0.3, "built-up": 0.2, "bare soil": 0.3}
    world = make_world(replace(BARE, shares=shares, sensors=(LIDAR,), relief=20.0), size=SIZE)
    lidar, labels = world.sensors["lidar"], world.labels
    surface, height = lidar.values[0]
    np.testing.assert_array_equal(lidar.valid[0], labels != 1)
    seen = lidar.valid[0]
    np.testing.assert_allclose(surface[seen] - height[seen], world.terrain[seen], atol=1e-4)
    bare = height[labels == 4]
    assert abs(bare.mean()) < 4 * RANGE_NOISE / np.sqrt(bare.size)
    assert abs(bare.std() - RANGE_NOISE) < 4 * RANGE_NOISE / np.sqrt(2 * bare.size)
    for number, name in ((2, "broadleaf forest"), (3, "built-up")):
        mean, spread = COVERS[name].height
        independent = (labels == number).sum() / 40  # crowns and roofs cover several pixels
        assert abs(height[labels == number].mean() - mean) < 4 * spread / np.sqrt(independent)
        assert height[labels == number].std() == pytest.approx(spread, rel=0.2)
    assert np.ptp(world.terrain[labels == 1]) == 0  # water is level


def test_clouds_cover_their_share_and_hide_what_is_below():
    for cover in (0.0, 0.07, 0.5, 1.0):
        assert (cloud_opacity(100, cover, generator()) > 0).mean() == pytest.approx(cover, abs=1e-9)
    ground = generator().random((2, 5, 5))
    np.testing.assert_array_equal(veil(ground, np.ones((5, 5))), BRIGHTNESS)
    np.testing.assert_array_equal(veil(ground, np.zeros((5, 5))), ground)


def test_shadows_lie_away_from_the_sun_by_height_times_tangent():
    assert shadow_shift(1000, np.radians(45), np.radians(180)) == (-100, 0)  # sun in the south: shadow to the north
    assert shadow_shift(1000, np.radians(45), np.radians(90)) == (0, -100)  # sun in the east: to the west
    south_east = shadow_shift(600, np.radians(30), np.radians(135))
    assert south_east == (-round(60 * np.tan(np.radians(30)) / np.sqrt(2)),) * 2


def test_in_a_world_shadows_fall_where_the_sun_of_the_day_puts_them():
    recipe = replace(BARE, sensors=(OPTICAL10, RADAR), clouds=0.2, latitudes=(48.0,), weeks=(18,), cloud_height=400.0)
    world, clear = make_world(recipe, size=SIZE), make_world(replace(recipe, clouds=0.0), size=SIZE)
    cloud, shadow = (world.regime("sky") == k for k in (2, 1))
    zenith, azimuth = sun_position(7 * 18 - 3, np.array([48.0]))
    rows, columns = shadow_shift(400.0, zenith[0], azimuth[0])
    assert max(rows, columns) < 0  # a northern morning: shadows to the north-west
    np.testing.assert_array_equal(shadow, np.roll(cloud, (rows, columns), axis=(0, 1)) & ~cloud)
    optical, sun = by_name(world, "optical10")[0], by_name(clear, "optical10")[0]
    np.testing.assert_array_equal(optical[:, world.regime("sky") == 0], sun[:, world.regime("sky") == 0])
    ratio = optical[:, shadow] / sun[:, shadow]
    assert ratio.min() >= DIFFUSE - 1e-6
    assert ratio.max() < 1
    assert ratio.mean() < 0.6
    assert np.median(optical[:, cloud]) > 0.6 > np.median(sun)
    np.testing.assert_array_equal(by_name(world, "radar"), by_name(clear, "radar"))  # radar sees through


def test_coarse_pixels_are_the_exact_means_of_fine_ones():
    image = generator().random((3, 12, 18))
    np.testing.assert_allclose(area_mean(image, 6)[1, 1, 2], image[1, 6:, 12:].mean())
    coarse = tuple(replace(OPTICAL10, name=f"c{spacing}", spacing=spacing) for spacing in (20, 60))
    world = make_world(replace(RECIPES["delta"], sensors=(OPTICAL10, *coarse), noise=0, blur=0, gain_spread=0,
                               offset_spread=0, missing=0), size=SIZE)  # fmt: skip
    for sensor in coarse:
        seen = world.sensors[sensor.name]
        mean = area_mean(by_name(world, "optical10").astype(np.float64), sensor.factor)
        np.testing.assert_allclose(seen.values, mean, rtol=1e-5, atol=1e-8)
        assert seen.transform.a == sensor.spacing
        assert (seen.transform.c, seen.transform.f) == (world.transform.c, world.transform.f)


def test_sizes_that_60_m_does_not_divide_are_covered_whole():
    world = make_world(replace(BARE, sensors=(OPTICAL10, OPTICAL20, OPTICAL60)), size=50)
    assert by_name(world, "optical10").shape == (1, 4, 50, 50)
    assert by_name(world, "optical20").shape == (1, 6, 25, 25)
    assert by_name(world, "optical60").shape == (1, 2, 9, 9)
    assert world.scene().image.shape == (12, 50, 50)


@pytest.mark.parametrize("width", [1.5, 3.0])
def test_the_point_spread_keeps_energy_and_has_its_width(width):
    impulse = np.zeros((1, 41, 41))
    impulse[0, 20, 20] = 1
    blurred = point_spread(impulse, width)[0]
    assert blurred.sum() == pytest.approx(1)
    variance = (blurred.sum(0) * (np.arange(41) - 20.0) ** 2).sum()
    assert np.sqrt(8 * np.log(2) * variance) == pytest.approx(width, rel=0.02)
    assert point_spread(impulse, 0) is impulse


def shift_by_phase(moved, fixed):
    """Displacement (rows, columns) of two images, from the phase of their cross spectrum at low frequencies."""
    window = np.hanning(moved.shape[0])[:, None] * np.hanning(moved.shape[1])
    cross = np.fft.fft2((moved - moved.mean()) * window) * np.conj(np.fft.fft2((fixed - fixed.mean()) * window))
    v, u = (np.fft.fftfreq(n) for n in moved.shape)
    low = (np.hypot(v[:, None], u[None]) < 0.1) & (np.abs(cross) > 0)
    rows, columns = (np.broadcast_to(f, cross.shape)[low] for f in (v[:, None], u[None]))
    design = -2 * np.pi * np.stack([rows, columns], axis=1)
    weight = np.abs(cross[low])[:, None] ** 0.5
    return np.linalg.lstsq(design * weight, np.angle(cross[low]) * weight[:, 0], rcond=None)[0]


@pytest.mark.parametrize("shift", [(0.4, -0.7), (2.3, 1.6)])
def test_displacement_is_found_again_by_phase_correlation(shift):
    image = smooth_field(96, 2.0, generator())
    np.testing.assert_allclose(shift_by_phase(displace(image, *shift), image), shift, atol=0.05)


def test_misregistration_of_a_world_is_the_one_it_reports():
    recipe = replace(BARE, sensors=(OPTICAL10, OPTICAL20, RADAR), weeks=(20, 30), looks=1e6)
    moved, still = (make_world(replace(recipe, shift=s), size=SIZE) for s in (8.0, 0.0))
    optical, radar = moved.sensors["optical10"].shifts, moved.sensors["radar"].shifts
    np.testing.assert_array_equal(optical, moved.sensors["optical20"].shifts)  # one platform
    assert (np.abs(optical - radar) > 0.1).all()
    assert (still.sensors["radar"].shifts == 0).all()
    for name, pixel in (("optical10", 10), ("optical20", 20), ("radar", 10)):
        for date in (0, 1):
            found = shift_by_phase(by_name(moved, name)[date, 1], by_name(still, name)[date, 1])
            np.testing.assert_allclose(found * pixel, moved.sensors[name].shifts[date], atol=1.5)  # metres
    many = np.array([8.0 * stream(seed, "shift", "optical", 0).standard_normal(2) for seed in range(500)])
    assert many.std() == pytest.approx(8, rel=0.1)


def test_noise_is_white_has_its_spread_and_is_new_at_every_date():
    recipe = replace(BARE, sensors=(OPTICAL10, OPTICAL20, RADAR), weeks=(20, 30), noise=0.02, looks=10.0)
    noisy, clean = make_world(recipe, size=SIZE), make_world(replace(recipe, noise=0.0, looks=1e12), size=SIZE)
    for name, spread in (("optical10", 0.02), ("optical20", 0.02), ("radar", np.sqrt(1 / 10))):
        noise = by_name(noisy, name) - by_name(clean, name)
        noise = noise / by_name(clean, name) if name == "radar" else noise
        assert noise.std() == pytest.approx(spread, rel=0.03)
        first, second = noise[:, 0]
        for a, b in ((first, second), (first, noise[0, 1]), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_chips_are_missing_at_the_rate_asked_for():
    for rate in (0.0, 0.25, 1.0):
        lost = missing_chips(100 * CHIP, rate, generator())[::CHIP, ::CHIP]
        assert abs(lost.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / lost.size)
    lost = missing_chips(2 * CHIP + 5, 0.5, generator(1))
    for row in range(0, lost.shape[0], CHIP):
        for column in range(0, lost.shape[1], CHIP):
            assert len(np.unique(lost[row : row + CHIP, column : column + CHIP])) == 1


def test_availability_says_which_platform_delivered():
    recipe = replace(RECIPES["delta"], missing=0.4, shares=BARE.shares, into=("built-up",), looks=1e9)
    world, whole = make_world(recipe, size=SIZE), make_world(replace(recipe, missing=0.0), size=SIZE)
    assert world.platforms == ("optical", "radar", "lidar")
    for bit, name in enumerate(("optical10", "radar", "lidar")):
        acquisition = world.sensors[name]
        for place, date in enumerate(acquisition.dates):
            np.testing.assert_array_equal(acquisition.valid[place], world.regime("available", date) >> bit & 1 == 1)
            assert (acquisition.values[place][:, ~acquisition.valid[place]] == 0).all()
    for name, factor in (("optical20", 2), ("optical60", 6)):
        fine = world.sensors["optical10"].valid
        np.testing.assert_array_equal(world.sensors[name].valid, fine[:, ::factor, ::factor])
        assert not fine.all()
    for name, acquisition in world.sensors.items():  # gaps change nothing but the gaps
        seen = np.broadcast_to(acquisition.valid[:, None], acquisition.values.shape)
        np.testing.assert_array_equal(acquisition.values[seen], by_name(whole, name)[seen])


def test_gain_and_offset_of_a_region_are_found_again_by_regression():
    flat = replace(BARE, sensors=(OPTICAL10, OPTICAL60), haze=(0.0, 0.05, 0.1, 0.2))
    recipe = replace(flat, gain_spread=0.1, offset_spread=0.01)
    seen, reference = make_world(recipe, size=SIZE), make_world(replace(flat, haze=()), size=SIZE)
    acquisition, region = seen.sensors["optical10"], seen.regime("region")
    for r in range(4):
        for band in range(4):
            x, y = (by_name(w, "optical10")[0, band][region == r] for w in (reference, seen))
            gain, offset = np.polyfit(x.astype(float), y.astype(float), 1)
            assert gain == pytest.approx(acquisition.gain[r, band], abs=1e-4)
            assert offset == pytest.approx(acquisition.offset[r, band], abs=1e-4)
    gains, offsets = region_radiometry(np.zeros(300), np.full(10, 500.0), 0.1, 0.02, generator())
    assert abs(gains.mean() - 1) < 4 * 0.1 / np.sqrt(3000)
    assert gains.std() == pytest.approx(0.1, rel=0.06)
    assert offsets.std() == pytest.approx(0.02, rel=0.06)
    _, path = region_radiometry(np.array([0.1]), np.array([450.0, 900.0]), 0, 0, generator())
    np.testing.assert_allclose(path, [[0.1, 0.1 / 16]])  # Rayleigh: the fourth power of wavelength


def test_things_change_only_where_and_when_the_change_map_says():
    recipe = replace(BARE, sensors=(OPTICAL10, RADAR, LIDAR), weeks=(20, 24, 28), changes=30, into=("built-up",))
    world, before = make_world(recipe, size=SIZE), make_world(replace(recipe, changes=0), size=SIZE)
    assert set(np.unique(world.change)) == {0, 1, 2}
    np.testing.assert_array_equal(world.labels_before, before.labels)
    np.testing.assert_array_equal(world.change > 0, world.labels != world.labels_before)
    assert set(world.labels[world.change > 0]) == {4}
    for date in range(3):
        changed = (world.change > 0) & (world.change <= date)
        np.testing.assert_array_equal(world.labels_at(date) != world.labels_before, changed)
        for name in ("optical10", "radar"):
            differs = (by_name(world, name)[date] != by_name(before, name)[date]).any(axis=0)
            np.testing.assert_array_equal(differs, changed)
    np.testing.assert_array_equal(by_name(world, "lidar"), by_name(before, "lidar"))  # flown before any change
    np.testing.assert_array_equal(world.scene(["optical10"], [0]).labels, world.labels_before)
    np.testing.assert_array_equal(world.scene().labels, world.labels)
    assert (before.change == 0).all()


def test_the_same_crop_is_green_in_one_place_and_stubble_in_another():
    world = make_world("seasons", size=SIZE)
    nir, red = by_name(world, "optical10")[:, 3], by_name(world, "optical10")[:, 2]
    maize, region = world.labels == 4, world.regime("region")
    ndvi = np.array([[((n - r) / (n + r))[maize & (region == z)].mean() for z in range(5)]
                     for n, r in zip(nir, red, strict=True)])  # (dates, zones)  # fmt: skip
    assert ndvi[2, 2] > 0.7  # July: high summer at 40 north,
    assert ndvi[2, 4] < 0.3  # winter at 35 south,
    assert ndvi[2, 2] > ndvi[2, 1] > ndvi[2, 0] > ndvi[2, 4]  # and later the further north
    assert ndvi[0, 4] > ndvi[0, 2] + 0.2  # March: the other way round
    assert world.regime("season", 2)[[0, -1], 0].tolist() == [PEAK, DORMANT]


# ---------------------------------------------------------------- the whole


def arrays_of(world):
    yield from (
        (f.name, getattr(world, f.name)) for f in fields(world) if isinstance(getattr(world, f.name), np.ndarray)
    )
    yield from world.regimes.items()
    for name, acquisition in world.sensors.items():
        yield from ((f"{name} {key}", getattr(acquisition, key)) for key in ("values", "valid", "shifts", "gain"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_seed_makes_one_world_and_another_seed_another(name):
    first, again, other = (dict(arrays_of(make_world(name, size=60, seed=s))) for s in (4, 4, 5))
    for key, array in first.items():
        np.testing.assert_array_equal(array, again[key], err_msg=key)
        assert array.dtype.kind != "f" or np.isfinite(array).all(), key
    assert (first["labels"] != other["labels"]).mean() > 0.3
    for key in first:
        if key.endswith("values"):
            assert (first[key] != other[key]).mean() > 0.3, key


@pytest.mark.parametrize("name", RECIPES)
def test_every_world_is_a_scene_for_the_other_commands(name):
    world = make_world(name, size=60, seed=1)
    scene = world.scene()
    assert isinstance(scene, Scene)
    assert scene.image.dtype == np.float32
    assert np.isfinite(scene.image).all()
    assert (scene.image[:, ~scene.valid] == 0).all()
    assert (scene.labels[~scene.valid] == 0).all()
    assert set(np.unique(scene.labels[scene.valid])) == set(range(1, scene.classes + 1))
    assert (scene.crs, scene.transform) == (world.crs, world.transform)
    for regime in world.regimes:
        assert world.regime(regime).shape == (60, 60)
        assert world.regime(regime).dtype.kind == "i"


def test_a_scene_marks_gaps_and_hides_clouds_when_asked():
    world = make_world("missing", size=SIZE)
    image, valid, names = world.stack(["optical10", "radar"], [1])
    assert names == ("B02 week 30", "B03 week 30", "B04 week 30", "B08 week 30", "VV week 30", "VH week 30",
                     "optical week 30 delivered", "radar week 30 delivered")  # fmt: skip
    for marker, name in ((6, "optical10"), (7, "radar")):
        np.testing.assert_array_equal(image[marker] == 1, world.sensors[name].valid[1])
    np.testing.assert_array_equal(valid, (image[6] == 1) | (image[7] == 1))
    seen = image[7] == 1
    np.testing.assert_allclose(power(image[4][seen]), world.sensors["radar"].values[1, 0][seen], rtol=1e-4)
    hidden, _, _ = world.stack(["optical10", "radar"], [1], hide_clouds=True)
    np.testing.assert_array_equal(hidden[6] == 1, (image[6] == 1) & (world.regime("sky", 1) == 0))
    assert (hidden[:4, hidden[6] == 0] == 0).all()
    lidar = world.scene(["lidar"], [1])  # flown once, so it comes with any date
    assert lidar.bands == 3
    for bad in ({"sensors": ["sonar"]}, {"sensors": []}, {"dates": [2]}, {"dates": []}):
        with pytest.raises(ConfigError, match="no such"):
            world.scene(**bad)
    with pytest.raises(ConfigError, match="no regime 'weather'"):
        world.regime("weather")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("atlantis",), "no world 'atlantis'"),
        (("plain", {"size": 47}), "size is 47"),
        (("plain", {"size": 10**6}), "size is 1000000"),
        (("plain", {"seed": -1}), "seed is -1"),
        ((replace(BARE, latitudes=(70.0,), weeks=(2,)), {"size": 48}), "the sun is below"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, message):
    name, *rest = arguments
    with pytest.raises(ConfigError, match=message):
        make_world(name, **(rest[0] if rest else {}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": {"water": 0.5, "lava": 0.5}}, "no class 'lava'"),
        ({"shares": {"water": 0.5, "sand": 0.4}}, "sum to 0.9"),
        ({"shares": {"water": 1.0}}, "fewer than two classes"),
        ({"weeks": (20, 20)}, "do not increase"),
        ({"weeks": ()}, "do not increase"),
        ({"haze": (0.1,)}, "1 haze values for 4 regions"),
        ({"clouds": 1.5}, "outside 0..1"),
        ({"sensors": ()}, "no sensor"),
        ({"sensors": (RADAR, RADAR)}, "two of one name"),
        ({"changes": 3}, "into no class"),
    ],
)
def test_recipes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(BARE, **change)


# ---------------------------------------------------------------- the planted truth


def accuracies(world):
    """Test accuracy of one linear classifier, and of one a region, on blocks kept apart; and of region from pixels."""
    scene = world.scene()
    split, region = next(iter(BlockSplit(n_splits=3, block=16, guard=2).masks(scene.labels))), world.regime("region")

    def score(target, train, test):
        # equal priors: else a region's classifier also learns how common its classes happen to be there
        model = LinearDiscriminantAnalysis(priors=np.full(4, 0.25)).fit(scene.image[:, train].T, target[train])
        return (model.predict(scene.image[:, test].T) == target[test]).astype(float)

    parts = [score(scene.labels, split.train & (region == r), split.test & (region == r)) for r in range(4)]
    pooled = score(scene.labels, split.train, split.test).mean()
    return pooled, np.concatenate(parts).mean(), score(region, split.train, split.test).mean(), split


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_by_region_wins_where_it_was_planted(seed):
    pooled, by_region, gate, _ = accuracies(make_world("regimes", size=128, seed=seed))
    assert pooled < 0.45
    assert by_region > 0.98
    assert gate > 0.9  # the pixels themselves tell the region, so a router can learn it


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixture_by_region_wins_nothing_where_nothing_was_planted(seed):
    """In "plain" all classes are Gaussian with one covariance: the nearest mean is the best rule there is."""
    world = make_world("plain", size=128, seed=seed)
    pooled, by_region, gate, split = accuracies(world)
    clean = by_name(make_world(replace(RECIPES["plain"], noise=0.0), size=128, seed=seed), "optical10")[0]
    means = np.stack([clean[:, world.labels == k].mean(axis=1) for k in (1, 2, 3, 4)])
    pixels = by_name(world, "optical10")[0][:, split.test].T
    nearest = ((pixels[:, None] - means) ** 2).sum(-1).argmin(1) + 1
    best = (nearest == world.labels[split.test]).mean()
    assert abs(pooled - best) < 0.01
    assert by_region < best + 0.01
    assert gate < 0.35  # chance is a quarter: pixels say nothing of their region
    assert 0.6 < best < 0.95  # there is something to learn, and not all of it can be
