"""The vision transformer: validity, positions, parts of a block, adapters."""

import pytest
import torch
from torch import nn

from terramoe.errors import ConfigError, DataError
from terramoe.nets.vit import TransformerBlock, ViT, sincos_positions, tokens_to_map


def make(bands=3, **options):
    torch.manual_seed(0)
    return ViT(bands, dim=16, depth=2, heads=2, patch=4, **options).double().eval()


def image_of(height=8, width=12, bands=3, seed=1):
    return torch.randn(2, bands, height, width, generator=torch.Generator().manual_seed(seed)).double()


def test_a_block_equals_torchs_pre_norm_layer():
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
    ).eval()
    ours = TransformerBlock(16, 4)
    names = {"attn.qkv": "self_attn.in_proj_", "attn.proj": "self_attn.out_proj.", "mlp.fc1": "linear1."}
    names |= {"mlp.fc2": "linear2.", "norm1": "norm1.", "norm2": "norm2."}
    theirs_state = theirs.state_dict()
    ours.load_state_dict({f"{o}.{e}": theirs_state[f"{t}{e}"] for o, t in names.items() for e in ("weight", "bias")})
    x, keys = torch.randn(2, 5, 16), torch.rand(2, 5) < 0.6
    keys[:, 0] = True
    torch.testing.assert_close(ours(x), theirs(x))
    with torch.no_grad():
        torch.testing.assert_close(ours(x, keys=keys), theirs(x, src_key_padding_mask=~keys), rtol=1e-4, atol=1e-5)


def test_a_row_without_any_key_sees_all_of_its_tokens():
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2), torch.randn(2, 3, 8)
    keys = torch.tensor([[False] * 3, [True, False, True]])
    torch.testing.assert_close(block(x, keys=keys)[0], block(x)[0])
    assert not torch.allclose(block(x, keys=keys)[1], block(x)[1])


def test_beside_gets_the_mlps_input_and_after_the_blocks_output():
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2), torch.randn(2, 3, 8)
    seen = []
    mid = block.attend(x)
    inner = block.norm2(mid)
    y = block(x, lambda h: seen.append(h) or 2 * h, lambda h: seen.append(h) or -h)
    torch.testing.assert_close(seen[0], inner)
    torch.testing.assert_close(y, -(mid + block.mlp(inner) + 2 * inner))
    torch.testing.assert_close(block.feed_forward(block.attend(x)), block(x))


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(("bands", "size"), [(1, (4, 4)), (3, (8, 12)), (13, (7, 5))])
def test_shapes_for_any_bands_and_any_size(bands, size, class_token):
    tokens = make(bands, class_token=class_token)(image_of(*size, bands))
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    assert tokens.grid == grid
    assert tokens.x.shape == (2, grid[0] * grid[1], 16)
    assert tokens.to_map().shape == (2, 16, *grid)
    assert (tokens.summary is not None) == class_token
    assert tokens.valid.all()


def test_tokens_and_map_name_the_same_places():
    x = torch.arange(2 * 6 * 3).view(2, 6, 3)
    laid = tokens_to_map(x, (2, 3))
    assert torch.equal(laid[1, :, 1, 2], x[1, 5])
    assert torch.equal(laid[0, :, 0, 1], x[0, 1])
    assert torch.equal(laid.flatten(2).transpose(1, 2), x)
    with pytest.raises(DataError, match="2 x 2"):
        tokens_to_map(x, (2, 2))


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf"), 1e30])
def test_what_stands_in_invalid_pixels_changes_nothing(rubbish):
    vit, image = make(class_token=True), image_of()
    valid = torch.rand(2, 8, 12, generator=torch.Generator().manual_seed(2)) < 0.5
    spoilt = image.masked_fill(~valid[:, None], rubbish).requires_grad_()
    tokens = vit(spoilt, valid)
    assert torch.equal(tokens.x, vit(image, valid).x)
    tokens.x.sum().backward()
    assert all(p.grad.isfinite().all() for p in vit.parameters())
    assert (spoilt.grad[(~valid)[:, None].expand_as(image)] == 0).all()


def test_an_invalid_token_is_seen_by_nobody():
    """Cutting the invalid right third off the image must give the same tokens as masking it."""
    vit, image = make(class_token=True), image_of()
    valid = torch.ones(2, 8, 12, dtype=torch.bool)
    valid[..., 8:] = False
    masked, cut = vit(image, valid), vit(image[..., :8])
    assert torch.equal(masked.valid.view(2, 2, 3)[0], torch.tensor([[True, True, False]] * 2))
    torch.testing.assert_close(masked.to_map()[..., :2], cut.to_map())
    torch.testing.assert_close(masked.summary, cut.summary)


def test_one_valid_pixel_makes_a_token_valid_and_an_empty_image_stays_finite():
    vit, image = make(), image_of()
    valid = torch.zeros(2, 8, 12, dtype=torch.bool)
    valid[0, 5, 6] = True
    tokens = vit(image * float("nan"), valid & False)
    assert tokens.x.isfinite().all()
    assert not tokens.valid.any()
    tokens = vit(image, valid)
    assert tokens.valid.nonzero().tolist() == [[0, 4]]
    assert tokens.x.isfinite().all()


def test_images_of_a_batch_do_not_meet():
    vit, image = make(), image_of()
    valid = torch.ones(2, 8, 12, dtype=torch.bool)
    valid[1] = False
    torch.testing.assert_close(vit(image, valid).x[:1], vit(image[:1]).x)


def test_positions_are_those_of_rows_and_columns():
    positions = sincos_positions(16, 3, 5, like=torch.zeros(1).double()).view(3, 5, 16)
    assert (positions[:, :1, :8] == positions[:, :, :8]).all()  # the first half knows the row alone
    assert (positions[:1, :, 8:] == positions[:, :, 8:]).all()
    assert positions.flatten(0, 1).unique(dim=0).shape[0] == 15
    torch.testing.assert_close(positions[2, 0, :8].square().view(2, 4).sum(0), torch.ones(4).double())
    # Row 2 of one grid is row 1 at twice the distance; a larger grid begins with the smaller one.
    half = sincos_positions(16, 2, 1, like=positions, scale=2.0)
    torch.testing.assert_close(half[1, :8], positions[2, 0, :8])
    assert torch.equal(sincos_positions(16, 9, 9, like=positions).view(9, 9, 16)[:3, :5], positions)


def test_moving_a_patch_changes_more_than_the_order():
    vit, image = make(), image_of()
    swapped = torch.cat([image[..., 4:8], image[..., :4], image[..., 8:]], dim=-1)
    x, y = vit(image).to_map(), vit(swapped).to_map()
    assert not torch.allclose(x[..., [1, 0, 2]], y)


def test_adapters_of_a_vit_are_called_at_their_blocks():
    vit, image = make(class_token=True), image_of()
    base = vit(image).x
    assert torch.equal(vit(image, beside={1: torch.zeros_like}, after={0: lambda h: h}).x, base)
    for where in ({"beside": {0: lambda h: h}}, {"beside": {1: lambda h: h}}, {"after": {1: lambda h: h.flip(-1)}}):
        assert not torch.allclose(vit(image, **where).x, base)
    with pytest.raises(ConfigError, match="no block 2"):
        vit(image, after={2: lambda h: h})


def test_shapes_and_settings_that_cannot_be():
    vit = make()
    for image, valid in (
        (torch.zeros(3, 8, 8), None),
        (torch.zeros(1, 4, 8, 8), None),
        (torch.zeros(1, 3, 0, 8), None),
        (torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 7).bool()),
        (torch.zeros(1, 3, 8, 8), torch.ones(1, 8, 8)),
    ):
        with pytest.raises(DataError):
            vit(image.double(), valid)
    for options in ({"dim": 18}, {"dim": 16, "heads": 3}, {"depth": 0}, {"patch": 0}):
        with pytest.raises(ConfigError):
            ViT(3, **options)
