"""Estimators on disk: whole or refused."""

import json

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from terramoe.errors import ModelFileError
from terramoe.mixtures import MixtureOfExpertsRegressor
from terramoe.storage import is_estimator, load_estimator, load_manifest, save_estimator, sha256_of


@pytest.fixture
def saved(tmp_path):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(60, 2))
    fitted = MixtureOfExpertsRegressor(2, random_state=0).fit(X, np.abs(X[:, 0]))
    save_estimator(tmp_path, fitted, system="x", settings={"n": 2}, data={"features": ["a", "b"]})
    return tmp_path, fitted, X


def test_round_trip_is_exact(saved):
    folder, fitted, X = saved
    stored = load_estimator(folder)
    np.testing.assert_array_equal(stored.estimator.predict(X), fitted.predict(X))
    assert (stored.system, stored.settings, stored.data) == ("x", {"n": 2}, {"features": ["a", "b"]})
    assert is_estimator(folder)
    assert is_estimator(folder / "model.skops")
    assert not is_estimator(folder / "model.json")


def test_damage_is_refused(saved):
    folder, _, _ = saved
    content = (folder / "model.skops").read_bytes()
    (folder / "model.skops").write_bytes(content[:-9])
    with pytest.raises(ModelFileError, match="damaged"):
        load_estimator(folder)
    (folder / "model.skops").unlink()
    with pytest.raises(ModelFileError, match="no model"):
        load_estimator(folder)
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | {"system": "another"}))
    with pytest.raises(ModelFileError, match="manifest is damaged"):
        load_manifest(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ModelFileError, match="cannot be read"):
        load_estimator(folder)


class Stranger(Ridge):
    """A type that nobody vouches for."""


def test_types_that_are_not_ours_are_never_built(tmp_path):
    fitted = Stranger().fit(np.eye(3), np.arange(3))
    save_estimator(tmp_path, fitted, system="x", settings={}, data={})
    with pytest.raises(ModelFileError, match="not trusted"):
        load_estimator(tmp_path)


def test_a_function_is_never_called_however_it_is_named(tmp_path):
    fitted = Ridge().fit(np.eye(3), np.arange(3))
    fitted.copy_X = sha256_of
    save_estimator(tmp_path, fitted, system="x", settings={}, data={})
    with pytest.raises(ModelFileError, match="not trusted"):
        load_estimator(tmp_path)
