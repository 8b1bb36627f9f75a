"""``terramoe audit``: files, JSON and the terminal say the same, on rasters and on tables; bad input is one line."""

import csv
import json

import numpy as np
import pytest
import rasterio
from conftest import write_tif

from terramoe.cli.main import main
from terramoe.data import BlockSplit, GroupSplit, KNNDMSplit, OfficialSplit, load_scene
from terramoe.errors import ConfigError, DataError
from terramoe.experiments import Plan, SplitSettings

SMALL = ("--split.block=8", "--split.guard=2")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Groups: 1 in the west, 2 in the east of the scene."""
    groups = np.where(np.arange(56) < 28, 1, 2) * np.ones((48, 1), dtype=int)
    return write_tif(tmp_path_factory.mktemp("groups") / "halves.tif", groups.astype(np.uint8)[None])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Clusters of points of three classes in longitude and latitude."""
    generator = np.random.default_rng(0)
    centres = generator.random((25, 1, 2)) * 2 + (10, 45)
    places = (centres + generator.normal(scale=0.01, size=(25, 12, 2))).reshape(-1, 2)
    classes = np.where(places[:, 0] < 10.7, "oats", np.where(places[:, 1] > 46, "hay", "corn"))
    path = tmp_path_factory.mktemp("table") / "fields.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["lon", "lat", "crop", "ndvi", "year", "date"])
        for number, ((x, y), name) in enumerate(zip(places, classes, strict=True)):
            value = {"oats": 0.2, "hay": 0.5, "corn": 0.8}[name] + generator.normal(scale=0.08)
            year = 2020 + number % 3
            writer.writerow([x, y, name, value, year, f"{year}-06-01"])
    return path


def scene_arguments(files):
    return ["audit", str(files / "image.tif"), str(files / "labels.tif"), *SMALL]


def test_the_files_of_a_scene_agree_with_the_split(files, tmp_path, capsys):
    assert main([*scene_arguments(files), "-o", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    assert printed == json.loads((out / "audit.json").read_text())
    assert [row["name"] for row in printed["audits"]] == ["random", "block", "field", "knndm"]
    scene = load_scene(files / "image.tif", files / "labels.tif")
    split = next(BlockSplit(3, 8, 2).masks(scene.labels))
    with rasterio.open(out / "split.tif") as file, rasterio.open(files / "image.tif") as source:
        assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
        np.testing.assert_array_equal(file.read(1), 1 * split.train + 2 * split.guard + 3 * split.test)
    block = next(row for row in printed["audits"] if row["name"] == "block")
    assert (block["train"], block["guard"], block["test"]) == (split.train.sum(), split.guard.sum(), split.test.sum())
    assert printed["leaks"] is block["leaks"] is False
    for name in ("split.png", "distances.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    page = (out / "audit.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert all(sentence.replace("'", "&#39;") in page for row in printed["audits"] for sentence in row["leak_flags"])


def test_the_terminal_shows_the_kinds_side_by_side_and_their_leaks(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*scene_arguments(files), "--split.kind", "random"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "random: this split leaks" in text
    assert "block: no leak found" in text
    assert text.index("random: this split") < text.index("block: no leak")  # the chosen one comes first
    assert "their patches overlap" in " ".join(text.split())
    assert "…" not in text  # nothing was cut off


def test_groups_and_official_splits_are_audited_too(files, halves, tmp_path, capsys):
    arguments = [*scene_arguments(files), "--groups", str(halves), "--split.kind", "group", "--json"]
    for fold in (0, 1):
        out = tmp_path / str(fold)
        assert main([*arguments, "--fold", str(fold), "-o", str(out)]) == 0
        assert [row["name"] for row in json.loads(capsys.readouterr().out)["audits"]][-1] == "group"
        with rasterio.open(out / "split.tif") as file:
            test = file.read(1) == 3
        assert test[:, :28].any() == (fold == 0)
        assert test[:, 28:].any() == (fold == 1)
    arguments = [*scene_arguments(files), "--official", str(tmp_path / "1" / "split.tif"), "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["audits"]
    group = json.loads((tmp_path / "1" / "audit.json").read_text())["audits"][-1]
    assert rows[-1]["name"] == "official"
    assert {**rows[-1], "name": "", "fold": 0} == {**group, "name": "", "fold": 0}


def test_the_area_decides_what_is_matched(files, halves, tmp_path, capsys):
    found = {}
    west = np.zeros((1, 48, 56), dtype=np.uint8)
    west[:, :, :4] = 1
    write_tif(tmp_path / "west.tif", west)
    for area in ("valid", "unlabelled", str(tmp_path / "west.tif")):
        assert main([*scene_arguments(files), "--area", area, "--json"]) == 0
        found[area] = json.loads(capsys.readouterr().out)
    scene = load_scene(files / "image.tif", files / "labels.tif")
    assert [row["area_pixels"] for row in found.values()] == [
        scene.valid.sum(), (scene.valid & (scene.labels == 0)).sum(), scene.valid[:, :4].sum()
    ]  # fmt: skip
    assert found["unlabelled"]["audits"][0]["deployment_distances"][0] >= 1
    assert found["valid"]["audits"][0]["deployment_distances"][0] == 0


def test_a_control_that_cannot_be_made_is_skipped_with_its_reason(files, capsys):
    arguments = ["audit", str(files / "image.tif"), str(files / "labels.tif"), "--split.block=99", "--json"]
    assert main([*arguments, "--split.kind", "field", "--split.guard", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "1 blocks hold labels, for 3 folds" in found["skipped"]["block"]
    assert main(arguments) == 2  # the chosen kind is not skipped
    assert "1 blocks hold labels" in capsys.readouterr().err


def table_arguments(table):
    return ["audit", str(table), "--x", "lon", "--y", "lat", "--label", "crop"]


def test_a_table_is_audited_in_metres(table, tmp_path, capsys):
    arguments = [*table_arguments(table), "--features", "ndvi", "--block", "50_000", "--guard", "3000", "--json"]
    assert main([*arguments, "-o", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "audit.json").read_text())
    random, block, knndm = found["audits"]
    assert (found["unit"], found["rows"], found["block"]) == ("m", 300, 50_000)
    assert random["leaks"]
    assert random["guard_distance"] < 1_000
    assert block["guard_distance"] > 3_000
    assert not block["leaks"]
    assert knndm["wasserstein"] < random["wasserstein"]
    assert not (tmp_path / "split.tif").exists()
    assert (tmp_path / "split.png").read_bytes().startswith(b"\x89PNG")


def test_a_year_is_left_out_of_a_table_with_a_guard_in_time(table, capsys):
    arguments = [*table_arguments(table), "--groups", "year", "--time", "date", "--split.kind", "group"]
    assert main([*arguments, "--json", "--time-guard", "400"]) == 0
    (group,) = (row for row in json.loads(capsys.readouterr().out)["audits"] if row["name"] == "group")
    assert (group["train"], group["guard"], group["test"]) == (100, 100, 100)  # 2020 tested, 2021 too near
    assert group["time_gap"] == 730
    assert main(arguments) == 0
    assert "group: " in capsys.readouterr().out


def test_another_table_can_be_the_area(table, tmp_path, capsys):
    (tmp_path / "far.csv").write_text("lon,lat\n14,46\n14.5,46.5\n")
    assert main([*table_arguments(table), "--area", str(tmp_path / "far.csv"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["audits"]
    assert all(row["deployment_distances"][0] > 100_000 for row in rows)


def test_bad_input_is_one_line(files, table, halves, tmp_path, capsys):
    image, labels = str(files / "image.tif"), str(files / "labels.tif")
    write_tif(tmp_path / "small.tif", np.ones((1, 4, 4), dtype=np.uint8))
    for arguments, message in [
        ([image], "no labels are given"),
        ([image, labels, "--split.kind", "group"], "no raster is named for this split: groups"),
        ([image, labels, "--groups", str(tmp_path / "none.tif")], "no such file"),
        ([image, labels, "--groups", str(tmp_path / "small.tif"), "--split.kind", "group"], "the same grid"),
        ([image, labels, "--official", str(halves), "--split.kind", "official"], "0 test"),
        ([image, labels, "--area", str(tmp_path / "small.tif")], "bring both to the same grid"),
        ([image, labels, "--area", "everywhere"], "no such file"),
        ([str(table)], "--x is not given"),
        ([str(table), "--x", "lon", "--y", "lat", "--label", "yield"], "no column 'yield'"),
        ([*table_arguments(table)[1:], "--split.kind", "field"], "no field split of this table"),
        ([*table_arguments(table)[1:], "--block", "-5"], "block is -5"),
        ([*table_arguments(table)[1:], "--guard", "1e9"], "leaves no training point"),
        ([str(tmp_path / "none.csv"), "--x=a", "--y=b", "--label=c"], "no such file"),
    ]:
        capsys.readouterr()
        assert main(["audit", *arguments, "-o", str(tmp_path / "out")]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_settings_of_a_plan_make_these_splits(scene, halves, tmp_path):
    settings = SplitSettings(kind="knndm", folds=3)
    folds = Plan(split=settings, seeds=4).folds(scene)
    assert {fold.name for fold in folds.values()} == {"knndm"}
    assert folds[0].digest() == folds[3].digest() != folds[1].digest()  # seed s tests fold s modulo folds
    area = scene.labels == 0
    here = next(settings.splitter(area=area).masks(scene.labels))
    assert here.digest() == next(KNNDMSplit(3, area).masks(scene.labels)).digest()

    group = SplitSettings(kind="group", groups=str(halves), guard=3)
    splits = list(group.splitter().masks(scene.labels))
    assert isinstance(group.splitter(), GroupSplit)
    assert [bool(split.test[:, :28].any()) for split in splits] == [True, False]
    assert all(split.guard.any() for split in splits)
    assert not splits[0].train[:, 28:31].any()  # three columns rest beside the west
    assert splits[0].train[:, 31].any()

    kinds = 1 * splits[0].train + 2 * splits[0].guard + 3 * splits[0].test
    write_tif(tmp_path / "official.tif", kinds.astype(np.uint8)[None], nodata=0)
    official = SplitSettings(kind="official", official=str(tmp_path / "official.tif"))
    assert isinstance(official.splitter(), OfficialSplit)
    again = Plan(split=official, seeds=2).folds(scene)
    assert {fold.digest() for fold in again.values()} == {splits[0].digest()}
    assert SplitSettings(**Plan(split=official).plain()["split"]) == official

    with pytest.raises(ConfigError, match="no raster is named for this split: official"):
        SplitSettings(kind="official").splitter()
    with pytest.raises(DataError, match="no such file"):
        SplitSettings(kind="group", groups=str(tmp_path / "none.tif")).splitter()
    with pytest.raises(ConfigError, match="no split 'magic'"):
        SplitSettings().splitter("magic")
