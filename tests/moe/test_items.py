"""Windows: a round trip, and item values back on the pixels they came from."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.moe import WindowGrid


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_split_and_merge_are_inverse(batch, height, width, window):
    grid = WindowGrid(batch, height, width, window)
    x = torch.arange(batch * height * width * 2.0).reshape(batch, height, width, 2)
    items = grid.split(x)
    assert items.shape == (grid.num_items, *window, 2)
    assert torch.equal(grid.merge(items), x)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(8, 21), st.integers(8, 21)),
    level=st.integers(0, 3),
    window=st.integers(1, 4),
)
def test_each_pixel_gets_the_value_of_the_window_that_holds_it(size, level, window):
    stride = 2**level
    height, width = size[0] // stride, size[1] // stride
    grid = WindowGrid(1, height, width, (window, window), stride, size)
    ids = torch.arange(grid.num_items)
    cells = grid.merge(ids[:, None, None, None].expand(-1, window, window, 1))[0, :, :, 0]
    pixels = grid.to_pixels(ids)[0]
    assert pixels.shape == size
    for row in range(size[0]):
        for column in range(size[1]):
            cell = cells[min(row // stride, height - 1), min(column // stride, width - 1)]
            assert pixels[row, column] == cell


def test_values_may_have_channels():
    grid = WindowGrid(2, 4, 4, (2, 2))
    values = torch.randn(grid.num_items, 3)
    assert grid.to_pixels(values).shape == (2, 4, 4, 3)


def test_empty_windows_are_refused():
    with pytest.raises(RoutingError, match="at least one cell"):
        WindowGrid(1, 4, 4, (0, 2))
