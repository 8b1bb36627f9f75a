"""Claims that are measured seed by seed: verdicts with known answers, and runs that go on."""

import json
from dataclasses import replace

import numpy as np
import pytest

from terramoe.errors import ConfigError
from terramoe.experiments.claims import CLAIMS, Above, Compared, RowsClaim, claim_of
from terramoe.experiments.rows_reproduce import judge_rows, reproduce_rows
from terramoe.systems import CONTROLS
from terramoe.systems.catalogue import kind_of_system

ERRORS = {"routed": 0.9, "dense": 1.0, "wide": 0.9001, "random": 1.5}


def measured(variant, seed):
    noise = np.random.default_rng([seed, list(ERRORS).index(variant)]).normal()
    return {"rmse": ERRORS[variant] * (1 + 0.001 * noise), "gain": 0.2 if variant == "routed" else noise}


CLAIM = RowsClaim(
    system="pha-moe",
    about="made",
    variants=tuple(ERRORS),
    measure=measured,
    statements=(
        Compared("routed errs less than dense", "routed", "dense", "rmse"),
        Compared("routed errs less than wide", "routed", "wide", "rmse"),
        Compared("routed and wide tie", "routed", "wide", "rmse", expected="tie"),
        Compared("routed errs more than random", "routed", "random", "rmse", expected="higher"),
        Above("there is a gain", "routed", "gain"),
        Above("dense gains", "dense", "gain"),
    ),
    metric="rmse",
)


def test_verdicts(tmp_path):
    found = reproduce_rows(CLAIM, tmp_path)
    assert [r.outcome for r in found.results] == [
        "reproduced",
        "not reproduced",
        "reproduced",
        "not reproduced",
        "reproduced",
        "cannot tell",
    ]
    assert found.results[0].found.value == pytest.approx(-10, abs=0.3)
    assert found.scores["routed"][0] == pytest.approx(0.9, abs=0.002)
    assert {name: c.verdict for name, c in found.controls.items()} == {
        "dense": "better",
        "wide": "tie",
        "random": "better",
    }
    assert found.controls["dense"].overall.value < 0
    higher = reproduce_rows(replace(CLAIM, higher_is_better=True), tmp_path)
    assert higher.controls["dense"].verdict == "worse"
    stored = json.loads((tmp_path / "claim.json").read_text())
    assert stored["metric"] == "rmse"
    assert len(stored["results"]) == 6


def test_one_seed_tells_nothing():
    values = {v: {k: np.array([x]) for k, x in measured(v, 0).items()} for v in ERRORS}
    assert {r.outcome for r in judge_rows(replace(CLAIM, seeds=1), values)} == {"cannot tell"}


def test_a_claim_runs_on_its_own_seeds(tmp_path):
    asked = set()

    def noted(variant, seed):
        asked.add(seed)
        return measured(variant, seed)

    reproduce_rows(replace(CLAIM, measure=noted, first_seed=7), tmp_path)
    assert asked == {7, 8, 9, 10, 11}


def test_finished_runs_are_not_run_again_and_another_claim_is_refused(tmp_path):
    reproduce_rows(CLAIM, tmp_path)

    def never(variant, seed):
        raise AssertionError("this was measured before")

    assert reproduce_rows(replace(CLAIM, measure=never), tmp_path).results
    with pytest.raises(ConfigError, match="another claim"):
        reproduce_rows(replace(CLAIM, about="else"), tmp_path)
    odd = replace(CLAIM, statements=(Compared("x", "routed", "dense", "mae"),))
    with pytest.raises(ConfigError, match="to compare"):
        reproduce_rows(odd, tmp_path)


@pytest.mark.parametrize("name", [name for name in CLAIMS if isinstance(claim_of(name), RowsClaim)])
def test_every_claim_names_what_it_has(name):
    claim = claim_of(name)
    assert kind_of_system(claim.system) in ("rows", "surfaces")
    assert claim.seeds >= 5
    assert "routed" in claim.variants
    assert set(claim.variants) & set(CONTROLS)
    assert len(set(claim.variants)) == len(claim.variants)
    for statement in claim.statements:
        named = (statement.a, statement.b) if isinstance(statement, Compared) else (statement.variant,)
        assert set(named) <= set(claim.variants), statement.text
