"""Claims: complete, and judged as their numbers say. The trainings themselves are a command, not a test."""

import dataclasses
import json

import numpy as np
import pytest
from test_study import made_record, make_plan

from terramoe.errors import ConfigError, DataError
from terramoe.experiments.claims import CLAIMS, Claim, MeasuredStatement, Statement, claim_of
from terramoe.experiments.claims.mambamoe import direction_followed, row_crops
from terramoe.experiments.record import load_record
from terramoe.experiments.reproduce import controls_table, judge, plain, reproduce, results_table
from terramoe.experiments.study import Variant
from terramoe.experiments.train import check_plan
from terramoe.systems.catalogue import catalogue


def made_claim(**changes):
    values = {
        "system": "mambamoe",
        "about": "made",
        "scene": lambda: None,
        "plan": make_plan(),
        "variants": (Variant("mambamoe"), Variant("mambamoe", "dense", "dense")),
        "statements": (Statement("routing helps", "routed", "dense", reported="+3"),),
        "rope": 1.0,
    }
    return Claim(**{**values, **changes})


def made_records(routed, dense, spread=0.0, measures=(0.0,) * 4):
    found = []
    for seed, measure in enumerate(measures):
        noise = int(spread * (-1) ** seed)
        found += [
            dataclasses.replace(made_record("mambamoe", "routed", seed, routed + noise), measures={"gate": measure}),
            made_record("mambamoe", "dense", seed, dense - noise),
        ]
    return found


@pytest.mark.parametrize(
    ("routed", "dense", "spread", "expected", "outcome"),
    [
        (90, 80, 0, "better", "reproduced"),
        (80, 90, 0, "better", "not reproduced"),
        (90, 90, 0, "better", "not reproduced"),
        (90, 90, 0, "tie", "reproduced"),
        (90, 80, 0, "tie", "not reproduced"),
        (90, 88, 8, "better", "cannot tell"),
    ],
)
def test_a_difference_is_judged_by_its_interval(routed, dense, spread, expected, outcome):
    claim = made_claim(statements=(Statement("routing helps", "routed", "dense", expected),))
    (result,) = judge(claim, made_records(routed, dense, spread))
    assert result.outcome == outcome
    assert result.found.value == pytest.approx((routed - dense) / 2)  # the other class is all right
    assert result.seeds == 4


@pytest.mark.parametrize(
    ("measures", "above", "outcome"),
    [
        ((0.2, 0.21, 0.22, 0.2), 0.0, "reproduced"),
        ((0.2, 0.21, 0.22, 0.2), 0.3, "not reproduced"),
        ((0.2, -0.2, 0.1, -0.05), 0.0, "cannot tell"),
    ],
)
def test_a_measure_is_judged_over_seeds(measures, above, outcome):
    claim = made_claim(statements=(MeasuredStatement("the gate follows", "routed", "gate", above),))
    (result,) = judge(claim, made_records(90, 80, measures=measures))
    assert result.outcome == outcome
    assert result.found.value == pytest.approx(np.mean(measures) - above)


def test_a_claim_runs_and_its_table_names_statement_figure_and_verdict(scene, tmp_path):
    found = reproduce(made_claim(scene=lambda: scene), tmp_path)
    stored = json.loads((tmp_path / "claim.json").read_text())
    assert stored == json.loads(json.dumps(plain(made_claim(), found)))
    table = results_table({"mambamoe": stored})
    assert "| `mambamoe` | routing helps |" in table
    assert f"| +3 | {found.results[0].outcome} |" in table
    runs = {v: [load_record(p) for p in (tmp_path / "runs").glob(f"*.{v}.*")] for v in ("routed", "dense")}
    shares = {v: [r.counts.sum(0).trace() / r.counts.sum() for r in own] for v, own in runs.items()}
    for variant, (mean, sd) in found.scores.items():
        assert mean == pytest.approx(np.mean(shares[variant]))
        assert sd == pytest.approx(np.std(shares[variant], ddof=1))
    assert list(found.controls) == ["dense"]
    difference = found.controls["dense"].overall.value
    assert difference == pytest.approx(100 * (found.scores["routed"][0] - found.scores["dense"][0]), abs=3)
    row = controls_table({"mambamoe": stored}).splitlines()[2]
    assert row.startswith(f"| `mambamoe` | overall accuracy, % | {100 * found.scores['routed'][0]:.1f} ± ")
    assert f"{difference:+.1f} [" in row
    assert row.count("–") == 3  # controls that the claim does not have


@pytest.mark.parametrize("name", [name for name in CLAIMS if isinstance(claim_of(name), Claim)])
def test_every_claim_fits_its_system(name):
    claim = claim_of(name)
    assert name == claim.system or name.startswith(f"{claim.system}-")
    try:
        scene = claim.scene()
    except DataError as error:
        if name == claim.system:
            raise
        pytest.skip(str(error))
    for variant in claim.variants:
        plan = dataclasses.replace(claim.plan, system=variant.system, model={**claim.plan.model, **variant.model})
        check_plan(plan, scene)
    names = {v.name for v in claim.variants}
    assert claim.plan.seeds >= 5
    assert claim.plan.split.kind != "random"
    for statement in claim.statements:
        used = {statement.variant} if isinstance(statement, MeasuredStatement) else {statement.a, statement.b}
        assert used <= names


def test_every_system_has_a_claim_and_an_unknown_one_is_our_error():
    assert {name for name in CLAIMS if claim_of(name).system == name} == set(catalogue())
    with pytest.raises(ConfigError, match=r"'magic' has no claim.*mambamoe"):
        claim_of("magic")


def test_row_crops_hide_their_spacing_along_the_rows():
    scene, direction = row_crops()
    assert np.array_equal(scene.image, row_crops()[0].image)
    brightness = scene.image.mean(0)
    along, across = [], []
    for west_east in (0, 1):
        inside = direction == west_east
        inner = inside & np.roll(inside, 1, 0) & np.roll(inside, 1, 1)
        steps = [np.abs(brightness - np.roll(brightness, 1, axis)) for axis in (0, 1)]
        across.append(steps[west_east][inner].mean())
        along.append(steps[1 - west_east][inner].mean())
    assert min(across) > 3 * max(along)


def test_a_gate_that_is_the_direction_is_found_and_a_constant_one_is_not():
    scene, direction = row_crops()
    split = next(iter(claim_of("mambamoe").plan.folds(scene).values()))

    def measured(experts):
        tile = dataclasses.make_dataclass("Tile", ["routing"])({"level1": experts[None].astype(np.float32)})
        return direction_followed(dataclasses.make_dataclass("Found", ["tile"])(tile), scene, split)

    assert measured(direction)["direction_above_chance"] > 0.8
    assert abs(measured(np.zeros_like(direction))["direction_above_chance"]) < 1e-9
