"""Controllers: fixed points, no gradient, monotone schedules, record and replay, state, hostile input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramoe.errors import RoutingError
from terramoe.moe import (
    All,
    FixedCapacity,
    LinearScorer,
    ModuleBank,
    MoELayer,
    RouteInput,
    Scores,
    TopK,
    links,
    weighing,
)
from terramoe.moe.controllers import (
    BiasedSelector,
    CapacitySchedule,
    DroppingSelector,
    DualAscent,
    ExpertDropout,
    KSchedule,
    LossFreeBias,
    LossWeightSchedule,
    PairCounter,
    Ramp,
    RecordReplay,
    ReplaySelector,
    TemperatureSchedule,
    TemperedLink,
)

DIM, EXPERTS = 6, 4


class ByLogits(TopK):
    """A selector that insists on logits."""

    needs = "logits"


def make_layer(selector, *, seed=0, skew=0.0, **parts):
    """A layer whose router prefers the lower experts by ``skew``."""
    torch.manual_seed(seed)
    scorer = LinearScorer(DIM, EXPERTS, bias=True)
    with torch.no_grad():
        scorer.linear.bias.copy_(-skew * torch.arange(EXPERTS))
    bank = ModuleBank(torch.nn.Linear(DIM, DIM) for _ in range(EXPERTS))
    return MoELayer(scorer, bank, selector=selector, **parts)


def items(number=64, seed=1):
    return torch.randn(number, DIM, generator=torch.Generator().manual_seed(seed))


class FixedLogits(torch.nn.Module):
    """Gives the same logits at every call."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, inp):
        return Scores(self.logits)


def choosing(*experts):
    """The record of one item for each of these experts, which it chose."""
    bank = ModuleBank(torch.nn.Identity() for _ in range(EXPERTS))
    layer = MoELayer(FixedLogits(torch.eye(EXPERTS)[list(experts)]), bank, selector=TopK(1))
    return layer.route(RouteInput(torch.zeros(len(experts), DIM)))


def worst_excess(routing):
    """(largest load - mean load) / mean load."""
    load = routing.demand().double()
    return float((load.max() - load.mean()) / load.mean())


# ---- bias on the choice


@pytest.mark.parametrize(("on", "link", "rate"), [("probs", links.sigmoid, 1e-3), ("logits", links.softmax, 5e-3)])
def test_loss_free_bias_balances_a_skewed_router(on, link, rate):
    layer = make_layer(BiasedSelector(TopK(1), EXPERTS, on), skew=1.0, link=link)
    x = items(400)
    start = worst_excess(layer.route(RouteInput(x)))
    controller = LossFreeBias(layer.selector, rate)
    for step in range(1000):
        controller.after_step(step, [layer.route(RouteInput(x))])
    assert start > 1.0
    assert worst_excess(layer.route(RouteInput(x))) < 0.1
    assert layer.selector.bias.mean().abs() < 1e-5


def test_loss_free_bias_moves_by_the_sign_and_rests_at_balance():
    selector = BiasedSelector(TopK(1), EXPERTS)
    controller = LossFreeBias(selector, rate=0.1)
    controller.after_step(0, [choosing(0, 0, 0, 1, 2, 2, 3, 3)])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.1, 0.1, 0.0, 0.0]))
    controller.after_step(1, [choosing(0, 1, 2, 2), choosing(0, 1, 3, 3)])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.1, 0.1, 0.0, 0.0]))
    controller.after_step(2, [])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.1, 0.1, 0.0, 0.0]))


def test_the_step_is_centred_when_most_experts_are_below_the_mean():
    selector = BiasedSelector(TopK(1), EXPERTS)
    LossFreeBias(selector, rate=0.1).after_step(0, [choosing(0, 0, 0)])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.15, 0.05, 0.05, 0.05]))


def test_micro_batches_count_as_one_step_and_processes_are_summed():
    layer = make_layer(TopK(2), skew=1.0)
    parts = [layer.route(RouteInput(items(16, seed))) for seed in (1, 2, 3)]
    whole = layer.route(RouteInput(torch.cat([items(16, seed) for seed in (1, 2, 3)])))
    one, several = BiasedSelector(TopK(2), EXPERTS), BiasedSelector(TopK(2), EXPERTS)
    LossFreeBias(one, 0.1).after_step(0, [whole])
    LossFreeBias(several, 0.1).after_step(0, parts)
    assert torch.equal(one.bias, several.bias)
    other_process = whole.demand().flip(0)
    both = BiasedSelector(TopK(2), EXPERTS)
    LossFreeBias(both, 0.1, reduce=lambda load: load + other_process).after_step(0, [whole])
    load = (whole.demand() + other_process).double()
    assert torch.equal(both.bias.sign(), (load.mean() - load).sign().float())


@pytest.mark.parametrize("on", ["probs", "logits"])
def test_a_constant_shift_changes_nothing(on):
    layer, x = make_layer(BiasedSelector(TopK(2), EXPERTS, on)), items()
    layer.selector.bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
    before = layer.route(RouteInput(x))
    layer.selector.bias += 0.5
    after = layer.route(RouteInput(x))
    assert torch.equal(before.expert, after.expert)
    assert torch.equal(before.weight, after.weight)


def test_the_bias_moves_the_choice_and_never_the_weight():
    layer, x = make_layer(BiasedSelector(TopK(1), EXPERTS)), items()
    layer.selector.bias[3] = 2.0
    routing = layer.route(RouteInput(x))
    assert (routing.expert == 3).all()
    torch.testing.assert_close(routing.weight, routing.probs[:, 3])


def test_without_a_bias_the_choice_is_the_inner_one():
    for on in ("probs", "logits"):
        plain, biased = make_layer(TopK(2)), make_layer(BiasedSelector(TopK(2), EXPERTS, on))
        assert torch.equal(plain.route(RouteInput(items())).expert, biased.route(RouteInput(items())).expert)


def test_the_bias_is_state_and_not_a_parameter():
    layer = make_layer(BiasedSelector(TopK(2), EXPERTS), skew=1.0)
    y, routing = layer(items())
    (y.square().sum() + routing.probs.square().sum()).backward()
    assert not layer.selector.bias.requires_grad
    assert "selector.bias" in layer.state_dict()
    assert not any("selector" in name for name, _ in layer.named_parameters())
    LossFreeBias(layer.selector).after_step(0, [routing])
    assert not layer.selector.bias.requires_grad
    twin = make_layer(BiasedSelector(TopK(2), EXPERTS))
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.selector.bias, layer.selector.bias)
    assert layer.selector.bias.abs().max() > 0


def test_dual_ascent_meets_its_target_without_damping():
    layer = make_layer(BiasedSelector(TopK(1), EXPERTS, "logits"), skew=1.0)
    target, x = torch.tensor([0.1, 0.2, 0.3, 0.4]), items(500)
    controller = DualAscent(layer.selector, rate=0.2, damping=0, target=10 * target)  # scaled to sum 1
    for step in range(600):
        controller.after_step(step, [layer.route(RouteInput(x))])
    share = layer.route(RouteInput(x)).demand() / 500
    torch.testing.assert_close(share, target, atol=0.01, rtol=0)
    assert layer.selector.bias.mean().abs() < 1e-4  # errors sum to 0, so the multipliers do


def test_dual_ascent_is_proportional_damped_and_at_rest_on_target():
    selector = BiasedSelector(TopK(1), EXPERTS, "logits")
    skewed, even = choosing(0, 0, 1, 2), choosing(0, 1, 2, 3)  # shares 1/2, 1/4, 1/4, 0
    DualAscent(selector, rate=0.4, damping=0.5).after_step(0, [skewed])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.1, 0.0, 0.0, 0.1]))
    DualAscent(selector, rate=0.4, damping=0.5).after_step(1, [skewed])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.15, 0.0, 0.0, 0.15]))
    DualAscent(selector, rate=0.4, damping=0).after_step(2, [even])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.15, 0.0, 0.0, 0.15]))
    DualAscent(selector, rate=0.4, damping=0.5).after_step(3, [even])
    torch.testing.assert_close(selector.bias, torch.tensor([-0.075, 0.0, 0.0, 0.075]))
    DualAscent(selector, rate=0.4, damping=0.5).after_step(4, [])  # no choice, no news
    torch.testing.assert_close(selector.bias, torch.tensor([-0.075, 0.0, 0.0, 0.075]))


def test_biases_refuse_what_does_not_fit():
    with pytest.raises(RoutingError, match=r"bias on 'weights'"):
        BiasedSelector(TopK(1), EXPERTS, "weights")
    with pytest.raises(RoutingError, match=r"ByLogits needs logits .*Fix: set on='logits'"):
        BiasedSelector(ByLogits(1), EXPERTS, "probs")
    assert BiasedSelector(ByLogits(1), EXPERTS, "logits").needs == "logits"
    with pytest.raises(RoutingError, match="for 3 experts, the choice has 4"):
        make_layer(BiasedSelector(TopK(1), 3)).route(RouteInput(items()))
    for rate in (0, -1.0, math.nan, math.inf):
        with pytest.raises(RoutingError, match="rate"):
            LossFreeBias(BiasedSelector(TopK(1), EXPERTS), rate)
    with pytest.raises(RoutingError, match="on='logits'"):
        DualAscent(BiasedSelector(TopK(1), EXPERTS))
    on_logits = BiasedSelector(TopK(1), EXPERTS, "logits")
    for target in (torch.ones(3), torch.tensor([1.0, -1, 1, 1]), torch.zeros(4), torch.full((4,), math.nan)):
        with pytest.raises(RoutingError, match="shares of at least 0"):
            DualAscent(on_logits, target=target)
    with pytest.raises(RoutingError, match="0 <= damping < 1"):
        DualAscent(on_logits, damping=1)
    with pytest.raises(RoutingError, match="4 experts for a bias of 3"):
        LossFreeBias(BiasedSelector(TopK(1), 3)).after_step(0, [make_layer(TopK(1)).route(RouteInput(items()))])


# ---- expert dropout


@given(
    clusters=st.lists(st.integers(-2, 3), min_size=1, max_size=12),
    rate=st.floats(0, 0.999),
    seed=st.integers(0, 99),
    step=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_a_share_of_each_cluster_is_dropped_and_never_all(clusters, rate, seed, step):
    selector = DroppingSelector(TopK(1), len(clusters), clusters, rate)
    ExpertDropout(selector, seed).after_step(step, ())
    for cluster in set(clusters):
        members = torch.tensor(clusters) == cluster
        assert int(selector.dropped[members].sum()) == int(rate * int(members.sum())) < int(members.sum())


def test_dropped_experts_get_nothing_in_training_and_everything_else_is_kept():
    layer, x = make_layer(DroppingSelector(TopK(2), EXPERTS, [0, 0, 1, 1]), skew=0.5), items()
    plain = make_layer(TopK(2), skew=0.5).route(RouteInput(x))
    ExpertDropout(layer.selector)
    routing, dropped = layer.route(RouteInput(x)), layer.selector.dropped
    assert dropped.sum() == 2
    assert (routing.demand()[dropped] == 0).all()
    assert (routing.demand()[~dropped] == 64).all()  # two survivors, two choices
    torch.testing.assert_close(routing.probs, plain.probs)
    layer.eval()
    assert torch.equal(layer.route(RouteInput(x)).expert, plain.expert)
    assert layer.route(RouteInput(x)).fixed_k == 2


def test_an_item_may_get_fewer_experts_but_each_at_most_once():
    layer = make_layer(DroppingSelector(TopK(3), EXPERTS, rate=0.5))
    ExpertDropout(layer.selector, seed=3)
    y, routing = layer(items(5))
    assert routing.item.numel() == 10  # two survivors for k = 3
    assert routing.fixed_k is None
    assert len(set(zip(routing.item.tolist(), routing.expert.tolist(), strict=True))) == 10
    assert set(routing.rank.tolist()) == {0, 1}
    y.sum().backward()


@pytest.mark.parametrize("needs_probs", [False, True])
def test_dropping_works_on_probabilities_too(needs_probs):
    inner = BiasedSelector(TopK(1), EXPERTS, "probs") if needs_probs else TopK(1)
    layer = make_layer(DroppingSelector(inner, EXPERTS, rate=0.75))
    ExpertDropout(layer.selector)
    left = int((~layer.selector.dropped).nonzero())
    assert layer.route(RouteInput(items())).demand()[left] == 64


def test_dropout_depends_on_seed_and_step_alone_and_reaches_every_expert():
    first, second = (DroppingSelector(TopK(1), 8, rate=0.5) for _ in range(2))
    run, resumed = ExpertDropout(first, seed=5), ExpertDropout(second, seed=5)
    seen = torch.zeros(8, dtype=torch.int64)
    for step in range(50):
        torch.rand(step)  # the global generator has no part in it
        run.after_step(step, ())
        seen += first.dropped
    resumed.after_step(49, ())
    assert torch.equal(first.dropped, second.dropped)
    assert (seen > 10).all()
    assert (seen < 40).all()
    third = DroppingSelector(TopK(1), 8, rate=0.5)
    third.load_state_dict(first.state_dict())
    assert torch.equal(third.dropped, first.dropped)


def test_dropping_refuses_what_does_not_fit():
    for rate in (1.0, -0.1, math.nan):
        with pytest.raises(RoutingError, match="0 <= rate < 1"):
            DroppingSelector(TopK(1), EXPERTS, rate=rate)
    for clusters in ([0, 1], [0.5, 0.5, 0.5, 0.5]):
        with pytest.raises(RoutingError, match="one integer for each of the 4 experts"):
            DroppingSelector(TopK(1), EXPERTS, clusters)
    with pytest.raises(RoutingError, match="for 3 experts, the choice has 4"):
        make_layer(DroppingSelector(TopK(1), 3)).route(RouteInput(items()))


# ---- schedules


@given(
    start=st.floats(-100, 100),
    end=st.floats(-100, 100),
    steps=st.integers(1, 40),
    shape=st.sampled_from(["linear", "cosine", "step"]),
)
@settings(max_examples=80, deadline=None)
def test_ramps_are_monotone_exact_at_their_ends_and_then_stay(start, end, steps, shape):
    ramp = Ramp(start, end, steps, shape)
    values = [ramp(step) for step in range(steps + 3)]
    assert values[0] == start
    assert values[steps:] == [end] * 3
    slack = 1e-12 * (abs(start) + abs(end))
    rising = 1 if end >= start else -1
    assert all(rising * (b - a) >= -slack for a, b in itertools.pairwise(values))
    assert all(min(start, end) - slack <= v <= max(start, end) + slack for v in values)


def test_ramp_shapes_by_hand():
    assert [Ramp(0, 8, 4)(t) for t in range(6)] == [0, 2, 4, 6, 8, 8]
    assert [Ramp(0, 8, 4, "step")(t) for t in range(6)] == [0, 0, 0, 0, 8, 8]
    cosine = Ramp(0, 8, 4, "cosine")
    assert cosine(2) == pytest.approx(4)
    assert cosine(1) == pytest.approx(8 * (1 - math.sqrt(0.5)) / 2)
    assert Ramp(0, 8, 4)(-3) == 0


@pytest.mark.parametrize("shape", ["linear", "cosine", "step"])
@pytest.mark.parametrize(("start", "end"), [(1, 4), (4, 1), (2, 2)])
def test_k_goes_monotonically_from_one_end_to_the_other(shape, start, end):
    layer = make_layer(TopK(2))
    schedule, seen = KSchedule(layer, Ramp(start, end, 9, shape)), []
    for step in range(12):
        seen.append(layer.route(RouteInput(items())).num_choices)
        schedule.after_step(step, ())
    assert seen[0] == start
    assert seen[9:] == [end] * 3
    assert seen == sorted(seen, reverse=end < start)


def test_linear_k_rounds_as_published():
    """k_t = round((k_max - k_min) t / T) + k_min."""
    layer = make_layer(TopK(1))
    schedule, seen = KSchedule(layer, Ramp(1, 4, 10)), []
    for step in range(11):
        seen.append(layer.selector.k)
        schedule.after_step(step, ())
    assert seen == [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]


def test_k_is_set_on_the_innermost_selector_and_the_wrappers_stay():
    biased = BiasedSelector(DroppingSelector(TopK(1), EXPERTS, rate=0), EXPERTS, "logits")
    layer = make_layer(biased)
    schedule = KSchedule(layer, Ramp(1, 3, 2))
    schedule.after_step(1, ())
    assert layer.selector is biased
    assert layer.route(RouteInput(items())).num_choices == 3


def test_a_resumed_schedule_goes_on_where_it_was():
    layer, resumed = make_layer(TopK(1)), make_layer(TopK(1))
    schedule = KSchedule(layer, Ramp(1, 4, 10))
    for step in range(6):
        schedule.after_step(step, ())
    KSchedule(resumed, Ramp(1, 4, 10)).after_step(5, ())
    assert resumed.selector == layer.selector


def test_temperature_flattens_sharpens_and_is_state():
    link, logits = TemperedLink(), torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(link(logits), logits.softmax(-1))
    schedule = TemperatureSchedule(link, Ramp(4.0, 0.5, 2))
    torch.testing.assert_close(link(logits), (logits / 4).softmax(-1))
    schedule.after_step(0, ())
    assert float(link.temperature) == pytest.approx(2.25)
    schedule.after_step(1, ())
    torch.testing.assert_close(link(logits), (logits / 0.5).softmax(-1))
    layer = make_layer(TopK(1), link=link)
    assert float(layer.state_dict()["link.temperature"]) == 0.5
    assert not link.temperature.requires_grad
    layer.route(RouteInput(items())).weight.sum().backward()
    assert layer.scorer.linear.weight.grad.abs().max() > 0


def test_capacity_follows_and_keeps_its_other_settings():
    layer = make_layer(TopK(1), skew=2.0, capacity=FixedCapacity(9.0, minimum=2, order="priority"))
    schedule = CapacitySchedule(layer, Ramp(4.0, 1.0, 4))
    dropped = []
    for step in range(5):
        dropped.append(float(layer.route(RouteInput(items())).dropped()))
        schedule.after_step(step, ())
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0.2
    assert layer.capacity == FixedCapacity(1.0, minimum=2, order="priority")


def test_a_loss_weight_follows_and_leaves_the_others():
    weights = {"switch_balance": 7.0, "router_z": 1e-3}
    schedule = LossWeightSchedule(weights, "switch_balance", Ramp(0.1, 0.0, 2))
    assert weights["switch_balance"] == 0.1
    schedule.after_step(1, ())
    assert weights == {"switch_balance": 0.0, "router_z": 1e-3}


def test_schedules_refuse_what_does_not_fit():
    for bad in [(0, 1, 0), (math.nan, 1, 5), (0, math.inf, 5)]:
        with pytest.raises(RoutingError, match="finite values"):
            Ramp(*bad)
    with pytest.raises(RoutingError, match="shape 'cubic'"):
        Ramp(0, 1, 5, "cubic")
    for ramp in (Ramp(0, 4, 5), Ramp(1, 5, 5), Ramp(1.5, 3, 5)):
        with pytest.raises(RoutingError, match=r"whole numbers in 1\.\.4"):
            KSchedule(make_layer(TopK(1)), ramp)
    with pytest.raises(RoutingError, match="All has no k"):
        KSchedule(make_layer(All()), Ramp(1, 2, 5))
    with pytest.raises(RoutingError, match="temperatures above 0"):
        TemperatureSchedule(TemperedLink(), Ramp(1, 0, 5))
    for temperature in (0, -1, math.nan, math.inf):
        with pytest.raises(RoutingError, match="temperature"):
            TemperedLink(temperature)
    with pytest.raises(RoutingError, match="give the layer a FixedCapacity"):
        CapacitySchedule(make_layer(TopK(1)), Ramp(1, 2, 5))
    with pytest.raises(RoutingError, match="factors above 0"):
        CapacitySchedule(make_layer(TopK(1), capacity=FixedCapacity()), Ramp(1, 0, 5))
    with pytest.raises(RoutingError, match="no objective 'z'"):
        LossWeightSchedule({"router_z": 1.0}, "z", Ramp(0, 1, 5))


# ---- record and replay


def replaying_layers(**parts):
    layers = {name: make_layer(ReplaySelector(TopK(2)), seed=s, **parts) for s, name in enumerate("ab")}
    return layers, RecordReplay({name: layer.selector for name, layer in layers.items()})


def test_replay_repeats_the_choice_with_the_weights_of_the_new_logits():
    layers, recorder = replaying_layers(weigh=weighing.softmax_selected)
    x = items()
    old = {name: layer.route(RouteInput(x)) for name, layer in layers.items()}
    recorder.record(old)
    with torch.no_grad():
        for layer in layers.values():
            layer.scorer.linear.weight.neg_()  # the new router would choose quite differently
    with recorder.replaying():
        for name, layer in layers.items():
            new = layer.route(RouteInput(x))
            assert torch.equal(new.item, old[name].item)
            assert torch.equal(new.expert, old[name].expert)
            chosen = new.logits.gather(1, new.expert.view(2, -1).T).softmax(-1)
            torch.testing.assert_close(new.weight, chosen.T.reshape(-1))
            layer(x)[0].square().sum().backward()
            assert layer.scorer.linear.weight.grad.abs().max() > 1e-6
    for name, layer in layers.items():
        assert not torch.equal(layer.route(RouteInput(x)).expert, old[name].expert)


def test_replaying_a_record_of_the_same_router_is_the_identity():
    layers, recorder = replaying_layers(capacity=FixedCapacity(1.0))
    mask = torch.arange(64) % 3 > 0
    old = {name: layer.route(RouteInput(items(), mask=mask)) for name, layer in layers.items()}
    recorder.record(old)
    with recorder.replaying():
        new = {name: layer.route(RouteInput(items(), mask=mask)) for name, layer in layers.items()}
        recorder.record(new)
    for name in layers:
        for field in ("item", "expert", "rank", "weight", "kept", "slot"):
            assert torch.equal(getattr(new[name], field), getattr(old[name], field))
    assert old["a"].fixed_k == new["a"].fixed_k


def test_a_bias_is_inert_while_a_record_is_replayed():
    biased = BiasedSelector(TopK(1), EXPERTS, "logits")
    layer = make_layer(ReplaySelector(biased))
    recorder, x = RecordReplay({"layer": layer.selector}), items()
    first = layer.route(RouteInput(x))
    recorder.record({"layer": first})
    biased.bias[3] = 100.0
    with recorder.replaying():
        assert torch.equal(layer.route(RouteInput(x)).demand(), first.demand())
    assert layer.route(RouteInput(x)).demand()[3] == 64


def test_replay_ends_on_errors_and_records_hold_for_one_step():
    layers, recorder = replaying_layers()
    recorder.record({name: layer.route(RouteInput(items())) for name, layer in layers.items()})
    with pytest.raises(RoutingError, match="record is for 64 items"), recorder.replaying():
        layers["a"].route(RouteInput(items(5)))
    assert layers["a"].route(RouteInput(items(5))).num_items == 5
    with pytest.raises(RoutingError, match="masked now"), recorder.replaying():
        layers["a"].route(RouteInput(items(), mask=torch.arange(64) > 0))
    recorder.after_step(0, ())
    with pytest.raises(RoutingError, match=r"no record for \['a', 'b'\]"), recorder.replaying():
        pass
    with pytest.raises(RoutingError, match=r"no replaying selector named \['c'\]"):
        recorder.record({"c": layers["a"].route(RouteInput(items()))})


# ---- pairs of experts


def test_pairs_are_counted_symmetrically_without_the_diagonal():
    layer, counter = make_layer(TopK(3)), PairCounter(EXPERTS)
    routings = [layer.route(RouteInput(items(20, seed))) for seed in (1, 2)]
    counter.after_step(0, routings)
    expected = torch.zeros(EXPERTS, EXPERTS, dtype=torch.int64)
    for routing in routings:
        for row in routing.expert.view(3, -1).T.tolist():
            for i in row:
                for j in row:
                    expected[i, j] += i != j
    assert torch.equal(counter.counts, expected)
    assert counter.counts.sum() == 2 * 20 * 6
    again = PairCounter(EXPERTS)
    again.load_state_dict(counter.state_dict())
    assert torch.equal(again.counts, counter.counts)


def test_due_pairs_come_most_frequent_first_and_reset_one_by_one():
    counter = PairCounter(4)
    counter.counts[0, 1] = counter.counts[1, 0] = 5
    counter.counts[2, 3] = counter.counts[3, 2] = 9
    counter.counts[0, 3] = counter.counts[3, 0] = 5
    assert counter.due(5) == [(2, 3), (0, 1), (0, 3)]
    assert counter.due(6) == [(2, 3)]
    counter.reset((3, 2))
    assert counter.due(5) == [(0, 1), (0, 3)]
    assert torch.equal(counter.counts, counter.counts.T)
    with pytest.raises(RoutingError, match="use at least 1"):
        counter.due(0)
    with pytest.raises(RoutingError, match="4 experts for a counter of 3"):
        PairCounter(3).after_step(0, [make_layer(TopK(2)).route(RouteInput(items()))])


def test_top_one_has_no_pairs():
    counter = PairCounter(EXPERTS)
    counter.after_step(0, [make_layer(TopK(1)).route(RouteInput(items()))])
    assert counter.counts.sum() == 0
