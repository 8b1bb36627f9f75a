"""What is distinctive in MaMOL, and the defects of its released code that ours must not have."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from terramoe.data import OfficialSplit, Scene, Split, open_benchmark
from terramoe.errors import ConfigError, DataError
from terramoe.experiments.claims.mamol import missing_chips, patch_vectors, train_mlp, zero_missing
from terramoe.moe import RouteInput
from terramoe.moe.experts import LoRABank
from terramoe.nets import patches_of
from terramoe.systems import build, plain_config
from terramoe.systems.mamol import MaMOL, MaMOLConfig
from terramoe.training import ScenePatches, TrainSettings, fit

DATA = Path(os.environ.get("TERRAMOE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def make(*, trained=True, **changes):
    """A miniature; ``trained``: with second matrices that are no longer 0."""
    config = dataclasses.replace(MaMOL.tiny().config, **changes)
    torch.manual_seed(0)
    system = MaMOL(config)
    if trained:
        for module in system.adapters.modules():
            if isinstance(module, LoRABank):
                torch.nn.init.normal_(module.b_ERO, std=0.1)
    return system


def one_patch(available, side=3, bands=7):
    """Two patches around one wanted pixel each, with these sensors."""
    centre = torch.zeros(2, side, side, dtype=torch.bool)
    centre[:, side // 2, side // 2] = True
    return {
        "image": torch.randn(2, bands, side, side, generator=torch.Generator().manual_seed(1)),
        "valid": torch.ones(2, side, side, dtype=torch.bool),
        "wanted": centre,
        "mask": torch.where(centre, 1, -1),
        "available": torch.tensor(available)[:, :, None, None].expand(2, len(available[0]), side, side),
    }


def logits(system, batch):
    with torch.no_grad():
        return system(batch).prediction[:, :, 1, 1]


def test_the_defaults_are_the_released_codes():
    config = MaMOLConfig(bands=(144, 1), classes=15)
    assert (config.width, config.depth, config.heads) == (768, 12, 12)
    assert (config.stem_width, config.adapted, config.rank, config.static_rank) == (256, 6, 8, 8)
    assert (config.experts, config.top_k, config.router_width, config.code_width) == (2, 1, 384, 8)


def test_a_new_model_is_its_frozen_body():
    """The released code starts the adapters' second matrix at random."""
    system = make(trained=False).eval()
    batch = MaMOL.tiny_batch(2, 0)
    patches = patches_of(batch, 3)
    alone = system.head(system._features(patches, [])[0])
    assert torch.equal(system(batch).prediction, patches.to_image(alone))
    assert not torch.equal(make().eval()(batch).prediction, system(batch).prediction)


@pytest.mark.parametrize("sensor", [0, 1])
def test_a_static_adapter_is_on_where_its_sensor_is_there(sensor):
    """The released code switches it by a learned projection of the code, whatever is there."""
    system = make().eval()
    batch = one_patch([[True, True], [sensor == 1, sensor == 0]])  # the second lacks this sensor
    before = logits(system, batch)
    with torch.no_grad():
        system.adapters[0].static.b_ERO[sensor] += torch.randn(2, 16)
    after = logits(system, batch)
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert torch.equal(after[1], before[1])


def test_the_gate_is_the_bit_and_not_a_share():
    adapters = make(parts=("static",)).adapters[0]
    x = torch.randn(4, 16)
    present = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    update, routing = adapters(x, present, torch.ones(4, dtype=torch.bool))
    each = adapters.static.run_all(x)  # (S, T, D)
    expected = (each * present.T[..., None]).sum(0)
    torch.testing.assert_close(update, expected)
    assert routing is None
    assert not update[3].any()


def test_the_parts_add_up():
    system, x = make(), torch.randn(6, 16)
    present = torch.rand(6, 2) > 0.5
    mask = torch.tensor([True] * 5 + [False])
    adapters = system.adapters[0]
    update, routing = adapters(x, present, mask)
    dynamic = sum(routing.dense()[:, e, None] * adapters.dynamic.bank.run(e, x) for e in range(system.config.experts))
    static = sum(present[:, s, None] * adapters.static.run(s, x) for s in range(2))
    torch.testing.assert_close(update, dynamic + adapters.shared.run(0, x) + static)
    torch.testing.assert_close(routing.weight, routing.probs[routing.item, routing.expert])  # no renormalised 1
    assert set(routing.item.tolist()) == {0, 1, 2, 3, 4}


def test_adapters_have_no_full_matrix():
    """The released code sends their sum through a D x D matrix."""
    config = MaMOL.tiny().config
    d, r, s = config.width, config.rank, len(config.bands)
    experts = sum(p.numel() for m in make().adapters.modules() if isinstance(m, LoRABank) for p in m.parameters())
    assert experts == 2 * d * (config.experts * r + (1 + s) * config.static_rank)
    routers = sum(p.numel() for p in make().adapters[0].dynamic.scorer.parameters())
    assert sum(p.numel() for p in make().adapters.parameters()) == experts + routers


def test_a_missing_sensor_is_neither_seen_nor_routed():
    system = make().eval()
    batch = one_patch([[True, False], [True, True]])
    before = system(batch)
    batch["image"][0, 5:] = torch.nan
    after = system(batch)
    assert torch.equal(before.prediction, after.prediction)
    routing = after.routings["block2"]
    rows = routing.valid().view(2, 2, 10)  # (patch, sensor, token)
    assert not rows[0, 1].any()
    assert rows[0, 0].all()
    assert rows[1].all()


def test_features_of_a_missing_sensor_are_zero():
    system = make()
    patches = patches_of(one_patch([[True, False], [False, True]]), 3)
    features = system._features(patches, list(system.adapters))[0].view(2, 2, 16)
    assert not features[0, 1].any()
    assert not features[1, 0].any()
    assert features[0, 0].any()
    assert features[1, 1].any()


def test_a_token_without_data_is_read_by_nobody():
    system = make().eval()
    x, present = torch.randn(4, 9, 16), torch.ones(2, 2, dtype=torch.bool)
    seen = torch.ones(4, 9, dtype=torch.bool)
    seen[:, 3] = False
    before = system.body(x, seen, present, list(system.adapters))[0]
    x[:, 3] += torch.randn(16)
    after = system.body(x, seen, present, list(system.adapters))[0]
    others = [i for i in range(10) if i != 4]  # the class token comes first
    assert torch.equal(after[:, others], before[:, others])
    x[:, 2] += torch.randn(16)
    changed = system.body(x, seen, present, list(system.adapters))[0]
    assert not torch.equal(changed[:, 0], after[:, 0])


def test_gradients_of_a_missing_sensors_nan_are_zero():
    system = make()
    batch = one_patch([[True, False], [True, False]])
    batch["image"][:, 5:] = torch.nan
    system.loss(system(batch), batch)["task"].backward()
    assert all(p.grad.isfinite().all() for p in system.parameters() if p.grad is not None)
    assert not system.stems[1][0].weight.grad.any()
    assert system.stems[0][0].weight.grad.abs().max() > 0


def test_the_router_reads_the_pattern_beside_the_token():
    scorer = make().adapters[0].dynamic.scorer
    x = torch.randn(1, 16).expand(3, 16)
    keys = {"present": torch.tensor([[True, True], [True, False], [False, True]])}
    found = scorer(RouteInput(x, keys=keys)).logits
    assert (found[0] - found[1]).abs().max() > 1e-4
    assert (found[1] - found[2]).abs().max() > 1e-4
    scorer.code.linear.weight.data.zero_()
    scorer.code.linear.bias.data.zero_()
    found = scorer(RouteInput(x, keys=keys)).logits
    torch.testing.assert_close(found[0], found[1])


def test_pretraining_trains_the_body_and_then_the_adapters():
    system = make()
    frozen = {name for name, p in system.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in system.named_parameters() if name.startswith("body.")}
    system.set_pretraining(True)
    trained = {name.split(".")[0] for name, p in system.named_parameters() if p.requires_grad}
    assert trained == {"stems", "body", "head"}
    system.set_pretraining(False)
    assert {name for name, p in system.named_parameters() if not p.requires_grad} == frozen


def test_pretraining_counts_only_patches_that_have_every_sensor():
    system = make()
    system.set_pretraining(True)
    both, one = one_patch([[True, True], [True, True]]), one_patch([[True, True], [False, True]])
    expected = torch.nn.functional.cross_entropy(
        system.head(system._features(patches_of(both, 3), [])[0])[:1],
        torch.tensor([1]),
    )
    torch.testing.assert_close(system.pretrain_loss(one)["task"], expected)
    none = one_patch([[True, False], [False, True]])
    loss = system.pretrain_loss(none)["task"]
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in system.parameters() if p.grad is not None)


def test_training_in_two_phases_freezes_the_body(tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (12, 10), generator=generator)
    draws = ScenePatches(
        image=torch.randn(7, 12, 10, generator=generator) + labels,
        valid=torch.ones(12, 10, dtype=torch.bool),
        labels=labels,
        size=3, batch=8, seed=0, sensors=2, missing_rate=0.5,
    )  # fmt: skip
    system = make(trained=False)
    settings = TrainSettings(steps=3, pretrain_steps=3, batch=8, save_every=3, steps_per_epoch=3)
    states = {}

    def remember(done, loss):
        states[done] = {name: p.clone() for name, p in system.named_parameters()}

    fit(system, draws, settings, on_step=remember)
    moved = {
        phase: {name.split(".")[0] for name in states[a] if not torch.equal(states[a][name], states[b][name])}
        for phase, a, b in (("first", 1, 3), ("second", 3, 6))
    }
    assert moved == {"first": {"stems", "body", "head"}, "second": {"stems", "adapters", "head"}}


def test_the_shared_body_reads_each_sensor_by_itself():
    """Nothing of one sensor's tokens reaches the other's but through presence."""
    system = make().eval()
    batch = one_patch([[True, True], [True, True]])
    patches = patches_of(batch, 3)
    features = system._features(patches, list(system.adapters))[0]
    patches.values[:, 5:] += 1
    changed = system._features(patches, list(system.adapters))[0]
    assert torch.equal(features[:, :16], changed[:, :16])
    assert not torch.equal(features[:, 16:], changed[:, 16:])


@pytest.mark.parametrize("parts", [("dynamic",), ("shared", "static"), ("static",)])
def test_parts_can_be_left_out(parts):
    system = make(parts=parts)
    batch = MaMOL.tiny_batch(2, 0)
    output = system(batch)
    assert bool(output.routings) == ("dynamic" in parts)
    names = {name.split(".")[2] for name, _ in system.named_parameters() if name.startswith("adapters.")}
    assert names == set(parts)
    assert build("mamol", json.loads(json.dumps(plain_config(system)))).config == system.config


def test_shuffled_codes_mislead_training_only():
    system, shuffled = make(), make(shuffled_codes=True)
    batch = one_patch([[True, False], [False, True]])
    torch.manual_seed(1)
    assert torch.equal(torch.randperm(2), torch.tensor([1, 0]))  # the codes are swapped
    torch.manual_seed(1)
    assert not torch.equal(logits(system, batch), logits(shuffled, batch))
    assert torch.equal(logits(system.eval(), batch), logits(shuffled.eval(), batch))


def test_patch_one_and_three_sensors_work():
    system = make(bands=(4, 2, 1), patch=1)
    batch = {
        "image": torch.randn(1, 7, 5, 4),
        "mask": torch.randint(0, 3, (1, 5, 4)),
        "available": torch.rand(1, 3, 5, 4) > 0.4,
    }
    output = system(batch)
    assert output.prediction.shape == (1, 3, 5, 4)
    assert output.routings["block2"].num_items == 20 * 3 * 2
    system.loss(output, batch)["task"].backward()


def test_without_presence_every_sensor_is_there():
    system, batch = make().eval(), one_patch([[True, True], [True, True]])
    assert torch.equal(logits(system, batch), logits(system, {k: v for k, v in batch.items() if k != "available"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": ()}, "at least one sensor"),
        ({"bands": (4, 0)}, "at least one sensor"),
        ({"patch": 4}, "patch must be odd"),
        ({"heads": 3}, "multiple of heads"),
        ({"adapted": 3}, "adapted must be in 1..depth"),
        ({"top_k": 4}, "top_k must be in 1..3"),
        ({"parts": ("magic",)}, "dynamic, shared, static"),
        ({"parts": ()}, "dynamic, shared, static"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(MaMOL.tiny().config, **changes)


def test_the_simulated_scene_has_real_gaps():
    scene = missing_chips()
    assert scene.sensors == (("optical10", 4), ("radar", 2))
    assert np.array_equal(scene.valid, scene.available.any(0))
    assert not scene.image[:4][:, ~scene.available[0]].any()
    shares = scene.available[:, scene.valid].mean(1)
    assert (shares > 0.3).all()
    assert (shares < 0.95).all()
    assert (scene.labels > 0).sum() == scene.valid.sum()
    assert np.array_equal(scene.image, missing_chips().image)


def test_the_mlp_learns_each_sensor_and_sees_zeros_for_missing_ones():
    generator = np.random.default_rng(0)
    labels = generator.integers(1, 3, (20, 20))
    image = (generator.standard_normal((3, 20, 20)) * 0.1 + np.where(labels == 1, -1, 1)).astype(np.float32)
    train = np.zeros((20, 20), dtype=bool)
    train[:10] = True
    split = Split("halves", 0, train, ~train, train & ~train, np.zeros((20, 20), dtype=np.int64))
    scene = Scene("made", image, np.ones((20, 20), dtype=bool), labels, (1, 2), ("a", "b"),
                  sensors=(("first", 2), ("second", 1)))  # fmt: skip
    values, present, truth = patch_vectors(image, scene, split, split.train, 1)
    assert values.shape == (200, 3)
    assert present.all()
    net = train_mlp(values, present, truth, scene, 1, 0.7, seed=0, steps=150)
    values, present, truth = patch_vectors(image, scene, split, split.test, 1)
    for there in ([True, True], [True, False], [False, True]):
        inputs = zero_missing(values, torch.tensor([there]).expand(200, 2), scene, 1)
        assert bool(inputs[:, 2].any()) == there[1]
        assert (net(inputs).argmax(1) == truth).float().mean() > 0.95


def test_houstons_training_and_test_pixels_are_apart():
    """The released code draws both from one map without excluding one from the other."""
    try:
        scene = open_benchmark("houston2013-pixels", DATA)
    except DataError as error:
        pytest.skip(str(error))
    (split,) = OfficialSplit(scene.official).masks(scene.labels)
    assert not (split.train & split.test).any()
    for number in range(1, 16):
        own = scene.labels == number
        assert np.flatnonzero(split.train & own).max() < np.flatnonzero(split.test & own).min()
