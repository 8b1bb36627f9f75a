"""``terramoe diff``: exit codes, table and JSON."""

import json

import pytest

from terramoe.cli.main import main
from terramoe.storage import write_json

CARD = {
    "system": "mambamoe",
    "plan": {"train": {"learning_rate": 0.001, "seed": 0}, "split": {"guard": 4}},
    "facts": {"scene": "a", "routing": {"m": {"blocks.0": {"selector": {"k": 2}}}}, "git_commit": "1"},
    "scores": {"m": {"kappa": {"value": 0.5}}},
}


def changed(path, value):
    card = json.loads(json.dumps(CARD))
    *parents, last = path
    place = card
    for key in parents:
        place = place[key]
    place[last] = value
    return card


@pytest.fixture
def cards(tmp_path):
    """Folders: a, the same again, with another k, with another result only, with another name only."""
    cases = {
        "a": CARD,
        "same": CARD,
        "k": changed(("facts", "routing", "m", "blocks.0", "selector", "k"), 1),
        "result": changed(("scores", "m", "kappa", "value"), 0.6),
        "name": changed(("facts", "scene"), "b [bold]"),
    }
    for name, card in cases.items():
        write_json(tmp_path / name / ("card.json" if name == "k" else "run.json"), card)
    return tmp_path


@pytest.mark.parametrize(
    ("other", "code", "words"),
    [
        ("same", 0, ["the same in every entry"]),
        ("k", 1, ["routing", "routing.m.blocks.0.selector.k", "What may change results: routing."]),
        ("result", 0, ["scores.m.kappa.value", "0.6", "cannot be repeated"]),
        ("name", 0, ["b [bold]", "Nothing that may change results differs"]),
    ],
)
def test_it_says_what_differs_and_ends_with_its_code(cards, capsys, monkeypatch, other, code, words):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["diff", str(cards / "a"), str(cards / other)]) == code
    printed = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in printed


def test_json_holds_every_change(cards, capsys):
    assert main(["diff", str(cards / "a"), str(cards / "k" / "card.json"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "same": False,
        "changes": [
            {"key": "facts.routing.m.blocks.0.selector.k", "group": "routing", "a": 2, "b": 1, "decides": True}
        ],
    }
    assert main(["diff", str(cards / "a"), str(cards / "result"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


def test_what_is_no_run_is_one_line_and_code_2(cards, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["diff", str(cards / "a"), str(tmp_path / "empty")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no card of a run" in error
    assert "Fix:" in error
