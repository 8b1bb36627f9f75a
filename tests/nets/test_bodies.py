"""Directions, masked normalisation and pooling, fusion."""

import pytest
import torch
from torch import nn

from terramoe.nets import DIRECTIONS, DirectionalSSM, MaskedGroupNorm, SpectralSSM, TopDownFusion, masked_average_pool
from terramoe.nets.directional import roll, unroll


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_unrolled_values_return_to_their_pixels(direction):
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert torch.equal(roll(unroll(x, direction), direction, 3, 4), x)


def test_directions_read_in_the_order_they_name():
    x = torch.arange(6).reshape(1, 2, 3, 1)
    orders = {d: unroll(x, d).flatten().tolist() for d in DIRECTIONS}
    assert orders == {
        "rows": [0, 1, 2, 3, 4, 5],
        "columns": [0, 3, 1, 4, 2, 5],
        "rows reversed": [5, 4, 3, 2, 1, 0],
        "columns reversed": [5, 2, 4, 1, 3, 0],
    }


@pytest.mark.parametrize(
    ("direction", "seen"),
    [("rows", (2, 0)), ("columns", (0, 2)), ("rows reversed", (0, 0)), ("columns reversed", (0, 0))],
)
def test_a_directional_expert_carries_information_along_its_direction(direction, seen):
    """A change at one pixel must reach a pixel far behind it in scan order; the convolution alone reaches one cell."""
    torch.manual_seed(0)
    expert = DirectionalSSM(3, 4, 4, direction)
    x = torch.randn(1, 3, 3, 3)
    base = expert(x)
    source = (0, 0) if not direction.endswith("reversed") else (2, 2)
    x[0, source[0], source[1]] += 1
    change = (expert(x) - base).abs().sum(-1)[0]
    assert change[seen] > 0


def test_a_transposed_window_through_the_transposed_expert_gives_the_transposed_result():
    torch.manual_seed(0)
    rows, columns = DirectionalSSM(3, 4, 4, "rows"), DirectionalSSM(3, 4, 4, "columns")
    state = rows.state_dict()
    state["local.weight"] = state["local.weight"].transpose(2, 3)
    columns.load_state_dict(state)
    x = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(columns(x.transpose(1, 2)), rows(x).transpose(1, 2))


def test_the_spectral_expert_reads_both_ways_and_keeps_pixels_apart():
    torch.manual_seed(0)
    expert = SpectralSSM(8, 4, 4)
    x = torch.randn(2, 3, 8)
    base = expert(x)
    for channel, reached in ((0, -1), (-1, 0)):
        moved = x.clone()
        moved[0, 1, channel] += 1
        change = (expert(moved) - base).abs()
        assert change[0, 1, reached] > 0
        change[0, 1] = 0
        assert (change == 0).all()


def test_group_norm_equals_torch_where_all_is_valid():
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, 4)
    ours, theirs = MaskedGroupNorm(4, 8), nn.GroupNorm(4, 8)
    for module in (ours, theirs):
        with torch.no_grad():
            module.weight.copy_(torch.linspace(0.5, 2, 8))
            module.bias.copy_(torch.linspace(-1, 1, 8))
    torch.testing.assert_close(ours(x, torch.ones(3, 5, 4).bool()), theirs(x))


def test_group_norm_of_a_half_image_is_that_of_the_half_alone():
    torch.manual_seed(0)
    x = torch.randn(1, 8, 6, 4)
    valid = torch.zeros(1, 6, 4).bool()
    valid[:, :3] = True
    norm = MaskedGroupNorm(2, 8)
    y = norm(x, valid)
    torch.testing.assert_close(y[:, :, :3], norm(x[:, :, :3], valid[:, :3]))
    assert (y[:, :, 3:] == 0).all()
    assert norm(x, torch.zeros_like(valid)).isfinite().all()


def test_pooling_averages_valid_pixels_only():
    x = torch.tensor([[[[1.0, 3.0, 9.0], [5.0, 100.0, 9.0]]]])
    valid = torch.tensor([[[True, True, True], [True, False, True]]])
    pooled, kept = masked_average_pool(x, valid)
    assert pooled.tolist() == [[[[3.0]]]]
    assert kept.tolist() == [[[True]]]
    pooled, kept = masked_average_pool(x, torch.zeros_like(valid))
    assert pooled.tolist() == [[[[0.0]]]]
    assert kept.tolist() == [[[False]]]


def test_fusion_keeps_shapes_and_flows_from_coarse_to_fine():
    torch.manual_seed(0)
    fusion = TopDownFusion(4, 3)
    maps = [torch.randn(1, 4, s, s + 1) for s in (9, 4, 2)]
    base = fusion(maps)
    assert [m.shape for m in base] == [m.shape for m in maps]
    coarse = fusion([maps[0], maps[1], maps[2] + 1])
    assert not torch.equal(coarse[0], base[0])
    fine = fusion([maps[0] + 1, maps[1], maps[2]])
    assert torch.equal(fine[1], base[1])
    assert torch.equal(fine[2], base[2])
