"""Mixture of HMM experts as a table system: rows that are sequences, its equations, controls, and its claim."""

import pickle
import warnings

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import norm
from skops.io import dumps, get_untrusted_types

from terramoe.errors import ConfigError, RoutingError
from terramoe.experiments.claims import yuksel_gader as claim
from terramoe.mixtures.fixed_gates import FixedGate
from terramoe.mixtures.hmm_experts import HmmExpertsClassifier
from terramoe.mixtures.sequences import read_sequences
from terramoe.systems.yuksel_gader import YukselGaderHMM

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, Y = YukselGaderHMM.tiny_table(120, 0)
TEST_X, TEST_Y = YukselGaderHMM.tiny_table(80, 1)


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return YukselGaderHMM.tiny().fit(X, Y)


def log_likelihood(models, k, sequence):
    """Of one sequence (T, F) under the k-th HMM of a stack, by the forward recursion in plain numbers."""
    emit = [norm.logpdf(step, models.mean[k], np.sqrt(models.covariance[k])).sum(axis=1) for step in sequence]
    forward = models.log_start[k] + emit[0]
    for step in emit[1:]:
        forward = logsumexp(forward[:, None] + models.log_transition[k], axis=0) + step
    return logsumexp(forward)


def test_the_equation(fitted):
    mixture, scaling = fitted.estimator_.mixture_, fitted.estimator_.scaling_
    for row in range(5):
        values = TEST_X[row][~np.isnan(TEST_X[row])]
        sequence = scaling.apply(values[:, None])

        def share(part, sequence=sequence):
            return softmax([part.log_prior[k] + log_likelihood(part.models, k, sequence) for k in range(2)])

        gate = share(mixture.gate)
        expected = sum(g * share(expert) for g, expert in zip(gate, mixture.experts, strict=True))
        np.testing.assert_allclose(fitted.predict_proba(TEST_X[row : row + 1])[0], expected, atol=1e-9)
        np.testing.assert_allclose(
            fitted.routing(TEST_X[row : row + 1])["contexts"].dense()[0].numpy(), gate, atol=1e-9
        )


def test_it_finds_the_contexts_that_nobody_labelled(fitted):
    assert fitted.score(TEST_X, TEST_Y) > 0.9
    high = np.nanmean(TEST_X, axis=1) > 2
    found = fitted.routing(TEST_X)["contexts"].dense().argmax(1).numpy() == 1
    assert max(np.mean(found == high), np.mean(found != high)) > 0.95


def test_steps_of_nan_make_a_shorter_sequence_and_steps_are_major():
    generator = np.random.default_rng(0)
    steps, y = generator.standard_normal((40, 6, 2)), np.arange(40) % 2
    steps[:, :, 0] += y[:, None]
    steps[:, :, 1] += 5
    lengths = generator.integers(3, 7, 40)
    steps[np.arange(6) >= lengths[:, None]] = np.nan
    model = YukselGaderHMM.tiny().set_params(features=2).fit(steps.reshape(40, 12), y)
    ragged = [s[:n] for s, n in zip(steps, lengths, strict=True)]
    twin = HmmExpertsClassifier(n_states=2, max_iter=8, start_iter=3, tol=1e-2, random_state=0).fit(ragged, y)
    np.testing.assert_array_equal(model.predict_proba(steps.reshape(40, 12)), twin.predict_proba(ragged))
    assert model.estimator_.n_features_in_ == 2
    np.testing.assert_allclose(model.estimator_.scaling_.mean[1], 5, atol=0.5)


@pytest.mark.parametrize(
    ("columns", "features"), [([0], 1), ([2], 1), ([6], 2), (range(8), 1)], ids=["first", "middle", "half", "all"]
)
def test_gaps_that_are_no_end_are_refused(columns, features):
    x = np.nan_to_num(X)
    x[3, list(columns)] = np.nan
    with pytest.raises(RoutingError, match=r"first: 3"):
        YukselGaderHMM.tiny().set_params(features=features).fit(x, Y)


@pytest.mark.parametrize("settings", [{"features": 3}, {"features": 0}, {"gate": "soft"}, {"n_states": 0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ConfigError):
        YukselGaderHMM.tiny().set_params(**settings).fit(X, Y)


def test_the_estimator_knows_its_gates():
    with pytest.raises(ConfigError, match="uniform"):
        HmmExpertsClassifier(gate="learned").fit([np.zeros((2, 1))] * 2, [0, 1])


def test_the_dense_control_has_all_states_in_one_pair(fitted):
    dense = YukselGaderHMM.tiny().control("dense").fit(X, Y)
    parts = fitted.estimator_.mixture_
    states = sum(part.models.mean.shape[0] * part.models.mean.shape[1] for part in (parts.gate, *parts.experts))
    (expert,) = dense.estimator_.mixture_.experts
    assert expert.models.mean.shape[:2] == (2, states // 2) == (2, 6)
    np.testing.assert_array_equal(dense.routing(TEST_X)["contexts"].dense().numpy(), 1)
    assert "wide" in dense.exempt
    with pytest.raises(ConfigError, match="no control"):
        dense.control("wide")


@pytest.mark.parametrize("gate", ["uniform", "random"])
def test_controls_ask_experts_that_learned_under_the_same_gate(gate):
    model = YukselGaderHMM.tiny().control(gate).fit(X, Y)
    routing = model.routing(TEST_X)["contexts"]
    data = model.estimator_._read(model._sequences(TEST_X))
    experts = np.exp(np.stack([e.log_proba(data) for e in model.estimator_.mixture_.experts], axis=1))
    weight = routing.dense().numpy()
    np.testing.assert_allclose(model.predict_proba(TEST_X), np.einsum("se,sec->sc", weight, experts))
    if gate == "uniform":
        np.testing.assert_allclose(weight, 0.5)
    else:
        assert routing.fixed_k == 1
        assert 20 < routing.load()[0] < 60
        np.testing.assert_array_equal(weight.max(axis=1), 1)
    trace = model.estimator_.objective_trace_
    assert np.isfinite(trace).all()
    assert (np.diff(trace) >= 0).all()


def test_a_drawn_expert_does_not_depend_on_the_longest_neighbour():
    generator = np.random.default_rng(0)
    rows = [generator.standard_normal((n, 2)) for n in (3, 5, 4)]
    gate = FixedGate(5, seed=1)
    together = gate.log_proba(read_sequences(rows)).argmax(axis=1)
    assert [int(gate.log_proba(read_sequences([row])).argmax()) for row in rows] == together.tolist()


def test_it_is_pickled_and_stored_with_types_of_ours_alone(fitted):
    """scikit-learn's check of pickles strews NaN, so it is exempt; here is ours."""
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(TEST_X), fitted.predict_proba(TEST_X))
    assert all(name.startswith("terramoe.") for name in get_untrusted_types(data=dumps(fitted)))


# --------------------------------------------------------------------------------------------------------------- claim


def test_false_alarms_at_the_threshold_that_finds_nine_of_ten():
    mine = np.repeat([1, 0], [10, 5])
    score = np.array([9, 9, 9, 9, 9, 9, 9, 9, 5, 1, 8, 5, 4, 3, 0.0])
    assert claim.false_alarms(mine, score) == 40  # threshold 5: 9 mines, and two of five that are none
    assert claim.false_alarms(mine, mine.astype(float)) == 0
    assert claim.false_alarms(mine, np.zeros(15)) == 100


def test_what_the_gate_knows_of_the_soil():
    soil = np.random.default_rng(0).integers(0, 2, 400)
    found = claim.soil_found(1 - soil, soil, 0)
    assert found["soil_share"] == pytest.approx(100)
    assert found["soil_above_chance"] > 95
    other = claim.soil_found(np.random.default_rng(1).integers(0, 2, 400), soil, 0)
    assert other["soil_share"] < 2
    assert claim.soil_found(np.zeros(400, dtype=int), soil, 0) == {"soil_share": 0, "soil_above_chance": 0}


def test_alarms_that_test_are_others_and_the_plain_mixture_sees_means(monkeypatch):
    monkeypatch.setattr(claim, "ALARMS", 20)
    claim.alarms.cache_clear()
    train, test = claim.alarms(0)
    claim.alarms.cache_clear()
    assert train.sequences.shape == test.sequences.shape == (20, 15, 4)
    assert np.isfinite(train.sequences).all()
    assert not np.isin(test.sequences[:, 0, 0], train.sequences[:, 0, 0]).any()
    np.testing.assert_array_equal(claim.rows_of("plain mixture", test.sequences), test.sequences.mean(axis=1))
    assert set(claim.CLAIM.variants) >= {"routed", *YukselGaderHMM.controls}
    for variant in claim.CLAIM.variants:
        assert claim.model_of(variant, 0).get_params()["random_state"] == 0
