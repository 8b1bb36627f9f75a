"""Runs on tables: folds that are apart, training that never sees a test row, comparisons, and what is stored."""

import json
from dataclasses import replace

import numpy as np
import pytest

from terramoe.data.row_table import RowTable
from terramoe.errors import ConfigError, DataError, SplitError
from terramoe.experiments.row_evaluate import evaluate_rows
from terramoe.experiments.row_plan import RowPlan
from terramoe.experiments.row_split import RowSplitSettings, kind_of, row_folds
from terramoe.experiments.row_study import run_rows
from terramoe.inference.row_predictor import load_row_predictor
from terramoe.storage import estimator_file
from terramoe.systems.table_registry import TABLE_SYSTEMS


@pytest.fixture(autouse=True)
def _linear(monkeypatch):
    monkeypatch.setitem(TABLE_SYSTEMS, "linear", ("linear_rows", "LinearRows"))
    monkeypatch.setattr(estimator_file, "OURS", ("terramoe.", "linear_rows."))


def make_table(rows=300, seed=0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 3))
    target = np.abs(features[:, 0]) + features[:, 1] + 0.1 * generator.normal(size=rows)
    return RowTable(
        name="made",
        features=features,
        feature_names=("a", "b", "c"),
        targets=target[:, None],
        target_names=("y",),
        places=generator.uniform([0, 45], [10, 55], size=(rows, 2)),
        degrees=True,
        times=np.sort(generator.uniform(0, 1000, rows)),
        groups=generator.integers(0, 12, rows).astype(str),
    )


PLAN = RowPlan("linear", seeds=2, split=RowSplitSettings(kind="group", folds=3))


@pytest.mark.parametrize("kind", ["block", "group", "time", "random"])
def test_folds_are_apart(kind):
    table = make_table()
    folds = row_folds(RowSplitSettings(kind=kind, folds=3), table)
    assert len(folds) == (1 if kind == "time" else 3)
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        assert len(fold.unit) == len(fold.test)
        if kind == "group":
            assert not set(table.groups[fold.train]) & set(table.groups[fold.test])
        if kind == "time":
            assert table.times[fold.train].max() < table.times[fold.test].min()
    if kind != "time":
        tested = np.sort(np.concatenate([fold.test for fold in folds]))
        np.testing.assert_array_equal(tested, np.arange(len(table)))


def test_a_guard_keeps_training_rows_away():
    table = make_table()
    near = row_folds(RowSplitSettings(kind="block", folds=3), table)[0]
    far = row_folds(RowSplitSettings(kind="block", folds=3, guard=50_000), table)[0]
    assert set(far.train) < set(near.train)
    timed = row_folds(RowSplitSettings(kind="time", folds=4, time_guard=100), table)[0]
    assert table.times[timed.test].min() - table.times[timed.train].max() > 100


def test_auto_takes_what_the_table_has():
    table = make_table()
    assert kind_of(RowSplitSettings(), table) == "group"
    table = replace(table, groups=None)
    assert kind_of(RowSplitSettings(), table) == "block"
    table = replace(table, places=None)
    assert kind_of(RowSplitSettings(), table) == "time"
    table = replace(table, times=None)
    with pytest.raises(SplitError, match="neither groups"):
        kind_of(RowSplitSettings(), table)
    with pytest.raises(SplitError, match="needs --group"):
        kind_of(RowSplitSettings(kind="group"), table)
    with pytest.raises(SplitError, match="folds"):
        row_folds(RowSplitSettings(kind="random", folds=1), table)


def test_the_lines_beat_one_line_and_the_report_of_numbers_is_right(tmp_path):
    study = run_rows(PLAN, make_table(), tmp_path)
    routed, dense = (study.scores[name].values["y"] for name in ("routed", "dense"))
    assert routed.rmse.value == pytest.approx(0.1, abs=0.02)
    assert dense.rmse.value > 0.4
    assert 0.8 < routed.coverage <= 1
    found = study.comparisons["dense"]
    assert found.verdict == "better"
    assert found.difference.value == pytest.approx(100 * (routed.rmse.value / dense.rmse.value - 1))
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["scores"]["routed"]["values"]["y"]["rmse"]["value"] == pytest.approx(routed.rmse.value)


def test_training_never_sees_a_test_row(tmp_path):
    table = make_table()
    fold = row_folds(PLAN.split, table)[0]
    study = run_rows(replace(PLAN, seeds=1), table, tmp_path / "a")
    features, targets = table.features.copy(), table.targets.copy()
    features[fold.test] += 100
    targets[fold.test] -= 100
    changed = replace(table, features=features, targets=targets)
    again = run_rows(replace(PLAN, seeds=1), changed, tmp_path / "b")
    np.testing.assert_array_equal(study.predictor.system.lines_, again.predictor.system.lines_)


def test_a_stopped_run_goes_on_and_other_settings_are_refused(tmp_path):
    table = make_table()
    whole = run_rows(PLAN, table, tmp_path / "a")
    again = run_rows(PLAN, table, tmp_path / "a")
    assert again.comparisons == whole.comparisons
    with pytest.raises(ConfigError, match="other settings or data"):
        run_rows(replace(PLAN, model={"bound": 0.5}), table, tmp_path / "a")
    with pytest.raises(ConfigError, match="other settings or data"):
        run_rows(PLAN, make_table(seed=1), tmp_path / "a")
    path = tmp_path / "a" / "runs" / "dense.1.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        run_rows(PLAN, table, tmp_path / "a")


def test_rows_that_lack_something_are_left_out_and_predicted_as_nothing(tmp_path):
    table = make_table()
    features, targets = table.features.copy(), table.targets.copy()
    features[3, 1], targets[5, 0] = np.nan, np.nan
    table = replace(table, features=features, targets=targets)
    study = run_rows(PLAN, table, tmp_path)
    assert study.left_out == 2
    assert len(study.table) == 298
    found = study.predictor.predict(table)
    assert np.isnan(found.values[3, 0])
    assert np.isnan(found.std[3, 0])
    assert found.experts["line"][3, 0] == -1
    others = np.arange(300) != 3
    assert np.isfinite(found.values[others]).all()
    np.testing.assert_array_equal(found.experts["line"][others, 0], features[others, 0] >= 0)
    few = replace(table, targets=np.full_like(targets, np.nan))
    with pytest.raises(DataError, match="0 of 300 rows"):
        run_rows(PLAN, few, tmp_path / "few")


def test_a_stored_model_is_scored_on_its_own_test_rows(tmp_path):
    table = make_table()
    study = run_rows(PLAN, table, tmp_path)
    digests = {"table": study.table.digest(), "numbers": study.table.numbers_digest()}
    study.predictor.save(tmp_path, {}, {"plan": PLAN.plain(), **digests})
    predictor = load_row_predictor(tmp_path)
    found = evaluate_rows(tmp_path, predictor, table)
    assert found.rows == len(study.fold.test)
    assert "test rows" in found.which
    first = study.prediction.values[:, 0] - table.targets[study.fold.test, 0]
    assert found.scores.values["y"].rmse.value == pytest.approx(np.sqrt(np.mean(first**2)))
    with pytest.raises(DataError, match="the table it was trained on"):  # its training rows could not be told
        evaluate_rows(tmp_path, predictor, replace(table, groups=None))
    elsewhere = evaluate_rows(tmp_path, predictor, make_table(seed=3))
    assert elsewhere.rows == 300
    with pytest.raises(DataError, match="targets"):
        evaluate_rows(tmp_path, predictor, replace(table, target_names=("z",)))
    with pytest.raises(DataError, match="features"):
        predictor.predict(replace(table, feature_names=("a", "b", "d")))


def test_classes_are_counted_and_one_that_never_trained_has_no_probability(tmp_path):
    generator = np.random.default_rng(0)
    kind = generator.integers(0, 3, 300)
    features = generator.normal(size=(300, 4)) + 2.0 * np.eye(4)[kind]
    group = generator.integers(0, 12, 300)
    group[kind == 2] = 3  # all of one class lie in one group
    table = RowTable(
        "made",
        features,
        tuple("abcd"),
        kind[:, None].astype(float),
        ("kind",),
        ("x", "y", "z"),
        groups=group.astype(str),
    )
    sizes = {"hidden": [8, 8], "shape": [3, 3], "som_epochs": 2, "max_iter": 60}
    plan = RowPlan("kussul", sizes, RowSplitSettings(kind="group", folds=3), seeds=3)
    study = run_rows(plan, table, tmp_path)
    runs = [json.loads((tmp_path / "runs" / f"routed.{seed}.json").read_text()) for seed in range(3)]
    counts = np.sum([np.sum(r["counts"], axis=0) for r in runs], axis=0)
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(kind))
    assert study.scores["routed"].accuracy.value == pytest.approx(counts.trace() / 300)
    right = study.prediction.values[:, 0] == kind[study.fold.test]
    assert study.scores["routed"].per_seed[0] == pytest.approx(right.mean())
    assert 0.5 < study.scores["routed"].accuracy.value < 0.95
    assert counts[2, 2] == 0  # the class is tested where it never trained
    without = next(n for n, fold in enumerate(row_folds(plan.split, table)) if 2 not in kind[fold.train])
    model = run_rows(replace(plan, seeds=1, seed=without), table, tmp_path / "one").predictor
    proba = model.predict(table).probability
    np.testing.assert_array_equal(proba[:, 2], 0)
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_plans_that_cannot_be(tmp_path):
    for change, what in (
        ({"seeds": 0}, "seeds"),
        ({"controls": ("oracle",)}, "no control"),
        ({"system": "none"}, "no table system"),
        ({"model": {"depth": 3}}, "no setting depth"),
        ({"model": {"random_state": 3}}, "random_state"),
    ):
        with pytest.raises(ConfigError, match=what):
            run_rows(replace(PLAN, **change), make_table(), tmp_path)
    with pytest.raises(DataError, match="no target"):
        run_rows(PLAN, replace(make_table(), targets=np.empty((300, 0)), target_names=()), tmp_path)
