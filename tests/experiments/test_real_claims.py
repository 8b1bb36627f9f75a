"""Claims on Landsat, Sentinel-2, Samson and Jasper Ridge: their plans are accepted, their data are sound."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_scene

from terramoe.data import open_benchmark
from terramoe.errors import DataError
from terramoe.experiments.claims import MeasuredStatement, amofe, claim_of, mambamoe, spectralx
from terramoe.experiments.train import build_for, check_plan
from terramoe.systems import CONTROLS

NAMES = ("mambamoe-landsat", "spectralx-jasper", "amofe-samson", "mamol-landsat", "mixturers-sentinel")
CLAIMS = {name: claim_of(name) for name in NAMES}
WITHOUT = {"amofe-samson": {"random"}}  # a soft router: all its experts drawn at random are their average


def opened(claim):
    try:
        return claim.scene()
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_its_controls_seeds_guard_and_variants(name):
    claim = CLAIMS[name]
    names = {variant.name for variant in claim.variants}
    assert set(CONTROLS) - WITHOUT.get(name, set()) <= names
    assert claim.plan.seeds == 5
    assert claim.plan.split.kind in ("block", "field")
    assert claim.plan.split.guard >= 3
    for statement in claim.statements:
        measured = isinstance(statement, MeasuredStatement)
        used = {statement.variant, statement.against} if measured else {statement.a, statement.b}
        assert used - {""} <= names


@pytest.mark.parametrize("name", CLAIMS)
def test_every_plan_is_accepted_and_every_fold_tests_every_class(name):
    claim = CLAIMS[name]
    scene = opened(claim)
    for variant in claim.variants:
        plan = dataclasses.replace(claim.plan, system=variant.system, model={**claim.plan.model, **variant.model})
        check_plan(plan, scene)
    folds = claim.plan.folds(scene).values()
    tested = np.array([np.bincount(scene.labels[f.test], minlength=scene.classes + 1)[1:] for f in folds])
    assert tested.all()
    assert tested.sum(0).max() < 0.85 * tested.sum()  # to name the largest class everywhere is no good answer


def test_the_landsat_scene_is_cut_to_its_data_and_keeps_all_labels():
    scene = opened(mambamoe.REAL_LANDSAT)
    whole = open_benchmark("nc-landsat7")
    assert (scene.height, scene.width) == (358, 387)
    assert scene.valid.sum() == whole.valid.sum()
    np.testing.assert_array_equal(np.bincount(scene.labels.ravel())[1:], np.bincount(whole.labels.ravel())[1:])


def two_sensor_scene():
    scene = make_scene(height=50, width=55, bands=40)
    image = np.abs(scene.image) / np.abs(scene.image).max()
    return dataclasses.replace(scene, image=image, wavelengths=tuple(np.linspace(420.0, 940.0, 40).tolist()))


def test_the_coarse_sensor_sees_means_and_the_sharp_one_the_pixel():
    scene = two_sensor_scene()
    found = amofe.coarse_and_sharp(scene, "planetscope", seed=3)
    assert (found.height, found.width) == (48, 52)
    assert found.sensors == (("hsi", 40), ("msi", 4))
    coarse = found.image[:40]
    np.testing.assert_array_equal(coarse[:, ::4, ::4].repeat(4, 1).repeat(4, 2), coarse)
    np.testing.assert_allclose(coarse[:, 8, 12], scene.image[:, 8:12, 12:16].mean((1, 2)), rtol=1e-5)
    assert all((np.diff(band, axis=1) != 0).mean() > 0.9 for band in found.image[40:, 4:])
    np.testing.assert_array_equal(found.labels, scene.labels[:48, :52])


def test_gates_are_measured_with_the_training_pixels_hidden():
    scene = make_scene(height=64, width=64, bands=5)
    train = np.zeros((64, 64), dtype=bool)
    train[:, :24] = True
    claim = spectralx.REAL_JASPER
    system = build_for(dataclasses.replace(claim.plan, system="spectralx"), scene, seed=0)

    def measured(image):
        predictor = SimpleNamespace(system=system.eval(), normaliser=lambda values: values)
        found = SimpleNamespace(predictor=predictor, seed=0)
        shown = dataclasses.replace(scene, image=image)
        return spectralx.gates_on_blocks(found, shown, SimpleNamespace(train=train, test=~train))

    changed = scene.image.copy()
    changed[:, train] += 5
    first = measured(scene.image)
    assert measured(changed) == first
    assert first["gate_distance_gained"] == pytest.approx(0, abs=1e-6)  # the same weights as before training
    assert measured(scene.image[::-1].copy()) != first


def test_accuracy_near_borders_counts_only_what_lies_there():
    labels = np.ones((1, 10), dtype=np.int64)
    labels[:, 5:] = 2
    scene = SimpleNamespace(labels=labels)
    truth = labels.ravel()
    probability = np.eye(2)[truth - 1]
    probability[[0, 4]] = probability[[0, 4], ::-1]  # wrong far from the border, and beside it
    found = SimpleNamespace(probability=probability, truth=truth)
    split = SimpleNamespace(test=np.ones((1, 10), dtype=bool))
    assert amofe.borders_measured(found, scene, split)["border_accuracy"] == pytest.approx(3 / 4)
