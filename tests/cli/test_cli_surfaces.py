"""``fit``, ``evaluate`` and ``predict`` of surfaces: files, numbers, held-out blocks, and errors of one line."""

import json

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from conftest import write_tif

from terramoe.cli.main import main
from terramoe.cli.surface_job import noises
from terramoe.data.surfaces import open_surfaces, read_surface
from terramoe.data.worlds.fields import rough_field
from terramoe.errors import ConfigError, SplitError
from terramoe.experiments.simulated_surfaces import SIMULATED_SURFACES, known_surface
from terramoe.experiments.surface_run import SurfacePlan, hold_out, run_surface
from terramoe.mixtures.quad_tree import Observation

SMALL = ["--seeds", "2", "--block", "8", "--guard", "2", "--share", "0.3"]
KINDS = {
    "aggarwal": '{"n_experts": 2, "scales": 2, "tol": 0.001}',
    "nagarajan-slatton": '{"n_experts": 2, "window": 12, "lags": 3, "tol": 0.001}',
}


@pytest.fixture(scope="module")
def rasters(tmp_path_factory):
    """A coarse dense raster that begins beyond the fine one, a fine sparse one, and the truth, 40 x 48 pixels."""
    folder, rng = tmp_path_factory.mktemp("surface"), np.random.default_rng(0)
    ground = 200 + 30 * rough_field(64, 3.4, rng)
    truth = ground[2:42, 4:52]
    laser = np.where(rng.random(truth.shape) < 0.3, truth + 0.5 * rng.standard_normal(truth.shape), -9999)
    radar = ground[:44, :52].reshape(22, 2, 26, 2).mean(axis=(1, 3)) + 5 * rng.standard_normal((22, 26))
    radar[:3, :3] = -9999
    write_tif(folder / "laser.tif", laser[None].astype(np.float32), nodata=-9999)
    wide = Affine(20, 0, 500_000 - 40, 0, -20, 4_000_000 + 20)
    write_tif(folder / "radar.tif", radar[None].astype(np.float32), nodata=-9999, transform=wide)
    write_tif(folder / "truth.tif", truth[None].astype(np.float32))
    return folder, f"radar={folder / 'radar.tif'},laser={folder / 'laser.tif'}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, rasters):
    made = {}
    for name, settings in KINDS.items():
        folder = tmp_path_factory.mktemp("runs") / name
        arguments = [rasters[1], "--system", name, "--noise", "5,0.5", "--model", settings, *SMALL, "-o", str(folder)]
        assert main(["fit", *arguments]) == 0
        made[name] = folder
    return made


@pytest.mark.parametrize("name", KINDS)
def test_fit_writes_scores_maps_and_a_model(name, runs):
    folder = runs[name]
    card = json.loads((folder / "run.json").read_text())
    assert card["plan"]["target"] == "laser"  # of least noise
    assert set(card["scores"]) == {"routed", "dense", "uniform", "random"}
    assert set(card["controls"]) == {"dense", "uniform", "random"}
    assert all(len(rows["seeds"]) == 2 for rows in card["scores"].values())
    for key in ("rmse", "bias", "mae", "coverage_50", "coverage_90", "coverage_95", "nll"):
        values = [row[key] for row in card["scores"]["routed"]["seeds"]]
        assert card["scores"]["routed"]["mean"][key] == pytest.approx(np.mean(values))
    assert sum(card["load"].values()) == pytest.approx(1)
    assert all((folder / file).stat().st_size > 5000 for file in ("report.html", "experts.png"))
    segmented = name == "nagarajan-slatton"
    assert (folder / "segments.tif").exists() == segmented
    for file, bands in (("mean", 1), ("std", 1), ("experts", 3), *((("segments", 1),) if segmented else ())):
        with rasterio.open(folder / f"{file}.tif") as raster:
            assert (raster.count, raster.height, raster.width) == (bands, 40, 48)
            assert raster.transform == Affine(10, 0, 500_000, 0, -10, 4_000_000)
            assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert np.isfinite(raster.read()).all()
        assert (folder / f"{file}.tif.sha256").exists()


@pytest.mark.parametrize("name", KINDS)
def test_the_model_predicts_the_maps_of_the_fit_and_is_scored(name, runs, rasters, tmp_path, capsys):
    folder, files = rasters
    assert main(["predict", str(runs[name]), files, "-o", str(tmp_path / "maps")]) == 0
    turned = ",".join(reversed(files.split(",")))  # the order of the files is the user's
    assert main(["predict", str(runs[name] / "model.skops"), turned, "-o", str(tmp_path / "turned")]) == 0
    for file in ("mean.tif", "std.tif", "experts.tif"):
        content = [(place / file).read_bytes() for place in (runs[name], tmp_path / "maps", tmp_path / "turned")]
        assert content[0] == content[1] == content[2]
    capsys.readouterr()
    truth = ["--truth", str(folder / "truth.tif"), "--json"]
    assert main(["evaluate", str(runs[name]), files, *truth]) == 0
    found = json.loads(capsys.readouterr().out)
    with rasterio.open(runs[name] / "mean.tif") as mean, rasterio.open(folder / "truth.tif") as file:
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean((mean.read(1) - file.read(1)) ** 2)), rel=1e-4)
    assert found["pixels"] == 40 * 48
    assert main(["evaluate", str(runs[name]), files, *truth, "--unseen"]) == 0
    unseen = json.loads(capsys.readouterr().out)
    assert unseen["pixels"] < found["pixels"]
    assert unseen["rmse"] > found["rmse"]
    assert main(["evaluate", str(runs[name]), files, *truth, "--noise", "radar=50,laser=5"]) == 0
    assert json.loads(capsys.readouterr().out)["rmse"] != found["rmse"]


def test_a_second_run_gives_the_same_card(runs, rasters, tmp_path):
    name, settings = list(KINDS.items())[-1]
    arguments = [rasters[1], "--system", name, "--noise", "radar=5,laser=0.5", "--model", settings, *SMALL]
    assert main(["fit", *arguments, "-o", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "run.json").read_text() == (runs[name] / "run.json").read_text()
    assert main(["fit", *arguments, "-o", str(tmp_path / "again")]) == 2
    assert main(["fit", *arguments, "-o", str(tmp_path / "again"), "--overwrite"]) == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_config_of_a_run_gives_the_same_numbers(name, runs, rasters, tmp_path):
    config = ["--config", str(runs[name] / "config.yaml")]
    assert main(["fit", rasters[1], *config, "-o", str(tmp_path / "again")]) == 0
    for file in ("run.json", "config.yaml", "mean.tif", "experts.tif"):
        assert (tmp_path / "again" / file).read_bytes() == (runs[name] / file).read_bytes()
    assert main(["fit", rasters[1], *config, "--noise", "9,0.5", "-o", str(tmp_path / "other")]) == 0
    noise = json.loads((tmp_path / "other" / "run.json").read_text())["facts"]["noise"]
    assert noise == [9.0, 0.5]  # what comes later on the line counts


@pytest.mark.parametrize("name", SIMULATED_SURFACES)
def test_a_simulated_scene_and_its_files_are_the_same(name, tmp_path, capsys):
    assert main(["world", f"surface:{name}", "--seed", "3", "-o", str(tmp_path)]) == 0
    known = known_surface(f"surface:{name}:3")
    made = known.surfaces
    files = {sensor: tmp_path / f"{sensor}.tif" for sensor in made.names}
    found = open_surfaces(files, dict(zip(made.names, made.noise, strict=True)))
    assert (found.grid, found.offset, found.transform, found.noise) == (made.grid, (0, 0), made.transform, made.noise)
    for one, other in zip(found.observations, made.observations, strict=True):
        assert one.scale == other.scale
        np.testing.assert_array_equal(one.value, other.value)
        np.testing.assert_array_equal(one.variance, other.variance)
    np.testing.assert_array_equal(read_surface(tmp_path / "truth.tif", found), known.truth)
    assert (tmp_path / "regimes.tif").exists() == (known.regimes is not None)
    assert not np.array_equal(known.truth, known_surface(f"surface:{name}").truth)
    assert main(["world", f"surface:{name}", "-o", str(tmp_path)]) == 2
    assert main(["world", f"surface:{name}:3", "-o", str(tmp_path), "--overwrite", "--json"]) == 0
    errors = [(one.value - known.truth)[one.seen] for one in made.observations if one.scale == 0]
    for error, noise in zip(errors, np.array(made.noise)[[one.scale == 0 for one in made.observations]], strict=True):
        assert error.std() == pytest.approx(noise, rel=0.05)  # what is said of the noise is so


@pytest.mark.parametrize(
    ("scene", "system", "model"),
    [
        ("surface:jacksboro", "aggarwal", {"n_experts": 2, "tol": 0.001}),
        ("surface:fractal", "nagarajan-slatton", {"n_experts": 2, "tol": 0.001}),
    ],
)
def test_a_simulated_scene_needs_no_data_and_no_noise(scene, system, model, tmp_path, capsys):
    folder = tmp_path / "run"
    said = {"tol": 0.001} if system == "nagarajan-slatton" else model
    words = ["--system", system, "--model", json.dumps(said), "--seeds", "1", "-o", str(folder)]
    assert main(["fit", scene, *words]) == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"] == model  # the scene's own settings too
    capsys.readouterr()
    scores = []
    for seed, more in ((0, []), (0, ["--unseen"]), (1, [])):
        assert main(["evaluate", str(folder), f"{scene}:{seed}", "--json", *more]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    truth, target = known_surface(scene).truth, known_surface(scene).surfaces.observations[1]
    with rasterio.open(folder / "mean.tif") as file:
        assert scores[0]["rmse"] == pytest.approx(np.sqrt(np.mean((file.read(1) - truth) ** 2)), rel=1e-4)
    assert scores[0]["pixels"] == truth.size
    assert scores[1]["pixels"] == truth.size - target.seen.sum()
    assert scores[2]["rmse"] != scores[0]["rmse"]
    assert ("segments_ari" in scores[0]) == (system == "nagarajan-slatton")
    if system == "aggarwal":
        assert scores[1]["rmse"] < known_surface(scene).surfaces.noise[0]  # better than the radar
    assert main(["predict", str(folder), f"{scene}:1", "-o", str(tmp_path / "maps")]) == 0
    with rasterio.open(tmp_path / "maps" / "mean.tif") as file:
        there = np.sqrt(np.mean((file.read(1) - known_surface(f"{scene}:1").truth) ** 2))
    assert scores[2]["rmse"] == pytest.approx(there, rel=1e-4)
    other = next(f"surface:{name}" for name in SIMULATED_SURFACES if f"surface:{name}" != scene)
    assert main(["predict", str(folder), other, "-o", str(tmp_path / "maps")]) == 2
    assert "for a model of" in capsys.readouterr().err


def test_the_noise_of_a_simulated_scene_can_be_said_otherwise(tmp_path):
    made = known_surface("surface:jacksboro").surfaces
    other = made.with_noise({"radar": 40.0, "laser": 0.5})
    assert other.noise == (40.0, 0.5)
    assert np.unique(other.observations[0].variance) == 40.0**2
    turned = made.arranged(("laser", "radar"))
    assert turned.noise == made.noise[::-1]
    np.testing.assert_array_equal(turned.observations[0].value, made.observations[1].value)
    with pytest.raises(ConfigError):
        made.with_noise({"radar": 40.0})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fit", "surface:moon", "--system", "aggarwal"], "there is no simulated surface 'moon'"),
        (["fit", "surface:fractal:x", "--system", "aggarwal"], "'x' is no seed"),
        (["fit", "radar=a.tif,laser=b.tif", "--system", "aggarwal"], "no noise is given"),
        (["world", "surface:moon"], "there is no simulated surface 'moon'"),
    ],
)
def test_what_is_missing_or_unknown_takes_one_line(words, text, tmp_path, capsys):
    assert main([*words, "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_files_need_a_truth_to_be_scored(runs, rasters, capsys):
    assert main(["evaluate", str(runs["aggarwal"]), rasters[1]]) == 2
    assert "--truth" in capsys.readouterr().err


def test_simulated_scenes_are_listed(capsys):
    assert main(["world"]) == 0
    out = capsys.readouterr().out
    assert all(f"surface:{name}" in out for name in SIMULATED_SURFACES)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--noise", "5"], "no noise for radar, laser"),
        (["--noise", "5,x"], "no noise for radar, laser"),
        (["--noise", "5,0"], "laser"),
        (["--noise", "5,1", "--target", "sonar"], "no sensor is called 'sonar'"),
        (["--noise", "5,1", "--target", "radar"], "target"),
        (["--noise", "5,1", "--model", '{"depth": 2}'], "no setting depth"),
        (["--noise", "5,1", "--share", "1"], "share"),
        (["--noise", "5,1", "--guard", "60"], "no value is left"),
    ],
)
def test_errors_take_one_line(more, text, rasters, tmp_path, capsys):
    arguments = [rasters[1], "--system", "aggarwal", "-o", str(tmp_path / "run"), *more]
    assert main(["fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_scene_of_other_sensors_is_refused(runs, rasters, tmp_path, capsys):
    for files in (rasters[1].replace("radar=", "sonar="), str(rasters[0] / "laser.tif")):
        assert main(["predict", str(runs["aggarwal"]), files, "-o", str(tmp_path / "maps")]) == 2
        assert "radar=FILE,laser=FILE" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), rasters[1], "-o", str(tmp_path / "maps")]) == 2


def test_held_out_blocks_and_their_guard_are_hidden():
    target = Observation(np.random.default_rng(0).normal(size=(40, 50)), 1.0)
    plan = SurfacePlan("aggarwal", {}, "a", block=8, guard=3, share=0.1)
    rest, test, blocks = hold_out(target, plan, 0)
    assert len(np.unique(blocks[test])) == round(0.1 * len(np.unique(blocks)))
    for row, column in np.argwhere(test):
        assert not rest.seen[max(row - 3, 0) : row + 4, max(column - 3, 0) : column + 4].any()
    assert rest.seen.sum() > 0.5 * test.size
    again, other = hold_out(target, plan, 0)[1], hold_out(target, plan, 1)[1]
    assert np.array_equal(test, again)
    assert not np.array_equal(test, other)
    with pytest.raises(SplitError):
        hold_out(target, SurfacePlan("aggarwal", {}, "a", block=64), 0)


def test_held_out_values_do_not_reach_the_score(rasters):
    """The surface at held-out pixels is the same whatever was measured there."""
    surfaces = open_surfaces(rasters[1], {"radar": 5.0, "laser": 0.5})
    plan = SurfacePlan(
        "nagarajan-slatton", {"n_experts": 2, "window": 12}, "laser", block=8, guard=2, share=0.3, seeds=1
    )
    laser = surfaces.observations[1]
    _, test, _ = hold_out(laser, plan, 0)
    shifted = Observation(np.where(test, laser.value + 1000, laser.value), laser.variance.min())
    moved = type(surfaces)((surfaces.observations[0], shifted), *list(vars(surfaces).values())[1:])
    bias = [run_surface(plan, scene).scores["routed"][0]["bias"] for scene in (surfaces, moved)]
    assert bias[0] - bias[1] == pytest.approx(1000, abs=1e-6)


def test_noise_in_order_or_by_name():
    assert noises("20,0.5", ("a", "b")) == noises("b=0.5,a=20", ("a", "b")) == {"a": 20.0, "b": 0.5}
    for text in ("20", "a=1,2", "", "a=,b=1", "a=1,a=2"):
        with pytest.raises(ConfigError):
            noises(text, ("a", "b"))
