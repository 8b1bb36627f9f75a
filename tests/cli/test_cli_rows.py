"""``fit``, ``evaluate`` and ``predict`` on tables, rasters and NetCDF, with a real system in miniature."""

import json

import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from affine import Affine
from conftest import write_tif

from terramoe.cli.main import main
from terramoe.inference.row_predictor import load_row_predictor

SMALL = [
    "--model.steps",
    "30",
    "--model.experts",
    "3",
    "--model.top_k",
    "2",
    "--model.hidden",
    "8",
    "--model.width",
    "8",
]


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    bands = np.exp(generator.normal(size=(240, 4)))
    frame = pd.DataFrame(bands, columns=[f"Rrs_{k}" for k in range(4)])
    frame["aph"] = bands[:, 0] / bands[:, 1]
    frame["latitude"] = generator.uniform(40, 50, 240)
    frame["longitude"] = generator.uniform(-5, 5, 240)
    frame["cruise"] = generator.integers(0, 8, 240)
    return frame


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    table.to_csv(folder / "table.csv", index=False)
    words = ["--system", "pha-moe", "--target", "aph", "--features", "Rrs_*", "--group", "cruise", "--seeds", "2"]
    assert main(["fit", str(folder / "table.csv"), *words, *SMALL, "-o", str(folder / "run")]) == 0
    return folder


def test_a_run_folder_holds_what_it_should(run):
    files = {path.name for path in (run / "run").iterdir()}
    wanted = {"model.skops", "model.json", "config.yaml", "report.html", "run.json", "results.json"}
    assert files >= wanted | {"experts-embedding.png", "test-predictions.csv"}
    stored = json.loads((run / "run" / "run.json").read_text())
    assert set(stored["scores"]) == {"routed", "dense"}
    text = (run / "run" / "report.html").read_text()
    for part in (
        "Map of experts, embedding",
        "Against the controls",
        "within the 90 % interval",
    ):
        assert part in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_evaluate_counts_the_test_rows_alone(run, capsys):
    words = ["evaluate", str(run / "run"), str(run / "table.csv"), "--group", "cruise", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    predictions = pd.read_csv(run / "run" / "test-predictions.csv")
    assert found["rows"] == len(predictions)
    assert found["which"] == "the test rows of its run"


@pytest.mark.parametrize("name", ["p.csv", "p.parquet"])
def test_a_table_gives_a_table(run, table, name):
    assert main(["predict", str(run / "run"), str(run / "table.csv"), "-o", str(run / name)]) == 0
    found = pd.read_csv(run / name) if name.endswith("csv") else pd.read_parquet(run / name)
    assert len(found) == len(table)
    assert {"longitude", "latitude", "aph", "aph_std", "embedding_expert", "embedding_share"} <= set(found.columns)
    np.testing.assert_allclose(found["latitude"], table["latitude"])
    assert (found["aph_std"] > 0).all()


def test_a_raster_gives_maps_on_its_grid(run, table):
    bands = table[[f"Rrs_{k}" for k in range(4)]].to_numpy()[:120].T.reshape(4, 10, 12).astype(np.float32)
    bands[:, 0, 0] = -1
    path, transform = run / "rrs.tif", Affine(0.1, 0, 10, 0, -0.1, 50)
    write_tif(path, bands, nodata=-1, crs="EPSG:4326", transform=transform)
    with rasterio.open(path, "r+") as file:
        file.descriptions = [f"Rrs_{k}" for k in range(4)]
    assert main(["predict", str(run / "run"), str(path), "-o", str(run / "maps")]) == 0
    alone = load_row_predictor(run / "run").system.predict(table[[f"Rrs_{k}" for k in range(4)]].to_numpy()[:120])
    for name in ("prediction", "uncertainty", "experts-embedding"):
        with rasterio.open(run / "maps" / f"{name}.tif") as file:
            assert (file.height, file.width) == (10, 12)
            assert file.transform == transform
            pixels = file.read()
        assert np.isnan(pixels[:, 0, 0]).any()
        if name == "prediction":
            np.testing.assert_allclose(pixels[0].ravel()[1:], alone.ravel()[1:], rtol=1e-4)


def test_netcdf_gives_netcdf(run, table):
    bands = table[[f"Rrs_{k}" for k in range(4)]].to_numpy()[:60].reshape(5, 12, 4)
    data = xr.Dataset({"Rrs": (("lat", "lon", "band"), bands)}, {"lat": np.arange(5.0), "lon": np.arange(12.0)})
    data.to_netcdf(run / "cube.nc")
    words = ["predict", str(run / "run"), str(run / "cube.nc"), "--dims", "lat,lon", "-o", str(run / "cubes")]
    assert main(words) == 0
    with xr.open_dataset(run / "cubes" / "predictions.nc") as found:
        assert dict(found.sizes) == {"lat": 5, "lon": 12}
        assert (found["aph_std"] > 0).all()
        np.testing.assert_allclose(found["lat"], np.arange(5.0))


@pytest.mark.parametrize(
    ("given", "found"),
    [("all", {"dense", "wide", "uniform", "random"}), ("none", set()), ("uniform,random", {"uniform", "random"})],
)
def test_controls_are_named_in_words(run, tmp_path, given, found):
    words = ["--system", "pha-moe", "--target", "aph", "--features", "Rrs_*", "--group", "cruise", "--seeds", "1"]
    short = [*SMALL, "--model.steps", "2", "--controls", given]
    assert main(["fit", str(run / "table.csv"), *words, *short, "-o", str(tmp_path / "run")]) == 0
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(stored["scores"]) == found | {"routed"}


def test_config_of_a_run_trains_the_same_again(run):
    words = ["--target", "aph", "--features", "Rrs_*", "--group", "cruise"]
    config = ["--config", str(run / "run" / "config.yaml")]
    assert main(["fit", str(run / "table.csv"), *config, *words, "-o", str(run / "again")]) == 0
    first, again = (json.loads((run / name / "run.json").read_text()) for name in ("run", "again"))
    for scores in (first["scores"]["routed"], again["scores"]["routed"]):
        scores.pop("seconds")
    assert first["scores"]["routed"] == again["scores"]["routed"]


def test_bad_input_is_one_line_and_changes_nothing(run, capsys):
    before = {path: path.stat().st_mtime_ns for path in (run / "run").rglob("*")}
    table, model = str(run / "table.csv"), str(run / "run")
    fit = ["fit", table, "--system", "pha-moe", *SMALL]
    for words in (
        [*fit, "--target", "none", "-o", str(run / "x1")],
        [*fit, "--target", "aph", "--group", "none", "-o", str(run / "x2")],
        [*fit, "-o", str(run / "x3")],
        [*fit, "--target", "aph", "-o", model],
        [*fit, "--target", "aph", "--model.depths", "3", "-o", str(run / "x4")],
        ["fit", table, "--system", "no-such", "--target", "aph"],
        ["fit", table, "--target", "aph"],
        ["predict", model, str(run / "none.csv")],
        ["trust", model, table, table],
        ["compare", "pha-moe", "--data", table, table],
        ["evaluate", model, table, "--target", "cruise"],
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err.strip()
        assert error.startswith("terramoe: ")
        assert "Fix: " in error
        assert error.count("\n") == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "run").rglob("*")} == before


def test_systems_shows_a_table_system(capsys):
    assert main(["systems", "pha-moe"]) == 0
    text = capsys.readouterr().out
    assert "Works on rows" in text
    assert "top_k = 6" in text
