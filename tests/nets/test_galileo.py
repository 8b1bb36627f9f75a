"""Galileo: strict loading, what each channel group reaches, masks, patch sizes, real statistics."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from terramoe.errors import ConfigError, DataError, ModelFileError
from terramoe.nets.galileo import WEIGHTS, FlexiblePatchEmbed, Galileo, load_galileo
from terramoe.nets.galileo_inputs import GROUPS, names_of, normalise

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
FOLDER, SERIES = DATA / "weights" / "galileo_nano", DATA / "series" / "algae_s1s2era5"
needs_weights = pytest.mark.skipif(not FOLDER.exists(), reason="the published weights of Galileo are not there")
STEPS, SIZE = 2, 4
MONTHS = torch.tensor([[3, 7], [3, 7]])
SPACE = ("space_time", "space")


@pytest.fixture(scope="module", params=["fresh", pytest.param("published", marks=needs_weights)])
def model(request):
    torch.manual_seed(0)
    return load_galileo(FOLDER) if request.param == "published" else Galileo().eval()


def shape_of(name, channels=True):
    group = GROUPS[name]
    c = (len(group.bands),) if channels else ()
    steps = (STEPS,) if group.kind in ("space_time", "time") else ()
    return (2, *steps, *c, *((SIZE, SIZE) if group.kind in SPACE else ()))


def all_groups(names=tuple(GROUPS)):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(shape_of(name), generator=generator) for name in names}


def test_tokens_map_and_embedding_have_their_shapes(model):
    tokens = model(all_groups(), MONTHS, patch=2)
    assert tokens.shapes["S1"] == (2, 2, 2)
    assert tokens.shapes["DW"] == (2, 2)
    assert tokens.shapes["TC"] == (2,)
    assert tokens.shapes["location"] == ()
    assert tokens.x.shape == (2, 7 * 8 + 3 * 4 + 3 * 2 + 4, 128)
    assert tokens.to_map().shape == (2, 128, 2, 2)
    assert tokens.embedding().shape == (2, 128)
    assert tokens.x.isfinite().all()


@pytest.mark.parametrize("name", GROUPS)
def test_every_band_of_every_group_reaches_the_embedding(model, name):
    base = model(all_groups(), MONTHS, patch=4).embedding()
    for band in range(len(GROUPS[name].bands)):
        moved = all_groups()
        moved[name].select(-3 if GROUPS[name].kind in SPACE else -1, band).add_(2)
        assert (model(moved, MONTHS, patch=4).embedding() - base).abs().amax(1).min() > 1e-5


@pytest.mark.parametrize("name", GROUPS)
def test_a_masked_group_is_an_absent_group(model, name):
    inputs = all_groups()
    inputs[name] = torch.full_like(inputs[name], float("nan"))
    masked = model(inputs, MONTHS, {name: torch.zeros(shape_of(name, False), dtype=torch.bool)}, patch=4)
    del inputs[name]
    absent = model(inputs, MONTHS, patch=4)
    torch.testing.assert_close(masked.embedding(), absent.embedding(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(masked.to_map(), absent.to_map(), atol=1e-5, rtol=1e-4)


def test_two_groups_with_equal_values_do_not_embed_alike(model):
    """The channel encodings tell NIR at 10 m from NIR at 20 m, even with the same projection."""
    value = torch.rand(2, 2, 1, 4, 4)
    tokens = model.embed({"S2_NIR_10m": value, "S2_NIR_20m": value}, MONTHS)
    projections = [model.space_time_embed[name](value.flatten(0, 1), 4).flatten(0, 2) for name in tokens.shapes]
    bare = tokens.x.unflatten(1, (2, 2)).transpose(0, 1).flatten(1, 2) - torch.stack(projections)
    assert (bare[0] - bare[1])[..., :32].abs().max() > 0.01
    torch.testing.assert_close(bare[0][..., 32:], bare[1][..., 32:])


def test_month_step_and_place_each_change_their_part_of_the_encoding(model):
    inputs = {"S1": torch.zeros(1, 2, 2, 8, 8)}
    x = model.embed(inputs, torch.tensor([[0, 5]]), patch=4).x.view(2, 2, 2, 4, 32)  # step, row, column, part
    later = model.embed(inputs, torch.tensor([[1, 5]]), patch=4).x.view(2, 2, 2, 4, 32)
    parts = lambda a, b: (a - b).abs().amax(-1).flatten(0, -2).amax(0) > 1e-4  # noqa: E731
    assert parts(x, later).tolist() == [False, False, True, False]
    assert parts(x[0], x[1]).tolist() == [False, True, True, False]
    assert parts(x[:, 0], x[:, 1]).tolist() == parts(x[:, :, 0], x[:, :, 1]).tolist() == [False, False, False, True]
    wide = model.embed(inputs, torch.tensor([[0, 5]]), patch=4, metres=20.0).x.view(2, 2, 2, 4, 32)
    assert parts(x, wide).tolist() == [False, False, False, True]
    static = model.embed({"LS": torch.zeros(1, 1)}).x[0, 0] - model.static_embed["LS"](torch.zeros(1))
    torch.testing.assert_close(static[32:], torch.zeros(96), atol=1e-6, rtol=0)


def test_invalid_pixels_change_nothing_and_a_token_needs_one_valid_pixel(model):
    inputs = all_groups(("S2_RGB", "SRTM", "ERA5"))
    valid = {"S2_RGB": torch.ones(2, 2, 4, 4, dtype=torch.bool)}
    valid["S2_RGB"][:, :, :2, :3] = False
    base = model(inputs, MONTHS, valid, patch=2)
    assert base.valid[0, :8].tolist() == [False, True, True, True] * 2
    inputs["S2_RGB"][:, :, :, :2, :3] = float("nan")
    assert torch.equal(model(inputs, MONTHS, valid, patch=2).x, base.x)
    nothing = {name: torch.zeros(shape_of(name, False), dtype=torch.bool) for name in inputs}
    empty = model(inputs, MONTHS, nothing, patch=2)
    assert empty.x.isfinite().all()
    assert (empty.embedding() == 0).all()
    assert (empty.to_map() == 0).all()


def test_images_of_a_batch_do_not_meet(model):
    inputs = all_groups()
    alone = model({name: x[1:] for name, x in inputs.items()}, MONTHS[1:]).embedding()
    torch.testing.assert_close(model(inputs, MONTHS).embedding()[1:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", range(1, 9))
def test_a_small_patch_is_an_enlarged_patch(patch):
    """Oracle: enlarge each patch to 8 x 8 and use the weights as they are. Uniform patches embed alike at each size."""
    torch.manual_seed(0)
    embed = FlexiblePatchEmbed(3)
    x = torch.randn(2, 3, patch, 2 * patch)
    for column in range(2):
        tile = x[..., column * patch : (column + 1) * patch]
        large = torch.nn.functional.interpolate(tile, (8, 8), mode="bicubic")
        torch.testing.assert_close(embed(x, patch)[:, 0, column], embed.proj(large)[:, :, 0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        embed(torch.ones(1, 3, patch, patch), patch), embed(torch.ones(1, 3, 8, 8), 8), atol=1e-5, rtol=1e-4
    )


def test_normalised_values_of_mean_and_deviation():
    for name, group in GROUPS.items():
        assert len(group.bands) == len(group.mean) == len(group.std)
        tail = (1, 1) if group.kind in SPACE else ()
        mean, std = (torch.tensor(v).view(1, *((1,) if group.kind in ("space_time", "time") else ()), -1, *tail)
                     for v in (group.mean, group.std))  # fmt: skip
        torch.testing.assert_close(normalise({name: mean})[name], torch.full_like(mean, 0.5))
        torch.testing.assert_close(normalise({name: mean + 2 * std})[name], torch.ones_like(mean))
    with pytest.raises(ConfigError, match="no channel group 'S3'"):
        normalise({"S3": torch.zeros(1)})


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({}, {}),
        ({"S3": torch.zeros(1, 2, 2, 4, 4)}, {}),
        ({"S1": torch.zeros(2, 2, 3, 4, 4)}, {}),
        ({"S1": torch.zeros(2, 3, 2, 4, 4)}, {}),
        ({"S1": torch.zeros(2, 2, 2, 6, 4)}, {}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4), "SRTM": torch.zeros(2, 2, 8, 8)}, {}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4), "LS": torch.zeros(1, 1)}, {}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4)}, {"months": None}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4)}, {"months": MONTHS + 9}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4)}, {"months": MONTHS.float()}),
        ({"S1": torch.zeros(2, 25, 2, 4, 4)}, {"months": torch.zeros(2, 25, dtype=torch.long)}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4)}, {"valid": {"S1": torch.ones(2, 2, 4, 4)}}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4)}, {"valid": {"S1": torch.ones(2, 4, 4).bool()}}),
        ({"S1": torch.zeros(2, 2, 2, 9, 9)}, {"patch": 9}),
        ({"S1": torch.zeros(2, 2, 2, 4, 4)}, {"patch": 0}),
    ],
)
def test_inputs_that_cannot_be(model, inputs, options):
    with pytest.raises(DataError):
        model(inputs, **({"months": MONTHS} | options))


def test_a_map_needs_a_group_with_space(model):
    with pytest.raises(DataError, match="no group has space"):
        model({"LS": torch.zeros(2, 1)}).to_map()


@needs_weights
def test_the_published_weights_load_whole_and_our_fixed_tables_are_theirs(tmp_path):
    published, fresh = load_galileo(FOLDER), Galileo()
    assert sum(p.numel() for p in published.parameters()) == 1_037_856
    for name in ("pos_embed", "month_embed.weight"):
        torch.testing.assert_close(published.state_dict()[name], fresh.state_dict()[name], atol=1e-5, rtol=0)
    tensors = torch.load(FOLDER / WEIGHTS, map_location="cpu", weights_only=True)
    assert len(tensors) == 106
    qkv = published.state_dict()["blocks.3.attn.qkv.weight"]
    assert torch.equal(qkv[128:256], tensors["blocks.3.attn.k.weight"])
    name = "blocks.2.attn.k.weight"
    for message, state in {
        "block 2": {k: v for k, v in tensors.items() if k != name},
        "is missing": {k: v for k, v in tensors.items() if k != "norm.bias"},
        "not part": tensors | {"extra": torch.zeros(1)},
        r"is \(3, 31\)": tensors | {"sp_channel_embed": torch.zeros(3, 31)},
    }.items():
        torch.save(state, tmp_path / WEIGHTS)
        with pytest.raises(ModelFileError, match=message):
            load_galileo(tmp_path)


@needs_weights
def test_queries_keys_and_values_that_do_not_join_are_refused(tmp_path):
    tensors = torch.load(FOLDER / WEIGHTS, map_location="cpu", weights_only=True)
    for spoilt in (
        {"blocks.0.attn.q.weight": torch.zeros(128, 64)},
        {"blocks.0.attn.v.bias": torch.zeros(127)},
        {"blocks.0.attn.v.bias": torch.zeros(())},
        {"blocks.0.attn.qkv.weight": torch.zeros(384, 128)},
    ):
        torch.save(tensors | spoilt, tmp_path / WEIGHTS)
        with pytest.raises(ModelFileError, match="block 0"):
            load_galileo(tmp_path)


@needs_weights
@pytest.mark.skipif(not SERIES.exists(), reason="the shared pixel series are not there")
def test_embeddings_of_real_pixels_vary_with_the_pixel_and_stay_in_range():
    raw = torch.tensor(np.load(SERIES / "s1_s2_era5_srtm.npy")[:120]).float()
    columns = {"S1": [0, 1], "S2_RGB": [2, 3, 4], "S2_Red_Edge": [5, 6, 7], "S2_NIR_10m": [8], "S2_NIR_20m": [9]}
    inputs = {name: raw[..., places][..., None, None] for name, places in (columns | {"S2_SWIR": [11, 12]}).items()}
    months = torch.tensor(np.load(SERIES / "month.npy")[:120]).long()
    normalised = normalise(inputs)
    assert all(-3 < x.median() < 3 for x in normalised.values())
    with torch.no_grad():
        embedding = load_galileo(FOLDER)(normalised, months, patch=1).embedding()
    assert embedding.isfinite().all()
    assert 0.02 < embedding.std() < 1
    assert embedding.std(0).median() > 0.003
    assert set(names_of("space_time")) - set(inputs) == {"NDVI"}
