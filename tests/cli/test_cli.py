"""The command line: help is instant, each verb works on files, and each bad input is one line and exit code 2."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import scipy.io
from conftest import write_tif

from terramoe.cli.main import VERBS, main
from terramoe.storage import sha256_of

TINY = (
    '--model={"width": 16, "expert_widths": [2, 3, 4, 5], "state": 4, "head_width": 8, "window": 2}',
    "--train.crop=32",
    "--train.batch=1",
    "--train.steps_per_epoch=2",
    "--split.block=8",
    "--split.guard=2",
)


def terramoe(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "terramoe.cli.main", *map(str, arguments)], capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert (
        main(["fit", str(files / "image.tif"), str(files / "labels.tif"), "-o", str(folder), "--train.steps=3", *TINY])
        == 0
    )
    return folder


def test_import_and_help_do_not_load_torch_and_are_quick():
    check = "import sys, terramoe; from terramoe.cli.main import main; main(['--help']); print('torch' in sys.modules)"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(verb in done.stdout for verb in VERBS)
    assert min(times) < 0.7


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as done:
        main([verb, "--help"])
    assert done.value.code == 0
    assert f"usage: terramoe {verb}" in capsys.readouterr().out


def test_fit_writes_a_run_and_names_the_next_command(run, files, capsys):
    assert (run / "report.html").exists()
    assert main(["fit", str(files / "image.tif"), str(files / "labels.tif"), "-o", str(run), *TINY]) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_predict_writes_maps_on_the_grid_of_the_raster(run, files, tmp_path, capsys):
    deep = tmp_path / ("a-name-that-is-longer-than-a-terminal-is-wide" * 2)
    assert main(["predict", str(run), str(files / "image.tif"), "-o", str(deep), "--probability"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for name in ("prediction", "experts", "uncertainty", "probability"):
        with rasterio.open(deep / f"{name}.tif") as file, rasterio.open(files / "image.tif") as source:
            assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
        assert str(deep / f"{name}.tif") in printed


def test_evaluate_prints_json(run, files, capsys):
    assert main(["evaluate", str(run), str(files / "image.tif"), str(files / "labels.tif"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["overall_accuracy"]["value"] <= 1
    assert main(["evaluate", str(run), str(files / "image.tif"), str(files / "labels.tif")]) == 0
    assert "overall accuracy %" in capsys.readouterr().out


def test_envi_matlab_and_numpy_scenes_train_to_the_same_weights(files, scene, tmp_path):
    with rasterio.open(files / "image.tif") as source:
        image = source.read()
    image = np.where(scene.valid, image, np.nan).astype(np.float32)
    labels = (10 * scene.labels).astype(np.uint8)
    write_tif(tmp_path / "envi.img", image, driver="ENVI")
    scipy.io.savemat(tmp_path / "a.mat", {"cube": image.transpose(1, 2, 0)})
    scipy.io.savemat(tmp_path / "gt.mat", {"gt": labels})
    np.save(tmp_path / "a.npy", image.transpose(1, 2, 0))
    np.save(tmp_path / "gt.npy", labels)
    hashes = set()
    for number, (cube, truth) in enumerate([("envi.img", "gt.npy"), ("a.mat", "gt.mat"), ("a.npy", "gt.npy")]):
        out = tmp_path / f"run{number}"
        assert main(["fit", str(tmp_path / cube), str(tmp_path / truth), "-o", str(out), "--train.steps=2", *TINY]) == 0
        hashes.add(sha256_of(out / "model.safetensors"))
    assert len(hashes) == 1


def test_a_run_can_be_repeated_from_its_configuration(run, files, tmp_path):
    arguments = [
        "fit",
        "--config",
        run / "config.yaml",
        files / "image.tif",
        files / "labels.tif",
        "-o",
        tmp_path / "again",
    ]
    assert main([str(a) for a in arguments]) == 0
    assert sha256_of(tmp_path / "again" / "model.safetensors") == sha256_of(run / "model.safetensors")


def test_systems_lists_and_shows(capsys):
    assert main(["systems"]) == 0
    assert "mambamoe" in capsys.readouterr().out
    assert main(["systems", "mambamoe"]) == 0
    assert "2504.20509" in capsys.readouterr().out
    assert main(["systems", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mambamoe"]["reconstruction"] is True


def test_doctor_is_well(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    assert main(["doctor"]) == 0


def bad_commands(folder, run, files):
    """Name -> (arguments, what the line must say)."""
    image, labels = files / "image.tif", files / "labels.tif"
    content = image.read_bytes()
    (folder / "truncated.tif").write_bytes(content[: int(len(content) * 0.6)])
    (folder / "corrupt.tif").write_bytes(b"II*\x00" + bytes(100))
    (folder / "vrt.tif").write_text("<VRTDataset rasterXSize='9' rasterYSize='9'/>")
    with rasterio.open(
        folder / "huge.tif", "w", driver="GTiff", height=200_000, width=200_000, count=1, dtype="uint8", tiled=True,
        sparse_ok=True, bigtiff="yes",
    ):  # fmt: skip
        pass
    write_tif(folder / "two_bands.tif", np.zeros((2, 40, 40), dtype=np.float32))
    write_tif(folder / "small.tif", np.ones((4, 20, 20), dtype=np.float32))
    write_tif(folder / "small_labels.tif", (np.indices((20, 20)).sum(0) % 3).astype(np.uint8)[None])
    write_tif(folder / "negative.tif", np.full((1, 48, 56), -3, dtype=np.int16))
    write_tif(folder / "nan.tif", np.full((4, 48, 56), np.nan, dtype=np.float32))
    rare = np.ones((48, 56), dtype=np.uint8)
    rare[:4, 20:24] = 2
    write_tif(folder / "rare.tif", rare[None])
    shutil.copytree(run, folder / "tampered")
    weights = bytearray((folder / "tampered" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "tampered" / "model.safetensors").write_bytes(weights)
    (folder / "model.pt").write_bytes(pickle.dumps({"weights": 1}))
    out = ["-o", folder / "out"]
    return {
        "missing file": (["fit", "nothing.tif", labels, *out], "no such file"),
        "no labels": (["fit", image, *out], "no labels are given"),
        "corrupt": (["fit", folder / "corrupt.tif", labels, *out], "corrupt or truncated"),
        "truncated, predict": (["predict", run, folder / "truncated.tif", *out], "corrupt or truncated"),
        "vrt": (["predict", run, folder / "vrt.tif", *out], "no GeoTIFF, ENVI or PNG"),
        "huge": (["predict", run, folder / "huge.tif", *out], "the budget is 64"),
        "huge, fit": (["fit", folder / "huge.tif", labels, *out], "the budget is 8"),
        "bands": (["predict", run, folder / "two_bands.tif", *out], "has 2 bands, the model was trained on 4"),
        "labels": (["fit", image, folder / "negative.tif", *out], "from -3 to"),
        "names": (["fit", image, labels, "--class-names", "a,b", *out], "label value 30 with 2 class names"),
        "empty class": (
            ["fit", image, folder / "rare.tif", "--train.crop=32", *out],
            "no training pixel is left of class 2",
        ),
        "small": (
            ["fit", folder / "small.tif", folder / "small_labels.tif", "--split.block=4", *out],
            "--train.crop 20",
        ),
        "all nan": (["fit", folder / "nan.tif", labels, *out], "no pixel is valid"),
        "tampered": (["predict", folder / "tampered", image, *out], "not those that the manifest vouches for"),
        "pickle": (["predict", folder / "model.pt", image, *out], "pickle checkpoint"),
        "no model": (["predict", folder / "nowhere", image, *out], "no such model"),
        "setting": (["fit", image, labels, "--model.depth=3", *out], "no setting depth"),
        "system": (["systems", "nothing"], "no system 'nothing'"),
        "verb": (["fly"], "no 'fly'"),
    }


def test_bad_input_is_one_line_and_changes_nothing(tmp_path, run, files, capsys):
    for name, (arguments, message) in bad_commands(tmp_path, run, files).items():
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine.txt").write_text("keep")
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 2, name
        error = capsys.readouterr().err
        assert message in error, name
        assert error.count("\n") == 1, name
        assert "Fix:" in error, name
        assert os.listdir(tmp_path / "out") == ["mine.txt"], name


def test_no_traceback_reaches_the_user(tmp_path):
    done = terramoe("predict", tmp_path, "nothing.tif")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("terramoe: ")


def test_an_unknown_option_exits_with_2(capsys):
    with pytest.raises(SystemExit) as done:
        main(["fit", "a", "b", "--nonsense", "1"])
    assert done.value.code == 2


@pytest.mark.slow
def test_killed_at_five_random_moments_and_resumed_it_ends_with_the_same_bits(files, tmp_path):
    def arguments(out):
        steps = ["--train.steps=150", "--train.save_every=1"]
        return ["fit", files / "image.tif", files / "labels.tif", "-o", out, *steps, *TINY]

    assert terramoe(*arguments(tmp_path / "whole")).returncode == 0

    seed = random.randrange(10**6)
    generator, again = random.Random(seed), tmp_path / "killed"
    state = again / "states" / "mambamoe-0.safetensors"
    for _ in range(5):
        before = state.stat().st_mtime_ns if state.exists() else 0
        command = [sys.executable, "-m", "terramoe.cli.main", *map(str, arguments(again))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.02)  # until it trains
        time.sleep(generator.uniform(0, 0.5))
        assert process.poll() is None, f"seed {seed}: it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (again / "run.json").exists()
    assert terramoe(*arguments(again)).returncode == 0, f"seed {seed}"
    assert sha256_of(again / "model.safetensors") == sha256_of(tmp_path / "whole" / "model.safetensors"), f"seed {seed}"
