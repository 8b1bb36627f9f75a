"""``terramoe world``: the files are what the world is, and the other verbs can use them."""

import json

import numpy as np
import pytest
import rasterio

from terramoe.cli.main import main
from terramoe.cli.options import add_scene, parser, read_scene
from terramoe.data import load_scene
from terramoe.data.worlds import RECIPES, make_world
from terramoe.errors import TerraMoEError
from terramoe.storage import sha256_of

SIZE, SEED = 62, 3  # 62: a size that neither 20 nor 60 m divides evenly on the coarse grids

TINY = (
    '--model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}',
    "--train.crop=32",
    "--train.batch=1",
    "--train.steps=2",
    "--train.steps_per_epoch=2",
    "--split.block=8",
    "--split.guard=1",
    "--lenient=true",
)


@pytest.fixture(scope="module")
def world():
    return make_world("delta", size=SIZE, seed=SEED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "delta"
    assert main(["world", "delta", "-o", str(folder), "--size", str(SIZE), "--seed", str(SEED)]) == 0
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return json.loads((folder / "world.json").read_text())


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.profile, file.descriptions


@pytest.mark.parametrize("name", ["optical10", "optical20", "optical60", "radar", "lidar"])
def test_every_date_of_a_sensor_is_a_geotiff_on_its_own_grid(name, world, folder, manifest):
    acquisition = world.sensors[name]
    spacing, facts = acquisition.sensor.spacing, manifest["sensors"][name]
    assert facts["weeks"] == ([16] if name == "lidar" else [16, 24, 32, 40])
    masks, _, weeks = read(folder / f"valid_{name}.tif")
    assert weeks == tuple(f"week {week}" for week in facts["weeks"])
    np.testing.assert_array_equal(masks, acquisition.valid)
    for place, week in enumerate(facts["weeks"]):
        file = f"{name}_week{week}.tif"
        assert facts["files"][place] == file
        pixels, profile, bands = read(folder / file)
        assert profile["crs"].to_epsg() == 32633
        assert profile["transform"] == rasterio.Affine(spacing, 0, 499_980, 0, -spacing, 5_400_000)
        assert profile["nodata"] == -9999
        assert profile["dtype"] == "float32"
        assert pixels.shape[1:] == (-(-SIZE * 10 // spacing),) * 2
        assert list(bands) == [band["name"] for band in facts["bands"]]
        seen = acquisition.valid[place]
        np.testing.assert_array_equal(pixels[:, seen], acquisition.values[place][:, seen])
        assert (pixels[:, ~seen] == -9999).all()


def test_the_truth_is_written_beside_them(world, folder):
    for name, array in (
        ("labels", world.labels),
        ("labels_before", world.labels_before),
        ("change", world.change),
        ("regime_region", world.regimes["region"]),
    ):
        pixels, profile, _ = read(folder / f"{name}.tif")
        np.testing.assert_array_equal(pixels[0], array)
        assert profile["transform"] == world.transform
    for name in ("season", "light", "sky", "available"):
        pixels, _, weeks = read(folder / f"regime_{name}.tif")
        np.testing.assert_array_equal(pixels, world.regimes[name])
        assert weeks == ("week 16", "week 24", "week 32", "week 40")
    ground, objects = read(folder / "terrain.tif")[0]
    np.testing.assert_array_equal(ground, world.terrain.astype(np.float32))
    np.testing.assert_array_equal(objects, world.objects.astype(np.float32))


def test_the_manifest_lists_every_file_and_what_is_in_it(world, folder, manifest):
    on_disk = {path.name for path in folder.iterdir()} - {"world.json"}
    assert set(manifest["files"]) == on_disk
    assert all(sha256_of(folder / name) == digest for name, digest in manifest["files"].items())
    assert (manifest["world"], manifest["size"], manifest["seed"]) == ("delta", SIZE, SEED)
    assert manifest["classes"]["2"] == "sand"
    assert len(manifest["classes"]) == 11
    assert manifest["recipe"]["shares"] == dict(RECIPES["delta"].shares)
    assert manifest["recipe"]["looks"] == 4
    assert manifest["sensors"]["optical20"]["bands"][4] == {"name": "B11", "centre_nm": 1613.7, "width_nm": 91}
    assert manifest["sensors"]["radar"]["bands"][0]["centre_nm"] is None
    assert manifest["regimes"]["sky"] == {"file": "regime_sky.tif", "values": ["clear", "shadow", "cloud"]}
    for name, acquisition in world.sensors.items():
        np.testing.assert_array_equal(manifest["sensors"][name]["shifts_m"], acquisition.shifts)
        np.testing.assert_array_equal(manifest["sensors"][name]["gain"], acquisition.gain)


def test_the_written_scene_is_the_scene(world, folder):
    read_back, made = load_scene(folder / "scene.tif", folder / "labels.tif"), world.scene()
    np.testing.assert_array_equal(read_back.image, made.image)
    np.testing.assert_array_equal(read_back.labels, made.labels)
    np.testing.assert_array_equal(read_back.valid, made.valid)
    assert (read_back.crs, read_back.transform) == (made.crs, made.transform)
    assert read_back.class_values == made.class_values


def test_the_same_command_writes_the_same_bytes_and_never_over_another_world(tmp_path, manifest, capsys):
    again = tmp_path / "again"
    command = ["world", "delta", "-o", str(again), "--size", str(SIZE), "--seed", str(SEED)]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == manifest  # with the SHA-256 of every file
    assert main(command) == 2
    assert "holds a world" in capsys.readouterr().err
    assert main([*command[:-1], "9", "--overwrite"]) == 0
    assert json.loads((again / "world.json").read_text())["seed"] == 9


def test_worlds_are_listed(capsys):
    assert main(["world"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)
    assert main(["world", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == list(RECIPES)
    assert listed["delta"]["sensors"] == ["optical10", "optical20", "optical60", "radar", "lidar"]


def scene_of(*arguments):
    options = parser("fit", "")
    add_scene(options)
    return read_scene(options.parse_args(list(arguments)))


def test_a_world_can_stand_where_an_image_stands():
    for text, name, seed in (("world:plain", "plain", 0), ("world:missing:7", "missing", 7)):
        scene, made = scene_of(text), make_world(name, seed=seed).scene()
        np.testing.assert_array_equal(scene.image, made.image)
        np.testing.assert_array_equal(scene.labels, made.labels)
        assert scene.name == f"{name}, seed {seed}"
    for text, message in (("world:atlantis", "no world"), ("world:plain:x", "no seed"), ("world:plain:-1", "no seed")):
        with pytest.raises(TerraMoEError, match=message):
            scene_of(text)


def test_fit_and_evaluate_run_on_a_written_world(tmp_path, capsys):
    assert main(["world", "regimes", "-o", str(tmp_path / "w"), "--size", "48"]) == 0
    scene = [str(tmp_path / "w" / "scene.tif"), str(tmp_path / "w" / "labels.tif")]
    assert main(["fit", *scene, "-o", str(tmp_path / "run"), *TINY]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), *scene, "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["overall_accuracy"]["value"] <= 1


def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = ["-o", str(tmp_path / "out")]
    for arguments, message in (
        (["atlantis", *out], "no world 'atlantis'"),
        (["plain", "--size", "7", *out], "size is 7"),
        (["plain", "--seed", "-2", *out], "seed is -2"),
        (["plain", "--size", "48", "-o", str(tmp_path / "file")], "the output is a file"),
    ):
        assert main(["world", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert "Fix:" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
