"""The gated bank of Kalman smoothers: its parts against brute force, planted regimes, a real elevation model."""

import warnings
from functools import cache

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from terramoe.errors import ConfigError, DataError
from terramoe.mixtures.kalman_bank import (
    KalmanExpert,
    bank_log_density,
    choose_experts,
    default_bank,
    mixture_moments,
    smooth_with,
)
from terramoe.mixtures.kalman_mixture import KalmanMixture
from terramoe.mixtures.kalman_tree import smooth
from terramoe.mixtures.quad_tree import Observation, fractal_model, spread
from terramoe.mixtures.texture_features import TextureDesign, detail_energy, texture_of

BANK = tuple(KalmanExpert(step, hurst) for hurst in (0.3, 0.9) for step in (0.3, 1.0, 3.0, 9.0))


def draw(model, rng):
    surface = np.full((1, 1), model.root_mean)
    for step in model.process_variance:
        surface = spread(surface) + step**0.5 * rng.standard_normal(np.array(surface.shape) * 2)
    return surface


def two_regimes(seed, depth=6, noise=6.0):
    """(truth (H, 2 H), observations): smooth on the left, rough on the right; a dense noisy and a sparse sensor."""
    rng = np.random.default_rng(seed)
    smooth_half, rough_half = fractal_model(depth, 0.3, 0.9, 100.0, 1.0), fractal_model(depth, 9.0, 0.3, 100.0, 1.0)
    truth = np.hstack([draw(smooth_half, rng), draw(rough_half, rng)])
    dense = truth + noise * rng.standard_normal(truth.shape)
    sparse = np.where(rng.random(truth.shape) < 0.08, truth + 0.5 * rng.standard_normal(truth.shape), np.nan)
    return truth, [Observation(dense, noise**2), Observation(sparse, 0.25)]


@cache
def fitted(gate="softmax", n_experts=2):
    truth, observations = two_regimes(0)
    return truth, observations, KalmanMixture(n_experts, gate=gate, bank=BANK).fit(observations)


def rmse(estimate, truth):
    return float(np.sqrt(((estimate - truth) ** 2).mean()))


def test_left_out_densities_are_those_of_a_filter_that_never_saw_the_value():
    _, (dense, sparse) = two_regimes(3, depth=3)
    expert = KalmanExpert(2.0, 0.5, noise=(4.0, 9.0))
    found = bank_log_density([expert], [dense, sparse], 1, 50.0)[:, 0]
    values = np.concatenate([dense.value.ravel(), sparse.value[sparse.seen]])
    model = fractal_model(4, 2.0, 0.5, values.mean(), 50.0)
    for k, place in enumerate(np.argwhere(sparse.seen)):
        holed = sparse.value.copy()
        holed[tuple(place)] = np.nan
        rest = smooth(model, [Observation(dense.value, 4 * 36.0), Observation(holed, 9 * 0.25)])
        mean, variance = (part[-1][tuple(place)] for part in (rest.mean, rest.variance))
        variance += 9 * 0.25
        gap = sparse.value[tuple(place)] - mean
        assert found[k] == pytest.approx(-0.5 * (gap**2 / variance + np.log(2 * np.pi * variance)), abs=1e-9)
    assert len(found) == sparse.seen.sum() > 5


def test_law_of_total_variance():
    rng = np.random.default_rng(0)
    weight = rng.dirichlet([1, 2, 3], size=(4, 5))
    mean, variance = rng.normal(size=(4, 5, 3)), rng.uniform(0.1, 2, (4, 5, 3))
    centre, total = mixture_moments(weight, mean, variance)
    second = (weight * (variance + mean**2)).sum(-1)
    np.testing.assert_allclose(total, second - (weight * mean).sum(-1) ** 2, atol=1e-12)
    np.testing.assert_allclose(centre, (weight * mean).sum(-1), atol=1e-14)
    assert (total >= (weight * variance).sum(-1)).all()


def test_em_never_lowers_the_likelihood_and_stops_at_a_fixed_point():
    _, observations, model = fitted()
    assert model.converged_
    assert model.n_iter_ == len(model.objective_trace_) - 1 > 2
    assert (np.diff(model.objective_trace_) >= -1e-9 * abs(model.objective_trace_[0])).all()
    assert model.objective_trace_[-1] > model.objective_trace_[0] + 10
    height = model.log_likelihood(observations).sum() - model.mixture_.penalty()
    assert model.objective_trace_[-1] == pytest.approx(height, rel=1e-12)
    _, _, constant = fitted("constant")
    shares = constant.responsibilities(observations).mean(0)
    np.testing.assert_allclose(constant.posterior(observations).weight[0, 0], shares, atol=1e-2)


def test_the_gate_finds_planted_regimes_and_gains_by_it():
    truth, observations, model = fitted()
    found = model.posterior(observations)
    rough = int(np.argmax([expert.step for expert in model.experts_]))
    half = truth.shape[1] // 2
    assert (found.weight[:, :half].argmax(-1) != rough).mean() > 0.95
    assert (found.weight[:, half:].argmax(-1) == rough).mean() > 0.95
    _, _, single = fitted(n_experts=1)
    best = min(
        rmse(smooth_with(expert, observations, model.root_variance_).mean[-1], truth) for expert in BANK
    )  # the best single filter, chosen with the truth in hand
    assert rmse(found.mean, truth) < 0.95 * best
    assert rmse(found.mean, truth) < 0.95 * rmse(single.predict(observations), truth)
    for gate in ("constant", "uniform"):
        assert rmse(found.mean, truth) < 0.95 * rmse(fitted(gate)[2].predict(observations), truth)
    order = np.random.default_rng(0).permutation(truth.size)
    shuffled = found.weight.reshape(-1, 2)[order].reshape(found.weight.shape)
    other = mixture_moments(shuffled, found.expert_mean, found.expert_variance)[0]
    assert rmse(found.mean, truth) < 0.9 * rmse(other, truth)
    inside = np.abs(found.mean - truth) < 1.645 * np.sqrt(found.variance)
    assert inside.mean() == pytest.approx(0.9, abs=0.03)


def test_a_fitted_gate_carries_over_to_another_scene():
    _, _, model = fitted()
    truth, observations = two_regimes(7)
    best = min(rmse(smooth_with(expert, observations, 9.0).mean[-1], truth) for expert in BANK)
    mean, std = model.predict(observations, return_std=True)
    assert rmse(mean, truth) < best
    assert (std > 0).all()
    np.testing.assert_array_equal(mean, model.posterior(observations).mean)


def test_one_expert_is_the_best_single_filter():
    _, observations, model = fitted(n_experts=1)
    density = bank_log_density(BANK, observations, 1, model.root_variance_)
    assert model.experts_ == (BANK[density.sum(0).argmax()],)
    alone = smooth_with(model.experts_[0], observations, model.root_variance_)
    np.testing.assert_array_equal(model.predict(observations), alone.mean[-1])
    np.testing.assert_allclose(model.posterior(observations).variance, alone.variance[-1], rtol=1e-12)
    np.testing.assert_allclose(
        model.log_likelihood(observations),
        density.max(axis=1, where=density.sum(0) == density.sum(0).max(), initial=-np.inf),
    )
    lone = KalmanMixture(1, bank=BANK, target=0, texture=0).fit(observations[1:])  # one sensor is enough
    assert lone.predict(observations[1:]).shape == observations[0].value.shape


def test_a_clone_is_fitted_alike():
    _, observations, model = fitted()
    again = clone(model).fit(observations)
    assert again.experts_ == model.experts_
    np.testing.assert_array_equal(again.predict(observations), model.predict(observations))


def test_routing_is_the_record_of_the_weights():
    _, observations, model = fitted()
    record, weight = model.routing(observations), model.posterior(observations).weight
    np.testing.assert_allclose(record.dense().numpy(), weight.reshape(-1, 2), atol=1e-15)
    assert record.num_items == weight.shape[0] * weight.shape[1]
    np.testing.assert_array_equal(record.top_expert().numpy(), weight.reshape(-1, 2).argmax(1))


def test_controls_switch_hard_or_not_at_all():
    _, observations, model = fitted()
    _, _, hard = fitted("hard")
    assert hard.experts_ == model.experts_
    soft, switched = model.posterior(observations), hard.posterior(observations)
    np.testing.assert_array_equal(switched.weight, np.eye(2)[soft.weight.argmax(-1)])
    chosen = np.take_along_axis(soft.expert_mean, soft.weight.argmax(-1)[..., None], -1)[..., 0]
    np.testing.assert_array_equal(switched.mean, chosen)
    assert hard.routing(observations).fixed_k == 1
    np.testing.assert_array_equal(hard.routing(observations).dense().numpy(), switched.weight.reshape(-1, 2))
    uniform = fitted("uniform")[2]
    np.testing.assert_allclose(uniform.posterior(observations).weight, 0.5)
    assert uniform.n_iter_ == 0
    assert np.ptp(fitted("constant")[2].posterior(observations).weight, axis=(0, 1)).max() < 1e-12


def test_a_second_observation_model_is_an_expert_like_another():
    # one roughness, but half of the dense image is five times noisier than it says
    rng = np.random.default_rng(1)
    truth = draw(fractal_model(7, 1.0, 0.6, 0.0, 1.0), rng)
    noise = np.where(np.arange(128) < 64, 1.0, 5.0) * np.ones((128, 1))
    dense = truth + noise * rng.standard_normal(truth.shape)
    sparse = np.where(rng.random(truth.shape) < 0.1, truth + 0.1 * rng.standard_normal(truth.shape), np.nan)
    observations = [Observation(dense, 1.0), Observation(sparse, 0.01)]
    bank = [KalmanExpert(1.0, 0.6), KalmanExpert(1.0, 0.6, noise=(25.0, 1.0))]
    found = KalmanMixture(2, bank=bank).fit(observations).posterior(observations)
    assert found.weight[:, :60, 0].mean() > 0.9
    assert found.weight[:, 68:, 1].mean() > 0.9
    assert rmse(found.mean, truth) < 0.95 * min(rmse(found.expert_mean[..., k], truth) for k in range(2))


def test_units_and_origin_of_the_heights_do_not_matter():
    _, observations = two_regimes(2, depth=4)
    moved = [Observation(30 * one.value - 1000, 900 * one.variance) for one in observations]
    metres, other = (KalmanMixture(2).fit(scene) for scene in (observations, moved))
    assert [expert.hurst for expert in metres.experts_] == [expert.hurst for expert in other.experts_]
    np.testing.assert_allclose(
        [30 * expert.step for expert in metres.experts_], [expert.step for expert in other.experts_]
    )
    np.testing.assert_allclose(other.predict(moved), 30 * metres.predict(observations) - 1000, atol=1e-3)


def test_experts_are_chosen_for_what_they_add():
    rng = np.random.default_rng(0)
    good = np.where(np.arange(100) < 60, 0.0, -9.0)
    complement = np.where(np.arange(100) < 60, -50.0, -1.0)
    twin = good - 0.01 + 0.01 * rng.random(100)  # nearly as good alone, and of no use beside it
    columns = np.stack([twin, complement, good], axis=1)
    assert choose_experts(columns, 2) == [2, 1]
    assert choose_experts(columns, 3) == [2, 1, 0]
    assert choose_experts(columns[:, [2, 2]], 1) == [0]
    assert len(set(default_bank(3.0))) == 75


def test_texture_tells_scale_and_roughness():
    fine = np.indices((32, 32)).sum(0) % 2 * 2.0 - 1  # a chequerboard is all detail of scale 0
    energy = detail_energy(fine, 3)
    assert (energy[8:-8, 8:-8, 0] > energy[8:-8, 8:-8, 1:].max(-1) + 5).all()
    rng = np.random.default_rng(0)
    image = rng.normal(size=(32, 48))
    base = detail_energy(image, 4)
    np.testing.assert_allclose(detail_energy(image + 1e4, 4), base, atol=1e-6)
    np.testing.assert_allclose(detail_energy(10 * image, 4), base + np.log(100), atol=1e-9)
    assert np.ptp(detail_energy(np.full((9, 9), 3.1), 2)) == 0
    assert np.isfinite(detail_energy(np.zeros((5, 5)), 2)).all()


def test_texture_of_gaps_is_that_of_the_rest():
    rng = np.random.default_rng(0)
    image = np.hstack([rng.normal(size=(64, 32)), 20 * rng.normal(size=(64, 32))])
    holed = np.where(rng.random(image.shape) < 0.3, np.nan, image)
    whole, gappy = detail_energy(image, 3), detail_energy(holed, 3)
    assert np.isfinite(gappy).all()
    assert np.abs(whole - gappy).mean() < 0.4  # against a step of log 400 = 6 between the halves
    coarse = texture_of(Observation(image, 1.0, scale=1), (127, 128), 2)
    assert coarse.shape == (127, 128, 2)
    np.testing.assert_array_equal(coarse[::2, ::2], detail_energy(image, 2))


def test_the_gate_does_not_look_beyond_what_it_was_fitted_on():
    texture = np.random.default_rng(0).normal(size=(50, 2))
    design = TextureDesign.of(texture)
    np.testing.assert_array_equal(
        design.apply(np.array([[1e3, -1e3]])), design.apply(np.array([[texture[:, 0].max(), texture[:, 1].min()]]))
    )
    np.testing.assert_allclose(design.apply(texture)[:, :2].std(0), 1)
    np.testing.assert_allclose(design.apply(texture)[:, 2:], design.apply(texture)[:, :2] ** 2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"gate": "soft"}, "gate"),
        ({"n_experts": 0}, "n_experts"),
        ({"n_experts": 2.0}, "n_experts"),
        ({"n_experts": 9}, "bank"),
        ({"target": 2}, "target"),
        ({"texture": -3}, "texture"),
        ({"texture": 1}, "another observation"),
        ({"scales": True}, "scales"),
        ({"ridge": -1.0}, "ridge"),
        ({"tol": np.nan}, "tol"),
        ({"ridge": "none"}, "ridge"),
        ({"max_iter": 0}, "max_iter"),
        ({"bank": [KalmanExpert(1.0, 0.5, noise=(1.0,)), BANK[0]]}, "noise factors"),
        ({"bank": [KalmanExpert(-1.0, 0.5), BANK[0]]}, "step"),
        ({"bank": ["rough", "smooth"]}, "bank"),
    ],
)
def test_impossible_settings_are_refused(settings, text):
    _, observations = two_regimes(0, depth=3)
    with pytest.raises(ConfigError, match=text):
        KalmanMixture(**{"n_experts": 2, "bank": BANK, **settings}).fit(observations)


def test_scenes_that_do_not_fit_are_refused():
    _, (dense, sparse) = two_regimes(0, depth=4)
    model, empty = KalmanMixture(2, bank=BANK), Observation(np.full(dense.value.shape, np.nan), 1.0)
    for scene in ([], [dense.value, sparse.value], None, dense):
        with pytest.raises(DataError, match="observations"):
            model.fit(scene)
    with pytest.raises(DataError, match="0 values"):
        model.fit([dense, empty])
    with pytest.raises(DataError, match="texture"):
        model.fit([empty, sparse])
    with pytest.raises(DataError, match="cover"):
        model.fit([Observation(dense.value[1:], 1.0), sparse])
    with pytest.raises(ConfigError, match="scale 0"):
        model.fit([dense, Observation(np.zeros((8, 16)), 1.0, 1)])
    with pytest.raises(NotFittedError):
        model.predict([dense, sparse])
    model.fit([dense, sparse])
    with pytest.raises(DataError, match="same sensors"):
        model.predict([dense])
    with pytest.raises(DataError, match="no observation has a value"):
        KalmanMixture(2, gate="uniform", bank=BANK).fit([dense, sparse]).predict([empty, empty])
    assert np.isfinite(model.predict([dense, empty])).all()  # a scene that the precise sensor missed


def test_a_flat_scene_is_no_trouble():
    flat = [Observation(np.full((8, 8), 7.0), 1.0), Observation(np.full((8, 8), 7.0), 0.01)]
    np.testing.assert_allclose(KalmanMixture(2).fit(flat).predict(flat), 7.0, atol=1e-9)


def jacksboro():
    cbook = pytest.importorskip("matplotlib.cbook")
    try:
        return cbook.get_sample_data("jacksboro_fault_dem.npz")["elevation"].astype(float)
    except (OSError, ValueError):
        pytest.skip("matplotlib came without its sample elevation model")


def test_on_a_real_elevation_model_the_mixture_beats_the_best_single_filter():
    truth, rng = jacksboro()[88:344, 147:403], np.random.default_rng(0)
    radar = Observation(truth + 20 * rng.standard_normal(truth.shape), 400.0)
    hit = rng.random(truth.shape) < 0.06
    laser = Observation(np.where(hit, truth + 0.5 * rng.standard_normal(truth.shape), np.nan), 0.25)
    bank = [KalmanExpert(step, hurst) for hurst in (1.0, 1.3) for step in (3.0, 6.0, 12.0, 17.0)]
    scene = [radar, laser]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # EM converges
        model = KalmanMixture(4, bank=bank, tol=1e-3).fit(scene)
    found = model.posterior(scene)

    def held_out(mean):
        return rmse(mean[~hit], truth[~hit])

    singles = [held_out(smooth_with(expert, scene, model.root_variance_).mean[-1]) for expert in bank]
    assert held_out(radar.value) == pytest.approx(20, abs=0.2)
    assert min(singles) < 14
    assert held_out(found.mean) < 0.97 * min(singles)
    shuffled = found.weight.reshape(-1, 4)[rng.permutation(truth.size)].reshape(found.weight.shape)
    assert held_out(mixture_moments(shuffled, found.expert_mean, found.expert_variance)[0]) > min(singles)
