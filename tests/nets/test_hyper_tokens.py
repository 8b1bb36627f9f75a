"""Tokens of images of any bands, the head that lays tokens back on pixels, and the adapter that picks features."""

import pytest
import torch

from terramoe.errors import ConfigError, DataError
from terramoe.nets.hyper_tokeniser import HyperTokeniser, colour_bands, merge_halves
from terramoe.nets.refining_adapter import RefiningAdapter
from terramoe.nets.token_head import TokenHead, cells_with_data, pixels_of_cells


def tokeniser(bands=3, wavelengths=(500.0, 600.0, 0.0), **changes):
    torch.manual_seed(0)
    sizes = {"width": 8, "dim": 12, "heads": 3, "cell": 4, "side": 3, "spectral": 5} | changes
    return HyperTokeniser(bands, wavelengths, *sizes.values())


@pytest.mark.parametrize(("size", "grid"), [((8, 8), (2, 2)), ((9, 5), (3, 2)), ((1, 1), (1, 1)), ((3, 40), (1, 10))])
def test_any_size_gives_a_token_for_each_cell(size, grid):
    tokens = tokeniser()(torch.randn(2, 3, *size))
    assert tokens.grid == grid
    assert tokens.spatial.shape == (2, grid[0] * grid[1], 12)
    assert tokens.spectral.shape == (2, 5, 12)
    assert tokens.low.shape == (2, 4 * grid[0] * grid[1], 8)
    assert tokens.valid.all()


def test_what_stands_in_an_invalid_pixel_changes_nothing():
    model, image = tokeniser(), torch.randn(2, 3, 10, 9)
    valid = torch.rand(2, 10, 9) > 0.4
    valid[1, :8] = False
    expected = model(image.masked_fill(~valid[:, None], 0), valid)
    for junk in (torch.nan, 1e9):
        found = model(image.masked_fill(~valid[:, None], junk), valid)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if torch.is_tensor(a))
    assert expected.valid.view(2, 3, 3)[1].any(1).tolist() == [False, False, True]


def test_the_spectral_tokens_follow_the_statistics_and_not_the_places():
    model, image = tokeniser(), torch.randn(1, 3, 8, 8)
    shuffled = image.flatten(2)[..., torch.randperm(64)].view_as(image)
    torch.testing.assert_close(model(image).spectral, model(shuffled).spectral)
    assert not torch.allclose(model(image).spatial, model(shuffled).spatial)
    assert not torch.allclose(model(image).spectral, model(image + 1).spectral)


def test_bands_in_another_order_give_the_same_spectral_tokens():
    """A band is known by its wavelength, not by its number."""
    order = [2, 0, 1]
    one, other = tokeniser(wavelengths=(500.0, 600.0, 700.0)), tokeniser(wavelengths=(700.0, 500.0, 600.0))
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(one(image).spectral, other(image[:, order]).spectral)


def test_an_image_without_data_is_finite():
    tokens = tokeniser()(torch.full((1, 3, 8, 8), torch.nan), torch.zeros(1, 8, 8, dtype=torch.bool))
    assert tokens.spatial.isfinite().all()
    assert tokens.spectral.isfinite().all()


@pytest.mark.parametrize("changes", [{"cell": 3}, {"width": 6}, {"dim": 10}, {"spectral": 0}])
def test_bad_tokenisers(changes):
    with pytest.raises(ConfigError, match="an even cell"):
        tokeniser(**changes)
    with pytest.raises(DataError):
        tokeniser()(torch.randn(1, 4, 8, 8))


def test_colours_are_the_nearest_bands():
    assert colour_bands((830.0, 480.0, 0.0, 655.0, 561.0), 5) == [3, 4, 1]
    assert colour_bands((), 31) == [30, 15, 0]
    assert colour_bands((0.0,), 1) == [0, 0, 0]


def test_halves_are_merged_by_the_mean():
    x = torch.arange(8.0).view(1, 4, 2)
    assert merge_halves(x, 3).tolist() == [[[6, 8], [8, 10], [10, 12]]]


def test_a_heads_pixels_are_those_of_their_token():
    torch.manual_seed(0)
    head, x = TokenHead(6, 2, 3), torch.randn(1, 6, 6)
    y = head(x, (2, 3), (5, 8))
    assert y.shape == (1, 2, 5, 8)
    x[:, 4] += 1 + torch.arange(6)
    changed = (head(x, (2, 3), (5, 8)) != y).any(1)[0]
    expected = torch.zeros(5, 8, dtype=torch.bool)
    expected[3:5, 3:6] = True
    assert torch.equal(changed, expected)
    with pytest.raises(ConfigError):
        TokenHead(6, 0, 3)


def test_cells_and_pixels_fit():
    valid = torch.zeros(1, 5, 7, dtype=torch.bool)
    valid[0, 4, 6] = valid[0, 0, 2] = True
    cells = cells_with_data(valid, 3)
    assert cells.tolist() == [[[True, False, False], [False, False, True]]]
    spread = pixels_of_cells(cells, 3, (5, 7))
    assert spread.shape == valid.shape
    assert int(spread.sum()) == 9 + 2


def test_a_refined_token_reads_what_valid_places_hold():
    torch.manual_seed(0)
    adapter = RefiningAdapter(8, 6, 3)
    x, low = torch.randn(2, 5, 8), torch.randn(2, 7, 6)
    valid, low_valid = torch.ones(2, 5, dtype=torch.bool), torch.rand(2, 7) > 0.5
    low_valid[1] = False
    with torch.no_grad():  # every place scores below 0, so that a score of 0 would win
        adapter.key.weight.mul_(0.01)
        adapter.key.bias.fill_(1.0)
        adapter.queries.fill_(-1.0)
    y = adapter(x, valid, low, low_valid)
    low[0, ~low_valid[0]] += 100
    torch.testing.assert_close(adapter(x, valid, low, low_valid)[0], y[0])
    assert y.isfinite().all()
    assert 0 < (y - x).abs().max() < 1
