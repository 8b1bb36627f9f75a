"""Edge filters and texture statistics against closed forms; patches of several sensors."""

import math

import pytest
import torch

from terramoe.errors import DataError
from terramoe.nets.patches import patches_of
from terramoe.nets.sensors import split_sensors
from terramoe.nets.texture import edge_responses, texture_statistics

ROWS, COLUMNS = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
EVERY = torch.ones(1, 6, 7, dtype=torch.bool)


def inner(x):
    return x[..., 1:-1, 1:-1]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (torch.ones(6, 7), (0, 0, 0)),
        (2 * COLUMNS, (2, 0, 0)),
        (3 * ROWS, (0, 3, 0)),
        ((ROWS - 2) ** 2, (0, None, 0.5)),
        (ROWS * COLUMNS, (None, None, 0)),
    ],
)
def test_edges_of_polynomials_are_exact(field, expected):
    found = inner(edge_responses(field[None, None], EVERY))[0]
    for response, value in zip(found, expected, strict=True):
        if value is not None:
            torch.testing.assert_close(response, torch.full_like(response, value))
    assert found.shape == (3, 4, 5)


def test_the_border_is_no_edge_and_channels_keep_their_order():
    x = torch.stack([COLUMNS, 5 * ROWS])[None]
    found = edge_responses(x, EVERY)
    assert found.shape == (1, 6, 6, 7)
    assert inner(found).amax((0, 2, 3)).tolist() == [1, 0, 0, 0, 5, 0]
    found[..., 1:-1, 1:-1] = 0
    assert (found == 0).all()


def test_an_unknown_pixel_silences_its_neighbourhood_and_nothing_else():
    valid = EVERY.clone()
    valid[0, 2, 3] = False
    whole = edge_responses(COLUMNS[None, None], EVERY)
    holed = edge_responses(torch.where(valid, COLUMNS, torch.nan)[None], valid)
    near = ((ROWS - 2).abs() <= 1) & ((COLUMNS - 3).abs() <= 1)
    assert (holed[..., near] == 0).all()
    assert torch.equal(holed[..., ~near], whole[..., ~near])


def test_a_map_too_small_for_a_filter_has_no_edges():
    assert edge_responses(torch.randn(2, 4, 2, 9), torch.ones(2, 2, 9, dtype=torch.bool)).abs().sum() == 0


def statistics(field, valid=None):
    field = field[None, None] if field.ndim == 2 else field[None]
    valid = torch.ones_like(field[:, 0], dtype=torch.bool) if valid is None else valid[None]
    return texture_statistics(field, valid)[0].tolist()


def test_texture_of_closed_forms():
    board = torch.where((ROWS + COLUMNS) % 2 == 0, 1.0, -1.0)
    assert statistics(torch.full((6, 7), 0.7)) == pytest.approx([0, 0, 0], abs=1e-5)
    assert statistics(board) == pytest.approx([1, 4, math.log(2) / math.log(8)], abs=1e-5)
    stripes = torch.where(ROWS % 2 == 0, 1.0, -1.0)
    assert statistics(stripes) == pytest.approx([1, 2, math.log(2) / math.log(8)], abs=1e-5)  # steps down, none across
    assert statistics(stripes) == pytest.approx(statistics(stripes.T), abs=1e-6)


def test_every_bin_alike_is_the_highest_entropy_and_values_beyond_the_range_count():
    centres = torch.linspace(-2.625, 2.625, 8).repeat(2, 1)
    assert statistics(centres)[2] == pytest.approx(1)
    assert statistics(torch.tensor([[-50.0, 50.0]]))[2] == pytest.approx(math.log(2) / math.log(8))


def test_bands_are_averaged():
    a, b = torch.randn(5, 5), torch.randn(5, 5)
    both, each = statistics(torch.stack([a, b])), (statistics(a), statistics(b))
    assert both[:2] == pytest.approx([(each[0][i] + each[1][i]) / 2 for i in range(2)], rel=1e-5)


def test_texture_sees_valid_pixels_only():
    part, valid = torch.randn(6, 7), torch.zeros(6, 7, dtype=torch.bool)
    valid[1:5, 2:6] = True
    assert statistics(torch.where(valid, part, torch.nan), valid) == pytest.approx(statistics(part[1:5, 2:6]), rel=1e-5)
    assert statistics(torch.full((6, 7), torch.nan), valid & False) == [0, 0, 0]


def test_texture_has_finite_gradients_on_a_flat_patch():
    x = torch.zeros(1, 2, 4, 4, requires_grad=True)
    texture_statistics(x, torch.ones(1, 4, 4, dtype=torch.bool)).sum().backward()
    assert x.grad.isfinite().all()


def test_a_missing_sensor_sees_nothing_whatever_stood_there():
    torch.manual_seed(0)
    available = torch.ones(1, 2, 3, 3, dtype=torch.bool)
    available[0, 1, 1, 1] = False
    image = torch.randn(1, 5, 3, 3)
    image[0, 3:, 1, 1] = torch.nan
    batch = {"image": image, "available": available}
    (a, a_seen), (b, b_seen) = split_sensors(patches_of(batch, 3), (3, 2))
    assert a.shape == (9, 3, 3, 3)
    assert b.shape == (9, 2, 3, 3)
    assert a_seen[4].all()
    assert not b_seen[4].any()
    assert (b[4] == 0).all()
    assert torch.equal(a[4], image[0, :3])
    assert b_seen[0].sum() == 4  # a corner pixel that has the sensor: its patch lies partly outside


@pytest.mark.parametrize(("bands", "sensors"), [((3, 1), 2), ((3, 2), 3)])
def test_sensors_that_do_not_fit_are_refused(bands, sensors):
    batch = {"image": torch.zeros(1, 5, 3, 3), "available": torch.ones(1, sensors, 3, 3, dtype=torch.bool)}
    with pytest.raises(DataError, match="expected"):
        split_sensors(patches_of(batch, 3), bands)
