"""trust and drift on a small trained model: complete answers, and an alarm for a changed image only."""

import json

import numpy as np
import pytest
import rasterio
from conftest import write_tif
from test_cli import TINY

from terramoe.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("trust") / "run"
    call = ["fit", str(files / "image.tif"), str(files / "labels.tif"), "-o", str(folder), "--train.steps=3", *TINY]
    assert main(call) == 0
    return folder


def test_trust_judges_other_blocks_than_it_calibrates_on(run, files, tmp_path, capsys):
    call = ["trust", str(run), str(files / "image.tif"), str(files / "labels.tif"), "-o", str(tmp_path / "out")]
    assert main([*call, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out" / "trust.json").read_text())
    evaluated = ["evaluate", str(run), str(files / "image.tif"), str(files / "labels.tif"), "--json"]
    assert main(evaluated) == 0
    pixels = json.loads(capsys.readouterr().out)["pixels"]
    assert found["calibration_pixels"] + found["judged_pixels"] == pixels
    assert min(found["calibration_pixels"], found["judged_pixels"]) > 0
    assert sum(s["pixels"] for s in found["strata"] if s["division"] == "class") == found["judged_pixels"]
    assert 0 <= found["coverage"] <= 1
    assert found["temperature"] > 0
    assert set(found["probes"]["level1"]["findings"]) == {"class", "place"}
    for name in ("reliability.png", "risk.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert main(call) == 0
    shown = capsys.readouterr().out
    assert "Calibration error" in shown
    assert "level1:" in shown


def test_drift_rings_for_a_changed_image_only(run, files, tmp_path, capsys):
    with rasterio.open(files / "image.tif") as file:
        image = file.read()
    changed = np.where(image == -9999, -9999, 0.5 * image + 3).astype(np.float32)
    write_tif(tmp_path / "changed.tif", changed, nodata=-9999)
    rings = {}
    for name in (files / "image.tif", tmp_path / "changed.tif"):
        assert main(["drift", str(run), str(files / "image.tif"), str(name), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found["bands"]) == image.shape[0]
        assert sum(found["shares"]) == pytest.approx(1)
        rings[name.stem] = found["drifted"]
    assert rings == {"image": False, "changed": True}
    assert main(["drift", str(run), str(files / "image.tif"), str(tmp_path / "changed.tif")]) == 0
    assert "Drifted" in capsys.readouterr().out


def test_other_bands_are_refused(run, files, tmp_path, capsys):
    write_tif(tmp_path / "two.tif", np.ones((2, 48, 56), dtype=np.float32))
    assert main(["drift", str(run), str(files / "image.tif"), str(tmp_path / "two.tif")]) == 2
    assert "2 bands" in capsys.readouterr().err
