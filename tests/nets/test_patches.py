"""Patches: what torch's unfold gives, at the wanted pixels only, blind to nodata, and back on the pixel grid."""

import pytest
import torch
from torch import nn

from terramoe.nets import patches_of


def make_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(2, 6, 5, generator=generator) > 0.2
    image = torch.randn(2, 3, 6, 5, generator=generator)
    return {"image": torch.where(valid[:, None], image, torch.nan), "valid": valid}


@pytest.mark.parametrize("side", [1, 3, 7])
def test_they_are_the_unfolded_image_with_zeros_for_nodata_and_beyond_the_edge(side):
    batch = make_batch()
    patches = patches_of(batch, side)
    assert patches.pixel.tolist() == batch["valid"].flatten().nonzero().flatten().tolist()
    for found, source in (
        (patches.values, torch.where(batch["valid"][:, None], batch["image"], 0)),
        (patches.valid[:, None].float(), batch["valid"][:, None].float()),
    ):
        unfolded = nn.functional.unfold(source, side, padding=side // 2)
        expected = unfolded.unflatten(1, (source.shape[1], side, side)).permute(0, 4, 1, 2, 3).flatten(0, 1)
        assert torch.equal(found, expected[patches.pixel])
    assert patches.routed.all()


def test_only_wanted_pixels_with_data_are_cut():
    batch = make_batch()
    wanted = torch.zeros_like(batch["valid"])
    wanted[1, 2:4] = True
    patches = patches_of({**batch, "wanted": wanted}, 3)
    assert patches.pixel.tolist() == (wanted & batch["valid"]).flatten().nonzero().flatten().tolist()


def test_without_a_pixel_there_is_one_empty_patch():
    batch = make_batch()
    patches = patches_of({**batch, "valid": torch.zeros_like(batch["valid"])}, 3)
    assert patches.values.shape == (1, 3, 3, 3)
    assert not patches.values.any()
    assert not patches.valid.any()
    assert not patches.routed.any()


def test_answers_and_items_go_back_to_their_pixels():
    batch = make_batch()
    patches = patches_of(batch, 3)
    number = torch.arange(len(patches.pixel))
    image = patches.to_image(torch.stack([number + 1.0, -number - 1.0], dim=1))
    assert image.shape == (2, 2, 6, 5)
    assert image[:, 0][batch["valid"]].tolist() == (number + 1).tolist()  # reading order
    assert not image[:, 0][~batch["valid"]].any()
    items = torch.stack([number, 100 + number], dim=1).flatten()  # two items a patch
    shown = patches.layout(items=2, show=1).to_pixels(items)
    assert shown[batch["valid"]].tolist() == (100 + number).tolist()
    assert (shown[~batch["valid"]] == -1).all()
    assert torch.equal(patches.of_batch(shown), 100 + number)


def test_sensors_are_those_of_the_patchs_own_pixel():
    batch = make_batch()
    available = torch.rand(2, 4, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    patches = patches_of({**batch, "available": available}, 3)
    assert torch.equal(patches.present, available.permute(0, 2, 3, 1)[batch["valid"]])


def test_gradients_reach_the_image():
    image = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(1, 4, 3, dtype=torch.bool)
    valid[0, 1, 1] = False

    def cut(image):
        return patches_of({"image": image, "valid": valid}, 3).values

    assert torch.autograd.gradcheck(cut, image)
    (gradient,) = torch.autograd.grad(cut(image).sum(), image)
    assert (gradient[0, :, 1, 1] == 0).all()
    assert gradient[0, 0, 2, 1] == 8  # nine patches hold it, but there is none around the nodata pixel
    assert gradient[0, 0, 0, 0] == 3
