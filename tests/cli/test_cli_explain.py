"""``terramoe explain``: files on the raster's grid, JSON, and errors of one line."""

import json
import sys

import numpy as np
import pytest
import rasterio

from terramoe.cli.main import main

pytest.importorskip("captum", reason="the extra 'explain' is not installed")
TINY = (
    '--model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}',
    "--train.crop=16",
    "--train.batch=1",
    "--train.steps=3",
    "--split.block=8",
    "--split.guard=2",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["fit", str(files / "image.tif"), str(files / "labels.tif"), "-o", str(folder), *TINY]) == 0
    return str(folder)


def test_a_pixel_is_explained_on_the_grid_of_the_raster(run, files, tmp_path, capsys):
    out, image, labels = tmp_path / "why", files / "image.tif", files / "labels.tif"
    place = ["--row", "20", "--column", "30", "--steps=8"]
    assert main(["explain", run, str(image), str(labels), *place, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "at row 20, column 30" in printed
    assert str(out / "explanation.png") in printed.splitlines()
    told = json.loads((out / "explanation.json").read_text())
    with rasterio.open(out / "attribution.tif") as file, rasterio.open(image) as source:
        assert file.crs == source.crs
        assert file.descriptions == ("band 1", "band 2", "band 3", "band 4")
        assert file.xy(0, 0) == pytest.approx(source.xy(told["window"]["row"], told["window"]["column"]))
        assert file.res == source.res
        np.testing.assert_allclose(np.nansum(file.read(), (1, 2)), list(told["bands"].values()), rtol=1e-4, atol=1e-6)
    with rasterio.open(labels) as file:
        assert told["truth"] == (int(file.read(1)[20, 30]) or None)
    assert (out / "explanation.png").read_bytes()[:4] == b"\x89PNG"


def test_a_class_is_explained_by_value_or_name_without_labels(run, files, tmp_path, capsys):
    with rasterio.open(files / "image.tif") as source:
        assert main(["predict", run, str(files / "image.tif"), "-o", str(tmp_path / "maps")]) == 0
        valid = source.read_masks(1) > 0
    with rasterio.open(tmp_path / "maps" / "prediction.tif") as file:
        value = int(np.bincount(file.read(1)[valid]).argmax())
    capsys.readouterr()
    found = []
    for name in (str(value), f"class {value}"):
        method = ["--method", "grad-cam", "--json", "-o", str(tmp_path / "why")]
        assert main(["explain", run, str(files / "image.tif"), "--class", name, *method]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert (found[0]["class"], found[0]["row"], found[0]["bands"]) == (value, None, None)
    with rasterio.open(tmp_path / "why" / "attribution.tif") as file:
        assert file.descriptions == ("grad-cam",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "99"], "no class '99'"),
        (["--row", "900", "--column", "0"], "outside of 48 x 56"),
        (["--row", "0", "--column", "0"], "has no data"),
        ([], "neither pixel nor class"),
    ],
)
def test_what_cannot_be_is_one_line(run, files, tmp_path, capsys, arguments, message):
    assert main(["explain", run, str(files / "image.tif"), *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Fix:" in error
    assert not (tmp_path / "out").exists()


def test_without_captum_the_fix_is_named(run, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    place = ["--row", "20", "--column", "30", "-o", str(tmp_path / "out")]
    assert main(["explain", run, str(files / "image.tif"), *place]) == 2
    error = capsys.readouterr().err
    assert "pip install 'terramoe[explain]'" in error
    assert error.count("\n") == 1
