"""Presto: strict loading, what each input reaches, and whether the published weights rebuild real hidden values."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from terramoe.errors import DataError, ModelFileError
from terramoe.nets.presto import WEIGHTS, Presto, load_presto
from terramoe.nets.presto_inputs import BANDS, GROUPS, LONGEST, NO_CLASS, PLACES, normalise, on_the_sphere

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))
FOLDER, SERIES = DATA / "weights" / "presto", DATA / "series" / "algae_s1s2era5"
needs_weights = pytest.mark.skipif(not FOLDER.exists(), reason="the published weights of Presto are not there")
needs_series = pytest.mark.skipif(not SERIES.exists(), reason="the shared pixel series are not there")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Presto().eval()


def inputs(batch=3, steps=4):
    torch.manual_seed(1)
    return {
        "series": torch.randn(batch, steps, len(BANDS)),
        "months": torch.arange(steps).expand(batch, -1) + 2,
        "valid": torch.ones(batch, steps, len(BANDS), dtype=torch.bool),
        "dynamic_world": torch.randint(0, 9, (batch, steps)),
        "latlon": torch.tensor([[40.0, -90.0]] * batch),
    }


def test_tokens_and_embedding_have_their_shapes(model):
    given = inputs()
    tokens = model.encode(**given)
    assert tokens.x.shape == (3, 9 * 4 + 2, 128)
    assert tokens.valid.all()
    assert model(**given).shape == (3, 128)
    series, logits = model.reconstruct(**given)
    assert series.shape == given["series"].shape
    assert logits.shape == (3, 4, 9)


@pytest.mark.parametrize("group", [*GROUPS, "dynamic_world", "latlon", "months"])
def test_every_input_reaches_the_embedding(model, group):
    given = inputs()
    base = model(**given)
    if group == "latlon":
        given["latlon"] = given["latlon"] + 20
    elif group in ("dynamic_world", "months"):
        given[group] = (given[group] + 1) % 9
    else:
        given["series"][..., PLACES[group]] += 1
    assert (model(**given) - base).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_is_not_valid_changes_nothing(model, group):
    """Neither its value nor NaN, nor the other bands of a group that lacks one."""
    given = inputs()
    given["valid"][..., PLACES[group][0]] = False
    base, tokens = model(**given), model.encode(**given)
    assert (~tokens.valid).sum(1).tolist() == [1 if group == "SRTM" else 4] * 3
    given["series"][..., PLACES[group]] = 7.0
    assert torch.equal(model(**given), base)
    given["series"][..., PLACES[group][0]] = float("nan")
    assert torch.equal(model(**given), base)


def test_hidden_steps_equal_absent_steps(model):
    given = inputs(steps=4)
    given["valid"][:, 2:] = False
    given["dynamic_world"][:, 2:] = NO_CLASS
    short = {name: value if name == "latlon" else value[:, :2] for name, value in given.items()}
    torch.testing.assert_close(model(**given), model(**short))


def test_terrain_is_the_mean_of_the_steps_that_have_it(model):
    given = inputs()
    given["series"][..., PLACES["SRTM"]] = torch.tensor([0.1, 0.2])
    base = model(**given)
    given["series"][:, 1, PLACES["SRTM"]] = 9.0
    given["valid"][:, 1, PLACES["SRTM"]] = False
    torch.testing.assert_close(model(**given), base)


def test_unknown_class_and_place_are_left_out_and_nothing_at_all_is_finite(model):
    given = inputs()
    tokens = model.encode(given["series"], given["months"])
    assert (~tokens.valid).sum(1).tolist() == [5] * 3  # four classes and the place
    nothing = model(given["series"] * float("nan"), given["months"], given["valid"] & False)
    assert nothing.isfinite().all()
    assert torch.equal(nothing[0], nothing[1])


def test_series_of_a_batch_do_not_meet(model):
    given = inputs()
    alone = model(**{name: value[1:2] for name, value in given.items()})
    torch.testing.assert_close(model(**given)[1:2], alone)


def test_places_on_the_sphere():
    points = on_the_sphere(torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 10.0], [-90.0, 0.0]]))
    torch.testing.assert_close(points, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"series": torch.zeros(3, 4, 16)},
        {"series": torch.zeros(3, 25, 17), "months": torch.zeros(3, 25, dtype=torch.long), "valid": None},
        {"valid": torch.ones(3, 4, 17)},
        {"months": torch.full((3, 4), 12)},
        {"months": torch.zeros(3, 4)},
        {"months": torch.zeros(3, dtype=torch.long)},
        {"dynamic_world": torch.full((3, 4), 10)},
        {"dynamic_world": torch.full((3, 4), -1)},
        {"latlon": torch.zeros(3, 3)},
    ],
)
def test_inputs_that_cannot_be(model, change):
    with pytest.raises(DataError):
        model(**(inputs() | change))


@needs_weights
def test_the_published_weights_load_whole_and_our_fixed_tables_are_theirs():
    model, fresh = load_presto(FOLDER), Presto()
    assert len(model.state_dict()) == 102
    assert sum(p.numel() for p in model.parameters()) == 823_002
    for name in ("pos_embed", "month_embed.weight"):
        for half in ("encoder", "decoder"):
            ours, theirs = (m.state_dict()[f"{half}.{name}"] for m in (fresh, model))
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not model.training


@needs_weights
def test_weights_that_lack_or_add_or_bend_a_tensor_are_refused(tmp_path):
    tensors = torch.load(FOLDER / WEIGHTS, map_location="cpu", weights_only=True)
    name = "encoder.blocks.1.mlp.fc1.weight"
    spoilt = {
        "missing": {k: v for k, v in tensors.items() if k != name},
        "not part": tensors | {"extra": torch.zeros(1)},
        r"is \(128, 512\)": tensors | {name: tensors[name].T},
        "not finite": tensors | {name: tensors[name] * float("nan")},
    }
    for message, state in spoilt.items():
        torch.save(state, tmp_path / WEIGHTS)
        with pytest.raises(ModelFileError, match=message):
            load_presto(tmp_path)


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(ModelFileError, match="no weight file"):
        load_presto(tmp_path)
    for content in (b"", b"not a file of torch", b"\x80\x02K\x01."):
        (tmp_path / WEIGHTS).write_bytes(content)
        with pytest.raises(ModelFileError):
            load_presto(tmp_path)
    torch.save({"epoch": 3}, tmp_path / WEIGHTS)
    with pytest.raises(ModelFileError, match="more than named tensors"):
        load_presto(tmp_path)


def real_series():
    """Normalised (200, 12, 17), months, classes, places. The file has B9 in column 10, which Presto does not read.

    Its last column is (B7 - B3) / (B7 + B3), not the NDVI, which is computed here.
    """
    raw = np.load(SERIES / "s1_s2_era5_srtm.npy")[:200]
    shifted = (raw[..., 7] - raw[..., 3]) / (raw[..., 7] + raw[..., 3])
    assert np.median(np.abs(raw[..., 17] - shifted)) < 1e-6
    series = torch.tensor(np.delete(raw, 10, axis=2)).float()
    red, near = series[..., BANDS.index("B4")], series[..., BANDS.index("B8")]
    series[..., BANDS.index("NDVI")] = (near - red) / (near + red)
    months, classes = (torch.tensor(np.load(SERIES / f"{n}.npy")[:200]).long() for n in ("month", "dynamic_world"))
    return normalise(series), months, classes, torch.tensor(np.load(SERIES / "latlon.npy")[:200]).float()


@needs_weights
@needs_series
def test_the_published_weights_rebuild_hidden_values_of_real_series():
    """Half of the tokens are hidden. Mean squared error against that of each pixel's mean over its visible steps.

    Measured on all 1122 series: S2 0.13 to 0.37 of the pixel mean's, ERA5 0.23, NDVI 0.41, S1 1.11. With any other
    order of the encodings the sum of the errors is at least three times as large.
    """
    series, months, classes, latlon = real_series()
    model = load_presto(FOLDER)
    hidden = torch.rand(*months.shape, len(GROUPS), generator=torch.Generator().manual_seed(0)) < 0.5
    valid = torch.ones_like(series, dtype=torch.bool)
    for i, (name, places) in enumerate(PLACES.items()):
        if name != "SRTM":
            valid[..., places] = ~hidden[..., i : i + 1]
    seen = valid.float()
    pixel_mean = (series * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)
    with torch.no_grad():
        ours, _ = model.reconstruct(series, months, valid, classes, latlon)
        shifted, _ = model.reconstruct(series, (months + 3) % 12, valid, classes, latlon)

    def error(predicted, name):
        places = PLACES[name]
        return (predicted - series)[..., places][~valid[..., places]].square().mean().item()

    share = {name: error(ours, name) / error(pixel_mean.expand_as(series), name) for name in GROUPS if name != "SRTM"}
    assert all(share[name] < 0.5 for name in GROUPS if name.startswith("S2")), share
    assert share["ERA5"] < 0.4, share
    assert share["NDVI"] < 0.6, share
    assert share["S1"] < 1.4, share
    assert error(shifted, "ERA5") > 2 * error(ours, "ERA5")


@needs_weights
@needs_series
def test_embeddings_of_real_series_differ_and_do_not_explode():
    series, months, classes, latlon = real_series()
    with torch.no_grad():
        embedding = load_presto(FOLDER)(series, months, None, classes, latlon)
    assert embedding.shape == (200, 128)
    assert 0.8 < embedding.std() < 1.3  # measured 1.03 on all series
    assert embedding.std(0).min() > 0.01
    assert months.shape[1] <= LONGEST
