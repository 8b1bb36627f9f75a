"""The difference of two runs: named, sorted into its group, and honest about whether it may matter."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from rasterio.crs import CRS

from terramoe.errors import ModelFileError
from terramoe.experiments import Plan, SplitSettings, assemble, build_for
from terramoe.experiments.card import plain
from terramoe.experiments.diff import GROUPS, Change, classify, diff_cards, flatten, read_card
from terramoe.training import TrainSettings

SMALL = {"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}
PLAN = Plan(model=SMALL, train=TrainSettings(crop=32), split=SplitSettings(block=8, guard=2), seeds=2)


def card_of(scene, plan=PLAN):
    """A card as ``run_card`` writes it, without the results."""
    systems = {"system": build_for(plan, scene, plan.train.seed)}
    card = {"system": plan.system, "plan": plan.plain(), "facts": assemble(plan, scene, plan.folds(scene), systems)}
    return json.loads(json.dumps(plain({**card, "scores": {"system": {"kappa": {"value": 0.5}}}})))


@pytest.fixture(scope="module")
def card(scene):
    return card_of(scene)


def changed(**changes):
    return dataclasses.replace(PLAN, **changes)


def train(**changes):
    return changed(train=dataclasses.replace(PLAN.train, **changes))


def test_a_card_does_not_differ_from_itself(card):
    assert diff_cards(card, copy.deepcopy(card)) == []


def test_every_entry_of_a_card_has_a_group(card):
    """A new entry must be put into a group by whoever adds it; until then it counts as deciding."""
    assert [key for key in flatten(card) if classify(key)[0] == "other"] == []
    assert classify("facts.something_new") == ("other", True)
    assert classify("plan.trainer") == ("other", True)  # a name that only begins alike


@pytest.mark.parametrize(
    ("plan", "groups"),
    [
        (train(learning_rate=1e-4), {"training": True}),
        (train(save_every=7), {"training": False}),
        (train(seed=5), {"seeds": True, "split": True, "normalisation": True}),
        (train(crop=40), {"training": True, "tiling": True}),
        (changed(seeds=1), {"seeds": True, "split": True, "normalisation": True}),
        (changed(split=SplitSettings(block=8, guard=3)), {"split": True, "normalisation": True}),
        (changed(normaliser="minmax"), {"normalisation": True}),
        (changed(model={**SMALL, "top_k": 1}), {"model": True, "routing": True}),
        (changed(model={**SMALL, "mlp_ratio": 2}), {"model": True}),
        (changed(twin=True), {"training": False}),
        (changed(reduced=("less",)), {"model": False}),
        (changed(lenient=True), {"split": False}),
    ],
)
def test_a_change_of_the_plan_is_found_in_its_groups(card, scene, plan, groups):
    found = diff_cards(card, card_of(scene, plan))
    assert {change.group: change.decides for change in found} == groups


def test_other_pixels_another_order_of_bands_and_another_name_are_told_apart(card, scene):
    one = scene.image.copy()
    one[2, 10, 10] += 1
    cases = {
        "value": (dataclasses.replace(scene, image=one), True),
        "order": (dataclasses.replace(scene, image=scene.image[::-1].copy()), True),
        "name": (dataclasses.replace(scene, name="other"), False),
        "crs": (dataclasses.replace(scene, crs=CRS.from_epsg(32618)), True),
    }
    found = {name: diff_cards(card, card_of(other)) for name, (other, _) in cases.items()}
    for name, (_, decides) in cases.items():
        data = [change for change in found[name] if change.group == "data"]
        assert any(change.decides for change in data) == decides, name
    bands = {name: next(c for c in found[name] if c.key == "facts.data.band_digests") for name in ("value", "order")}
    assert "(number 3, 1 of 4 differ)" in bands["value"].summary()[1]
    assert bands["order"].summary()[1] == "the same in another order, from number 1 on"
    assert [change.key for change in found["crs"]] == ["facts.grid.crs"]


def test_results_come_last_and_decide_nothing(card):
    other = copy.deepcopy(card)
    other["scores"]["system"]["kappa"]["value"] = 0.6
    other["facts"]["versions"]["torch"] = "0"
    found = diff_cards(card, other)
    assert [(c.group, c.decides) for c in found] == [("versions", True), ("results", False)]
    assert GROUPS[-1] == "results"


def test_what_only_one_side_has_is_absent_on_the_other(card):
    other = copy.deepcopy(card)
    del other["facts"]["tiling"]
    found, back = diff_cards(card, other), diff_cards(other, card)
    assert {c.key for c in found} == {f"facts.tiling.{key}" for key in card["facts"]["tiling"]}
    assert all(c.b == "absent" for c in found)
    assert [(c.key, c.a, c.b) for c in back] == [(c.key, c.b, c.a) for c in found]


def test_flatten_names_every_plain_value_once():
    card = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": [{"g": 1}, {"g": [[1], [2]]}], "h": {}, "i": []}
    assert flatten(card) == {"a": 1, "b.c": [1, 2], "b.d.e": None, "f.0.g": 1, "f.1.g.0": [1], "f.1.g.1": [2], "i": []}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1.0, 1.25, ("1", "1.25")),
        (0.1234567, 0.1234568, ("0.1234567", "0.1234568")),
        ([1, 2, 3, 4], [1, 2, 3], ("4 values", "[1, 2, 3]")),
        ([7], [8], ("7", "8")),
        ([1.5, 2.5], [1.5, 3.5], ("2.5", "3.5 (number 2, 1 of 2 differ)")),
        ("absent", [1, 2, 3, 4], ("absent", "4 values")),
        (None, True, ("null", "true")),
        ("x" * 80, "y", ("x" * 57 + "...", "y")),
    ],
)
def test_values_are_told_in_a_few_words(a, b, expected):
    assert Change("key", "data", a, b, True).summary() == expected


def test_cards_are_found_in_runs_and_studies(card, tmp_path):
    for name in ("run.json", "card.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(json.dumps(card))
        assert read_card(folder) == read_card(folder / name) == card


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no card of a run"), ("{", "damaged"), ("[1]", "no card"), ('{"a": 1}', "no card"), ("\xff", "damaged")],
)
def test_what_is_no_card_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelFileError, match=message):
        read_card(tmp_path)


def test_numbers_that_are_equal_as_json_are_equal(card):
    again = json.loads(json.dumps(plain({"x": np.float32(2), "y": (1, 2)})))
    assert diff_cards({"x": 2, "y": [1, 2]}, again) == []
