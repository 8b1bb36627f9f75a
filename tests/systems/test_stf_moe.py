"""STF-MoE: how rows become seasons, what the gate and each kind of expert reads, the best two of five."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from terramoe.errors import ConfigError
from terramoe.experiments.claims import stf_moe as claim
from terramoe.systems.stf_moe import EXPERTS, Ends, STFMoE


def built(columns, **settings):
    torch.manual_seed(0)
    system = STFMoE.tiny().set_params(**settings)
    return system, system.network(columns, 1).eval()


def seen_by(module, name):
    """A list that fills with the first argument of each call of a part."""
    inputs = []
    getattr(module, name).register_forward_pre_hook(lambda part, args: inputs.append(args[0]))
    return inputs


def test_a_row_is_read_step_by_step_with_its_static_values_at_each():
    _, network = built(3 * 4 + 2, features=3, static=2)
    inputs = seen_by(network, "lstm")
    row = torch.arange(14.0)[None]
    network(row)
    season = inputs[0]
    assert season.shape == (1, 4, 5)
    assert_allclose(season[0, 1], [3, 4, 5, 12, 13])
    assert_allclose(season[0, 3], [9, 10, 11, 12, 13])


@pytest.mark.parametrize(("columns", "features", "static"), [(13, 3, 2), (4, 1, 4), (3, 2, 2), (5, 2, 0)])
def test_columns_that_are_no_steps_are_refused(columns, features, static):
    system = STFMoE.tiny().set_params(features=features, static=static)
    with pytest.raises(ConfigError, match=f"{columns} columns"):
        system.fit(np.random.default_rng(0).normal(size=(20, columns)), np.arange(20.0))


def test_the_ends_of_both_branches():
    ends = Ends(2, 3)
    states = torch.randn(4, 6, 8)
    found = ends(states)
    assert ends.channels == 8
    assert found.shape == (4, ends.width) == (4, 10)
    assert_allclose(found[:, :2], states[..., :2].mean(1))
    assert_allclose(found[:, 2:4], states[:, -1, :2])
    assert_allclose(found[:, 4:7], states[:, -1, 2:5])  # forwards, the last step has read all
    assert_allclose(found[:, 7:], states[:, 0, 5:])  # backwards, the first has


def test_each_direction_has_read_the_whole_season_where_the_gate_looks():
    _, network = built(6)
    x = torch.randn(1, 6)
    logits = network(x).routings["experts"].logits
    for step in range(6):
        other = x.clone()
        other[0, step] += 1
        assert not torch.equal(network(other).routings["experts"].logits, logits)


@pytest.mark.parametrize("kind", EXPERTS)
def test_every_kind_of_expert_reads_and_gives_the_same_shapes(kind):
    torch.manual_seed(0)
    ends = Ends(8, 8)
    expert = EXPERTS[kind](ends, 8, 2).eval()
    states = torch.randn(5, 7, ends.channels, requires_grad=True)
    found = expert(states)
    assert found.shape == (5, 8)
    found.sum().backward()
    reads = states.grad[0].abs().sum(1) > 0
    assert reads[0]
    assert reads[-1]
    assert_allclose(expert(states[2:3]).detach(), found[2:3].detach(), atol=1e-5)


def test_the_kinds_differ_in_build():
    """What each kind makes of a season whose inner steps change places: perceptrons see its ends, attention a set."""
    torch.manual_seed(0)
    ends = Ends(0, 8)
    states = torch.randn(3, 6, ends.channels)
    swapped = states[:, [0, 3, 2, 1, 4, 5]]
    same = {}
    for kind, build in EXPERTS.items():
        expert = build(ends, 8, 2).eval()
        same[kind] = torch.allclose(expert(states), expert(swapped), atol=1e-5)
    assert same == {"mlp": True, "residual": True, "convolution": False, "attention": True, "recurrent": False}


def test_the_best_two_share_a_weight_of_one_and_make_the_yield():
    _, network = built(6)
    with torch.no_grad():
        network.layer.scorer.scorer.scorer.linear.weight.mul_(20)
    x = torch.randn(40, 6)
    inputs = seen_by(network, "layer")
    output = network(x)
    routing, states = output.routings["experts"], inputs[0]
    dense = routing.dense().detach()
    assert_allclose(dense.sum(1), 1, rtol=1e-6)
    assert ((dense > 0).sum(1) == 2).all()
    assert set(routing.expert.tolist()) > {int(routing.expert[0])}
    top = torch.topk(routing.logits, 2, dim=1)
    by_hand = torch.zeros_like(dense).scatter(1, top.indices, torch.softmax(top.values, dim=1).detach())
    assert_allclose(dense, by_hand, atol=1e-6)
    mixed = torch.einsum("te,etd->td", dense, network.layer.bank.run_all(states))
    assert_allclose(output.prediction.detach(), network.head(mixed).detach(), atol=1e-5)


def test_noise_in_training_only():
    _, network = built(6)
    x = torch.randn(4, 6)
    assert torch.equal(network(x).routings["experts"].logits, network(x).routings["experts"].logits)
    routing = network.train()(x).routings["experts"]
    assert routing.noise_std is not None
    assert not torch.equal(routing.logits, routing.clean_logits)


def test_loss_is_hubers_and_a_hundredth_of_the_squared_variation():
    system, network = built(6)
    output = network(torch.randn(30, 6))
    target = 3 * torch.randn(30, 1)
    terms = system.loss(output, target, network)
    error = (output.prediction - target).detach().abs()
    assert_allclose(terms["task"].item(), torch.where(error < 1, error**2 / 2, error - 0.5).mean().item(), rtol=1e-5)
    importance = output.routings["experts"].dense().detach().sum(0)
    assert_allclose(
        terms["balance"].item(), 0.01 * (importance.std(correction=0) / importance.mean()).item() ** 2, 1e-4
    )


@pytest.mark.parametrize("branch", ["transformer", "lstm"])
def test_a_branch_alone(branch):
    X, y = STFMoE.tiny_table(60, 0)
    system = STFMoE.tiny().set_params(branches=(branch,), steps=5).fit(X, y)
    kept = {name.split(".")[0] for name, _ in system.network_.named_parameters()}
    assert kept == {branch, "layer", "head"}
    assert np.isfinite(system.predict(X)).all()


def test_one_step_several_targets_and_names_of_like_experts():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(40, 3)), generator.normal(size=(40, 2))
    system = STFMoE.tiny().set_params(features=3, experts=("mlp", "mlp", "attention"), steps=3).fit(X, y)
    assert system.predict(X).shape == (40, 2)
    assert system.expert_names("experts") == ("mlp 1", "mlp 2", "attention")


def test_twins_are_perceptrons_that_are_all_used():
    system = STFMoE()
    dense, wide = system.control("dense"), system.control("wide")
    assert (dense.experts, wide.experts) == (("mlp",) * 2, ("mlp",) * 5)
    sizes = {kind: sum(p.numel() for p in EXPERTS[kind](Ends(64, 64), 64, 4).parameters()) for kind in EXPERTS}
    assert max(sizes.values()) < 2 * min(sizes.values())  # like in size, so that five perceptrons are a fair twin


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": 0}, "features"),
        ({"static": -1}, "static"),
        ({"branches": ()}, "branches"),
        ({"branches": ("gru",)}, "branches"),
        ({"branches": ("lstm", "lstm")}, "branches"),
        ({"experts": ()}, "experts"),
        ({"experts": ("mlp", "tree")}, "experts"),
        ({"top_k": 6}, "top_k"),
        ({"width": 9}, "width"),
        ({"heads": 3}, "width"),
        ({"balance": -1.0}, "balance"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        STFMoE.tiny().set_params(**settings).fit(*STFMoE.tiny_table(30, 0))


# ---------------------------------------------------------------- the claim's data and measures


def test_the_county_table_has_a_row_a_season_and_nothing_missing():
    table = claim.county_table(3)
    assert list(table.columns[:5]) == ["county", "latitude", "longitude", "year", "ndvi_oct"]
    assert list(table.columns[-2:]) == ["height", "yield"]
    assert table.shape == (300 * 18, 4 + 9 * 5 + 2)
    assert not table.isna().to_numpy().any()
    assert sorted(table["year"].unique()) == list(range(2001, 2019))
    assert table.groupby("county")["latitude"].nunique().max() == 1
    X = table.drop(columns=["county", "latitude", "longitude", "year", "yield"]).to_numpy()
    STFMoE.tiny().set_params(features=5, static=1, steps=1).fit(X[:50], table["yield"].to_numpy()[:50])
    seasons = claim.counties(3)
    assert len(np.unique(seasons.regime)) == 4
    np.testing.assert_array_equal(seasons.rows(2)[:, :10], X[:, :10])


def test_months_sum_rain_and_pass_over_clouds():
    seen = np.arange(2 * 3 * 2 * 5, dtype=float).reshape(2, 3, 2, 5)
    seen[0, 1, :, 0] = np.nan  # a month of clouds
    seen[1, 0, :, 0] = np.nan  # the first one
    seen[1, 2, 1, 0] = np.nan
    months = claim.by_month(seen)
    assert_allclose(months[..., 2], seen[..., 2].sum(2))
    assert_allclose(months[..., 1], seen[..., 1].mean(2))
    assert months[0, 1, 0] == months[0, 0, 0]
    assert months[1, 0, 0] == 0
    assert months[1, 2, 0] == seen[1, 2, 0, 0]


def test_information_on_the_regime_is_none_by_chance_and_all_by_knowledge():
    seasons = claim.counties(3)
    test = seasons.year >= 16
    random = np.random.default_rng(0).integers(0, 5, test.sum())
    assert abs(claim.above_chance(random, seasons, test, 0)) < 0.02
    assert claim.above_chance(seasons.regime[test], seasons, test, 0) > 0.95
    assert claim.above_chance(np.zeros(test.sum(), dtype=int), seasons, test, 0) == 0
