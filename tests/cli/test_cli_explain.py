"""``terramoe explain``: files on the raster's grid, JSON, and errors of one line."""

import json
import sys

import numpy as np
import pytest
import rasterio
from two_sensors import GAP, write_model, write_sensors

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


@pytest.fixture(scope="module")
def two(tmp_path_factory, files, scene):
    folder = tmp_path_factory.mktemp("two")
    return write_model(folder / "model", scene), write_sensors(folder, files)


def test_of_two_sensors_each_has_its_sum_and_is_silent_where_it_is_missing(two, files, scene, tmp_path, capsys):
    model, image = two
    column = scene.width - GAP  # the first without LiDAR
    place = ["--row", "20", "--column", str(column), "--method=saliency", "-o", str(tmp_path)]
    assert main(["explain", model, image, str(files / "labels.tif"), *place]) == 0
    printed = capsys.readouterr().out
    assert "lidar is missing in 100 % of the pixels" in printed
    assert "By sensor, summed over the window: hsi" in printed
    told = json.loads((tmp_path / "explanation.json").read_text())
    assert list(told["bands"]) == ["hsi band 1", "hsi band 2", "hsi band 3", "lidar band 1"]
    assert told["available"] == {"hsi": 1.0, "lidar": 0.0}
    assert told["sensors"]["hsi"] == pytest.approx(sum(list(told["bands"].values())[:3]))
    assert told["truth"] == (int(scene.labels[20, column]) * 10 or None)
    with rasterio.open(tmp_path / "attribution.tif") as file:
        found = file.read()
        assert file.descriptions[3] == "lidar band 1"
    missing = np.arange(told["window"]["column"], told["window"]["column"] + found.shape[2]) >= column
    assert missing.any()
    assert not missing.all()
    assert np.array_equal(np.isnan(found[3]), np.broadcast_to(missing, found.shape[1:]))
    assert np.isfinite(found[:3]).all()


def test_a_sensor_without_a_file_is_missing_everywhere(two, tmp_path, capsys):
    model, image = two
    place = ["--row", "20", "--column", "10", "--json", "-o", str(tmp_path), "--steps=4"]
    assert main(["explain", model, image.split(",")[0], *place]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["available"] == {"hsi": 1.0, "lidar": 0.0}
    assert told["sensors"]["lidar"] == 0
    assert told["sensors"]["hsi"] != 0
    assert main(["explain", model, image.replace("lidar=", "radar="), *place]) == 2
    assert "no sensor is called radar" in capsys.readouterr().err
