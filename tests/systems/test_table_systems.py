"""Every registered table system, by being registered."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from terramoe.errors import ConfigError
from terramoe.moe import MoELayer
from terramoe.storage import load_estimator, save_estimator
from terramoe.systems import CONTROLS
from terramoe.systems.network_system import NetworkSystem
from terramoe.systems.table_registry import TABLE_SYSTEMS, build_table_system, table_system_class

ROWS = 90
NETWORKS = [name for name in TABLE_SYSTEMS if issubclass(table_system_class(name), NetworkSystem)]
_fitted = {}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def table_of(name, seed=0, rows=ROWS):
    return table_system_class(name).tiny_table(rows, seed)


def fitted(name):
    """One fit per system is enough for most tests."""
    if name not in _fitted:
        _fitted[name] = table_system_class(name).tiny().set_params(random_state=0).fit(*table_of(name))
    return _fitted[name]


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_the_card_is_complete(name):
    cls = table_system_class(name)
    card = cls.card
    for value in (card.title, card.authors, card.task, card.sensors, card.provenance, card.reported):
        assert value
    assert 1985 <= card.year <= 2030
    assert card.reconstruction == bool(card.completions)
    assert card.survey_section
    assert card.survey_reference
    assert cls.task in ("classes", "values", "class and values")
    assert set(cls.controls) <= set(CONTROLS)
    assert all(cls.exempt.values())
    json.dumps(dataclasses.asdict(card))
    assert "random_state" in cls._get_param_names()


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_scikit_learns_checks(name):
    cls = table_system_class(name)
    reasons = {check: reason for check, reason in cls.exempt.items() if check.startswith("check_")}
    results = check_estimator(cls.tiny(), expected_failed_checks=reasons, on_fail=None, on_skip=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert not failed
    idle = set(reasons) - {r["check_name"] for r in results if r["status"] == "xfail"}
    assert not idle, f"exempt from checks that pass: {idle}"


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_predictions_have_the_shape_of_y_and_a_seed_decides_all(name):
    X, y = table_of(name)
    system = fitted(name)
    found = system.predict(X)
    assert found.shape == y.shape
    again = table_system_class(name).tiny().set_params(random_state=0).fit(X, y)
    np.testing.assert_array_equal(again.predict(X), found)
    if system.task != "classes":
        std = system.predict_std(X)
        assert std.shape == y.shape
        values = std if system.task == "values" else std[:, 1:]
        assert (values > 0).all()
    if system.task != "values":
        proba = system.predict_proba(X)
        np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
        classes = found if found.ndim == 1 else found[:, 0]
        np.testing.assert_array_equal(system.classes_[proba.argmax(axis=1)], classes)


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_it_learns_more_than_the_mean_or_the_commonest_class(name):
    cls = table_system_class(name)
    X, y = table_of(name)
    found = fitted(name).predict(X)
    if cls.task == "classes":
        assert (found == y).mean() > np.unique(y, return_counts=True)[1].max() / len(y)
    else:
        error, spread = ((found - y) ** 2).mean(axis=0), y.var(axis=0)
        assert (error < spread).all()


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_a_row_is_answered_alike_alone_and_in_company(name):
    X, _ = table_of(name)
    system = fitted(name)
    together = system.predict(X[:12])
    alone = np.concatenate([system.predict(row[None]) for row in X[:12]])
    backwards = system.predict(X[:12][::-1])[::-1]
    for found in (alone, backwards):
        if system.task == "classes":
            np.testing.assert_array_equal(found, together)
        else:
            np.testing.assert_allclose(found, together, rtol=1e-4, atol=1e-5 * np.abs(together).max())


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_routing_is_a_record_of_all_rows(name):
    X, _ = table_of(name)
    records = fitted(name).routing(X[:20])
    assert records
    for layer, record in records.items():
        dense = record.dense().numpy()
        names = fitted(name).expert_names(layer)
        assert dense.shape[0] % 20 == 0
        assert dense.shape[1] == len(names) == len(set(names))
        assert (dense >= 0).all()
        assert (dense.sum(axis=1) <= 1 + 1e-5).all()
        assert record.load().sum() > 0


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_storage_keeps_every_bit(name, tmp_path):
    X, _ = table_of(name)
    system = fitted(name)
    save_estimator(tmp_path, system, system=name, settings={}, data={})
    stored = load_estimator(tmp_path).estimator
    np.testing.assert_array_equal(stored.predict(X), system.predict(X))
    for layer, record in stored.routing(X).items():
        assert torch.equal(record.dense(), system.routing(X)[layer].dense())
    again = save_estimator(tmp_path / "b", stored, system=name, settings={}, data={})
    np.testing.assert_array_equal(load_estimator(again).estimator.predict(X), system.predict(X))


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_its_controls_fit_and_predict(name):
    X, y = table_of(name)
    system = table_system_class(name).tiny().set_params(random_state=0)
    for control in (*system.controls, "routed"):
        twin = system.control(control)
        assert twin is not system
        assert type(twin) is type(system)
        found = twin.fit(X, y).predict(X)
        assert found.shape == y.shape
        assert system.task == "classes" or np.isfinite(found).all()
        if control in ("uniform", "random"):
            answer = "predict" if system.task != "classes" else "predict_proba"
            same = np.array_equal(getattr(twin, answer)(X), getattr(fitted(name), answer)(X))
            assert not same, f"{control} changes nothing"
    for missing in {"dense", "wide", "uniform", "random"} - set(system.controls):
        assert missing in system.exempt, f"say in exempt why there is no {missing}"
        with pytest.raises(ConfigError):
            system.control(missing)
    with pytest.raises(ConfigError):
        system.control("oracle")


@pytest.mark.parametrize("name", TABLE_SYSTEMS)
def test_a_missing_value_is_refused_or_harms_its_own_row_alone(name):
    X, y = table_of(name)
    system = fitted(name)
    hurt = X[:10].copy()
    hurt[3, 0] = np.nan
    if not system.readable(hurt)[3]:
        np.testing.assert_array_equal(system.readable(hurt), np.arange(10) != 3)
        with pytest.raises(ValueError, match="NaN"):
            system.predict(hurt)
        with pytest.raises(ValueError, match="NaN"):  # RoutingError is one, with a fix
            clone(system).fit(np.where(np.arange(len(X))[:, None] == 3, np.nan, X), y)
        return
    others = np.arange(10) != 3
    np.testing.assert_array_equal(system.predict(hurt)[others], system.predict(X[:10])[others])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_task_moves_the_router_and_so_does_each_auxiliary_loss(name):
    """Routers whose weights start at zero get their gradient once they are off it, so all weights are drawn anew."""
    system = fitted(name)
    X, y = table_of(name)
    network = system._build(1).train()
    routers = [layer.scorer for layer in network.modules() if isinstance(layer, MoELayer)]
    parameters = [p for router in routers for p in router.parameters()]
    if not parameters:
        assert "router" in system.exempt
        pytest.skip(system.exempt["router"])
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    target = torch.as_tensor(system.y_scaler_.transform(y.reshape(len(y), -1)), dtype=torch.float32)
    terms = system.loss(network(system._rows(X)), target, network)
    assert set(terms) <= set(system.loss_terms)
    for term, value in terms.items():
        if term in system.exempt:
            continue
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        moved = sum(float(g.abs().sum()) for g in gradients if g is not None)
        assert moved > 0, f"{term} does not reach the router"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_that_trains_moves(name):
    system = clone(fitted(name))
    X, y = table_of(name)
    system.fit(X, y)
    start = system._build(0)
    begun = clone(system).set_params(steps=1).fit(X, y).network_.state_dict()
    still = [
        key
        for key, p in system.network_.named_parameters()
        if p.requires_grad and torch.equal(p, begun[key]) and p.shape == dict(start.named_parameters())[key].shape
    ]
    allowed = {key for key in still if any(key.startswith(part) for part in system.exempt)}
    assert set(still) == allowed


def test_a_model_of_a_machine_with_more_devices_is_read_on_the_cpu():
    X, y = table_of("pha-moe")
    here = fitted("pha-moe")
    state = here.__getstate__() | {"device": "cuda:7"}
    read = table_system_class("pha-moe").__new__(table_system_class("pha-moe"))
    read.__setstate__(state)
    assert read.device == "cpu"
    np.testing.assert_array_equal(read.predict(X), here.predict(X))
    with pytest.raises(ConfigError, match="device"):
        clone(here).set_params(device="cuda:7").fit(X, y)


def test_unknown_settings_and_systems():
    with pytest.raises(ConfigError, match="no table system"):
        build_table_system("none", {})
    with pytest.raises(ConfigError, match="no setting depths"):
        build_table_system("pha-moe", {"depths": 3})
    for setting, value in (("steps", 0), ("batch", 0), ("learning_rate", 0), ("validation", 1), ("gate", "none")):
        with pytest.raises(ConfigError, match=setting):
            table_system_class("pha-moe").tiny().set_params(**{setting: value}).fit(*table_of("pha-moe"))
