"""PhA-MoE: likelihood and spread in the unit of the targets, the kept step, the terms of the loss, the claim."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import lognorm
from sklearn.base import clone
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from terramoe.errors import ConfigError, DataError
from terramoe.experiments.claims.pha_moe import BANDS, CLAIM, REAL_CLAIM, cultured, simulated
from terramoe.systems.pha_moe import LAYER, LogMinMax, PhAMoE


@pytest.fixture(scope="module")
def table():
    return PhAMoE.tiny_table(120, 0)


@pytest.fixture(scope="module")
def fitted(table):
    return PhAMoE.tiny().fit(*table)


class Watched(PhAMoE):
    """Remembers the weights before each step, and takes steps that are far too long from the 30th on."""

    def before_step(self, network, step, random):
        if step == 0:
            self.seen = []
        self.seen.append({name: value.clone() for name, value in network.state_dict().items()})

    def schedule(self, step):
        return 1.0 if step < 30 else 30.0


def test_kept_weights_are_those_of_the_best_step_and_not_the_last(table):
    """The released code's best state is an alias of the live weights, so that its last epoch is what is saved."""
    system = Watched(**PhAMoE.tiny().set_params(steps=40, validation=0.3).get_params()).fit(*table)
    step, looks = system.best_step_, system.trace_
    assert step < 40
    assert step == looks[np.argmin(looks[:, 2]), 0]
    kept = system.network_.state_dict()
    assert all(value.equal(kept[name]) for name, value in system.seen[step].items())
    assert any(not value.equal(kept[name]) for name, value in system.seen[-1].items())


def law_of(system, X):
    """torch's distribution of the scaled targets."""
    with torch.no_grad():
        found = system.network_.head.unpack(system.output(X).prediction)
    parts = MultivariateNormal(found.mean.double(), scale_tril=found.factor.double())
    return MixtureSameFamily(Categorical(logits=found.log_weight.double()), parts), found


def test_spread_is_that_of_a_mixture_of_log_normals(fitted, table):
    X = table[0][:5]
    law, _ = law_of(fitted, X)
    parts, scaler = law.component_distribution, fitted.y_scaler_
    logs = lognorm(
        s=np.sqrt(parts.variance.numpy()) * scaler.range_,
        scale=np.exp(parts.mean.numpy() * scaler.range_ + scaler.low_),
    )
    weight = law.mixture_distribution.probs.numpy()[..., None]
    first, second = ((weight * moment).sum(1) for moment in (logs.mean(), logs.var() + logs.mean() ** 2))
    np.testing.assert_allclose(fitted.predict_std(X), np.sqrt(second - first**2), rtol=1e-4)


def test_density_is_in_the_unit_of_the_targets(table):
    X, y = table
    system = PhAMoE.tiny().fit(X, y[:, 0])
    grid = np.exp(np.linspace(np.log(1e-4), np.log(1e4), 4001))
    density = np.exp(system.log_density(np.repeat(X[:1], len(grid), axis=0), grid))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)
    mean = np.trapezoid(density * grid, grid)
    spread = np.sqrt(np.trapezoid(density * (grid - mean) ** 2, grid))
    assert system.predict_std(X[:1])[0] == pytest.approx(spread, rel=1e-2)


def test_other_units_change_neither_the_answer_nor_the_fit(fitted, table):
    """Logarithms make factors offsets, which the range takes out."""
    X, y = table
    scaled = clone(fitted).fit(X, 1000 * y)
    np.testing.assert_allclose(scaled.predict(X), 1000 * fitted.predict(X), rtol=1e-3)
    np.testing.assert_allclose(scaled.predict_std(X), 1000 * fitted.predict_std(X), rtol=1e-3)
    np.testing.assert_allclose(
        scaled.log_density(X, 1000 * y), fitted.log_density(X, y) - 3 * np.log(1000), rtol=0, atol=0.05
    )


def test_answer_is_the_likeliest_component_or_the_mean(table):
    system = PhAMoE.tiny().fit(*table)
    X = table[0]
    law, found = law_of(system, X)
    likeliest = found.mean[torch.arange(len(X)), found.log_weight.argmax(-1)].numpy()
    np.testing.assert_allclose(system.predict(X), system.y_scaler_.inverse_transform(likeliest), rtol=1e-5)
    system.set_params(answer="mean")
    np.testing.assert_allclose(system.predict(X), system.y_scaler_.inverse_transform(law.mean.numpy()), rtol=1e-5)


def test_loss_has_the_penalty_of_the_network_alone_and_load_in_training_alone(fitted, table):
    network = fitted.network_
    x = fitted._rows(table[0])
    target = fitted._tensor(fitted.y_scaler_.transform(table[1]))
    law, _ = law_of(fitted, table[0])
    terms = fitted.loss(network(x), target, network)
    assert set(terms) == {"task", "l2", "importance"}
    torch.testing.assert_close(terms["task"].double(), -law.log_prob(target.double()).mean(), rtol=1e-4, atol=1e-4)
    squares = sum(float((p.detach() ** 2).sum()) for p in network.mlp.parameters())
    assert float(terms["l2"].detach()) == pytest.approx(1e-3 * squares, rel=1e-5)
    network.train()
    try:
        noisy = fitted.loss(network(x), target, network)
    finally:
        network.eval()
    assert set(noisy) == set(PhAMoE.loss_terms)
    grads = torch.autograd.grad(noisy["load"], list(network.embedding.scorer.parameters()))
    assert all(g.abs().sum() > 0 for g in grads)


def test_gate_starts_even_and_learns(fitted, table):
    fresh = PhAMoE.tiny().set_params(steps=1, learning_rate=1e-12).fit(*table)
    assert fresh.routing(table[0])[LAYER].probs.std() < 1e-6
    routing = fitted.routing(table[0])[LAYER]
    assert routing.probs.std(0).min() > 1e-3
    assert ((routing.dense() > 0).sum(1) == 2).all()
    torch.testing.assert_close(routing.dense().sum(1), torch.ones(len(table[0])))


def test_one_expert_of_several_still_teaches_the_gate(table):
    system = PhAMoE.tiny().set_params(top_k=1, balance=0.0).fit(*table)
    assert system.routing(table[0])[LAYER].probs.std(0).max() > 1e-4


def test_twins_have_the_size_of_what_a_row_uses_and_of_all(table):
    def embedding(name):
        system = PhAMoE.tiny().set_params(steps=1).control(name).fit(*table)
        return sum(p.numel() for p in system.network_.embedding.bank.parameters())

    routed = embedding("routed")  # offsets of the second layer are one set instead of E
    assert embedding("wide") == pytest.approx(routed, abs=2 * 8)
    assert embedding("dense") == pytest.approx(routed * 2 / 3, abs=2 * 8)


def test_targets_are_scaled_by_their_logarithms():
    y = np.array([[1.0, 5.0], [10.0, 5.0], [100.0, 5.0]])
    scaler = LogMinMax().fit(y)
    np.testing.assert_allclose(scaler.transform(y), [[0, 0], [0.5, 0], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(scaler.inverse_transform(scaler.transform(y)), y)


@pytest.mark.parametrize("bad", [0.0, -0.1])
def test_targets_that_have_no_logarithm_are_refused(bad, fitted, table):
    X, y = table
    y = y.copy()
    y[3, 1] = bad
    with pytest.raises(DataError, match="1 of"):
        PhAMoE.tiny().fit(X, y)
    with pytest.raises(DataError):
        fitted.log_density(X, y)
    with pytest.raises(DataError):
        fitted.log_density(X, table[1][:, :2])


@pytest.mark.parametrize(
    "settings", [{"top_k": 4}, {"top_k": 0}, {"depth": 0}, {"answer": "best"}, {"l2": -1.0}, {"covariance": "round"}]
)
def test_impossible_settings_are_refused(settings, table):
    with pytest.raises(ConfigError):
        PhAMoE.tiny().set_params(**settings).fit(*table)


def test_diagonal_covariance_fits_too(table):
    system = PhAMoE.tiny().set_params(covariance="diagonal").fit(*table)
    assert np.isfinite(system.predict_std(table[0])).all()


def test_claim_trains_and_tests_on_other_stations_and_waters():
    waters = simulated(0)
    assert waters.train.reflectance.shape == waters.test.reflectance.shape == (1000, len(BANDS))
    assert not np.isin(waters.test.chlorophyll, waters.train.chlorophyll).any()
    for claim in (CLAIM, REAL_CLAIM):
        assert {v for s in claim.statements for v in ((s.a, s.b) if hasattr(s, "a") else (s.variant,))} <= set(
            claim.variants
        )


def test_measured_cultures_of_test_waters_are_of_unseen_experiments():
    if not (Path(os.environ.get("TERRAMOE_DATA", "")) / "geo/phyto_acs").is_dir():
        pytest.skip("the cultures are not at hand (TERRAMOE_DATA)")
    waters = cultured(0)
    assert waters.train.species.max() == 2  # three experiments, two others
    assert waters.test.species.max() == 1
    assert (waters.train.phytoplankton > 0).all()
    shapes = [w.phytoplankton / w.phytoplankton.max(axis=1, keepdims=True) for w in waters]
    nearest = np.abs(shapes[1][:200, None] - shapes[0][None]).max(-1).min(1)
    assert nearest.min() > 0


def test_cultures_that_are_missing_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TERRAMOE_DATA", str(tmp_path))
    with pytest.raises(DataError, match="cultures"):
        cultured(-1)
