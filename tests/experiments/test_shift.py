"""Changes of a scene are what they say, and what a model loses under them is counted on the right pixels."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from conftest import make_scene
from linear_system import LinearSystem, predictor_of

from terramoe.data import BlockSplit, Split
from terramoe.errors import ConfigError, DataError
from terramoe.experiments import Plan, SplitSettings, audit, evaluate_model, run_experiment, write_run
from terramoe.experiments.arrange import arrange
from terramoe.experiments.evaluate import fair_pixels
from terramoe.experiments.perturb import KINDS, perturb
from terramoe.experiments.shift import ShiftSettings, shift_csv, shift_report, shift_trials
from terramoe.experiments.subsets import score_subsets
from terramoe.inference import load_predictor, predict_array
from terramoe.moe import RoutingMeter
from terramoe.reporting import class_colours
from terramoe.reporting.shift_figures import shift_curves
from terramoe.storage import RunFolder
from terramoe.systems import Output
from terramoe.training import TrainSettings

SENSORS = {"optical": (1, 3), "radar": (4, 4)}
CASES = [(kind if kind != "sensor" else "sensor:optical", severities[1]) for kind, (_, severities) in KINDS.items()]


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("image", "valid", "labels"))


@pytest.mark.parametrize(("kind", "severity"), CASES)
def test_a_change_is_pure_repeatable_and_a_scene(scene, kind, severity):
    before = dataclasses.replace(scene, image=scene.image.copy(), valid=scene.valid.copy(), labels=scene.labels.copy())
    changed = perturb(scene, kind, severity, 3, SENSORS)
    assert same(scene, before)
    assert same(changed, perturb(scene, kind, severity, 3, SENSORS))
    assert same(scene, perturb(scene, kind, 0.0, 3, SENSORS))
    assert not np.array_equal(changed.image, scene.image)
    assert changed.image.dtype == np.float32
    assert not (changed.valid & ~scene.valid).any()
    assert not changed.image[:, ~changed.valid].any()
    np.testing.assert_array_equal(changed.labels, np.where(changed.valid, scene.labels, 0))
    if not kind.startswith("sensor"):
        assert not same(changed, perturb(scene, kind, severity, 4, SENSORS))


def test_gain_multiplies_each_band_by_its_own_factor(scene):
    logs = []
    for severity in (0.1, 0.2):
        ratio = perturb(scene, "gain", severity, 0).image[:, scene.valid] / scene.image[:, scene.valid]
        np.testing.assert_allclose(ratio, ratio[:, :1].repeat(ratio.shape[1], 1), rtol=1e-4)
        logs.append(np.log(np.median(ratio, axis=1)))
    assert len(set(np.round(logs[0], 6))) == scene.bands
    np.testing.assert_allclose(logs[1], 2 * logs[0], rtol=1e-4)


def test_offset_and_noise_are_in_standard_deviations_of_the_band(scene):
    wide = dataclasses.replace(scene, image=scene.image * np.array([1, 10, 100, 1000], dtype=np.float32)[:, None, None])
    spread = wide.image[:, scene.valid].std(axis=1)
    offsets = []
    for given, severity in ((wide, 0.5), (scene, 0.25)):
        moved = (perturb(given, "offset", severity, 0).image.astype(np.float64) - given.image)[:, scene.valid]
        moved /= given.image[:, scene.valid].std(axis=1, keepdims=True)
        np.testing.assert_allclose(moved.std(axis=1), 0, atol=1e-6)
        offsets.append(moved.mean(axis=1) / severity)
    np.testing.assert_allclose(offsets[0], offsets[1], atol=1e-5)
    assert len(set(np.round(offsets[0], 4))) == scene.bands
    noise = (perturb(wide, "noise", 0.5, 0).image - wide.image)[:, scene.valid]
    np.testing.assert_allclose(noise.std(axis=1) / spread, 0.5, rtol=0.05)
    np.testing.assert_allclose(np.corrcoef(noise) - np.eye(4), 0, atol=0.08)


def test_missing_bands_are_filled_with_their_mean_and_grow_with_severity(scene):
    lost = []
    for severity in (0.25, 0.5, 0.9):
        image = perturb(scene, "bands", severity, 1).image
        gone = [b for b in range(4) if not np.array_equal(image[b], scene.image[b])]
        for band in gone:
            np.testing.assert_allclose(image[band][scene.valid], scene.image[band][scene.valid].mean(), rtol=1e-5)
        lost.append(set(gone))
    assert [len(gone) for gone in lost] == [1, 2, 3]  # one band is always left
    assert lost[0] < lost[1] < lost[2]


def test_a_missing_sensor_takes_its_bands_in_its_gap_only(scene):
    image = perturb(scene, "sensor:optical", 0.25, 0, SENSORS).image
    gap = round(0.25 * scene.width)
    np.testing.assert_array_equal(image[3], scene.image[3])
    np.testing.assert_array_equal(image[:, :, gap:], scene.image[:, :, gap:])
    for band in range(3):
        filled = image[band, :, :gap][scene.valid[:, :gap]]
        np.testing.assert_allclose(filled, scene.image[band][scene.valid].mean(), rtol=1e-4)


def test_clouds_cover_their_share_in_blobs_and_grow(scene):
    covers = [scene.valid & ~perturb(scene, "cloud", s, 2).valid for s in (0.1, 0.3, 0.6)]
    for cover, share in zip(covers, (0.1, 0.3, 0.6), strict=True):
        assert cover.sum() == round(share * scene.valid.sum())
    assert not (covers[0] & ~covers[1]).any()
    assert not (covers[1] & ~covers[2]).any()
    neighbours = covers[1][:, 1:] == covers[1][:, :-1]
    assert neighbours.mean() > 0.85  # of scattered pixels 0.58 would agree


def ramps(scene):
    """Bands that grow by 1 a row, 1 a column, again a row and a column."""
    rows, columns = np.indices((scene.height, scene.width)).astype(np.float32)
    valid = np.ones_like(scene.valid)
    return dataclasses.replace(scene, image=np.stack([rows, columns, rows, columns]), valid=valid)


@pytest.mark.parametrize("severity", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("kind", "first"), [("band-shift", 2), ("label-shift", 0)])
def test_images_are_moved_by_fractions_of_a_pixel(scene, kind, first, severity):
    straight = ramps(scene)
    moved = perturb(straight, kind, severity, 5)
    difference = (straight.image - moved.image)[:, moved.valid]
    step = difference.mean(axis=1)
    np.testing.assert_allclose(difference - step[:, None], 0, atol=1e-4)
    assert np.hypot(step[2], step[3]) == pytest.approx(severity, abs=1e-4)
    np.testing.assert_allclose(step[:first], 0)
    inner = (slice(2, -2), slice(2, -2))
    assert moved.valid[inner].all()
    assert not moved.valid.all()  # what the move leaves open has no data
    np.testing.assert_array_equal(moved.labels[moved.valid], straight.labels[moved.valid])


def test_a_hole_is_moved_with_its_edge(scene):
    moved = perturb(scene, "label-shift", 0.5, 0)
    assert not moved.valid[:3, :3].any()
    hole = dataclasses.replace(scene, image=np.where(scene.valid, 7.0, 0.0).astype(np.float32)[None])
    filled = perturb(hole, "label-shift", 0.5, 0)
    np.testing.assert_allclose(filled.image[0][filled.valid], 7, rtol=1e-6)  # no zero of the hole is mixed in


def test_named_sensors_move_against_the_first(scene):
    moved = perturb(scene, "band-shift", 1.3, 0, {"radar": (4, 4), "optical": (1, 3)})
    np.testing.assert_array_equal(moved.image[3][moved.valid], scene.image[3][moved.valid])
    assert all(not np.allclose(moved.image[b][moved.valid], scene.image[b][moved.valid]) for b in range(3))


@pytest.mark.parametrize(
    ("kind", "severity", "message"),
    [
        ("fog", 0.1, "no shift 'fog'"),
        ("cloud", 1.0, "severity 1 of 'cloud'.*up to 0.999"),
        ("gain", -0.1, "severity -0.1"),
        ("sensor:lidar", 0.5, r"no sensor 'lidar'.*optical, radar"),
        ("gain:lidar", 0.5, r"no sensor 'lidar'.*optical, radar"),
        ("label-shift:radar", 0.5, "no shift 'label-shift:radar'"),
        ("sensor:wrong", 0.5, "bands 3 to 9 of 4"),
    ],
)
def test_what_cannot_be_is_refused(scene, kind, severity, message):
    with pytest.raises(ConfigError, match=message):
        perturb(scene, kind, severity, 0, SENSORS | ({"wrong": (3, 9)} if "wrong" in kind else {}))


def test_settings_name_what_is_wrong():
    with pytest.raises(ConfigError, match="no shift 'fog'"):
        ShiftSettings(kinds=("gain", "fog"))
    with pytest.raises(ConfigError, match="no shift 'fog'"):
        ShiftSettings(severities={"fog": (1,)})
    with pytest.raises(ConfigError, match=r"no sensor is named.*--sensors"):
        ShiftSettings(kinds=("sensor",)).trials()
    with pytest.raises(ConfigError, match="no sensor is named"):
        ShiftSettings(kinds=("sensor",)).trials({"optical": (1, 4)}, apart=True)
    with pytest.raises(ConfigError, match="the model names its sensors itself"):
        ShiftSettings(sensors=SENSORS).trials(SENSORS, apart=True)
    assert ("sensor:radar", 0.5) in ShiftSettings(sensors=SENSORS).trials()
    assert not any(kind.startswith("sensor") for kind, _ in ShiftSettings().trials())
    asked = ShiftSettings(kinds=("gain", "cloud"), severities={"gain": (0.3, 0.1)})
    assert asked.trials() == [("gain", 0.1), ("gain", 0.3), ("cloud", 0.1), ("cloud", 0.3), ("cloud", 0.5)]


@pytest.fixture(scope="module")
def linear(scene):
    """A model that sees bands 1 to 3 only, and a split of the scene."""
    weights = np.random.default_rng(0).normal(size=(3, 4))
    weights[:, 3] = 0
    return weights, predictor_of(LinearSystem(weights), scene), next(BlockSplit(block=8, guard=2).masks(scene.labels))


def accuracy(weights, image, labels, scored):
    return ((weights @ image[:, scored]).argmax(0) + 1 == labels[scored]).mean()


def test_the_drop_is_counted_on_the_pixels_that_are_left(scene, linear):
    weights, predictor, split = linear
    settings = ShiftSettings(kinds=("cloud", "noise", "label-shift"), draws=200)
    rows = shift_report(predictor, scene, split, settings)
    assert len({row.pixels for row in rows}) > 3
    for row in rows[1:]:
        changed = perturb(scene, row.kind, row.severity, settings.seed)
        scored = split.test & changed.valid
        before, now = (accuracy(weights, seen.image, scene.labels, scored) for seen in (scene, changed))
        assert row.pixels == scored.sum()
        assert row.overall.value == pytest.approx(now)
        assert row.drop.value == pytest.approx(100 * (before - now))
        assert row.drop.low <= row.drop.value <= row.drop.high
    clouds = [row for row in rows if row.kind == "cloud"]
    assert all(row.drop.value == row.drop.low == row.drop.high == 0 for row in clouds)  # it sees no neighbours


def test_what_a_model_does_not_look_at_costs_nothing(scene, linear):
    _, predictor, split = linear
    settings = ShiftSettings(kinds=("sensor",), sensors=SENSORS, draws=200)
    rows = {(row.kind, row.severity): row for row in shift_report(predictor, scene, split, settings)}
    unused, used = rows["sensor:radar", 1.0], rows["sensor:optical", 1.0]
    assert (unused.drop.value, unused.drop.low, unused.drop.high) == (0, 0, 0)
    assert unused.overall == rows["none", 0.0].overall
    assert unused.ece == rows["none", 0.0].ece
    assert abs(used.drop.value) > 1
    assert unused.load_change == {} == unused.moved
    assert unused.plain()["moved"] is None


def test_a_change_that_leaves_nothing_to_score_is_refused(scene, linear):
    _, predictor, _ = linear
    nothing = np.zeros(scene.labels.shape, dtype=bool)
    test = nothing.copy()
    test[0, 10] = True
    split = Split("one", 0, nothing, test, nothing, np.zeros(test.shape, dtype=np.int64))
    with pytest.raises(ConfigError, match="leaves no test pixel"):
        shift_report(predictor, scene, split, ShiftSettings(kinds=("cloud",), severities={"cloud": (0.99,)}))


OWN = (("optical", 3), ("radar", 1))


class Several(LinearSystem):
    """Reads the bands of the sensors that are there."""

    multi_sensor = True

    def forward(self, batch):
        seen = batch["available"].repeat_interleave(torch.tensor([3, 1]), dim=1)
        return Output(self.conv(torch.where(seen, batch["image"], 0)), {})


@pytest.fixture(scope="module")
def two(scene):
    """A scene of two sensors, the radar missing on the right and the optical in the middle, a model and a split."""
    available = np.stack([scene.valid, scene.valid])
    available[1, :, 40:] = False
    available[0, :, 24:36] = False
    seen = np.repeat(available, [3, 1], axis=0)
    image = np.where(seen, 5 + scene.image, 0).astype(np.float32)
    valid = available.any(0)
    own = dataclasses.replace(
        scene, image=image, valid=valid, labels=np.where(valid, scene.labels, 0), sensors=OWN, available=available
    )
    weights = np.random.default_rng(0).normal(size=(3, 4))
    predictor = dataclasses.replace(predictor_of(Several(weights), own), sensors=OWN)
    return own, predictor, next(BlockSplit(block=8, guard=2).masks(own.labels))


@pytest.mark.parametrize("kind", ["bands", "gain", "offset", "noise", "cloud", "sensor"])
def test_what_names_a_sensor_changes_no_other(two, kind):
    scene, _, _ = two
    for sensor, bands, other in (("optical", slice(0, 3), slice(3, 4)), ("radar", slice(3, 4), slice(0, 3))):
        if (kind, sensor) == ("bands", "radar"):
            continue  # one band is always left
        changed = perturb(scene, f"{kind}:{sensor}", 0.5, 1)
        still = changed.valid & np.repeat(scene.available, [3, 1], axis=0)
        assert np.array_equal(changed.image[other][still[other]], scene.image[other][still[other]])
        assert not np.array_equal(changed.image[bands][still[bands]], scene.image[bands][still[bands]])
        left = changed.available if kind in ("cloud", "sensor") else scene.available
        row = [name for name, _ in OWN].index(sensor)
        assert np.array_equal(left[1 - row], scene.available[1 - row])
        assert not (left[row] & ~scene.available[row]).any()
        assert np.array_equal(changed.valid, left.any(0) & scene.valid)
        assert same(changed, perturb(scene, f"{kind}:{sensor}", 0.5, 1))


def test_a_named_sensor_is_said_to_be_missing(two):
    scene, _, _ = two
    gap = scene.width // 2
    swath = perturb(scene, "sensor:radar", 0.5, 0).available
    assert not swath[1, :, :gap].any()
    assert np.array_equal(swath[:, :, gap:], scene.available[:, :, gap:])
    cloud = scene.available & ~perturb(scene, "cloud:radar", 0.3, 0).available
    assert cloud[1].sum() == round(0.3 * scene.available[1].sum())
    assert not cloud[0].any()
    moved = perturb(scene, "band-shift", 1.0, 0)
    assert np.array_equal(moved.available[0], scene.available[0])
    assert (scene.available[1] & ~moved.available[1]).any()
    assert not perturb(scene, "cloud", 0.3, 0).available.any(0)[~perturb(scene, "cloud", 0.3, 0).valid].any()


def test_means_and_spreads_are_of_what_a_sensor_sees(two):
    scene, _, _ = two
    seen = scene.available[1]
    values = scene.image[3][seen]
    filled = perturb(scene, "sensor:radar", 0.25, 0).image[3, 10, 0]
    assert filled == pytest.approx(values.mean(), rel=1e-5)
    noise = (perturb(scene, "noise:radar", 0.5, 0).image - scene.image)[3]
    assert noise[seen].std() == pytest.approx(0.5 * values.std(), rel=0.05)
    assert not noise[~seen].any()


def test_a_sensor_taken_away_scores_as_the_subset_without_it(two):
    scene, predictor, split = two
    settings = ShiftSettings(severities=dict.fromkeys(("sensor", "gain"), (1.0,)), kinds=("sensor", "gain"), draws=20)
    assert shift_trials(predictor, scene, split, settings) == [
        ("sensor:optical", 1.0),
        ("sensor:radar", 1.0),
        ("gain:optical", 1.0),
        ("gain:radar", 1.0),
    ]
    rows = {row.kind: row for row in shift_report(predictor, scene, split, settings)}
    counts = score_subsets(predictor, scene, split)
    for gone, left, row in (("optical", "radar", 1), ("radar", "optical", 0)):
        answered = split.test & scene.available[row]
        found = rows[f"sensor:{gone}"]
        assert found.pixels == answered.sum() < split.test.sum()
        right = np.trace(counts[(left,)].sum(0))  # of the subsets, what is not answered is an error
        assert found.overall.value * found.pixels == pytest.approx(right)


def test_of_several_sensors_every_kind_that_can_be_is_tried_on_each(two):
    scene, predictor, split = two
    kinds = {kind for kind, _ in shift_trials(predictor, scene, split, ShiftSettings())}
    each = {f"{kind}:{name}" for kind in ("sensor", "cloud", "gain", "offset", "noise") for name, _ in OWN}
    assert kinds == each | {"bands:optical", "band-shift", "label-shift"}
    alone = dataclasses.replace(scene, available=scene.available & np.array([True, False])[:, None, None])
    left = {kind for kind, _ in shift_trials(predictor, alone, split, ShiftSettings())}
    assert left == {kind for kind in kinds if "radar" not in kind} - {"sensor:optical"}
    plain = predictor_of(LinearSystem(np.eye(3, 4)), scene)
    assert {kind for kind, _ in shift_trials(plain, scene, split, ShiftSettings(kinds=("gain", "sensor")))} == {
        "gain",
        "sensor:optical",
        "sensor:radar",
    }


def test_a_scene_is_put_in_the_order_of_the_model(two):
    scene, predictor, _ = two
    turned = dataclasses.replace(
        scene,
        image=scene.image[[3, 0, 1, 2]],
        sensors=OWN[::-1],
        available=scene.available[::-1],
        band_names=("r", "x", "y", "z"),
    )
    back = arrange(turned, predictor)
    assert same(back, scene)
    assert np.array_equal(back.available, scene.available)
    assert (back.sensors, back.band_names) == (OWN, ("x", "y", "z", "r"))
    assert arrange(scene, predictor) is scene
    bare = dataclasses.replace(scene, sensors=(), available=None)
    assert arrange(bare, predictor).sensors == OWN
    alone = dataclasses.replace(turned, image=turned.image[:1], sensors=OWN[1:], available=None, band_names=())
    put = arrange(alone, predictor)
    assert put.image.shape == scene.image.shape
    assert not put.image[:3].any()
    assert not put.available[0].any()
    assert np.array_equal(put.available[1], scene.valid)
    for sensors in ((("lidar", 1), ("optical", 3)), (("radar", 2), ("optical", 2))):
        with pytest.raises(DataError, match="is none of the model's"):
            arrange(dataclasses.replace(turned, sensors=sensors), predictor)
    indifferent = dataclasses.replace(predictor_of(LinearSystem(np.eye(3, 4)), scene), sensors=(("other", 4),))
    assert arrange(scene, indifferent) is scene


@pytest.fixture(scope="module")
def run(tmp_path_factory, scene):
    plan = Plan(
        model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2},
        train=TrainSettings(steps=12, steps_per_epoch=6, batch=1, crop=32, learning_rate=1e-2),
        split=SplitSettings(block=8, guard=2),
    )
    folder = RunFolder.create(tmp_path_factory.mktemp("run"))
    experiment = run_experiment(plan, scene, folder, audit(plan, scene))
    write_run(experiment, folder, class_colours(scene.classes))
    return folder.path


@pytest.fixture(scope="module")
def report(run, scene):
    predictor = load_predictor(run)
    own, split, _ = fair_pixels(run, predictor, scene)
    heard = []
    rows = shift_report(predictor, own, split, ShiftSettings(kinds=("bands", "cloud"), draws=200), on_row=heard.append)
    assert heard == rows
    return predictor, own, split, rows


def test_on_its_own_scene_the_first_row_is_what_evaluate_says(run, scene, report):
    _, _, split, rows = report
    found = evaluate_model(run, scene)
    assert rows[0].kind == "none"
    assert rows[0].pixels == found.pixels == split.test.sum()
    assert rows[0].overall.value == found.scores.overall.value
    assert rows[0].ece == found.scores.reliability.ece
    assert rows[0].drop.value == 0
    assert set(rows[0].moved.values()) == set(rows[0].load_change.values()) == {0.0}


def test_routing_is_compared_with_the_unchanged_scene(report):
    predictor, scene, split, rows = report
    row = next(row for row in rows if row.kind == "bands" and row.severity == 0.5)
    changed = perturb(scene, "bands", 0.5, 0)
    meters = [RoutingMeter(), RoutingMeter()]
    before, now = (
        predict_array(predictor, s.image, s.valid, hide=split.train, meter=meter)
        for s, meter in zip((scene, changed), meters, strict=True)
    )
    for layer, share in row.moved.items():
        other = before.routing[layer][0][split.test] != now.routing[layer][0][split.test]
        assert share == pytest.approx(other.mean())
    assert max(row.moved.values()) > 0
    old, new = (meter.compute() for meter in meters)
    for layer, change in row.load_change.items():  # total variation: what the gaining experts gain
        gains = np.subtract(new[layer].load, old[layer].load)
        assert change == pytest.approx(gains[gains > 0].sum())
        assert change > 0
    assert all(np.isclose(row.plain()["moved"], np.mean(list(row.moved.values()))) for row in rows)


def test_another_scene_counts_all_its_labels(run):
    other = make_scene(seed=5)
    predictor = load_predictor(run)
    own, split, which = fair_pixels(run, predictor, other)
    assert "not the scene" in which
    rows = shift_report(predictor, own, split, ShiftSettings(kinds=("noise",), severities={"noise": (0.1,)}, draws=50))
    assert rows[0].pixels == (other.labels > 0).sum()


def test_the_report_is_a_table_json_and_a_figure(report):
    rows = report[-1]
    table = list(csv.DictReader(io.StringIO(shift_csv(rows))))
    assert [(line["kind"], float(line["severity"])) for line in table] == [(row.kind, row.severity) for row in rows]
    assert float(table[2]["drop"]) == rows[2].drop.value
    json.dumps([dataclasses.asdict(row) for row in rows], allow_nan=False)
    assert shift_curves(rows)[:4] == b"\x89PNG"
    assert shift_curves(rows[:1])[:4] == b"\x89PNG"
