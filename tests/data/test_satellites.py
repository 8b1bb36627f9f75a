"""Simulated satellites: responses by their moments, radiometry and noise by their spread, splits by distance."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import maximum_filter
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from terramoe.data import BlockSplit, OfficialSplit, Scene, indian_pines
from terramoe.data.benchmarks import open_benchmark
from terramoe.data.worlds.cross_sensor import cross_sensor
from terramoe.data.worlds.responses import covered, integrate
from terramoe.data.worlds.satellites import COMMON, SATELLITES, acquire_satellite
from terramoe.data.worlds.sensors import Band
from terramoe.data.worlds.spectra import band_reflectance, stand_ins
from terramoe.errors import ConfigError, DataError, SplitError

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
WAVES = np.arange(400.0, 2501.0, 10.0)
QUIET = {"haze": 0.0, "gain": 0.0, "offset": 0.0, "noise": 0.0}


def make_scene(image, waves=WAVES, **more):
    image = np.asarray(image, dtype=np.float32)
    labels = np.indices(image.shape[1:]).sum(0) % 2 + 1
    return Scene(
        "made", image, np.ones(labels.shape, bool), labels, (1, 2), ("a", "b"), wavelengths=tuple(waves), **more
    )


def flat(value, height=40, width=50):
    return make_scene(np.full((len(WAVES), height, width), value))


# ---------------------------------------------------------------- responses


def test_bands_average_spectra_whatever_the_spacing_of_the_channels():
    bands = SATELLITES["sentinel-2"].bands
    centres, widths = (np.array([getattr(b, key) for b in bands]) for key in ("centre", "width"))
    even = np.arange(400.0, 2501.0, 2.0)
    uneven = np.concatenate([np.arange(400.0, 840.0, 1.0), np.arange(840.0, 2501.0, 4.0)])  # a step inside the NIR band
    for waves in (even, uneven):
        np.testing.assert_allclose(integrate(np.full(len(waves), 0.3), waves, bands), 0.3)
        np.testing.assert_allclose(integrate(waves, waves, bands), centres, rtol=2e-4)
        second = [integrate((waves - b.centre) ** 2, waves, [b])[0] for b in bands]
        np.testing.assert_allclose(np.sqrt(second), widths / 2.35482, rtol=2e-2)
    table = stand_ins()
    seen = band_reflectance(table, centres, widths)
    for name in ("grass", "roofs"):
        np.testing.assert_allclose(integrate(table.reflectance[name], table.nanometres, bands), seen[name], rtol=1e-3)


def test_spectrometers_may_overlap():
    waves = np.concatenate([np.arange(400.0, 700.0, 9.8), np.arange(650.0, 1000.0, 9.6)])
    bands = [band for band in SATELLITES["sentinel-2"].bands if band.centre < 900]
    centres, widths = (np.array([getattr(b, key) for b in bands]) for key in ("centre", "width"))
    wide = widths > 25  # narrower ones are sampled by one or two channels
    np.testing.assert_allclose(integrate(waves, waves, bands)[wide], centres[wide], atol=1.5)
    back = np.random.default_rng(0).permutation(len(waves))
    np.testing.assert_allclose(integrate(waves[back] ** 2, waves[back], bands), integrate(waves**2, waves, bands))


def test_integration_is_linear_and_keeps_the_grid():
    spectra = np.random.default_rng(0).random((len(WAVES), 3, 4))
    bands = SATELLITES["landsat-8"].bands
    whole = integrate(spectra, WAVES, bands)
    assert whole.shape == (7, 3, 4)
    np.testing.assert_allclose(whole[:, 1, 2], integrate(spectra[:, 1, 2], WAVES, bands))
    np.testing.assert_allclose(integrate(2 * spectra + 1, WAVES, bands), 2 * whole + 1)


def test_bands_that_the_channels_do_not_cover_are_known():
    bands = [
        Band("in", 600, 50),
        Band("end", 440, 60),
        Band("out", 1500, 50),
        Band("gap", 700, 40),
        Band("wide", 700, 300),
    ]
    waves = np.concatenate([np.arange(430.0, 670.0, 5.0), np.arange(730.0, 1000.0, 5.0)])
    assert covered(waves, bands).tolist() == [True, False, False, False, True]
    with pytest.raises(ConfigError, match="do not cover band 'out' at 1500"):
        integrate(waves, waves, bands[2:3])
    for bad in (np.append(waves[1:], 0), np.append(waves[1:], np.nan), [500.0]):
        with pytest.raises(DataError, match="not all channels have a wavelength"):
            integrate(np.asarray(bad), bad, bands[:1])
    with pytest.raises(DataError, match="102 wavelengths for 101 channels"):
        integrate(waves[1:], waves, bands[:1])


def test_the_table_says_what_was_published():
    edges = {  # nm, of the bands common to all
        "gf-1": ((450, 520), (520, 590), (630, 690), (770, 890)),
        "gf-2": ((450, 520), (520, 590), (630, 690), (770, 890)),
        "planetscope": ((455, 515), (500, 590), (590, 670), (780, 860)),
        "landsat-8": ((452, 512), (533, 590), (636, 673), (851, 879)),
        "sentinel-2": ((459.4, 525.4), (541.8, 577.8), (649.1, 680.1), (779.8, 885.8)),
    }
    for name, published in edges.items():
        bands = {band.name: band for band in SATELLITES[name].bands}
        for band, (low, high) in zip(COMMON, published, strict=True):
            found = bands[band].centre - bands[band].width / 2, bands[band].centre + bands[band].width / 2
            np.testing.assert_allclose(found, (low, high), atol=0.8)
    assert [len(SATELLITES[name].bands) for name in ("sentinel-2", "sentinel-2 all", "landsat-8")] == [10, 13, 7]
    for satellite in SATELLITES.values():
        assert len(satellite.bands) == len(satellite.snr) == len(satellite.reference)
        assert (np.diff([band.centre for band in satellite.bands]) > 0).all()


# ---------------------------------------------------------------- one acquisition


def test_haze_is_rayleigh_and_gains_and_offsets_have_their_spread():
    hazy = acquire_satellite(flat(0.2), "sentinel-2", **{**QUIET, "haze": 0.1})
    expected = 0.2 + 0.1 * (450 / np.array(hazy.wavelengths)) ** 4
    np.testing.assert_allclose(hazy.image[:, 0, 0], expected, rtol=1e-5)
    rough = {**QUIET, "gain": 0.1, "offset": 0.02}
    dark, light = (
        np.array([acquire_satellite(flat(v, 1, 2), "sentinel-2", seed, **rough).image[:, 0, 0] for seed in range(60)])
        for v in (0.0, 0.5)
    )
    gains = (light - dark) / 0.5
    assert abs(gains.mean() - 1) < 4 * 0.1 / np.sqrt(600)
    assert gains.std() == pytest.approx(0.1, rel=0.12)
    assert dark.std() == pytest.approx(0.02, rel=0.12)


def test_noise_has_the_published_signal_to_noise_and_grows_with_light():
    satellite = SATELLITES["landsat-8"]
    for i, band in enumerate(satellite.bands):
        reference, snr = satellite.reference[i], satellite.snr[i]
        for light in (reference, 9 * reference, 0.0):
            seen = acquire_satellite(flat(light), satellite, 1, **{**QUIET, "noise": 1.0}, bands=[band.name]).image
            spread = reference / snr * np.sqrt(0.5 + 0.5 * light / reference)
            assert seen.std() == pytest.approx(spread, rel=0.08)
            assert seen.mean() == pytest.approx(light, abs=5 * spread / np.sqrt(seen.size))
    doubled = acquire_satellite(flat(0.2), satellite, 1, **{**QUIET, "noise": 2.0}).image - 0.2
    once = acquire_satellite(flat(0.2), satellite, 1, **{**QUIET, "noise": 1.0}).image - 0.2
    np.testing.assert_allclose(doubled, 2 * once, atol=1e-6)
    assert np.abs(np.corrcoef(once.reshape(7, -1)) - np.eye(7)).max() < 5 / np.sqrt(2000)


def test_a_seed_gives_one_acquisition_and_each_satellite_its_own():
    scene = make_scene(np.random.default_rng(0).random((len(WAVES), 8, 9)))
    first, again, other = (acquire_satellite(scene, "gf-1", seed).image for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert (first != acquire_satellite(scene, "gf-2", 3).image).all()
    quiet = [acquire_satellite(scene, name, **QUIET).image for name in ("gf-1", "gf-2")]
    np.testing.assert_array_equal(*quiet)  # the same bands
    assert first.dtype == np.float32


def test_bands_without_wavelength_are_lost_and_invalid_pixels_stay_so():
    image = np.full((len(WAVES) + 1, 6, 7), 0.3)
    image[-1] = 25.0  # metres
    scene = make_scene(image, (*WAVES, 0.0), sensors=(("hsi", len(WAVES)), ("lidar", 1)))
    valid = np.ones((6, 7), bool)
    valid[2, 3] = False
    scene = replace(scene, valid=valid, official=np.ones((6, 7), int))
    seen = acquire_satellite(scene, "planetscope")
    assert seen.band_names == COMMON
    assert seen.sensors == (("planetscope", 4),)
    assert (seen.image[:, 2, 3] == 0).all()
    assert (seen.image[:, valid] > 0.1).all()
    np.testing.assert_array_equal(seen.official, scene.official)
    picked = acquire_satellite(scene, "sentinel-2", bands=["swir 1", "blue"], **QUIET)
    assert picked.wavelengths == (1613.7, 492.4)
    short = replace(scene, image=scene.image[:50], wavelengths=tuple(WAVES[:50]), sensors=())  # to 890 nm
    assert acquire_satellite(short, "landsat-8").band_names == ("coastal", *COMMON)
    with pytest.raises(ConfigError, match="swir 1"):
        acquire_satellite(short, "landsat-8", bands=["swir 1"])


@pytest.mark.parametrize(
    ("scene", "arguments", "error", "message"),
    [
        (flat(0.2, 1, 1), {"satellite": "sputnik"}, ConfigError, "no satellite 'sputnik'"),
        (flat(0.2, 1, 1), {"satellite": "gf-1", "bands": ["swir 1"]}, ConfigError, "no such bands"),
        (flat(0.2, 1, 1), {"satellite": "gf-1", "bands": []}, ConfigError, "no such bands"),
        (flat(0.2, 1, 1), {"satellite": "gf-1", "noise": -1}, ConfigError, "noise is -1"),
        (flat(0.2, 1, 1), {"satellite": "gf-1", "haze": float("nan")}, ConfigError, "haze is nan"),
        (flat(5000, 1, 1), {"satellite": "gf-1"}, DataError, "no reflectance"),
        (replace(flat(0.2, 1, 1), wavelengths=()), {"satellite": "gf-1"}, DataError, "no wavelengths"),
        (
            replace(flat(0.2, 1, 1), wavelengths=tuple(WAVES + 9000)),
            {"satellite": "gf-1"},
            DataError,
            "no band of gf-1",
        ),
    ],
)
def test_what_cannot_be_acquired_is_refused(scene, arguments, error, message):
    with pytest.raises(error, match=message):
        acquire_satellite(scene, **arguments)


# ---------------------------------------------------------------- across sensors

TARGETS = ["gf-1", "planetscope", "landsat-8"]


def pines():
    """Indian Pines on the scale of reflectance; wavelengths evenly spaced, which is all that is needed here."""
    scene = indian_pines()
    return replace(scene, image=scene.image / 1e4, wavelengths=tuple(np.linspace(400, 2500, 200).tolist()))


def ground_of(mask, width, gap, copies):
    """(copies, H, W): a raster cut into its copies of the ground."""
    return np.stack([mask[:, i * (width + gap) : i * (width + gap) + width] for i in range(copies)])


def test_copies_lie_side_by_side_with_strips_between():
    scene = replace(
        pines(), image=pines().image[:, :60, :50], labels=pines().labels[:60, :50], valid=np.ones((60, 50), bool)
    )
    crossed = cross_sensor(scene, "sentinel-2", TARGETS, 5, gap=10, block=10, guard=2)
    assert crossed.image.shape == (4, 60, 4 * 50 + 3 * 10)
    assert crossed.domain_names == ("sentinel-2", *TARGETS)
    for name, raster in (("labels", scene.labels), ("valid", scene.valid)):
        for copy in ground_of(getattr(crossed, name), 50, 10, 4):
            np.testing.assert_array_equal(copy, raster)
    domains = ground_of(crossed.domains, 50, 10, 4)
    assert [np.unique(d).tolist() for d in domains] == [[1], [2], [3], [4]]
    strips = crossed.domains == 0
    assert strips.sum() == 3 * 10 * 60
    assert not crossed.valid[strips].any()
    assert (crossed.image[:, strips] == 0).all()
    assert (crossed.labels[strips] == 0).all()
    again, other = (cross_sensor(scene, "sentinel-2", TARGETS, s, gap=10, block=10, guard=2) for s in (5, 6))
    np.testing.assert_array_equal(crossed.image, again.image)
    np.testing.assert_array_equal(crossed.official, again.official)
    assert (crossed.image != other.image).any(axis=0)[~strips].all()


@pytest.mark.parametrize("guard", [0, 3, 6])
def test_no_target_is_tested_near_ground_that_the_source_trained_on(guard):
    scene = pines()
    crossed = cross_sensor(scene, "gf-1", ["gf-2", "planetscope"], 1, guard=guard, block=16)
    train, test = (ground_of(crossed.official == kind, 145, 16, 3) for kind in (1, 3))
    assert train[0].any()
    assert not train[1:].any()
    assert not test[0].any()
    np.testing.assert_array_equal(test[1], test[2])  # the same ground for all targets
    near = maximum_filter(test[1], size=2 * guard + 1)
    assert not (near & train[0]).any()
    assert set(np.unique(crossed.official)) == {1, 2, 3}
    places = ground_of(crossed.places, 145, 16, 3)
    np.testing.assert_array_equal(places[1], places[2])  # one place on the ground is one block of a bootstrap
    (split,) = OfficialSplit(crossed.official, crossed.places).masks(crossed.labels)
    assert len(np.unique(split.blocks[split.test])) == len(np.unique(places[1][test[1] & (scene.labels > 0)]))
    with pytest.raises(SplitError, match="bring both to the same grid"):
        next(OfficialSplit(crossed.official, crossed.places[:, 1:]).masks(crossed.labels))
    assert test[1].sum() == pytest.approx((scene.labels > 0).sum() / 3, rel=0.1)
    assert len(set(np.unique(scene.labels[test[1]])) - set(np.unique(scene.labels[train[0]]))) <= 2  # the rarest


def test_an_official_split_of_the_ground_is_kept():
    scene = pines()
    official = (
        np.where(np.arange(145)[:, None] < 60, 1, np.where(np.arange(145)[:, None] < 70, 2, 3)) + 0 * scene.labels
    )
    crossed = cross_sensor(replace(scene, official=official), "gf-1", ["landsat-8"])
    kinds = ground_of(crossed.official, 145, 16, 2)
    np.testing.assert_array_equal(kinds[0] == 1, (official == 1) & (scene.labels > 0))
    np.testing.assert_array_equal(kinds[1] == 3, (official == 3) & (scene.labels > 0))


def test_only_radiometry_and_bands_come_between_the_sensors():
    crossed = cross_sensor(pines(), "gf-1", ["gf-2"], **QUIET)
    np.testing.assert_array_equal(*ground_of(crossed.image.swapaxes(0, 1), 4, 0, 1).repeat(2, 0))
    left, right = crossed.image[..., :145], crossed.image[..., 161:]
    np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("targets", [[], ["sentinel-2"], ["gf-1", "gf-1"]])
def test_targets_must_be_others(targets):
    with pytest.raises(ConfigError, match="each once"):
        cross_sensor(flat(0.2), "sentinel-2", targets)
    with pytest.raises(ConfigError, match="gap -1"):
        cross_sensor(flat(0.2), "sentinel-2", ["gf-1"], gap=-1)


def linear_score(image, labels, train, test):
    model = LinearDiscriminantAnalysis().fit(image[:, train].T, labels[train])
    return (model.predict(image[:, test].T) == labels[test]).mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shift_between_sensors_costs_accuracy_and_nothing_else_does(seed):
    scene = pines()
    crossed = cross_sensor(scene, "sentinel-2", TARGETS, seed)
    split = next(iter(OfficialSplit(crossed.official).masks(crossed.labels)))
    shifted = linear_score(crossed.image, crossed.labels, split.train, split.test)
    ground = next(iter(BlockSplit(3, 12, 4, seed).masks(scene.labels)))
    same = linear_score(crossed.image[..., :145], scene.labels, ground.train, ground.test)
    assert same > shifted + 0.1
    unshifted = cross_sensor(scene, "sentinel-2", TARGETS, seed, **QUIET)
    clean = linear_score(unshifted.image, unshifted.labels, split.train, split.test)
    assert clean > shifted + 0.1


@pytest.mark.skipif(not (DATA / "hsi" / "unmixing").exists(), reason="the shared hyperspectral scenes are not there")
def test_trees_look_like_trees_to_every_satellite():
    for name in ("samson", "jasper"):
        scene = open_benchmark(name, DATA)
        tree = scene.labels == scene.class_names.index("tree") + 1
        water = scene.labels == scene.class_names.index("water") + 1
        for satellite in SATELLITES:
            seen = acquire_satellite(scene, satellite, noise=1.0, bands=COMMON)
            red, nir = seen.image[2], seen.image[3]
            assert np.median((nir - red)[tree] / (nir + red)[tree]) > 0.35
            assert np.median(nir[water]) < 0.1
