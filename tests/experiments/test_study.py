"""Studies: the same folds and seeds for every variant, resumable run by run, and a summary checked by hand."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from terramoe.data import BlockSplit
from terramoe.errors import ConfigError, ModelFileError
from terramoe.evaluation import Cost
from terramoe.experiments import Plan, SplitSettings
from terramoe.experiments import study as study_module
from terramoe.experiments.diff import diff_cards, read_card
from terramoe.experiments.record import RunRecord, load_record
from terramoe.experiments.study import Variant, run_study, with_controls
from terramoe.experiments.study_summary import summarise_study
from terramoe.moe import LayerStatistics
from terramoe.systems import CONTROLS
from terramoe.training import TrainSettings

SMALL = {"width": 16, "expert_widths": (2, 3, 4, 5), "state": 4, "head_width": 8, "window": 2}


def make_plan(**changes):
    values = {
        "model": SMALL,
        "train": TrainSettings(steps=2, steps_per_epoch=2, batch=1, crop=32),
        "split": SplitSettings(block=8, guard=2),
        "seeds": 2,
    }
    return Plan(**{**values, **changes})


@pytest.fixture(scope="module")
def study(tmp_path_factory, scene):
    folder = tmp_path_factory.mktemp("study")
    return run_study(make_plan(), with_controls("mambamoe", ensemble=2), scene, folder), folder


def test_every_variant_is_tested_on_the_same_blocks_of_the_same_folds(study, scene):
    records, _ = study
    folds = list(BlockSplit(3, 8, 2, 0).masks(scene.labels))
    names = ["routed", *CONTROLS, "ensemble"]
    assert [(r.seed, r.variant) for r in records] == [(seed, name) for seed in (0, 1) for name in names]
    for record in records:
        test = folds[record.seed].test
        np.testing.assert_array_equal(record.blocks, np.unique(folds[record.seed].blocks[test]))
        truth = [(scene.labels[test] == k).sum() for k in range(1, scene.classes + 1)]
        np.testing.assert_array_equal(record.counts.sum((0, 2)), truth)


def test_variants_differ_and_cost_what_they_should(study):
    records, _ = study
    first = {r.variant: r for r in records if r.seed == 0}
    assert len({r.brier for r in first.values()}) == len(first)
    flops = {name: r.cost.flops for name, r in first.items()}
    assert flops["uniform"] > flops["random"] > 0  # four experts against two
    assert flops["ensemble"] == pytest.approx(2 * flops["dense"])
    assert first["ensemble"].cost.total == 2 * first["dense"].cost.total
    assert first["wide"].cost.total > first["dense"].cost.total


def test_every_seed_may_test_every_fold(scene, tmp_path):
    records = run_study(make_plan(), [Variant("mambamoe")], scene, tmp_path, every_fold=True)
    assert [(r.seed, r.fold) for r in records] == [(s, f) for s in (0, 1) for f in (0, 1, 2)]
    tested = sum(r.counts.sum() for r in records)
    assert tested == 2 * (scene.labels > 0).sum()


def test_records_come_back_as_they_were(study):
    records, folder = study
    for record in records:
        again = load_record(folder / "runs" / f"{record.system}.{record.variant}.{record.seed}.{record.fold}.json")
        np.testing.assert_array_equal(again.counts, record.counts)
        plain = ("counts", "blocks")
        assert {k: v for k, v in vars(again).items() if k not in plain} == {
            k: v for k, v in vars(record).items() if k not in plain
        }
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [r["variant"] for r in rows] == [r.variant for r in records]


def test_a_finished_run_is_not_trained_again_and_a_lost_one_is(study, scene, monkeypatch):
    records, folder = study
    trained = []
    original = study_module._train
    monkeypatch.setattr(
        study_module,
        "_train",
        lambda plan, variant, *rest: trained.append(variant.name) or original(plan, variant, *rest),
    )
    lost = folder / "runs" / "mambamoe.random.1.1.json"
    lost.unlink()
    again = run_study(make_plan(), with_controls("mambamoe", ensemble=2), scene, folder)
    assert trained == ["random"]
    for one, other in zip(records, again, strict=True):
        np.testing.assert_array_equal(one.counts, other.counts)


def test_other_settings_data_or_damage_are_refused(study, scene):
    _, folder = study
    variants = with_controls("mambamoe", ensemble=2)
    with pytest.raises(ConfigError, match="made with another train.*another folder"):
        run_study(make_plan(train=TrainSettings(steps=9, batch=1, crop=32)), variants, scene, folder)
    with pytest.raises(ConfigError, match="made with another scene"):
        run_study(make_plan(), variants, replace(scene, image=scene.image + 1), folder)
    with pytest.raises(ConfigError, match="made with another split"):
        run_study(make_plan(split=SplitSettings(block=8, guard=1)), variants, scene, folder)
    path = folder / "runs" / "mambamoe.routed.0.0.json"
    text = path.read_text()
    path.write_text(text[:-40])
    with pytest.raises(ModelFileError, match="damaged.*delete it"):
        run_study(make_plan(), variants, scene, folder)
    path.write_text(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_controls("mambamoe", ["magic"]), "no control 'magic'.*dense, wide"),
        (lambda: with_controls("mambamoe", ensemble=1), "ensemble of 1"),
    ],
)
def test_bad_variants(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_bad_system_stops_before_anything_is_written(scene, tmp_path):
    with pytest.raises(ConfigError, match="no system 'nothing'"):
        run_study(make_plan(), [Variant("mambamoe"), Variant("nothing")], scene, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def made_record(system, variant, seed, correct, blocks=12, pixels=100):
    """Two classes; ``correct`` of ``pixels`` pixels right in every block of class 1."""
    counts = np.zeros((blocks, 2, 2), dtype=np.int64)
    counts[:, 0, 0], counts[:, 0, 1], counts[:, 1, 1] = correct, pixels - correct, pixels
    layer = LayerStatistics((0.5, 0.5), (0.5, 0.5), 0.6, 2.0, 0, 0.0, 10, 10)
    cost = Cost(100, 50, 7.0, 1.0, 1.0, 10.0)
    return RunRecord(
        system, variant, seed, 0, "block", 10, 200, counts, np.arange(blocks), 0.1, 0.2, 1.0, cost, {"a": layer}, {}
    )


def test_the_summary_by_hand():
    right = {("one", "routed"): 90, ("one", "dense"): 80, ("two", "routed"): 90, ("two", "dense"): 90}
    records = [made_record(s, v, seed, c + 2 * seed) for seed in range(3) for (s, v), c in right.items()]
    summary = summarise_study(records, rope=1.0)
    assert list(summary.scores) == ["one", "one, dense", "two", "two, dense"]
    assert summary.scores["one"].per_seed == pytest.approx((0.95, 0.96, 0.97))
    assert summary.scores["one"].spread == pytest.approx(0.01)
    better = summary.controls["one"].comparisons["one", "one, dense"]
    assert better.overall.value == pytest.approx(5)
    assert better.verdict == "better"
    assert summary.controls["two"].comparisons["two", "two, dense"].verdict == "tie"
    assert summary.systems.comparisons["one", "two"].overall.value == pytest.approx(0)
    assert (summary.tallies["one"].wins, summary.tallies["two"].ties) == (1, 1)
    json.dumps(summary.plain(), allow_nan=False)


def test_one_variant_has_nothing_to_be_compared_with():
    summary = summarise_study([made_record("one", "routed", seed, 90) for seed in range(2)])
    assert not summary.controls
    assert summary.systems is None


def test_a_study_has_a_card_that_names_what_changed(study, scene, tmp_path):
    _, folder = study
    one = read_card(folder)
    run_study(
        make_plan(train=TrainSettings(steps=1, batch=1, crop=32), seeds=1), [Variant("mambamoe")], scene, tmp_path
    )
    changed = {change.key for change in diff_cards(one, read_card(tmp_path))}
    assert {"plan.train.steps", "plan.seeds"} <= changed
    assert not any(key.startswith("facts.data") for key in changed)
