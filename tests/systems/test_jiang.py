"""Jiang et al.: the two stages, what each of them moves, the columns that experts see, the released defects."""

from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from terramoe.errors import ConfigError
from terramoe.experiments.claims import jiang as claim
from terramoe.systems.jiang import GROUPS, GroupExpert, JiangPrecipitation, twin_widths, weight_cosine


def table(rows=160, seed=0):
    return JiangPrecipitation.tiny_table(rows, seed)


class Watched(JiangPrecipitation):
    """Keeps a copy of all parameters before each step."""

    def before_step(self, network, step, random):
        super().before_step(network, step, random)
        if step == 0:
            self.seen_ = []
        self.seen_.append({name: p.detach().clone() for name, p in network.named_parameters()})


@cache
def watched(**settings):
    """A fitted system that nobody changes."""
    system = Watched(**{**JiangPrecipitation.tiny().get_params(), "validation": 0.0, **settings})
    return system.fit(*table())


def moved(before, after):
    """Names of the parameters that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_expert(expert):
    return f"layer.bank.experts.{expert}.", f"layer.scorer.rows.{expert}"


def test_stage_1_moves_the_drawn_experts_and_their_rows_alone():
    """The released loop sets all gradients to zero before the step, so that no parameter ever moves."""
    system = watched()
    first = system._first_steps()
    assert (first, system.period) == (100, 5)
    assert system.chosen_.shape == (20, 2)
    for period, drawn in enumerate(system.chosen_):
        before = system.seen_[5 * period]
        names = moved(before, system.seen_[5 * (period + 1)])
        expected = {name for e in drawn for name in before if name.startswith(of_expert(e))}
        assert names == expected, period


def test_every_expert_that_was_drawn_has_moved_and_no_other():
    system = watched(steps=24, router_share=0.5, period=6)  # two periods: two experts at least are never drawn
    names = moved(system.seen_[0], system.seen_[12])
    drawn = set(system.chosen_.ravel().tolist())
    assert 2 <= len(drawn) <= 4
    for expert in range(6):
        assert any(name.startswith(of_expert(expert)[0]) for name in names) == (expert in drawn)


def test_stage_2_moves_the_router_alone_and_all_of_it():
    system = watched()
    last = dict(system.network_.named_parameters())
    names = moved(system.seen_[system._first_steps()], last)
    assert names == {f"layer.scorer.rows.{e}" for e in range(6)}


def test_the_loss_of_stage_1_predicts_and_asks_the_two_to_differ():
    """The released loss of stage 1 has no prediction in it."""
    system = JiangPrecipitation.tiny().fit(*table())
    network = system._build(3).train()
    network.train_some((1, 4))
    x, target = torch.randn(20, 12), torch.randn(20, 1)
    output = network(x)
    terms = system.loss(output, target, network)
    assert set(terms) == {"task", "dissimilarity"}
    logits = output.routings["router"].logits[:, [1, 4]]
    weights = torch.softmax(logits, dim=1)
    experts = network.layer.bank.experts
    by_hand = weights[:, :1] * experts[1](x) + weights[:, 1:] * experts[4](x)
    assert_allclose(output.prediction.detach(), by_hand.detach(), atol=1e-6)
    assert_allclose(terms["task"].item(), ((by_hand - target) ** 2).mean().item(), rtol=1e-5)
    cosine = weight_cosine(experts[1], experts[4]).item()
    assert_allclose(terms["dissimilarity"].item(), 0.1 * max(cosine, 0), rtol=1e-5)
    grads = torch.autograd.grad(terms["task"], list(experts[1].parameters()))
    assert all(g.abs().sum() > 0 for g in grads[-2:])


def test_cosine_of_weights_counts_unseen_columns_as_zero():
    torch.manual_seed(0)
    a, b = GroupExpert(np.array([0, 1]), (3,), 1), GroupExpert(np.array([1, 2]), (3,), 1)

    def flat(expert):
        first = torch.zeros(3, 4)
        first[:, expert.columns] = expert.layers[0].weight
        return torch.cat([first.flatten(), *[p.flatten() for p in list(expert.parameters())[1:]]])

    expected = torch.nn.functional.cosine_similarity(flat(a), flat(b), dim=0)
    assert_allclose(weight_cosine(a, b).item(), expected.item(), rtol=1e-6)
    assert_allclose(weight_cosine(a, a).item(), 1.0, rtol=1e-6)


def test_the_dissimilarity_loss_drives_like_experts_apart():
    system = JiangPrecipitation.tiny()
    system.n_features_in_ = 12
    torch.manual_seed(0)
    network = system.network(12, 1)
    first, second = network.layer.bank.experts[:2]
    second.load_state_dict({k: v + 0.1 * torch.randn_like(v) for k, v in first.state_dict().items()})
    network.train_some((0, 1))
    optimiser = torch.optim.SGD(network.layer.bank.parameters(), 1.0)
    x, target, cosines = torch.randn(8, 12), torch.randn(8, 1), []
    for _ in range(100):
        cosines.append(weight_cosine(first, second).item())
        optimiser.zero_grad()
        system.loss(network(x), target, network)["dissimilarity"].backward()
        optimiser.step()
    assert cosines[0] > 0.2  # less than 1: they do not see the same columns
    assert cosines[-1] < 0.5 * cosines[0]


@pytest.mark.parametrize("columns", [6, 12, 13, 3, 1])
def test_each_expert_sees_its_group_alone(columns):
    system = JiangPrecipitation.tiny()
    system.n_features_in_ = columns
    network = system.network(columns, 1)
    x = torch.randn(5, columns)
    seen = system._columns_of_experts(columns)
    assert set(np.concatenate(seen).tolist()) == set(range(columns))
    start = network.layer.bank.run_all(x)
    for column in range(columns):
        other = x.clone()
        other[:, column] += 100
        changed = (network.layer.bank.run_all(other) != start).flatten(1).any(1)
        reads = torch.tensor([column in part for part in seen])
        assert not (changed & ~reads).any()
        assert (changed & reads).any()
        logits = network(other).routings["router"].logits != network(x).routings["router"].logits
        assert logits.any()  # the router sees all


def test_given_groups_and_names_of_sixteen_experts():
    system = JiangPrecipitation(groups=(3, 1, 2, 1, 1, 4), hidden=(4,))
    seen = system._columns_of_experts(12)
    assert [part.tolist() for part in seen[:4]] == [[0, 1, 2]] * 3 + [[3]]
    assert seen[-1].tolist() == [8, 9, 10, 11]
    names = system.expert_names("router")
    assert len(set(names)) == 16
    assert names[:4] == ("Momentum 1", "Momentum 2", "Momentum 3", "Temperature 1")
    assert [sum(name.startswith(group) for name in names) for group in GROUPS] == [3, 3, 3, 3, 2, 2]


def test_the_step_that_is_kept_is_one_of_stage_2():
    system = JiangPrecipitation.tiny().set_params(validation=0.3).fit(*table())
    assert system.best_step_ > system._first_steps()
    stage = system.trace_[:, 0] <= system._first_steps()
    assert np.isnan(system.trace_[stage, 2]).all()
    assert np.isfinite(system.trace_[~stage, 2]).all()
    dense = system.routing(table()[0])["router"].dense()
    assert dense.shape == (160, 6)
    assert (dense > 0).all()


def test_all_together_is_an_ordinary_mixture_in_one_stage():
    system = watched(trained=6)
    last = dict(system.network_.named_parameters())
    assert moved(system.seen_[0], last) == set(last)
    assert system.chosen_.shape == (0, 6)


def test_without_a_router_the_experts_count_alike_and_rest_in_stage_2():
    X, _ = table()
    system = watched(gate="uniform")
    assert_allclose(system.routing(X)["router"].dense().numpy(), 1 / 6, rtol=1e-6)
    assert moved(system.seen_[system._first_steps()], dict(system.network_.named_parameters())) == set()
    by_hand = system.network_.layer.bank.run_all(system._rows(X)).mean(0).detach()
    assert_allclose(system.output(X).prediction, by_hand, atol=1e-5)


@pytest.mark.parametrize("columns", [12, 300])
def test_the_dense_twin_has_as_many_parameters(columns):
    routed = JiangPrecipitation(hidden=(16, 8))
    counts = [sum(p.numel() for p in s.network(columns, 1).parameters()) for s in (routed, routed.control("dense"))]
    assert 0.9 * counts[0] < counts[1] <= counts[0]
    assert twin_widths(columns, 1, (16, 8), [columns]) == (16, 8)


def test_a_row_is_scaled_by_training_rows_alone():
    """The released scaling stretches every hour by its own extremes, so that a prediction depends on its neighbours."""
    X, y = table()
    system = JiangPrecipitation.tiny().fit(X, y)
    extreme = np.vstack([X[:3], 1e3 * np.ones((1, 12))])
    assert_allclose(system.predict(extreme)[:3], system.predict(X[:3]), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": 5}, "expert for each"),
        ({"trained": 7}, "trained"),
        ({"trained": 0}, "trained"),
        ({"period": 0}, "period"),
        ({"hidden": ()}, "hidden"),
        ({"router_share": 1.5}, "router_share"),
        ({"dissimilarity": -1.0}, "dissimilarity"),
        ({"groups": (2, 2, 2, 2, 2, 3)}, "groups of"),
        ({"groups": (12,)}, "groups of"),
        ({"groups": (12, 0, 0, 0, 0, 0)}, "groups of"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        JiangPrecipitation.tiny().set_params(**settings).fit(*table(40))


# ---------------------------------------------------------------- the claim's data and measures


@pytest.fixture
def short(monkeypatch):
    """The claim on ten hours of rain."""
    monkeypatch.setattr(claim, "HOURS", 10)
    claim.cells.cache_clear()
    yield
    claim.cells.cache_clear()


def test_the_rain_table_stands_in_the_system_s_order(short):
    table = claim.rain_table(1)
    assert list(table.columns[:4]) == ["time", "x", "y", "u_-1_0"]
    assert table.columns[-1] == "precipitation_next"
    assert table.shape == (8 * 24, 3 + 14 * 2 * 25 + 1)
    assert len(set(table.columns)) == table.shape[1]
    assert sum(claim.SETTINGS["groups"]) == 14 * 2 * 25
    rows = claim.cells(1).rows
    np.testing.assert_array_equal(table["precipitation_0_12"], rows.now)  # the middle of 5 x 5 neighbours


def test_a_gap_of_a_day_lies_between_training_and_test():
    assert claim.TEST_FROM - claim.TRAIN_UNTIL >= 24
    assert claim.TEST_FROM < claim.HOURS - 24


def test_scores_of_wet_hours_by_hand():
    truth, found = np.array([2.0, 2.0, 0.0, 0.5, 1.0]), np.array([1.5, 0.2, 3.0, 0.0, 1.0])
    assert claim.scores(truth, found)["csi"] == 2 / 4
    assert claim.scores(np.zeros(3), np.zeros(3))["csi"] == 0


def test_with_masks_and_equal_weights_all_change_falls_on_the_own_experts():
    X, y = table()
    system = JiangPrecipitation.tiny().set_params(groups=(2,) * 6, gate="uniform").fit(X, y)
    found = claim.interpreted(system, X, y, 0)
    assert_allclose(found["own_share"], 1 - 1 / 6, rtol=1e-6)
    outputs, weights = claim.contributions(system, X)
    assert_allclose(weights, 1 / 6, rtol=1e-6)
    correlation = np.corrcoef(outputs)
    assert_allclose(found["correlation"], (correlation.sum() - 6) / 30, rtol=1e-9)
    blind = JiangPrecipitation.tiny().set_params(groups=(2,) * 6, knowledge=False, steps=30).fit(X, y)
    assert claim.interpreted(blind, X, y, 0)["own_share"] < 0.3
