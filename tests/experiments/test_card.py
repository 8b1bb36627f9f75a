"""The card of a run: complete, true to what was trained, plain JSON, and silent about who ran it."""

import dataclasses
import json
import math

import numpy as np
import pytest

import terramoe
from terramoe.experiments import Plan, SplitSettings, assemble, audit, build_for, run_experiment, write_run
from terramoe.experiments.card import plain, routing_of
from terramoe.experiments.environment import git_commit, source_digest, versions
from terramoe.moe import FixedCapacity, LinearScorer, MoELayer, NoisyScorer, StackedFFN, TopK, links, weighing
from terramoe.moe.soft import SoftMoELayer
from terramoe.reporting import class_colours
from terramoe.storage import RunFolder
from terramoe.training import TrainSettings

SMALL = {"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}
PLAN = Plan(
    model=SMALL,
    train=TrainSettings(steps=2, steps_per_epoch=2, batch=1, crop=32),
    split=SplitSettings(block=8, guard=2),
    seeds=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, scene):
    folder = RunFolder.create(tmp_path_factory.mktemp("run"))
    experiment = run_experiment(PLAN, scene, folder, audit(PLAN, scene))
    write_run(experiment, folder, class_colours(scene.classes))
    return experiment, json.loads(folder.card.read_text()), folder


def assembled(scene, plan=PLAN):
    system = build_for(plan, scene, 0)
    return assemble(plan, scene, plan.folds(scene), {"system": system})


def test_the_stored_card_is_what_was_assembled_before_any_training(run, scene):
    experiment, card, _ = run
    known = assemble(PLAN, scene, PLAN.folds(scene), {"MambaMoE": build_for(PLAN, scene, 0)})
    assert card["facts"] == known
    assert card["plan"] == json.loads(json.dumps(experiment.plan.plain()))
    assert json.loads(json.dumps(known, allow_nan=False)) == known


def test_it_tells_how_the_predictor_tiles_and_normalises(run):
    experiment, card, _ = run
    predictor, facts = experiment.predictor, card["facts"]
    assert facts["tiling"]["window"] == predictor.window
    assert facts["tiling"]["overlap"] == predictor.overlap
    fold = facts["normalisation"]["folds"][str(experiment.folds[0].fold)]
    assert tuple(fold["offset"]) == predictor.normaliser.offset
    assert tuple(fold["scale"]) == predictor.normaliser.scale
    assert len(facts["normalisation"]["folds"]) == 2


def test_it_tells_the_grid_and_the_data(run, scene):
    _, card, _ = run
    grid, data = card["facts"]["grid"], card["facts"]["data"]
    assert (grid["crs"], grid["unit"], grid["pixel_size"]) == ("EPSG:32617", "metre", [10, 10])
    assert grid["transform"] == list(scene.transform)[:6]
    assert data["valid_pixels"] == scene.valid.sum()
    assert data["labelled_pixels"] == (scene.labels > 0).sum()
    assert data["classes"] == {"10": "class 10", "20": "class 20", "30": "class 30"}
    pixels = card["facts"]["split_pixels"]["0"]
    assert pixels["train"] + pixels["guard"] + pixels["test"] == data["labelled_pixels"]


def test_a_scene_without_georeference_has_a_card(scene):
    bare = dataclasses.replace(scene, crs=None, transform=None)
    grid = assembled(bare)["grid"]
    assert [grid[key] for key in ("crs", "transform", "pixel_size", "unit")] == [None] * 4


def test_band_digests_tell_another_order_from_other_values(scene):
    swapped = dataclasses.replace(scene, image=scene.image[[1, 0, 2, 3]])
    first, second = (assembled(s)["data"]["band_digests"] for s in (scene, swapped))
    assert second == [first[1], first[0], *first[2:]]
    assert len(set(first)) == 4


def test_routing_is_read_off_the_built_network(run, scene):
    _, card, _ = run
    layers = card["facts"]["routing"]["MambaMoE"]
    assert len(layers) == 3
    for layer in layers.values():
        assert layer["experts"] == len(layer["bank"]["parameters"]) == 4
        assert layer["selector"] == {"kind": "TopK", "k": 2}
        assert (layer["link"], layer["weigh"], layer["capacity"]) == ("softmax", "raw", None)
    for control, kind in (("random", "RandomK"), ("uniform", "All")):
        found = routing_of(build_for(PLAN, scene, 0, control))
        assert {layer["selector"]["kind"] for layer in found.values()} == {kind}


def test_every_part_of_a_router_is_told_with_its_settings():
    bank = StackedFFN(4, 8, 16)
    layer = MoELayer(
        NoisyScorer(LinearScorer(8, 4), 8, 4),
        bank,
        selector=TopK(1),
        link=links.Tempered(0.5),
        weigh=weighing.Scaled(weighing.renormalised, 2.5),
        capacity=FixedCapacity(1.5, order="priority"),
        executor="padded",
    )
    found = routing_of(layer)[""]
    inner = {"kind": "LinearScorer", "dim": 8, "num_experts": 4}
    assert found["scorer"] == {"kind": "NoisyScorer", "floor": 0.01, "dim": 8, "scorer": inner}
    assert found["link"] == {"kind": "Tempered", "temperature": 0.5}
    assert found["weigh"] == {"kind": "Scaled", "inner": "renormalised", "factor": 2.5}
    assert found["capacity"] == {
        "kind": "FixedCapacity", "factor": 1.5, "minimum": 1, "order": "priority", "multiple_of": 1
    }  # fmt: skip
    assert found["executor"] == "padded"
    assert routing_of(SoftMoELayer(8, bank, 3))[""]["slots_per_expert"] == 3


def test_the_source_digest_follows_every_file_but_compiled_ones(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "python" / "terramoe"
    (package / "moe" / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("a")
    (package / "moe" / "layer.py").write_text("b")
    monkeypatch.setattr(terramoe, "__file__", str(package / "__init__.py"))
    before = source_digest()
    (package / "moe" / "__pycache__" / "layer.pyc").write_bytes(b"c")
    assert source_digest() == before
    (package / "moe" / "layer.py").write_text("B")
    changed = source_digest()
    (package / "moe" / "layer.py").rename(package / "moe" / "other.py")
    assert len({before, changed, source_digest()}) == 3


def test_an_installed_package_does_not_name_the_commit_of_the_checkout_around_it(tmp_path, monkeypatch):
    package = tmp_path / ".venv" / "lib" / "site-packages" / "terramoe"
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(terramoe, "__file__", str(package / "__init__.py"))
    assert git_commit() is None


def test_versions_and_arithmetic_are_there_and_places_are_not(run):
    _, card, folder = run
    facts = card["facts"]
    assert facts["versions"] == versions()
    assert {"torch", "numpy", "rasterio", "gdal", "python", "terramoe"} <= facts["versions"].keys()
    assert facts["arithmetic"]["threads"] >= 1
    text = json.dumps(card)
    assert str(folder.path) not in text
    assert "/home/" not in text


def test_plain_leaves_nothing_that_json_refuses():
    value = {"a": (1, np.float32(2), math.nan), 3: np.array([[1.5, math.inf]]), "b": {"c": [np.bool_(True), None]}}
    assert plain(value) == {"a": [1, 2.0, None], "3": [[1.5, None]], "b": {"c": [True, None]}}
    json.dumps(plain(value), allow_nan=False)
