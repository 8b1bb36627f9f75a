"""Files appear whole or not at all, and are what their manifest says."""

import json
import os
import pickle

import numpy as np
import pytest
import rasterio
import torch
from conftest import TRANSFORM
from rasterio.crs import CRS

from terramoe.errors import ConfigError, DataError, ModelFileError
from terramoe.storage import (
    RasterForm,
    RunFolder,
    atomic_path,
    cog_writer,
    load_model,
    load_state,
    save_model,
    save_state,
    sha256_of,
    write_checksum,
    write_cog,
    write_json,
    write_text,
)

TENSORS = {
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3) / 7,
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "integers": torch.tensor([1, -2, 2**40]),
    "odd": torch.tensor([torch.nan, torch.inf, -0.0]),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.contiguous().flatten().view(torch.uint8).equal(
        b.contiguous().flatten().view(torch.uint8)
    )  # fmt: skip


def leftovers(folder):
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


class Stop(Exception):
    pass


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(Stop), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise Stop
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_in_place_of_the_folder_is_our_error(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_json_refuses_what_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_checksum_file_is_what_sha256sum_reads(tmp_path):
    write_text(tmp_path / "a.txt", "hello")
    write_checksum(tmp_path / "a.txt")
    assert (tmp_path / "a.txt.sha256").read_text() == f"{sha256_of(tmp_path / 'a.txt')}  a.txt\n"


def stored(folder, tensors=TENSORS):
    return save_model(folder, system="s", config={"k": [1, 2]}, tensors=tensors, data={"window": 8})


def test_a_model_comes_back_bit_for_bit_from_any_of_its_paths(tmp_path):
    weights = stored(tmp_path)
    for path in (tmp_path, weights, tmp_path / "model.json"):
        model = load_model(path)
        assert (model.system, model.config, model.data) == ("s", {"k": [1, 2]}, {"window": 8})
        assert model.tensors.keys() == TENSORS.keys()
        assert all(same_bits(model.tensors[name], value) for name, value in TENSORS.items())


def test_equal_weights_give_equal_files(tmp_path):
    assert sha256_of(stored(tmp_path / "a")) == sha256_of(stored(tmp_path / "b"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_changed_byte_anywhere_is_noticed(tmp_path, name, where):
    stored(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[round(where * (len(content) - 2))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        load_model(tmp_path)
    assert "Fix:" in str(caught.value)


def test_a_changed_setting_with_the_same_weights_is_noticed(tmp_path):
    stored(tmp_path)
    manifest = json.loads((tmp_path / "model.json").read_text())
    manifest["data"]["window"] = 16
    (tmp_path / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="changed after it was written"):
        load_model(tmp_path)


def test_new_weights_beside_an_old_manifest_are_noticed(tmp_path):
    """What a crash between the two writes leaves behind."""
    stored(tmp_path)
    old = (tmp_path / "model.json").read_bytes()
    stored(tmp_path, {"other": torch.ones(3)})
    (tmp_path / "model.json").write_bytes(old)
    with pytest.raises(ModelFileError, match="not those that the manifest vouches for"):
        load_model(tmp_path)


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(ModelFileError, match="no such model"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match=r"missing.*model\.json"):
        load_model(tmp_path)
    stored(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"missing.*model\.safetensors"):
        load_model(tmp_path)


def test_another_format_names_the_version_that_wrote_it(tmp_path):
    stored(tmp_path)
    manifest = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ModelFileError, match="format 99.*Fix: use TerraMoE"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.pkl", "a.ckpt", "model.safetensors", "model.bin"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(tmp_path, name, writer):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return open, (str(trap), "w")

    if writer == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    else:
        torch.save(Trap(), tmp_path / name)
    with pytest.raises(ModelFileError, match="pickle checkpoint"):
        load_model(tmp_path / name)
    assert not trap.exists()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    meta = {"steps": 3, "records": [{"task": 0.1 + 0.2}]}
    save_state(tmp_path / "s.safetensors", TENSORS, meta)
    tensors, read = load_state(tmp_path / "s.safetensors")
    assert read == meta
    assert all(same_bits(tensors[name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("cut", [0, 10, 40, -1, "flip"])
def test_a_damaged_state_is_noticed(tmp_path, cut):
    path = tmp_path / "s.safetensors"
    save_state(path, TENSORS, {})
    content = bytearray(path.read_bytes())
    if cut == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes(content if cut == "flip" else content[:cut])
    with pytest.raises(ModelFileError, match="state file is damaged"):
        load_state(path)


def test_a_finished_run_is_not_overwritten_unasked(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "mine.txt").write_text("keep")
    folder.card.write_text("{}")
    with pytest.raises(ConfigError, match="holds a finished run.*--overwrite"):
        RunFolder.create(tmp_path / "run")
    RunFolder.create(tmp_path / "run", overwrite=True)
    assert os.listdir(tmp_path / "run") == ["mine.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder.create(tmp_path / "file")


FORM = RasterForm(300, 270, ("a", "b"), "float32", -1, CRS.from_epsg(32617), TRANSFORM)


def test_a_cog_is_one_and_keeps_everything(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(2, 300, 270)).astype(np.float32)
    with cog_writer(tmp_path / "a.tif", FORM) as writer:
        for row in (256, 0):
            for column in (0, 256):
                writer.write(row, column, pixels[:, row : row + 256, column : column + 256])
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), pixels)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.compression.name == "deflate"
        assert (file.crs, file.transform, file.nodata) == (FORM.crs, TRANSFORM, -1)
        assert file.descriptions == ("a", "b")
    assert os.listdir(tmp_path) == ["a.tif"]


def test_ids_are_never_averaged_in_overviews_and_have_colours(tmp_path):
    ids = (np.indices((1024, 1024)).sum(0) % 2 * 8 + 1).astype(np.uint8)[None]
    form = RasterForm(1024, 1024, ("id",), "uint8", 0, ids=True, colours={1: (9, 8, 7), 9: (1, 2, 3)})
    write_cog(tmp_path / "a.tif", ids, form)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.overviews(1)
        assert set(np.unique(file.read(1, out_shape=(512, 512)))) <= {1, 9}
        assert file.colormap(1)[9][:3] == (1, 2, 3)


def test_a_raster_that_fails_half_way_leaves_the_old_one(tmp_path):
    (tmp_path / "a.tif").write_text("old")
    with pytest.raises(Stop), cog_writer(tmp_path / "a.tif", FORM) as writer:
        writer.write(0, 0, np.zeros((2, 256, 256), dtype=np.float32))
        raise Stop
    assert (tmp_path / "a.tif").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.tif"]
