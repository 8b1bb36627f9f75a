"""A small experiment from end to end, and what it must never do."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import rasterio
import yaml
from conftest import make_scene

from terramoe.data import BlockSplit
from terramoe.errors import ConfigError, DataError, SplitError
from terramoe.evaluation import overall_accuracy
from terramoe.experiments import (
    Plan,
    SplitSettings,
    assess,
    audit,
    check_plan,
    demo_plan,
    evaluate_model,
    metrics_csv,
    pool,
    run_experiment,
    train_on_scene,
    write_run,
)
from terramoe.reporting import class_colours
from terramoe.storage import RunFolder, load_model
from terramoe.training import TrainSettings

SMALL = {"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}


def make_plan(**changes):
    values = {
        "model": SMALL,
        "train": TrainSettings(steps=3, steps_per_epoch=2, batch=1, crop=32),
        "split": SplitSettings(block=8, guard=2),
        "seeds": 2,
        "twin": True,
    }
    return Plan(**{**values, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, scene):
    plan = make_plan()
    folder = RunFolder.create(tmp_path_factory.mktemp("run"))
    experiment = run_experiment(plan, scene, folder, audit(plan, scene))
    write_run(experiment, folder, class_colours(scene.classes))
    return experiment, folder


def test_each_seed_tests_its_own_fold_and_all_models_the_same(run, scene):
    experiment, _ = run
    expected = list(BlockSplit(3, 8, 2, 0).masks(scene.labels))
    for name, assessments in experiment.runs.items():
        assert [a.fold for a in assessments] == [0, 1], name
        for a in assessments:
            assert len(a.truth) == expected[a.fold].test.sum() == a.counts.sum()
            np.testing.assert_array_equal(a.truth, scene.labels[expected[a.fold].test])


def test_seeds_beyond_the_folds_share_blocks_and_are_drawn_together(scene):
    plan = make_plan(seeds=4, twin=False)
    folds = plan.folds(scene)
    assert folds[3].digest() == folds[0].digest()
    predictor, history = train_on_scene(plan, scene, folds[0], 0)
    one = assess(predictor, scene, folds[0], history, 0)
    twice = pool([one, dataclasses.replace(one, seed=3)])
    assert twice.overall == pool([one]).overall
    assert (twice.counts == 2 * pool([one]).counts).all()


def test_scores_follow_from_the_stored_probabilities(run):
    experiment, _ = run
    for name, scores in experiment.scores.items():
        parts = experiment.runs[name]
        right = sum(int((a.probability.argmax(1) + 1 == a.truth).sum()) for a in parts)
        total = sum(len(a.truth) for a in parts)
        assert scores.overall.value == pytest.approx(right / total)
        assert overall_accuracy(scores.counts) == scores.overall.value
        assert scores.overall.low <= scores.overall.value <= scores.overall.high


def test_training_never_reads_a_test_pixel(scene):
    """Whatever stands in test pixels, the trained weights are the same bits."""
    plan = make_plan()
    split = plan.folds(scene)[0]
    changed = np.where(split.test, np.float32(1e4), scene.image)
    other = dataclasses.replace(scene, image=changed)
    one, _ = train_on_scene(plan, scene, split, 0)
    two, _ = train_on_scene(plan, other, split, 0)
    for a, b in zip(one.system.parameters(), two.system.parameters(), strict=True):
        assert a.equal(b)
    assert one.normaliser == two.normaliser


def test_test_labels_do_not_influence_training(scene):
    plan = make_plan()
    split = plan.folds(scene)[0]
    labels = np.where(split.test, scene.labels % 3 + 1, scene.labels)
    one, _ = train_on_scene(plan, scene, split, 0)
    two, _ = train_on_scene(plan, dataclasses.replace(scene, labels=labels), split, 0)
    assert all(a.equal(b) for a, b in zip(one.system.parameters(), two.system.parameters(), strict=True))


def test_the_folder_holds_the_run(run, scene):
    experiment, folder = run
    names = {path.name for path in folder.path.iterdir()}
    maps = {f"{name}.tif" for name in ("prediction", "experts", "uncertainty")}
    assert names == maps | {f"{m}.sha256" for m in maps} | {
        "split.tif", "model.safetensors", "model.json", "config.yaml", "metrics.csv", "run.json"
    }  # fmt: skip
    card = json.loads(folder.card.read_text())
    assert card["plan"] == experiment.plan.plain()
    assert card["facts"]["split_digests"].keys() == {"0", "1"}
    assert card["comparison"]["verdict"] == experiment.comparison.verdict
    with rasterio.open(folder.split) as file:
        kinds = file.read(1)
        assert (kinds == 3).sum() == experiment.folds[0].test.sum()
        assert file.crs == scene.crs
    with rasterio.open(folder.path / "prediction.tif") as file:
        assert set(np.unique(file.read(1)[scene.valid])) <= set(scene.class_values)
        assert (file.read(1)[~scene.valid] == 0).all()


def test_the_configuration_makes_the_same_plan_again(run):
    experiment, folder = run
    values = yaml.safe_load(folder.config.read_text())
    values["train"], values["split"] = TrainSettings(**values["train"]), SplitSettings(**values["split"])
    assert Plan(**{**values, "reduced": tuple(values["reduced"])}) == experiment.plan


def test_metrics_have_a_row_a_run_and_agree_with_the_scores(run):
    experiment, _ = run
    rows = list(csv.DictReader(io.StringIO(metrics_csv(experiment))))
    assert [(r["variant"], r["seed"]) for r in rows] == [(v, s) for v in ("routed", "dense") for s in ("0", "1")]
    names = dict(zip(("routed", "dense"), experiment.runs, strict=True))
    for row in rows:
        score = experiment.scores[names[row["variant"]]].per_seed[int(row["seed"])]
        assert float(row["overall_accuracy"]) == pytest.approx(score, abs=1e-6)
        assert int(row["total"]) >= int(row["active"]) > 0


def test_the_twin_starts_from_the_same_data_and_has_equal_active_size(run):
    experiment, _ = run
    system, twin = (runs[0].cost.active for runs in experiment.runs.values())
    assert twin == pytest.approx(system, rel=0.03)


def test_evaluating_the_run_on_its_scene_gives_its_score_and_no_other_pixel(run, scene):
    experiment, folder = run
    found = evaluate_model(folder.path, scene)
    assert found.pixels == experiment.folds[0].test.sum()
    assert found.scores.overall.value == pytest.approx(experiment.scores["MambaMoE"].per_seed[0])
    assert "training pixels hidden" in found.which
    json.dumps(found.plain(), allow_nan=False)


def test_evaluating_on_another_scene_counts_all_labels(run):
    _, folder = run
    other = make_scene(seed=5)
    found = evaluate_model(folder.path, other)
    assert found.pixels == (other.labels > 0).sum()
    assert "not the scene" in found.which


def test_a_scene_that_lacks_a_class_is_scored_on_the_others(run):
    _, folder = run
    other = make_scene(seed=5)
    labels = np.where(other.labels == 2, 0, other.labels)
    labels[labels == 3] = 2
    partial = dataclasses.replace(other, labels=labels, class_values=(10, 30), class_names=("class 10", "class 30"))
    found = evaluate_model(folder.path, partial)
    assert set(found.plain()["recall"]) == {"class 10", "class 30"}


def test_unknown_label_values_are_refused(run):
    _, folder = run
    other = dataclasses.replace(make_scene(seed=5), class_values=(10, 20, 99))
    with pytest.raises(DataError, match=r"label values \[99\] are none of the model's"):
        evaluate_model(folder.path, other)


def test_the_same_plan_gives_the_same_model(run, scene, tmp_path):
    experiment, folder = run
    plan = dataclasses.replace(experiment.plan, seeds=1, twin=False)
    again = RunFolder.create(tmp_path)
    repeated = run_experiment(plan, scene, again, experiment.audits)
    write_run(repeated, again, class_colours(scene.classes))
    stored, expected = load_model(again.path).tensors, load_model(folder.path).tensors
    assert all(stored[name].equal(expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": TrainSettings(crop=64)}, DataError, "48 x 56 pixels, a crop 64 x 64.*--train.crop 48"),
        ({"model": {**SMALL, "depth": 3}}, ConfigError, "no setting depth"),
        ({"system": "nothing"}, ConfigError, "no system 'nothing'"),
        ({"split": SplitSettings(kind="magic")}, ConfigError, "no split 'magic'"),
        ({"split": SplitSettings(block=8, guard=40)}, SplitError, "no training"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_written(scene, changes, error, message):
    with pytest.raises(error, match=message):
        check_plan(make_plan(**changes), scene)


def test_an_empty_class_in_training_needs_leave(scene):
    labels = scene.labels.copy()
    labels[labels == 3] = 0
    labels[40:44, 40:44] = 3
    rare = dataclasses.replace(scene, labels=labels)
    plan = make_plan(seeds=3)
    with pytest.raises(SplitError, match="no training pixel is left of class 30.*--lenient true"):
        check_plan(plan, rare)
    check_plan(dataclasses.replace(plan, lenient=True), rare)


def test_the_demo_plan_says_what_it_reduced():
    plan = demo_plan()
    assert plan.twin
    assert plan.seeds == 3
    assert plan.split.kind == "block"
    assert len(plan.reduced) >= 3
