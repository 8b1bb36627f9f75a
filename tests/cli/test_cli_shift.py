"""``terramoe shift``: files, table, JSON, one config, and errors of one line."""

import csv
import json

import pytest
import yaml
from two_sensors import write_model, write_sensors

from terramoe.cli.main import main
from terramoe.cli.shift import with_brackets

TINY = (
    '--model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}',
    "--train.crop=32",
    "--train.batch=1",
    "--train.steps=3",
    "--split.block=8",
    "--split.guard=2",
)


@pytest.fixture(scope="module")
def scene_files(files):
    return str(files / "image.tif"), str(files / "labels.tif")


@pytest.fixture(scope="module")
def run(tmp_path_factory, scene_files):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["fit", *scene_files, "-o", str(folder), *TINY]) == 0
    return str(folder)


def test_it_writes_a_table_and_a_figure(run, scene_files, tmp_path, capsys):
    out = tmp_path / "shift"
    arguments = ["--kinds", "gain,cloud", "--severities.gain=[0.05]", "--draws=50"]
    assert main(["shift", run, *scene_files, *arguments, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "test pixels of its run, training pixels hidden" in printed
    assert str(out / "shift.png") in printed.splitlines()
    rows = list(csv.DictReader((out / "shift.csv").open()))
    assert [row["kind"] for row in rows] == ["none", "gain", "cloud", "cloud", "cloud"]
    assert (out / "shift.png").read_bytes()[:4] == b"\x89PNG"
    stored = json.loads((out / "shift.json").read_text())
    assert len(stored["rows"]) == 5


def test_one_config_gives_the_same_numbers_again(run, scene_files, tmp_path, capsys):
    settings = {"kinds": ["sensor"], "sensors": {"optical": [1, 2]}, "severities": {"sensor": [1.0]}, "draws": 50}
    (tmp_path / "shift.yaml").write_text(yaml.safe_dump(settings))
    config = ["--config", str(tmp_path / "shift.yaml")]
    found = []
    for name in ("a", "b"):
        assert main(["shift", *config, run, *scene_files, "--json", "-o", str(tmp_path / name)]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert [row["kind"] for row in found[0]["rows"]] == ["none", "sensor:optical"]
    assert found[0]["settings"]["sensors"] == {"optical": [1, 2]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "fog"], "no shift 'fog'"),
        (["--kinds", "sensor"], "no sensor is named"),
        (["--kinds=sensor", "--sensors={a: [1, 9]}"], "bands 1 to 9 of 4"),
    ],
)
def test_what_cannot_be_is_one_line(run, scene_files, tmp_path, capsys, arguments, message):
    assert main(["shift", run, *scene_files, *arguments, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_kinds_may_be_written_without_brackets():
    for given in (["--kinds", "a,b"], ["--kinds", "[a,b]"]):
        assert with_brackets(given, "--kinds") == ["--kinds", "[a,b]"]
    assert with_brackets(["--kinds=a", "x"], "--kinds") == ["--kinds=[a]", "x"]
    assert with_brackets(["--kindness", "a"], "--kinds") == ["--kindness", "a"]


def test_of_two_sensors_each_is_changed_by_itself_whatever_the_order_of_the_files(files, scene, tmp_path, capsys):
    model, image = write_model(tmp_path / "model", scene), write_sensors(tmp_path, files, finer=1)
    arguments = ["--kinds", "sensor,gain", "--severities", '{"sensor": [1.0], "gain": [0.1]}', "--draws=20", "--json"]
    found = {}
    for given in (image, ",".join(reversed(image.split(","))), image.split(",")[0]):
        call = ["shift", model, given, str(files / "labels.tif"), *arguments, "-o", str(tmp_path / "out")]
        assert main(call) == 0
        found[given] = {row["kind"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    both, turned, alone = found.values()
    assert list(both) == ["none", "sensor:hsi", "sensor:lidar", "gain:hsi", "gain:lidar"]
    assert both == turned
    assert list(alone) == ["none", "gain:hsi"]  # with nothing else left, it cannot be taken away
    assert alone["none"]["overall"] == both["sensor:lidar"]["overall"]
    assert both["sensor:hsi"]["pixels"] < both["none"]["pixels"]  # some have no LiDAR either
    named = ["--sensors={lidar: [4, 4]}", "-o", str(tmp_path / "none")]
    assert main(["shift", model, image, str(files / "labels.tif"), *named]) == 2
    assert "the model names its sensors itself" in capsys.readouterr().err
