"""Training patches: the same for the same step, around training pixels, blind to test pixels, with sensors missing."""

import pytest
import torch

from terramoe.errors import SplitError
from terramoe.tasks import IGNORE
from terramoe.training import ScenePatches

HEIGHT, WIDTH = 14, 11


def make_patches(**changes):
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(HEIGHT * WIDTH, dtype=torch.float32).view(1, HEIGHT, WIDTH)
    valid = torch.rand(HEIGHT, WIDTH, generator=generator) > 0.2
    labels = torch.randint(-1, 3, (HEIGHT, WIDTH), generator=generator)
    labels[~valid] = IGNORE
    values = {
        "image": torch.cat([place, -place]),
        "valid": valid,
        "labels": labels,
        "size": 3,
        "batch": 24,
        "seed": 4,
    }
    return ScenePatches(**{**values, **changes})


def test_a_step_is_always_the_same_and_no_other():
    patches = make_patches(sensors=2, missing_rate=0.5)
    first, again = patches.draw(1, 2), patches.draw(1, 2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for other in (patches.draw(1, 3), patches.draw(2, 2), patches.draw(1, 2, 1), make_patches(seed=5).draw(1, 2)):
        assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("flips", [False, True])
def test_each_is_the_neighbourhood_of_a_training_pixel(flips):
    patches = make_patches(flips=flips)
    batch = patches.draw(0, 0)
    turned = 0
    for image, valid, wanted, mask in zip(*(batch[k] for k in ("image", "valid", "wanted", "mask")), strict=True):
        assert wanted.nonzero().tolist() == [[1, 1]]
        row, column = divmod(int(image[0, 1, 1]), WIDTH)
        assert mask[1, 1] == patches.labels[row, column] >= 0
        assert (mask[~wanted] == IGNORE).all()
        assert torch.equal(image[1], -image[0])
        turned += bool(image[0, 1, 0] > image[0, 1, 2] > 0)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                if 0 <= row + down < HEIGHT and 0 <= column + right < WIDTH:
                    place = (image[0] == (row + down) * WIDTH + column + right).nonzero()
                    assert any(bool(valid[r, c]) == bool(patches.valid[row + down, column + right]) for r, c in place)
    assert (turned > 0) == flips


def test_beyond_the_edge_there_is_nodata():
    labels = torch.full((HEIGHT, WIDTH), IGNORE)
    labels[0, 0] = 1
    batch = make_patches(labels=labels, valid=torch.ones(HEIGHT, WIDTH, dtype=torch.bool), flips=False).draw(0, 0)
    assert torch.equal(batch["valid"][0], torch.tensor([[False] * 3, [False, True, True], [False, True, True]]))
    assert not batch["image"][0][:, ~batch["valid"][0]].any()


def test_classes_are_drawn_alike_however_rare():
    labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    labels[3, 4] = 2
    for balanced, low, high in ((True, 0.4, 0.6), (False, 0.0, 0.1)):
        drawn = make_patches(labels=labels, batch=600, balanced=balanced).draw(0, 0)["mask"][:, 1, 1]
        assert low <= float((drawn == 2).float().mean()) <= high


def test_unlabelled_patches_are_around_pixels_with_data_that_do_not_train():
    patches = make_patches(unlabelled=50, flips=False)
    batch = patches.draw(0, 0)
    assert len(batch["image"]) == 74
    rest = batch["image"][24:, 0, 1, 1].long()
    assert (patches.labels.flatten()[rest] == IGNORE).all()
    assert patches.valid.flatten()[rest].all()
    assert (batch["mask"][24:] == IGNORE).all()
    assert batch["wanted"][24:, 1, 1].all()
    pool = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    pool[4:9] = True
    chosen = make_patches(unlabelled=50, flips=False, pool=pool).draw(0, 0)["image"][24:, 0, 1, 1].long()
    assert ((chosen // WIDTH >= 4) & (chosen // WIDTH < 9)).all()


def test_sensors_go_missing_at_the_rate_but_never_all():
    every = make_patches(sensors=3, batch=400).draw(0, 0)["available"]
    assert every.all()
    available = torch.ones(3, HEIGHT, WIDTH, dtype=torch.bool)
    available[1, :, :5] = False
    patches = make_patches(sensors=3, batch=2000, missing_rate=0.6, available=available)
    present = patches.draw(0, 0)["available"][:, :, 1, 1]
    assert present.any(1).all()
    column = patches.draw(0, 0)["image"][:, 0, 1, 1].long() % WIDTH
    assert not present[column < 5, 1].any()
    lost = (~present[column >= 5]).any(1).float().mean()
    assert 0.55 < float(lost) < 0.65


def test_domains_come_along():
    domains = (torch.arange(HEIGHT * WIDTH) % 4 + 1).view(HEIGHT, WIDTH)
    batch = make_patches(domains=domains).draw(0, 0)
    assert torch.equal(batch["domain"][:, 1, 1], batch["image"][:, 0, 1, 1].long() % 4)


def test_no_training_pixel_is_an_error():
    with pytest.raises(SplitError, match="no pixel is left to train on"):
        make_patches(labels=torch.full((HEIGHT, WIDTH), IGNORE))
