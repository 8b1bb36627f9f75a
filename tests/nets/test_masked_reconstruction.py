"""Masked reconstruction: what is hidden, what counts, that it learns."""

import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.nets.masked_reconstruction import PixelDecoder, choose_hidden, masked_reconstruction_loss
from terramoe.nets.vit import ViT


@pytest.fixture
def parts():
    torch.manual_seed(0)
    vit = ViT(2, dim=16, depth=2, heads=2, patch=2)
    return vit, PixelDecoder(vit), torch.randn(3, 2, 8, 8), torch.rand(3, 8, 8) < 0.8


def test_the_share_of_hidden_valid_tokens():
    valid = torch.rand(4, 50, generator=torch.Generator().manual_seed(0)) < 0.6
    valid[3] = False
    valid[2] = torch.arange(50) == 7
    hidden = choose_hidden(valid, 0.25)
    assert not (hidden & ~valid).any()
    counts = valid.sum(1)
    assert hidden.sum(1).tolist() == [round(int(counts[0]) * 0.25), round(int(counts[1]) * 0.25), 1, 0]


def test_every_token_is_hidden_equally_often():
    torch.manual_seed(0)
    share = choose_hidden(torch.ones(4000, 8, dtype=torch.bool), 0.5).float().mean(0)
    assert (share - 0.5).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_the_decoder_lays_pixels_where_the_patches_were(parts):
    """A head that copies the patch embedding's input back must rebuild the image."""
    image = parts[2]
    wide = ViT(2, dim=8, depth=1, heads=1, patch=2)
    decoder = PixelDecoder(wide)
    with torch.no_grad():
        wide.patch_embed.weight.copy_(torch.eye(8).view(8, 2, 2, 2))
        wide.patch_embed.bias.zero_()
        decoder.head.weight.copy_(torch.eye(8))
        decoder.head.bias.zero_()
    patches = wide.embed(image[:, :, :6])
    torch.testing.assert_close(decoder(patches.x, patches.grid), image[:, :, :6])


def test_the_loss_by_hand_and_only_over_valid_pixels_of_hidden_patches(parts):
    vit, decoder, image, valid = parts
    image, valid = image[..., :7], valid[..., :7]  # the last patches hang over the edge
    torch.manual_seed(5)
    loss = masked_reconstruction_loss(vit, decoder, image, valid, 0.5)
    torch.manual_seed(5)
    patches = vit.embed(image, valid)
    hidden = choose_hidden(patches.valid, 0.5)
    x = patches.x.clone()
    x[hidden] = decoder.mask_token
    predicted = decoder(vit.encode(patches._replace(x=x)).x, patches.grid)
    errors = [
        (predicted[b, c, i, j] - image[b, c, i, j]).abs()
        for b in range(3)
        for i in range(8)
        for j in range(7)
        for c in range(2)
        if valid[b, i, j] and hidden[b].view(4, 4)[i // 2, j // 2]
    ]
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_the_encoder_does_not_see_what_it_must_predict(parts):
    """Of a hidden patch, the target alone reaches the loss: without it in the target, its pixels have no gradient."""
    vit, decoder, image, valid = parts
    image = image.requires_grad_()
    patches = vit.embed(image, valid)
    hidden = choose_hidden(patches.valid, 0.5)
    torch.manual_seed(3)
    hidden = choose_hidden(patches.valid, 0.5)
    torch.manual_seed(3)
    masked_reconstruction_loss(vit, decoder, image, valid, 0.5).backward()
    spread = hidden.view(3, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3) & valid[:, None]
    counted = spread.sum() * 2
    gradient = image.grad[spread.expand_as(image)].abs()
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / counted))  # the L1 target and nothing more
    assert (image.grad[(valid[:, None] & ~spread).expand_as(image)] != 0).any()


def test_noise_is_the_global_generators_or_the_given_one(parts):
    vit, decoder, image, valid = parts

    def loss(seed, generator=None):
        torch.manual_seed(seed)
        return masked_reconstruction_loss(vit, decoder, image, valid, 0.5, generator)

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)
    assert loss(1, torch.Generator().manual_seed(7)) == loss(2, torch.Generator().manual_seed(7))


def test_nodata_does_not_matter_and_nothing_valid_costs_nothing(parts):
    vit, decoder, image, valid = parts
    torch.manual_seed(1)
    base = masked_reconstruction_loss(vit, decoder, image, valid, 0.5)
    torch.manual_seed(1)
    spoilt = image.masked_fill(~valid[:, None], float("nan"))
    assert masked_reconstruction_loss(vit, decoder, spoilt, valid, 0.5) == base
    loss = masked_reconstruction_loss(vit, decoder, spoilt * float("nan"), valid & False, 0.5)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in vit.parameters())


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan")])
def test_a_ratio_out_of_range(parts, ratio):
    with pytest.raises(ConfigError, match="0 < ratio < 1"):
        masked_reconstruction_loss(*parts, ratio)


def test_it_learns_what_no_constant_can_predict(parts):
    """Each image has one level for all of its pixels, so that hidden patches follow from the seen ones alone."""
    vit, decoder, _, _ = parts
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([*vit.parameters(), *decoder.parameters()], lr=5e-3)
    losses = []
    for step in range(120):
        torch.manual_seed(step)
        levels = torch.randn(16, 2, 1, 1, generator=generator).expand(-1, -1, 8, 8)
        loss = masked_reconstruction_loss(vit, decoder, levels, None, 0.5)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in [*vit.parameters(), *decoder.parameters()])
    constant = (2 / torch.pi) ** 0.5  # mean absolute value of a normal level: the best that a constant can do
    assert sum(losses[-10:]) / 10 < 0.5 * constant, losses[-10:]
