"""Every system of surfaces keeps the contract; and what only one of them has."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import clone
from skops.io import dumps, get_untrusted_types, loads

from terramoe.data.worlds.fields import rough_field
from terramoe.errors import ConfigError, DataError, TerraMoEError
from terramoe.experiments.surface_scores import surface_scores
from terramoe.mixtures import KalmanExpert
from terramoe.mixtures.fractal_features import fractal_expert, fractal_features, variogram
from terramoe.mixtures.kalman_bank import MixturePosterior, smooth_with
from terramoe.mixtures.quad_tree import Observation
from terramoe.mixtures.shifted_trees import displaced, shift_offsets, shifted_moments
from terramoe.systems import CONTROLS
from terramoe.systems.aggarwal import AggarwalFusion
from terramoe.systems.nagarajan_slatton import NagarajanSlatton, majority
from terramoe.systems.surface_registry import SURFACE_SYSTEMS, build_surface_system, surface_system_class

EACH = pytest.mark.parametrize("name", SURFACE_SYSTEMS)


@pytest.fixture(scope="module")
def fitted():
    made = {}
    for name in SURFACE_SYSTEMS:
        cls = surface_system_class(name)
        scene = cls.tiny_observations(0)
        made[name] = (cls.tiny().fit(scene), scene)
    return made


@EACH
def test_posterior_routing_and_names_fit_together(name, fitted):
    system, scene = fitted[name]
    shape = scene[system.target].value.shape
    found, routings = system.posterior(scene), system.routing(scene)
    experts = len(system.expert_names("gate"))
    assert found.mean.shape == found.variance.shape == shape
    assert found.weight.shape == (*shape, experts)
    assert (found.variance > 0).all()
    assert list(routings) == ["gate"]
    dense = routings["gate"].dense().numpy()
    assert dense.shape == (shape[0] * shape[1], experts)
    np.testing.assert_allclose(dense.sum(axis=1), 1)
    np.testing.assert_allclose(found.weight.reshape(dense.shape), dense)
    np.testing.assert_allclose((found.weight * found.expert_mean).sum(-1), found.mean)
    assert np.ptp(found.weight[..., 0]) > 0.05  # the gate looks
    assert np.array_equal(system.predict(scene), found.mean)
    np.testing.assert_allclose(system.predict_std(scene) ** 2, found.variance)


@EACH
def test_fusing_is_better_than_the_sensors_alone(name, fitted):
    system, scene = fitted[name]
    dense, target = scene[0], scene[system.target]
    judge = system.posterior(scene)
    seen = target.seen
    alone = np.kron(dense.value, np.ones((2**dense.scale, 2**dense.scale)))
    ours = np.nanmean((judge.mean - target.value)[seen] ** 2)
    assert ours < 0.5 * np.nanmean((alone - target.value)[seen] ** 2)


@EACH
def test_the_same_state_gives_the_same_bits(name, fitted):
    system, scene = fitted[name]
    again = clone(system).fit(scene)
    assert np.array_equal(again.posterior(scene).mean, system.posterior(scene).mean)


@EACH
def test_storage_without_pickle_keeps_every_bit(name, fitted):
    system, scene = fitted[name]
    content = dumps(system)
    types = get_untrusted_types(data=content)
    assert all(one.startswith("terramoe.") for one in types)
    back = loads(content, trusted=types)
    assert np.array_equal(back.posterior(scene).variance, system.posterior(scene).variance)
    assert back.get_params().keys() == system.get_params().keys()


@EACH
def test_controls_take_the_choice_away(name, fitted):
    system, scene = fitted[name]
    routed = system.routing(scene)["gate"].dense().numpy()
    assert set(system.controls) <= set(CONTROLS)
    made = {control: system.control(control).fit(scene) for control in system.controls}
    weights = {control: one.routing(scene)["gate"].dense().numpy() for control, one in made.items()}
    assert weights["dense"].shape[1] == 1
    np.testing.assert_allclose(weights["uniform"], 1 / routed.shape[1])
    assert not np.array_equal(weights["random"], routed)
    np.testing.assert_allclose(np.sort(weights["random"], axis=0), np.sort(routed, axis=0), atol=1e-9)
    assert made["uniform"].experts_ == system.experts_
    assert system.control("routed").get_params() == system.get_params()
    assert not hasattr(system.control("routed"), "experts_")
    with pytest.raises(ConfigError, match="no control 'wide'"):
        system.control("wide")


@EACH
def test_a_gap_or_an_unseen_sensor_is_no_trouble(name, fitted):
    system, scene = fitted[name]
    target = scene[system.target]
    blind = [*scene[:-1], Observation(np.full(target.value.shape, np.nan), 1.0)]
    assert np.isfinite(system.posterior(blind).mean).all()
    assert system.posterior(blind).variance.mean() > system.posterior(scene).variance.mean()
    plain = [Observation(np.full(one.value.shape, 7.0), one.variance.min(), one.scale) for one in scene]
    np.testing.assert_allclose(surface_system_class(name).tiny().fit(plain).predict(plain), 7, atol=1e-6)


@EACH
def test_scenes_and_settings_that_cannot_be_are_refused(name, fitted):
    system, scene = fitted[name]
    with pytest.raises(DataError, match="same sensors"):
        system.posterior(scene[:1])
    few = [scene[0], Observation(np.full(scene[1].value.shape, np.nan), 1.0)]
    for wrong, error in (([], DataError), (None, DataError), (few, DataError)):
        with pytest.raises(error):
            clone(system).fit(wrong)
    for settings in ({"gate": "no"}, {"n_experts": 0}, {"n_experts": True}, {"target": 9}, {"max_iter": 0}):
        with pytest.raises(TerraMoEError):
            clone(system).set_params(**settings).fit(scene)
    with pytest.raises(ConfigError, match="shifts"):
        clone(system).set_params(shifts=0).fit(scene).posterior(scene)


def test_the_registry_names_what_there_is():
    for name in SURFACE_SYSTEMS:
        card = surface_system_class(name).card
        assert card.reconstruction
        assert card.title
        assert card.year
        assert card.provenance
    assert build_surface_system("aggarwal", {"n_experts": 3}).n_experts == 3
    with pytest.raises(ConfigError, match="aggarwal, nagarajan-slatton"):
        surface_system_class("kalman")
    with pytest.raises(ConfigError, match="no setting depth"):
        build_surface_system("aggarwal", {"depth": 3})


# What only one has ----------------------------------------------------------------------------------------------------


def test_aggarwal_controls_keep_the_experts_and_dense_is_the_best_alone():
    scene = AggarwalFusion.tiny_observations(1)
    system = AggarwalFusion(3, scales=3, tol=1e-3).fit(scene)
    dense = system.control("dense").fit(scene)
    assert dense.experts_ == system.experts_[:1] == AggarwalFusion(1).fit(scene).experts_
    hard = clone(system).set_params(gate="hard").fit(scene).posterior(scene)
    assert set(np.unique(hard.weight)) == {0.0, 1.0}


def test_the_gate_finds_the_rough_half():
    scene = AggarwalFusion.tiny_observations(2)
    system = AggarwalFusion(2, bank=(KalmanExpert(1.0, 0.9), KalmanExpert(12.0, 0.9)), scales=3).fit(scene)
    rough = system.posterior(scene).weight[..., 1]
    assert rough[:, 28:].mean() > rough[:, :20].mean() + 0.2


def test_the_variogram_of_a_known_surface_is_found_through_noise_and_gaps():
    rng = np.random.default_rng(0)
    for hurst in (0.3, 0.7):
        surface = rough_field(512, 2 * hurst + 2, rng)[:128, :128]
        surface /= np.sqrt(np.mean((surface[1:] - surface[:-1]) ** 2))
        clean = fractal_features([Observation(surface, 1e-9)]).mean((0, 1))
        seen = np.where(rng.random(surface.shape) < 0.3, surface + 0.5 * rng.standard_normal(surface.shape), np.nan)
        noisy = fractal_features([Observation(seen, 0.25)]).mean((0, 1))
        assert clean[0] == pytest.approx(hurst, abs=0.12)
        assert noisy == pytest.approx(clean, abs=0.12)
        assert clean[1] == pytest.approx(0, abs=0.12)  # differences of 1 over one pixel


def test_variogram_against_a_loop():
    rng = np.random.default_rng(1)
    value = rng.normal(size=(9, 11))
    value[rng.random(value.shape) < 0.3] = np.nan
    found = variogram([Observation(value, 0.1)], window=4, lags=3)
    for lag, mean in zip((1, 2, 4), found.whole, strict=True):
        gaps = np.concatenate([(value[lag:] - value[:-lag]).ravel(), (value[:, lag:] - value[:, :-lag]).ravel()])
        assert mean == pytest.approx(max(np.nanmean(gaps**2) - 0.2, 0.01 * mean))
    assert found.local.shape == found.share.shape == (9, 11, 3)
    assert ((found.share >= 0) & (found.share < 1)).all()
    with pytest.raises(DataError, match="no two values"):
        variogram([Observation(np.where(np.eye(4) * np.arange(4) == 1, 1.0, np.nan), 1.0)], 4, 2)


def test_without_pairs_near_the_features_are_those_of_the_scene():
    value = np.random.default_rng(2).normal(size=(64, 64)).cumsum(axis=0)
    value[:, 20:] = np.nan
    features = fractal_features([Observation(value, 1e-6)], window=8, lags=2)
    np.testing.assert_allclose(features[:, 40:], np.broadcast_to(features[-1, -1], (64, 24, 2)), atol=1e-9)
    assert np.ptp(features[:, :16, 1]) > 0.1


def test_the_expert_of_a_variogram_varies_as_the_surface_does_within_four_pixels():
    surface = rough_field(512, 2 * 0.6 + 2, np.random.default_rng(3))[:256, :256]
    features = fractal_features([Observation(surface, 1e-12)])
    expert = fractal_expert(*features.mean((0, 1)))
    within = surface.reshape(128, 2, 128, 2).var(axis=(1, 3)).mean()
    assert 0.75 * expert.step**2 == pytest.approx(within, rel=0.15)


def test_segments_follow_the_regimes_and_not_the_shuffled_gate():
    rng = np.random.default_rng(4)
    flat, rough = (scale * rough_field(64, 3.0, rng) for scale in (1.0, 8.0))
    scene = [Observation(np.where(np.arange(64) < 32, flat, rough) + 0.1 * rng.standard_normal((64, 64)), 0.01)]
    system = NagarajanSlatton(2, window=8, lags=3).fit(scene)
    truth = np.arange(64) >= 32
    assert (system.segments(scene) == truth).mean() > 0.9
    assert (system.set_params(segment_by="responsibilities").segments(scene) == truth).mean() > 0.9
    assert ((system.clusters(scene) == 1) == truth).mean() > 0.85
    assert (system.control("random").fit(scene).segments(scene) == truth).mean() < 0.7


def test_a_scene_without_fractal_features_is_refused_by_fit_and_taken_by_prediction():
    scene = NagarajanSlatton.tiny_observations(5)
    system = NagarajanSlatton.tiny().fit(scene)
    lone = np.full(scene[1].value.shape, np.nan)
    lone[0, 0], lone[9, 20] = 1.0, 2.0
    lonely = [scene[0], Observation(lone, 1.0)]
    weight = system.posterior(lonely).weight
    np.testing.assert_allclose(weight, np.broadcast_to(weight[0, 0], weight.shape))  # no place differs from another
    with pytest.raises(DataError, match="no two values"):
        system.fit(lonely)


def test_majority_against_a_count():
    labels = np.random.default_rng(5).integers(0, 3, (7, 8))
    found = majority(labels, 3)
    around = np.pad(labels, 1, mode="edge")
    for row, column in np.ndindex(labels.shape):
        votes = np.bincount(around[row : row + 3, column : column + 3].ravel(), minlength=3).astype(float)
        votes[labels[row, column]] += 0.5
        assert found[row, column] == votes.argmax()


def test_displaced_trees_move_nothing_but_the_tree():
    scene = NagarajanSlatton.tiny_observations(3)
    expert = KalmanExpert(4.0, 0.6)
    assert shift_offsets(scene, 1) == [(0, 0)]
    assert all(part % 4 == 0 for offset in shift_offsets(scene, 4) for part in offset)
    single = smooth_with(expert, scene, 100.0)
    mean, variance = shifted_moments(expert, scene, 100.0, 1)
    assert np.array_equal(mean, single.mean[-1])
    np.testing.assert_allclose(variance, single.variance[-1])
    moved = displaced(scene[0], (8, 4))
    assert np.array_equal(moved.value[2:, 1:], scene[0].value)
    assert not moved.seen[:2].any()
    assert not moved.seen[:, :1].any()


def test_displaced_trees_gain_on_one_tree():
    rng = np.random.default_rng(6)
    surface = 5 * rough_field(64, 3.4, rng)
    scene = [Observation(surface + rng.standard_normal(surface.shape), 1.0)]
    errors = [np.mean((shifted_moments(KalmanExpert(0.6, 0.7), scene, 25.0, n)[0] - surface) ** 2) for n in (1, 8)]
    assert errors[1] < 0.9 * errors[0]


def test_scores_against_the_normal_distribution():
    rng = np.random.default_rng(7)
    mean, truth = rng.normal(size=(40, 50)), rng.normal(size=(40, 50))
    three = np.full(mean.shape, 3.0)
    one = MixturePosterior(mean, three, np.ones((40, 50, 1)), mean[..., None], three[..., None])
    where = rng.random(mean.shape) < 0.5
    found = surface_scores(one, truth, where, 1.0)  # standard deviation 2 with the noise
    gap = (truth - mean)[where]
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(gap**2)))
    assert found["bias"] == pytest.approx(-gap.mean())
    assert found["nll"] == pytest.approx(-norm.logpdf(gap, 0, 2).mean())
    assert found["coverage_90"] == pytest.approx((np.abs(gap) <= 1.6448536 * 2).mean())
    twice = (np.stack([part, part], axis=-1) for part in (three / 6, mean, three))
    two = MixturePosterior(mean, three, *twice)
    assert surface_scores(two, truth, where, 1.0) == pytest.approx(found)
    with pytest.raises(DataError, match="no pixel"):
        surface_scores(one, truth, np.zeros_like(where))
