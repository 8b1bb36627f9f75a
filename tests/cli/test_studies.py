"""The verbs that train many models: compare and scale, on files, resumed and refused."""

import csv
import json
import re

import pytest
from test_cli import TINY

from terramoe.cli.main import main


@pytest.fixture(scope="module")
def data(files):
    return ["--data", str(files / "image.tif"), str(files / "labels.tif")]


SHORT = ["--train.steps=2", *TINY]


def test_compare_writes_runs_table_json_and_report_and_goes_on(data, tmp_path, capsys):
    call = ["compare", "mambamoe", *data, "--split", "block", "--seeds", "2", "--controls", "dense,uniform", *SHORT]
    call += ["-o", str(tmp_path / "out")]
    assert main(call) == 0
    shown = capsys.readouterr().out
    assert "mambamoe against its controls" in shown
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 6
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["variant"], r["seed"]) for r in rows] == [
        (v, s) for s in ("0", "1") for v in ("routed", "dense", "uniform")
    ]
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(c["a"], c["b"]) for c in found["against_controls"]["mambamoe"]] == [
        ("mambamoe", "mambamoe, dense"),
        ("mambamoe", "mambamoe, uniform"),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(c["sentence"].replace("'", "&#39;") in page for c in found["against_controls"]["mambamoe"])
    assert page.count("data:image/png;base64,") >= 2
    assert not re.search(r"(src|href)=.?https?:", page)

    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").iterdir()}
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").iterdir()} == times


def test_scale_writes_table_and_curves(data, tmp_path, capsys):
    call = ["scale", "mambamoe", *data, "--experts", "1,2", "--top-k", "1,2", *SHORT, "-o", str(tmp_path / "out")]
    assert main([*call, "--json"]) == 0
    points = json.loads(capsys.readouterr().out)
    assert [(p["experts"], p["top_k"]) for p in points.values()] == [(1, 1), (2, 1), (2, 2)]
    assert (tmp_path / "out" / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(csv.DictReader((tmp_path / "out" / "scaling.csv").open()))) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["compare", "nothing"], "there is no system 'nothing'"),
        (["compare", "mambamoe", "--controls", "magic"], "no control 'magic'"),
        (["compare", "mambamoe", "--ensemble", "1"], "ensemble of 1"),
        (["compare", "mambamoe", "--data", "a", "b", "c"], "2 label rasters"),
        (["compare", "mambamoe", "--data", "missing.tif", "labels.tif"], "missing.tif"),
        (["scale", "mambamoe", "--experts", "many"], "'many' is no list"),
        (["scale", "mambamoe", "--experts", "2", "--top-k", "3"], "some k <= E"),
        (["reproduce"], "no claim is named"),
        (["reproduce", "nothing"], "'nothing' has no claim"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(call, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(call) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert "Fix:" in error
    assert not list(tmp_path.iterdir())
