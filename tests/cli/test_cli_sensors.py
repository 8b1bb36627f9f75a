"""A run on two sensors, evaluated again with its files in another order, and with one sensor missing."""

import json

import pytest
from two_sensors import write_sensors

from terramoe.cli.main import main

SIZES = {"patch": 3, "width": 16, "depth": 1, "heads": 2, "tokens": 2, "filters": 2, "band_kernel": 3, "experts": 3}
TRAIN = {"steps": 2, "batch": 8}
SPLIT = {"block": 8, "guard": 1, "folds": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("two")
    sensors = write_sensors(folder, files, finer=1)
    words = [f"--model.{name}={value}" for name, value in SIZES.items()]
    words += [f"--train.{name}={value}" for name, value in TRAIN.items()]
    words += [f"--split.{name}={value}" for name, value in SPLIT.items()]
    fit = ["fit", sensors, str(files / "labels.tif"), "--system", "mixturers", *words, "-o", str(folder / "run")]
    assert main(fit) == 0
    return str(folder / "run"), sensors, str(files / "labels.tif")


def evaluated(run, sensors, capsys):
    capsys.readouterr()
    assert main(["evaluate", run[0], sensors, run[2], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_order_of_the_files_changes_nothing(run, capsys):
    hsi, lidar = run[1].split(",")
    assert evaluated(run, f"{lidar},{hsi}", capsys) == evaluated(run, run[1], capsys)


def test_with_a_sensor_missing_training_pixels_still_do_not_count(run, capsys):
    whole, part = evaluated(run, run[1], capsys), evaluated(run, run[1].split(",")[0], capsys)
    assert part["which"] == whole["which"] == "the test pixels of its run, training pixels hidden"
    assert part["pixels"] == whole["pixels"]
    assert part != whole
