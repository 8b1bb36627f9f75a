"""Prediction: independent of tiles, blind to what is hidden, bounded in memory, on the raster's own grid."""

import os
import tracemalloc

import numpy as np
import pytest
import rasterio
import torch
from conftest import TRANSFORM

from terramoe.data import Normaliser, open_raster, raster_of
from terramoe.data.rasters import Raster
from terramoe.errors import ConfigError, DataError, ModelFileError
from terramoe.inference import (
    ROUTING_BANDS,
    Predictor,
    load_predictor,
    predict_array,
    predict_tiles,
    uncertainty_bands,
    write_maps,
)
from terramoe.inference.windows import Box, blend_weights, starts, tiles, touching
from terramoe.moe import RoutingMeter
from terramoe.storage import load_model, save_model
from terramoe.systems import system_class

GENERATOR = np.random.default_rng(0)


def make_predictor(window=16, overlap=8, values=(3, 7, 200)):
    torch.manual_seed(0)
    system = system_class("mambamoe").tiny().eval()
    normaliser = Normaliser(tuple(range(6)), (1.0, 2.0, 1.0, 1.0, 3.0, 1.0), "standard")
    return Predictor("mambamoe", system, normaliser, values, ("a", "b", "c"), window, overlap)


def make_image(height=50, width=37):
    image = GENERATOR.normal(size=(6, height, width)).astype(np.float32)
    valid = GENERATOR.random((height, width)) > 0.1
    valid[20:30, 5:15] = False
    return np.where(valid, image, np.float32(0)), valid


def stitch(predictor, raster, **options):
    probability = np.full((3, raster.height, raster.width), np.nan)
    routing = np.full((len(ROUTING_BANDS), raster.height, raster.width), np.nan)
    for part in predict_tiles(predictor, raster, **options):
        place = (
            slice(part.box.row, part.box.row + part.box.height),
            slice(part.box.column, part.box.column + part.box.width),
        )
        probability[:, *place] = part.probability
        routing[:, *place] = part.routing["level1"]
    return probability, routing


def test_windows_cover_and_end_with_the_raster():
    for length in (5, 16, 17, 40, 41):
        found = starts(length, 16, 8)
        assert found[0] == 0
        assert found[-1] == max(length - 16, 0)
        covered = {p for s in found for p in range(s, s + 16)}
        assert set(range(length)) <= covered
    assert (blend_weights(8, 4) > 0).all()
    assert (blend_weights(8, 0) == 1).all()
    assert sum(b.height * b.width for b in tiles(50, 37, 16)) == 50 * 37
    assert touching(Box(0, 0, 8, 8), 50, 37, 16, 8) == [Box(0, 0, 16, 16)]


@pytest.mark.parametrize("tile", [7, 16, 33])
def test_the_result_does_not_depend_on_the_tile_to_the_last_bit(tile):
    predictor, raster = make_predictor(), raster_of("made", *make_image())
    whole = stitch(predictor, raster, tile=64)
    cut = stitch(predictor, raster, tile=tile)
    np.testing.assert_array_equal(cut[0], whole[0])
    np.testing.assert_array_equal(cut[1], whole[1])


def test_one_window_equals_the_system_itself():
    predictor = make_predictor()
    image, valid = make_image(16, 16)
    result = predict_array(predictor, image, valid)
    with torch.no_grad():
        batch = {"image": torch.from_numpy(predictor.normaliser(image))[None], "valid": torch.from_numpy(valid)[None]}
        output = predictor.system(batch)
    expected = torch.softmax(output.prediction[0], 0).numpy()
    np.testing.assert_allclose(result.probability[:, valid], expected[:, valid], atol=1e-6)
    top = output.layouts["level2"].to_pixels(output.routings["level2"].top_expert())[0].numpy()
    np.testing.assert_array_equal(result.routing["level2"][0][valid], top[valid])


def test_invalid_pixels_are_marked_and_harm_nobody():
    predictor = make_predictor()
    image, valid = make_image()
    clean = predict_array(predictor, image, valid)
    junk = predict_array(predictor, np.where(valid, image, np.nan).astype(np.float32), valid)
    np.testing.assert_array_equal(clean.probability, junk.probability)
    assert (clean.probability[:, ~valid] == 0).all()
    assert (clean.routing["level1"][:, ~valid] == -1).all()
    np.testing.assert_allclose(clean.probability[:, valid].sum(0), 1, atol=1e-5)


def test_hidden_pixels_have_no_influence():
    predictor = make_predictor()
    image, valid = make_image()
    hide = GENERATOR.random(valid.shape) < 0.3
    changed = image + np.where(hide, 100, 0).astype(np.float32)
    one = predict_array(predictor, image, valid, hide=hide).probability
    np.testing.assert_array_equal(one, predict_array(predictor, changed, valid, hide=hide).probability)
    assert not np.array_equal(one, predict_array(predictor, image, valid).probability)


@pytest.mark.parametrize("size", [(16, 16), (9, 40), (10, 11)])
def test_a_raster_smaller_than_the_window(size):
    result = predict_array(make_predictor(), *make_image(*size))
    assert result.probability.shape == (3, *size)
    assert np.isfinite(result.probability).all()


def test_no_valid_pixel_at_all():
    image, valid = make_image()
    result = predict_array(make_predictor(), image, np.zeros_like(valid))
    assert (result.probability == 0).all()


def test_the_meter_counts_each_window_once():
    meter = RoutingMeter()
    predict_array(make_predictor(overlap=0), *make_image(32, 32), meter=meter)
    numbers = meter.compute()["level1"]
    assert numbers.items <= 4 * 16  # four windows of 8 x 8 cells in windows of 2 x 2 cells
    assert numbers.pairs == 2 * numbers.items


def test_bands_must_fit():
    with pytest.raises(DataError, match=r"the raster has 2 bands, the model was trained on 6"):
        predict_array(make_predictor(), np.zeros((2, 20, 20), dtype=np.float32), np.ones((20, 20), dtype=bool))
    with pytest.raises(ConfigError, match="tile is 0"):
        next(predict_tiles(make_predictor(), raster_of("a", *make_image()), tile=0))


def test_memory_does_not_grow_with_the_raster():
    class Endless:
        """Pixels made on demand."""

        def read(self, row, column, height, width):
            return np.ones((6, height, width), dtype=np.float32), np.ones((height, width), dtype=bool)

        def close(self):
            pass

    def peak(rows):
        raster = Raster("made", 6, rows, 64, Endless(), band_names=("",) * 6)
        tracemalloc.start()
        for _ in predict_tiles(make_predictor(64, 0), raster, tile=64):
            pass
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    peak(64)  # first call: caches of libraries
    assert peak(64 * 40) < 1.3 * peak(64 * 4)


def georeferenced(folder, values=(3, 7, 200)):
    image, valid = make_image()
    with rasterio.open(
        folder / "in.tif", "w", driver="GTiff", count=6, height=50, width=37, dtype="float32", nodata=-9999,
        crs="EPSG:32617", transform=TRANSFORM,
    ) as file:  # fmt: skip
        file.write(np.where(valid, image, np.float32(-9999)))
    return make_predictor(values=values), folder / "in.tif", image, valid


def test_maps_lie_on_the_rasters_grid(tmp_path):
    predictor, path, image, valid = georeferenced(tmp_path)
    with open_raster(path) as raster:
        paths = write_maps(predictor, raster, tmp_path / "maps", tile=20, colours=[(1, 2, 3)] * 3, probability=True)
    expected = predict_array(predictor, image, valid)
    opened = {p.stem: rasterio.open(p) for p in paths}
    for file in opened.values():
        assert (file.crs.to_epsg(), file.transform, file.shape) == (32617, TRANSFORM, (50, 37))
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    classes = np.array([3, 7, 200])[expected.probability.argmax(0)]
    np.testing.assert_array_equal(opened["prediction"].read(1), np.where(valid, classes, 0))
    assert opened["prediction"].nodata == 0
    assert opened["prediction"].colormap(1)[7][:3] == (1, 2, 3)
    np.testing.assert_array_equal(opened["experts"].read()[:5], expected.routing["level1"])
    assert opened["experts"].descriptions[5] == "level2: top expert"
    uncertainty = np.where(valid, uncertainty_bands(expected.probability), -1)
    np.testing.assert_allclose(opened["uncertainty"].read(), uncertainty, atol=1e-6)
    np.testing.assert_allclose(opened["probability"].read()[:, valid], expected.probability[:, valid], atol=1e-6)
    assert (tmp_path / "maps" / "experts.tif.sha256").exists()


def test_class_values_above_255_widen_the_map(tmp_path):
    predictor, path, _, valid = georeferenced(tmp_path, values=(3, 256, 70))
    with open_raster(path) as raster:
        write_maps(predictor, raster, tmp_path, tile=20, colours=[(1, 2, 3)] * 3)
    with rasterio.open(tmp_path / "prediction.tif") as file:
        assert file.dtypes == ("uint16",)
        assert set(np.unique(file.read(1)[valid])) <= {3, 256, 70}


def test_a_raster_that_breaks_half_way_leaves_the_old_maps(tmp_path):
    predictor, path, _, _ = georeferenced(tmp_path)
    content = path.read_bytes()
    (tmp_path / "broken.tif").write_bytes(content[: int(len(content) * 0.7)])
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "prediction.tif").write_text("old")
    with pytest.raises(DataError, match="corrupt or truncated"), open_raster(tmp_path / "broken.tif") as raster:
        write_maps(predictor, raster, tmp_path / "maps", tile=16)
    assert (tmp_path / "maps" / "prediction.tif").read_text() == "old"
    assert os.listdir(tmp_path / "maps") == ["prediction.tif"]


def test_uncertainty_has_known_ends():
    certain, undecided = np.array([1.0, 0, 0]), np.full(3, 1 / 3)
    bands = uncertainty_bands(np.stack([certain, undecided], axis=1)[:, None])
    np.testing.assert_allclose(bands[:, 0, 0], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(bands[:, 0, 1], [1, 2 / 3, 0], atol=1e-6)


def test_a_saved_predictor_predicts_the_same(tmp_path):
    predictor, (image, valid) = make_predictor(), make_image()
    predictor.save(tmp_path)
    again = load_predictor(tmp_path)
    expected = predict_array(predictor, image, valid).probability
    np.testing.assert_array_equal(predict_array(again, image, valid).probability, expected)
    assert again.class_names == ("a", "b", "c")


def test_weights_of_another_network_are_refused(tmp_path):
    make_predictor().save(tmp_path)
    stored = load_model(tmp_path)
    save_model(
        tmp_path, system=stored.system, config={**stored.config, "width": 32}, tensors=stored.tensors, data=stored.data
    )
    with pytest.raises(ModelFileError, match="does not fit mambamoe"):
        load_predictor(tmp_path)
