"""PMMoE: who sees what, the gate at each time sample, the residual, the scale of series, and the claim's data."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from terramoe.data.simulators.seismic import shear_velocity
from terramoe.errors import ConfigError, DataError
from terramoe.experiments.claims.pmmoe import CLAIM, FAR, NEAR, blocky_logs, marmousi, rows, under
from terramoe.systems.pmmoe import LOGS, PMMoE, SeriesScaler

SAMPLES, ANGLES = 12, 2


@pytest.fixture(scope="module")
def fitted():
    X, y = PMMoE.tiny_table(40, 0)
    return PMMoE.tiny().fit(X, y), X, y


def parameters(system):
    return sum(p.numel() for p in system.network_.parameters())


def test_forward_is_the_mixture_of_two_experts_with_a_convolution_as_gate(fitted):
    system, X, _ = fitted
    network, x = system.network_, torch.as_tensor(system.x_scaler_.transform(X[:3])).float()
    series = x.view(3, ANGLES + 3, SAMPLES)
    found = network(x)
    with torch.no_grad():
        for k, log in enumerate(LOGS):
            own = series[:, [0, 1, ANGLES + k]]
            linear = network.gates[log].scorer.linear.linear
            logits = F.conv1d(own, linear.weight.view(2, 3, network.kernel), linear.bias, padding=network.kernel // 2)
            gate = logits.softmax(1)
            mixed = gate[:, :1] * network.experts[0](series) + gate[:, 1:] * network.experts[1 + k](own)
            initial = series[:, ANGLES + k] * network.stretch[k] + network.shift[k]
            wanted = initial + network.towers[k](mixed)[:, 0]
            torch.testing.assert_close(found.prediction.view(3, 3, SAMPLES)[:, k], wanted)


def test_another_logs_initial_model_reaches_a_log_through_the_shared_expert_alone(fitted):
    system, X, _ = fitted
    changed = X.copy()
    changed[:, (ANGLES + 1) * SAMPLES : (ANGLES + 2) * SAMPLES] += 0.3  # that of S velocity
    before, after = system.routing(X), system.routing(changed)
    assert before["vp"].logits.equal(after["vp"].logits)
    assert before["density"].logits.equal(after["density"].logits)
    assert not before["vs"].logits.equal(after["vs"].logits)
    with torch.no_grad():
        x, z = (torch.as_tensor(system.x_scaler_.transform(v)).float().view(-1, 5, SAMPLES) for v in (X, changed))
        network = system.network_
        assert not network.experts[0](x[:, network.seen[0]]).equal(network.experts[0](z[:, network.seen[0]]))
        assert network.experts[1](x[:, network.seen[1]]).equal(network.experts[1](z[:, network.seen[1]]))
    classic = PMMoE.tiny().set_params(views="all", steps=2).fit(X, X[:, -3 * SAMPLES :])
    assert not classic.routing(X)["vp"].logits.equal(classic.routing(changed)["vp"].logits)


def test_items_are_rows_and_times_with_the_time_faster(fitted):
    system, X, _ = fitted
    together, alone = system.routing(X[:4])["vs"], system.routing(X[2:3])["vs"]
    assert together.logits.shape == (4 * SAMPLES, 2)
    torch.testing.assert_close(together.probs[2 * SAMPLES : 3 * SAMPLES], alone.probs)
    torch.testing.assert_close(together.dense().sum(1), torch.ones(4 * SAMPLES))
    assert (together.demand() == 4 * SAMPLES).all()  # exactly both
    assert together.probs.std(0).min() > 0.01  # the weight differs from sample to sample


def test_without_towers_the_answer_is_the_initial_model_in_the_unit_of_the_logs(fitted):
    _, X, y = fitted
    X = X * 1.3 + 0.7  # initial models of another mean and spread than the logs
    again = PMMoE.tiny().set_params(steps=1).fit(X, y)
    with torch.no_grad():
        for tower in again.network_.towers:
            tower.weight.zero_()
            tower.bias.zero_()
    np.testing.assert_allclose(again.predict(X), X[:, -3 * SAMPLES :], atol=1e-5)


def test_it_learns_what_the_initial_model_lacks():
    X, y = PMMoE.tiny_table(240, 1)
    system = PMMoE.tiny().set_params(steps=150).fit(X[:200], y[:200])
    error, before = (np.sqrt(np.mean((a - y[200:]) ** 2)) for a in (system.predict(X[200:]), X[200:, -3 * SAMPLES :]))
    assert error < 0.7 * before
    spread = system.predict_std(X[200:])
    assert spread.shape == (40, 3 * SAMPLES)
    assert 0.5 * error < np.sqrt(np.mean(spread**2)) < 2 * error


def test_dense_twin_has_the_parameters_of_the_mixture():
    X, y = PMMoE.tiny_table(6, 0)
    routed, dense = (PMMoE(angles=ANGLES, steps=1).control(name).fit(X, y) for name in ("routed", "dense"))
    assert 0.93 < parameters(dense) / parameters(routed) < 1.07
    routing = dense.routing(X)["vp"]
    assert routing.num_experts == 1
    assert (routing.dense() == 1).all()
    assert len(dense.expert_names("vp")) == 1


@pytest.mark.parametrize(("views", "used"), [("pertinent", 1), ("all", 2)])
def test_controls_have_no_learned_choice(views, used):
    X, y = PMMoE.tiny_table(6, 0)
    base = PMMoE.tiny().set_params(views=views, steps=2)
    for name in ("uniform", "random"):
        system = base.control(name).fit(X, y)
        for log, routing in system.routing(X).items():
            experts = len(system.expert_names(log))
            weights = routing.dense()
            chosen = experts if name == "uniform" else used
            assert ((weights > 0).sum(1) == chosen).all()
            torch.testing.assert_close(weights[weights > 0], torch.full((len(X) * SAMPLES * chosen,), 1 / experts))


def test_series_keep_their_shape_when_they_are_scaled():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(5, 20)) * np.repeat([1, 4, 9], [8, 4, 8]) + np.repeat([0, 7, -5], [8, 4, 8])
    scaler = SeriesScaler((2, 1, 2)).fit(X)
    scaled = scaler.transform(X)
    np.testing.assert_allclose(scaled[:, 8:12].std(), 1)
    np.testing.assert_allclose(scaled[:, :8].mean(), 0, atol=1e-12)
    ratio = np.ptp(scaled[:, :4]) / np.ptp(scaled[:, 4:8])  # amplitudes of the traces of one gather
    np.testing.assert_allclose(ratio, np.ptp(X[:, :4]) / np.ptp(X[:, 4:8]))
    np.testing.assert_allclose(scaler.inverse_transform(scaled), X)
    constant = np.full((3, 4), 2.0)
    assert not SeriesScaler((1,)).fit(constant).transform(constant).any()


def test_rows_and_logs_that_do_not_fit_are_refused():
    X, y = PMMoE.tiny_table(8, 0)
    with pytest.raises(DataError, match="5 series"):
        PMMoE.tiny().fit(X[:, :-1], y)
    with pytest.raises(DataError, match="time samples"):
        PMMoE.tiny().fit(X, y[:, :6])
    with pytest.raises(DataError, match="3 series"):
        PMMoE.tiny().fit(X, y[:, 0])


@pytest.mark.parametrize(
    "settings", [{"kernel": 4}, {"tower": 2}, {"views": "own"}, {"layers": 0}, {"angles": 0}, {"features": 0}]
)
def test_impossible_settings_are_refused(settings):
    X, y = PMMoE.tiny_table(8, 0)
    with pytest.raises(ConfigError):
        PMMoE.tiny().set_params(**settings).fit(X, y)


def test_simulated_logs_are_blocky_and_no_function_of_each_other():
    ground = blocky_logs(60, 96, 3)
    for log in ground:
        assert log.shape == (60, 96)
        assert 0.75 < np.mean(np.diff(log, axis=1) == 0) < 0.97  # inside layers nothing changes
    assert 1.6 < ground.vp.min() <= ground.vp.max() < 4.5
    assert (ground.vs < ground.vp / 1.3).all()
    assert not np.array_equal(ground.vp, blocky_logs(60, 96, 4).vp)
    assert np.std(ground.vs - shear_velocity(ground.vp)) > 0.02  # two rocks, and scatter


def test_conditions_of_the_test_differ_from_training_in_one_thing_each():
    ground = blocky_logs(5, 96, 0)
    found = under(ground, NEAR, 0)
    clean = rows(ground, NEAR._replace(noise=0.0), 0)[0]
    noise = {name: found[name][0] - clean for name in ("", "_noise10", "_noise20")}
    np.testing.assert_allclose(noise["_noise20"], 4 * noise[""], atol=1e-12)
    np.testing.assert_allclose(noise["_noise10"], 2 * noise[""], atol=1e-12)
    exact = found["_exact_law"][0] - found[""][0]
    gather = exact[:, : 4 * 96].reshape(5, 4, 96)
    assert 0 < np.abs(gather[:, 0]).max() < np.abs(gather[:, 3]).max()  # the linear law errs with the angle
    assert np.allclose(exact[:, 4 * 96 :], 0)
    assert max(FAR.angles) > 30
    assert FAR.exact
    assert "_exact_law" not in under(ground, FAR, 0)


def test_marmousi_trains_and_tests_on_parts_that_do_not_touch():
    folder = Path(os.environ.get("TERRAMOE_DATA", ""))
    if not (folder / "geo/marmousi_vp").is_dir():
        pytest.skip("the Marmousi section is not at hand (TERRAMOE_DATA)")
    data = marmousi(0)
    (X, y), (Z, _) = data.train, data.test[""]
    assert (X.shape, y.shape, Z.shape) == ((220, 7 * 256), (220, 3 * 256), (140, 7 * 256))
    assert np.bincount(data.groups).tolist() == [20] * 11
    assert len(set(map(tuple, y)) & set(map(tuple, data.test[""][1]))) == 0


def test_marmousi_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("TERRAMOE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="marmousi"):
        marmousi(-1)


def test_every_statement_names_a_variant_that_is_run():
    assert {v for s in CLAIM.statements for v in (s.a, s.b)} <= set(CLAIM.variants)
