"""``terramoe drift`` with several sensors: says which one drifted, and which cannot be compared."""

import json

import pytest
from two_sensors import write_model, write_sensors

from terramoe.cli.main import main


@pytest.fixture(scope="module")
def two(tmp_path_factory, files, scene):
    folder = tmp_path_factory.mktemp("two")
    (folder / "changed").mkdir()
    images = write_sensors(folder, files), write_sensors(folder / "changed", files, lidar_gain=-3.0)
    return write_model(folder / "model", scene), *images


def test_the_sensor_that_drifted_is_named(two, capsys):
    model, image, changed = two
    assert main(["drift", model, image, changed, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["drifted"]
    assert [name for name, sensor in found["sensors"].items() if sensor["drifted"]] == ["lidar"]
    assert 0.6 < found["sensors"]["lidar"]["new"] < 0.8  # the gap
    assert main(["drift", model, image, changed]) == 0
    printed = capsys.readouterr().out
    assert "Sensor hsi: no drift seen" in printed
    assert "Sensor lidar: drifted" in printed


def test_what_is_missing_is_said_and_not_compared(two, capsys):
    model, image, _ = two
    assert main(["drift", model, image, image.split(",")[0], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sensors"]["lidar"]["values"] is None
    assert found["sensors"]["lidar"]["new"] == 0
    assert found["bands"][3] is None
    assert main(["drift", model, image, image.split(",")[0]]) == 0
    printed = capsys.readouterr().out
    assert "Sensor lidar: cannot be compared" in printed
    assert "routing and features answer to that, too" in " ".join(printed.split())
    assert main(["drift", model, image, image, "--max-gib=1e-6"]) == 2
    assert "the budget is 1e-06" in capsys.readouterr().err
