"""Simulated fusion: oracles show what each sensor alone decides, what both together, and what only a product can."""

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier

from terramoe.data import BlockSplit, OfficialSplit, Scene
from terramoe.data.worlds.fusion import COARSE, REGIME_CLASSES, XOR_CLASSES, three_regimes, xor_fusion
from terramoe.data.worlds.tiles import CAMERAS, CLASSES, KNOWN, coverage, render, scene_tiles
from terramoe.errors import ConfigError

HSI, DSM = slice(32), slice(32, 33)


def block_split(labels, block, guard):
    return next(iter(BlockSplit(3, block, guard).masks(labels)))


def predict(model, features, labels, split):
    """(tests,) predicted and true classes."""
    fitted = model.fit(features[:, split.train].T, labels[split.train])
    return fitted.predict(features[:, split.test].T), labels[split.test]


def forest():
    return RandomForestClassifier(20, min_samples_leaf=3, max_samples=0.25, random_state=0)


def make(name, seed):
    return {"xor": lambda: xor_fusion(64, seed), "regimes": lambda: three_regimes(64, seed)[0],
            "tiles": lambda: scene_tiles(13, 4, seed)}[name]()  # fmt: skip


@pytest.mark.parametrize("name", ["xor", "regimes", "tiles"])
def test_a_seed_makes_one_scene_and_all_of_it_is_valid(name):
    scene, again, other = make(name, 4), make(name, 4), make(name, 5)
    assert isinstance(scene, Scene)
    np.testing.assert_array_equal(scene.image, again.image)
    np.testing.assert_array_equal(scene.labels, again.labels)
    assert (scene.image != other.image).mean() > 0.9
    assert scene.image.dtype == np.float32
    assert scene.labels.dtype == np.int64
    assert np.isfinite(scene.image).all()
    assert scene.valid.all()
    assert set(np.unique(scene.labels[scene.labels > 0])) == set(range(1, scene.classes + 1))
    assert len(scene.class_names) == len(set(scene.class_names)) == scene.classes
    assert len(scene.wavelengths) == scene.bands


# ---------------------------------------------------------------- XOR


def by_pair(predicted, true):
    """Accuracy of each pair of classes, given that the pair was found."""
    found = (predicted + 1) // 2 == (true + 1) // 2
    return [(predicted == true)[found & ((true + 1) // 2 == pair)].mean() for pair in (1, 2, 3)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_pair_needs_what_was_planted(seed):
    scene = xor_fusion(128, seed)
    split = block_split(scene.labels, 16, 3)
    assert scene.class_names == XOR_CLASSES
    assert scene.sensors == (("hsi", 32), ("lidar", 1))
    assert scene.wavelengths[-1] == 0
    spectrum = by_pair(*predict(forest(), scene.image[HSI], scene.labels, split))
    both = by_pair(*predict(forest(), scene.image, scene.labels, split))
    assert spectrum[0] > 0.93
    assert max(spectrum[1:]) < 0.66
    assert min(both) > 0.9
    # heights alone, told the pair: only the second pair is theirs
    height = []
    for pair in (1, 2, 3):
        only = np.where((scene.labels + 1) // 2 == pair, scene.labels, 0)
        inside = block_split(only, 16, 3)
        predicted, true = predict(forest(), scene.image[DSM], only, inside)
        height.append((predicted == true).mean())
    assert height[1] > 0.97
    assert max(height[0], height[2]) < 0.66


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sum_of_both_settles_two_pairs_and_only_a_product_the_third(seed):
    scene = xor_fusion(144, seed)
    split = block_split(scene.labels, 16, 3)
    added = by_pair(*predict(LinearDiscriminantAnalysis(), scene.image, scene.labels, split))
    height = (scene.image[DSM] - 6) / 3
    product = np.concatenate([scene.image, height * scene.image[HSI]])
    multiplied = by_pair(*predict(LinearDiscriminantAnalysis(), product, scene.labels, split))
    assert min(added[:2]) > 0.95
    assert added[2] < 0.7
    assert min(multiplied) > 0.93


def test_bits_are_independent_and_classes_even():
    scene = xor_fusion(192, 0)
    counts = np.bincount(scene.labels.ravel(), minlength=7)[1:]
    assert counts.max() < 1.7 * counts.min()
    high = scene.image[32] > 6
    for value in (1, 2, 5, 6):
        assert 0.3 < high[scene.labels == value].mean() < 0.7
    assert high[scene.labels == 3].mean() < 0.01
    assert high[scene.labels == 4].mean() > 0.99


# ---------------------------------------------------------------- regimes


def neighbourhood(scene):
    """(3, H, W): sharp contrast to the surroundings, and mean steps along rows and columns."""
    sharp = scene.image[24:].mean(axis=0)
    steps = [np.abs(np.diff(sharp, axis=a, append=np.take(sharp, [-1], a))) for a in (0, 1)]
    return np.stack([sharp - uniform_filter(sharp, 5), *(uniform_filter(step, 5) for step in steps)])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_regime_needs_its_own_sensor_or_its_neighbourhood(seed):
    scene, regime = three_regimes(128, seed)
    assert scene.class_names == REGIME_CLASSES
    assert scene.sensors == (("hsi", 24), ("msi", 4))
    split = block_split(scene.labels, 32, 4)
    of_class = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(of_class[scene.labels], regime)
    inputs = {
        "hsi": scene.image[:24],
        "msi": scene.image[24:],
        "msi around": np.concatenate([scene.image[24:], neighbourhood(scene)]),
        "all": np.concatenate([scene.image, neighbourhood(scene)]),
    }
    recall, found = {}, {}
    for name, features in inputs.items():
        predicted, true = predict(forest(), features, scene.labels, split)
        each = [(predicted[true == value] == value).mean() for value in range(1, 8)]
        recall[name] = [np.mean(each[:3]), np.mean(each[3:5]), np.mean(each[5:])]
        found[name] = (of_class[predicted] == of_class[true]).mean()
    assert recall["hsi"][0] > 0.85
    assert max(recall["msi"][0], recall["msi around"][0]) < 0.45  # chance is a third
    assert max(recall["hsi"][1], recall["msi"][1]) < 0.65  # chance is a half
    assert recall["msi around"][1] > 0.88
    assert max(recall["hsi"][2], recall["msi"][2]) < 0.65
    assert recall["msi around"][2] > 0.75
    assert min(recall["all"]) > 0.75
    assert min(found["hsi"], found["msi"]) > 0.99  # a router can see where it is


def test_crops_are_metamers_to_the_sharp_sensor():
    scene, regime = three_regimes(128, 3, noise=0.0)
    crops = scene.image[:, regime == 0]
    assert np.ptp(crops[24:], axis=1).max() < 1e-6
    inside = [crops[:24, scene.labels[regime == 0] == value].mean(axis=1) for value in (1, 2, 3)]
    assert min(np.abs(a - b).max() for i, a in enumerate(inside) for b in inside[:i]) > 0.01


def test_the_coarse_sensor_averages_stripes_out_and_is_on_its_own_grid():
    scene, regime = three_regimes(128, 3, noise=0.0)
    coarse = scene.image[:24, ::COARSE, ::COARSE]
    np.testing.assert_array_equal(scene.image[:24], coarse.repeat(COARSE, 1).repeat(COARSE, 2))
    stripes = regime[::COARSE, ::COARSE] == 1
    # without the cells at borders, where the point spread brings in other ground
    labels = scene.labels[::COARSE, ::COARSE]
    inner = stripes & (minimum_filter(labels, 3) == maximum_filter(labels, 3))
    assert inner.sum() > 10
    assert (coarse[:, inner].std(axis=1) / coarse[:, inner].mean(axis=1)).max() < 0.01
    sharp = scene.image[24:, regime == 1]
    assert (sharp.std(axis=1) / sharp.mean(axis=1)).min() > 0.2


def test_tracks_are_thin_and_ground_is_uneven():
    scene, regime = three_regimes(128, 1, noise=0.0)
    track = scene.labels == 7
    assert 0.05 < track.sum() / (regime == 2).sum() < 0.2
    around = uniform_filter((regime == 2) & track, 3, output=float)
    assert around.max() < 0.7  # of 3 x 3 pixels: a line takes 3 to 5, a crossing somewhat more
    sharp = scene.image[27]
    ground = sharp[(regime == 2) & ~track]
    assert ground.std() / ground.mean() > 0.2


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [(xor_fusion, 47, "size is 47"), (three_regimes, 44, "size is 44"), (three_regimes, 66, "multiple of 4")],
)
def test_sizes_that_cannot_be_are_refused(make, size, message):
    with pytest.raises(ConfigError, match=message):
        make(size)


# ---------------------------------------------------------------- tiles


def test_sources_cover_five_of_eight_classes_and_together_all():
    table = coverage()
    assert table.shape == (4, 8)
    assert table.sum(axis=1).tolist() == [KNOWN, KNOWN, KNOWN, 8]
    assert set(table[:3].sum(axis=0)) == {1, 2}
    scene = scene_tiles(13, 6, 1)
    at = scene.labels > 0
    for domain in range(4):
        present = set(np.unique(scene.labels[at & (scene.domains == domain + 1)]))
        assert present == set(np.flatnonzero(table[domain]) + 1)


def test_labels_stand_at_the_centres_of_tiles_that_do_not_overlap():
    scene = scene_tiles(12, 4, 0)
    assert scene.image.shape == (3, 23 * 12, 4 * 12)
    assert scene.domain_names == tuple(camera.name for camera in CAMERAS)
    centres = np.argwhere(scene.labels > 0)
    assert len(centres) == 23 * 4
    assert (centres % 12 == 6).all()
    for row, column in centres:
        tile = slice(row - 6, row + 6), slice(column - 6, column + 6)
        assert (scene.labels[tile] > 0).sum() == 1
        assert len(np.unique(scene.domains[tile])) == len(np.unique(scene.official[tile])) == 1
        kind, domain = scene.labels[row, column] - 1, scene.domains[row, column] - 1
        seen = render(12, kind, domain, column // 12, 0)
        np.testing.assert_allclose(scene.image[(slice(None), *tile)], seen, rtol=1e-6)
    split = next(iter(OfficialSplit(scene.official).masks(scene.labels)))
    assert set(np.unique(scene.domains[split.train])) == {1, 2, 3}
    assert set(np.unique(scene.domains[split.test])) == {4}
    assert split.guard.sum() == split.test.sum() == 8 * 2
    assert np.argwhere(split.guard)[:, 1].max() < np.argwhere(split.test)[:, 1].min()
    assert set(np.unique(scene.labels[split.test])) == set(range(1, 9))


def tiles_of(scene, tile):
    half = tile // 2
    return np.stack(
        [scene.image[:, r - half : r + half + 1, c - half : c + half + 1] for r, c in np.argwhere(scene.labels)]
    )


def form(tiles):
    """Features that know nothing of brightness: power by frequency and by direction, and rings around the centre."""
    grey = tiles.mean(axis=1)
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    power = np.abs(np.fft.fftshift(np.fft.fft2(grey), axes=(1, 2)))
    down, right = np.indices(grey.shape[1:]) - grey.shape[1] // 2
    far, turn = np.hypot(down, right), np.degrees(np.arctan2(down, right)) % 180 // 22.5
    rings = [power[:, (far >= k - 0.5) & (far < k + 0.5)].mean(axis=1) for k in range(1, 9)]
    rays = np.sort([power[:, (turn == k) & (far > 1) & (far < 7)].mean(axis=1) for k in range(8)], axis=0)
    profile = [np.abs(grey[:, (far >= k) & (far < k + 1.5)].mean(axis=1)) for k in range(8)]
    return np.stack([*rings, *rays, *profile], axis=1)


@pytest.mark.parametrize("seed", [0, 1])
def test_form_tells_the_class_and_colour_does_not_and_no_source_knows_all(seed):
    scene = scene_tiles(17, 24, seed)
    tiles, at = tiles_of(scene, 17), scene.labels > 0
    labels, domains, official = scene.labels[at], scene.domains[at], scene.official[at]

    def score(features, train, test):
        fitted = RandomForestClassifier(50, random_state=0).fit(features[train], labels[train])
        return (fitted.predict(features[test]) == labels[test]).mean()

    colour, shape = np.concatenate([tiles.mean((2, 3)), tiles.std((2, 3))], axis=1), form(tiles)
    assert score(shape, official == 2, official == 3) > 0.93  # with labels of the target
    pooled = score(shape, official == 1, official == 3)
    assert pooled > 0.8
    for source in (1, 2, 3):
        assert score(shape, domains == source, official == 3) <= KNOWN / len(CLASSES)
    for train in (1, 2):
        assert score(colour, official == train, official == 3) < 0.35  # chance is an eighth


def test_cameras_differ_as_their_table_says():
    at_full = np.stack([render(31, CLASSES.index("disc"), d, n, 0) for d in (0, 2) for n in range(40)]).reshape(
        2, 40, 3, -1
    )
    means = at_full.mean(axis=(1, 3))
    np.testing.assert_allclose(means[1] / means[0], CAMERAS[2].gain, rtol=0.1)
    quiet = [np.abs(np.diff(render(31, CLASSES.index("disc"), d, 0, 0)[:, :3], axis=2)).mean() for d in (0, 2)]
    assert quiet[1] > 2 * quiet[0]  # the corner holds ground and noise only


@pytest.mark.parametrize("arguments", [(10, 4), (17, 3), (17, 0)])
def test_tiles_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError, match=f"tile is {arguments[0]}, count {arguments[1]}"):
        scene_tiles(*arguments)
