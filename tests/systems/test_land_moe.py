"""What is distinctive in Land-MoE, and the defects of its successor's code that ours must not have."""

import dataclasses

import numpy as np
import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.experiments.claims.land_moe import CROP, ground, low_pass, satellites
from terramoe.nets import RadialFilter
from terramoe.nets.frozen import freeze_vit
from terramoe.nets.vit import ViT
from terramoe.systems import land_moe
from terramoe.systems.land_moe import LandMoE, LandMoEConfig
from terramoe.training import SceneCrops, TrainSettings, fit


def make(**changes):
    torch.manual_seed(0)
    return LandMoE(dataclasses.replace(LandMoE.tiny().config, **changes))


def gradients(module):
    return [float(p.grad.abs().max()) if p.grad is not None else 0.0 for p in module.parameters()]


def test_the_defaults_are_vit_large_with_four_ranks():
    config = LandMoEConfig(bands=4, classes=24)
    assert (config.dim, config.depth, config.heads, config.cell) == (1024, 24, 16, 16)
    assert (config.ranks, config.top_k, config.tokens, config.balance) == ((4, 8, 16, 32), 2, 100, 0.01)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_task_alone_moves_every_router(top_k):
    """The code of SpectralMoE combines one expert without its gate's value: only the balance loss trains its router."""
    system, batch = make(top_k=top_k, balance=0.0), LandMoE.tiny_batch(2, 0)
    losses = system.loss(system(batch), batch)
    losses["task"].backward()
    assert min(gradients(adapter.table.scorer)[0] for adapter in system.adapters) > 0


def test_attention_uses_the_whole_map():
    """The code of SpectralMoE reads the diagonal of its attention map alone: token n then sees row n of the table."""
    adapter = make().adapters[0]
    x, valid = torch.randn(2, 9, 16, requires_grad=True), torch.ones(2, 9, dtype=torch.bool)
    read, routing = adapter(x, valid)
    table = torch.einsum("te,emd->tmd", routing.dense(), adapter.table.bank.tables())
    for image in range(2):
        for token in range(9):
            share = torch.softmax(table[image] @ x[image, token] / 4, dim=0)
            expected = share @ adapter.value(table[image])
            torch.testing.assert_close(read[image, token], expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(read[0, 0].sum(), adapter.table.bank.a[int(routing.expert[0])])
    assert (gradient.abs().amax(1) > 0).all()  # one token reads every row of the table


def test_each_image_has_a_gate_of_its_own():
    system, batch = make().eval(), LandMoE.tiny_batch(3, 0)
    output = system(batch)
    assert list(output.routings) == ["block 0", "block 1"]
    for name, routing in output.routings.items():
        assert routing.num_items == 3
        assert output.layouts[name].to_pixels(torch.arange(3)).flatten(1).unique(dim=1).flatten().tolist() == [0, 1, 2]
    assert len({tuple(row) for row in output.routings["block 0"].probs.tolist()}) == 3


def test_ranks_are_those_of_the_tables():
    system = make()
    assert [int(torch.linalg.matrix_rank(t)) for t in system.adapters[0].table.bank.tables()] == [1, 2, 3, 4]
    assert system.expert_names("block 0") == ("rank 1", "rank 2", "rank 3", "rank 4")


def test_the_filter_is_shared_and_starts_as_identity():
    system, batch = make(), LandMoE.tiny_batch(2, 0)
    assert sum(isinstance(m, RadialFilter) for m in system.modules()) == 1
    before = system(batch).prediction
    plain = make(frequency_filter=False)
    plain.load_state_dict({k: v for k, v in system.state_dict().items() if "filter" not in k})
    seen = batch["valid"]
    torch.testing.assert_close(before.movedim(1, -1)[seen], plain(batch).prediction.movedim(1, -1)[seen])
    with torch.no_grad():
        system.filter.logit[:, -1] = -20.0
    assert not torch.allclose(before, system(batch).prediction)
    with torch.no_grad():
        for adapter in system.adapters:
            adapter.filter_strength.zero_()
    torch.testing.assert_close(before.movedim(1, -1)[seen], system(batch).prediction.movedim(1, -1)[seen])


def test_the_filter_takes_stripes_out_of_the_tokens():
    """Tokens of alternating columns lie in an upper band: without its gain the mean is left."""
    system = make(filter_bands=2, filter_groups=1)
    with torch.no_grad():
        system.filter.logit[:, 1] = -20.0
        for adapter in system.adapters:
            adapter.scale.zero_()
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 16, 8, 8)
    x = (3 + stripes).flatten(2).mT
    y = system._adapt(0, torch.ones(1, 8, 8, dtype=torch.bool), {}, x)
    torch.testing.assert_close(y, torch.full_like(y, 3.0))


@pytest.mark.parametrize(("tune", "trained"), [("adapter", "head"), ("head", "head"), ("full", "body")])
def test_what_is_tuned_gets_gradients_and_all_else_is_frozen(tune, trained):
    system, batch = make(tune=tune), LandMoE.tiny_batch(2, 0)
    output = system(batch)
    sum(system.loss(output, batch).values()).backward()
    assert min(gradients(system.head)) > 0
    assert (max(gradients(system.body)) > 0) == (trained == "body")
    assert max(gradients(system.decoder)) == 0
    assert len(output.routings) == (2 if tune == "adapter" else 0)
    assert all(not p.requires_grad for p in system.decoder.parameters())


def test_pretraining_moves_the_body_and_adapting_leaves_it():
    scene = torch.randn(4, 20, 23)
    draws = SceneCrops(scene, torch.ones(20, 23) > 0, torch.randint(0, 3, (20, 23)), size=12, batch=2, seed=0)
    system = make()
    states = [{name: value.clone() for name, value in system.state_dict().items()}]
    fit(system, draws, TrainSettings(steps=1, pretrain_steps=4, batch=2, crop=12))
    states.append(system.state_dict())
    moved = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert all(name in moved for name in ("body.blocks.0.mlp.fc1.weight", "decoder.head.weight", "head.linear.weight"))
    body = {name: value.clone() for name, value in system.body.state_dict().items()}
    fit(system, draws, TrainSettings(steps=3, batch=2, crop=12))
    assert all(torch.equal(value, body[name]) for name, value in system.body.state_dict().items())
    assert not system.body.training


def test_pretraining_leaves_adapters_and_head():
    system = make()
    system.set_pretraining(True)
    trained = {name.partition(".")[0] for name, p in system.named_parameters() if p.requires_grad}
    assert trained == {"body", "decoder"}
    assert system.body.training


def test_reconstruction_improves_with_pretraining():
    torch.manual_seed(0)
    system, wave = make(), torch.linspace(0, 12, 24).sin()
    image = (wave[:, None] + wave)[None, None].repeat(2, 4, 1, 1)
    system.set_pretraining(True)
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss = system.pretrain_loss({"image": image})["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_a_named_backbone_takes_the_bodys_place(monkeypatch):
    """Here one with a class token, which has no place in the image; its weights stay as they are."""
    torch.manual_seed(1)
    vit = ViT(4, 16, 2, 2, 3, class_token=True)
    monkeypatch.setattr(land_moe, "frozen_backbone", lambda name, bands: freeze_vit(vit))
    system, batch = make(backbone="timm:any"), LandMoE.tiny_batch(2, 0)
    output = system(batch)
    assert output.prediction.shape == (2, 3, 14, 11)
    sum(system.loss(output, batch).values()).backward()
    assert max(gradients(system.body)) == 0
    assert min(gradients(adapter.table.scorer)[0] for adapter in system.adapters) > 0
    with pytest.raises(ConfigError, match="is trained already"):
        system.pretrain_loss(batch)
    with pytest.raises(ConfigError, match="must not be full"):
        make(backbone="timm:any", tune="full")


def test_the_twin_is_one_table_of_the_active_rank():
    config = LandMoEConfig(bands=4, classes=3)
    assert LandMoE.dense_twin(config).ranks == (15, 15)
    assert LandMoE.dense_twin(config, equal="parameters").ranks == (30, 30)
    assert LandMoE.scaled(config, 6, 3).ranks == (4, 8, 16, 32, 4, 8)


def test_a_window_without_data_is_finite_and_not_routed():
    system, batch = make().eval(), LandMoE.tiny_batch(2, 0)
    batch["valid"][1] = False
    output = system(batch)
    assert output.prediction.isfinite().all()
    assert output.routings["block 0"].valid().tolist() == [True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "top_k must be in 1..4"),
        ({"ranks": ()}, "ranks must be at least 1"),
        ({"tune": "all"}, "tune must be"),
        ({"hidden_share": 1.0}, "hidden_share"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_the_claims_ground_keeps_satellites_out_of_each_others_windows():
    scene, whole = satellites(), ground()
    assert whole.image.max() < 1
    assert np.bincount(whole.labels.ravel())[1:].tolist() == [2495, 4020, 1287, 683, 1265, 479]
    strips = np.flatnonzero((scene.domains == 0).all(0))
    assert (np.diff(strips) == 1).sum() == 3 * (CROP - 1)
    assert scene.domain_names == ("gf-2", "gf-1", "planetscope", "sentinel-2")


def test_a_low_pass_filter_is_told_from_none():
    filter = RadialFilter(4, bands=4, groups=2)
    assert low_pass(None) == low_pass(filter) == 0
    with torch.no_grad():
        filter.logit[:, 2:] = -20.0
    assert low_pass(filter) == pytest.approx(1.0)
