"""What is distinctive in MixtureRS, and that its parent's faults are not ours."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from terramoe.data import Normaliser, OfficialSplit, Scene, Split, open_benchmark
from terramoe.errors import ConfigError, DataError
from terramoe.experiments.claims.mixturers import CLAIM, REAL_CLAIM, accuracy_under_offset, token_difference
from terramoe.experiments.train import build_for
from terramoe.inference import Predictor
from terramoe.moe.objectives import importance_cv2
from terramoe.nets.spectral_stem import CHUNK
from terramoe.systems import Output
from terramoe.systems.mixturers import MixtureRS, MixtureRSConfig

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def make(**changes):
    torch.manual_seed(0)
    return MixtureRS(dataclasses.replace(MixtureRS.tiny().config, dropout=0.0, **changes))


def batch_of(images=1, bands=8, height=5, width=4, **more):
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(images, bands, height, width, generator=generator), **more}


def test_the_defaults_are_the_parents_with_its_width_dealt_to_four_experts():
    config = MixtureRSConfig(bands=(144, 1), classes=15)
    assert (config.patch, config.width, config.depth, config.heads, config.tokens) == (11, 64, 2, 8, 4)
    assert (config.filters, config.band_kernel, config.dropout) == (8, 9, 0.1)
    assert config.experts * config.hidden == 512
    system = MixtureRS(config)
    assert system.tokeniser.stem.spectral.weight.shape == (8, 1, 9, 3, 3)
    assert system.tokeniser.stem.mix.groups == 16
    assert not any(isinstance(m, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)
                   for m in system.modules())  # fmt: skip


def test_every_token_is_an_item_the_lidars_first():
    system = make().eval()
    batch = batch_of()
    output = system(batch)
    routing = output.routings["block1"]
    assert routing.num_items == 20 * 3
    changed = {"image": batch["image"].clone()}
    changed["image"][:, 6:] += 1  # LiDAR only
    moved = (system(changed).routings["block1"].logits - routing.logits).abs().amax(1).view(20, 3)
    assert (moved[:, 0] > 0).all()


def test_the_class_token_is_the_lidars_and_reads_the_others():
    """At the first block's experts only what was read, the same for all tokens, has mixed the sensors."""
    system = make(depth=1).eval()
    seen = {}
    system.blocks[0].attention.register_forward_hook(lambda m, args, out: seen.update(x=args[0], y=out))
    batch = batch_of()
    system(batch)
    first = dict(seen)
    changed = {"image": batch["image"].clone()}
    changed["image"][:, 6:] += 1
    system(changed)
    assert torch.equal(seen["x"][:, 1:], first["x"][:, 1:])  # hyperspectral tokens know no height
    assert not torch.equal(seen["x"][:, 0], first["x"][:, 0])
    read = seen["y"] - seen["x"]
    torch.testing.assert_close(read, read[:, :1].expand_as(read))


def test_the_prediction_is_the_class_tokens():
    system, batch = make(depth=1).eval(), batch_of()
    before = system(batch).prediction
    changed = {"image": batch["image"].clone()}
    changed["image"][:, :6] += torch.linspace(0, 1, 6)[:, None, None]  # hyperspectral only
    assert not torch.equal(system(changed).prediction, before)
    leave = system.blocks[0].attention.attention.leave  # what it reads of the others ends here
    torch.nn.init.zeros_(leave.weight)
    assert torch.equal(system(changed).prediction, system(batch).prediction)


def test_two_choices_are_renormalised_and_a_single_one_is_not():
    batch = batch_of()
    routing = make()(batch).routings["block1"]
    assert routing.num_choices == 2
    torch.testing.assert_close(torch.zeros(60).index_add(0, routing.item, routing.weight), torch.ones(60))
    single = make(top_k=1)(batch).routings["block1"]
    torch.testing.assert_close(single.weight, single.probs[single.item, single.expert])
    assert single.weight.max() < 1


def test_balance_is_the_squared_variation_of_the_weights():
    system, batch = make(), MixtureRS.tiny_batch(2, 0)
    output = system(batch)
    expected = 0.01 * sum(importance_cv2(routing) for routing in output.routings.values())
    torch.testing.assert_close(system.loss(output, batch)["balance"], expected)
    assert expected > 0


def test_a_height_common_to_a_patch_is_not_normed_away():
    """With group norm of one patch in the LiDAR stem, 1 m and 9 m would look alike."""
    system = make(bands=(6, 1)).eval()
    heights = torch.stack([torch.full((1, 3, 3), h) for h in (-2.0, -1.0, 1.0, 2.0)])
    hsi = torch.zeros(4, 6, 3, 3)
    valid = torch.ones(4, 3, 3, dtype=torch.bool)
    tokens = system.tokeniser(hsi, heights, valid, valid)[:, 0]
    assert torch.pdist(tokens).min() > 0.1
    assert (tokens[3] - tokens[0]).norm() > (tokens[2] - tokens[1]).norm()


def test_a_masked_token_is_read_by_nobody():
    block = make().blocks[0].eval()
    x, keys = torch.randn(2, 3, 16), torch.tensor([[True, True, False], [True, True, True]])
    before = block(x, keys, keys)[0]
    x[:, 2] += torch.randn(16)
    after = block(x, keys, keys)[0]
    assert torch.equal(after[0, :2], before[0, :2])
    assert not torch.equal(after[1, :2], before[1, :2])


@pytest.mark.parametrize("patch", [1, 3])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_missing_sensor_is_not_seen(patch, lost):
    system = make(patch=patch)
    available = torch.ones(1, 2, 5, 4, dtype=torch.bool)
    available[:, lost, 2] = False
    batch = batch_of(available=available, mask=torch.zeros(1, 5, 4, dtype=torch.int64))
    bands = slice(0, 6) if lost == 0 else slice(6, 8)
    expected = system(batch)
    batch["image"][:, bands, 2] = torch.nan
    # Neighbours of a patch must hold data, as the pipeline gives it: zero there.
    if patch == 3:
        batch["image"][:, bands, 2] = 0
        expected = system(batch)
    output = system(batch)
    assert torch.equal(output.prediction, expected.prediction)
    routed = output.routings["block1"].valid().view(5, 4, 3)
    assert routed[..., 0].all()  # the class token always goes on
    assert bool(routed[2, :, 1:].any()) == (lost == 1)
    system.loss(output, batch)["task"].backward()
    assert all(p.grad.isfinite().all() for p in system.parameters() if p.grad is not None)


def test_without_a_sensor_the_prediction_is_that_of_the_other():
    system = make(patch=1).eval()
    batch = batch_of(available=torch.ones(1, 2, 5, 4, dtype=torch.bool))
    batch["available"][:, 0] = False
    before = system(batch).prediction
    batch["image"][:, :6] += 3
    assert torch.equal(system(batch).prediction, before)
    batch["image"][:, 6:] += 3
    assert not torch.equal(system(batch).prediction, before)


def test_with_patch_one_tokens_are_groups_of_neighbouring_bands():
    system = make(bands=(7, 2), patch=1, tokens=3).eval()
    assert system.tokeniser.groups == [3, 2, 2]
    hsi, lidar, there = torch.randn(4, 7, 1, 1), torch.randn(4, 2, 1, 1), torch.ones(4, 1, 1, dtype=torch.bool)
    before = system.tokeniser(hsi, lidar, there, there)
    for band, token in ((0, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)):
        changed = hsi.clone()
        changed[:, band] += 1
        moved = (system.tokeniser(changed, lidar, there, there) - before).abs().amax((0, 2)) > 0
        assert moved.tolist() == [number == token for number in range(4)]


def test_many_patches_go_through_the_stem_in_pieces():
    system = make().eval()
    side = int(np.ceil(np.sqrt(2.5 * CHUNK)))
    batch = batch_of(height=side, width=side)
    whole = system(batch).prediction
    one = torch.zeros(1, side, side, dtype=torch.bool)
    one[0, side - 1, side - 2] = True
    alone = system({**batch, "wanted": one}).prediction
    torch.testing.assert_close(alone[..., -1, -2], whole[..., -1, -2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": (4,)}, "two numbers"),
        ({"bands": (4, 1, 1)}, "two numbers"),
        ({"bands": (4, 0)}, "two numbers"),
        ({"patch": 2}, "patch must be odd"),
        ({"patch": 1, "tokens": 7}, "a band for each token"),
        ({"top_k": 4}, "top_k must be in 1..3"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"tokens": 0}, "at least 1"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MixtureRS.tiny().config, **changes)


class Threshold(torch.nn.Module):
    """Says class 2 where the second sensor is above 0; its tokens choose the experts that it is given."""

    multi_sensor, patch, config = True, 1, dataclasses.make_dataclass("Config", ["tokens"])(2)

    def forward(self, batch):
        high = batch["image"][:, 1:2]
        return Output(torch.cat([-high, high], dim=1), {"block": self.routing} if hasattr(self, "routing") else {})


def made():
    """A scene whose classes are the height alone, in stripes of 4 columns; the right half tests."""
    labels = np.tile(np.repeat([1, 2], 4), (16, 2))
    image = np.stack([np.zeros((16, 16)), 2.0 * labels - 3]).astype(np.float32)
    test = np.zeros((16, 16), dtype=bool)
    test[:, 8:] = True
    scene = Scene("made", image, np.ones_like(test), labels, (1, 2), ("low", "high"),
                  sensors=(("hsi", 1), ("lidar", 1)))  # fmt: skip
    split = Split("halves", 0, ~test, test, test & ~test, np.zeros((16, 16), dtype=np.int64))
    predictor = Predictor(
        "mixturers", Threshold(), Normaliser((0.0, 0.0), (1.0, 1.0), "standard"), (1, 2), ("low", "high"), 16, 0,
        scene.sensors,
    )  # fmt: skip
    return dataclasses.make_dataclass("Found", ["predictor"])(predictor), scene, split


@pytest.mark.parametrize(("offset", "right"), [(0, 1.0), (1, 0.75), (2, 0.5)])
def test_an_offset_moves_the_second_sensor_only(offset, right):
    """Each stripe of 4 columns loses as many columns as the LiDAR is moved."""
    assert accuracy_under_offset(*made(), offset) == pytest.approx(right)


@pytest.mark.parametrize(("experts", "difference"), [([0, 1, 1], 1.0), ([0, 0, 0], 0.0), ([0, 0, 1], 0.5)])
def test_token_difference_is_the_total_variation(experts, difference):
    found, scene, split = made()
    count = int(split.test.sum())
    routing = make(top_k=1)(batch_of(height=16, width=8)).routings["block1"]
    assert routing.num_items == 3 * count
    found.predictor.system.routing = dataclasses.replace(routing, expert=torch.tensor(experts * count))
    assert token_difference(found, scene, split) == pytest.approx(difference)


def test_houston_pixels_are_classified_with_patch_one():
    try:
        scene = open_benchmark("houston2013-pixels", DATA)
    except DataError as error:
        pytest.skip(str(error))
    plan = dataclasses.replace(CLAIM.plan, system="mixturers", model={**CLAIM.plan.model, "patch": 1})
    system = build_for(plan, scene, 0).eval()
    (split,) = OfficialSplit(scene.official).masks(scene.labels)
    batch = {"image": torch.from_numpy(scene.image)[None], "wanted": torch.from_numpy(split.test)[None]}
    output = system(batch)
    assert output.prediction.shape == (1, 15, 1, 2832)
    assert output.routings["block1"].num_items == 5 * int(split.test.sum())


def test_the_real_claim_differs_in_its_scene_only():
    assert REAL_CLAIM.variants == CLAIM.variants
    assert REAL_CLAIM.statements == CLAIM.statements
    assert REAL_CLAIM.plan.split.kind == "block"
