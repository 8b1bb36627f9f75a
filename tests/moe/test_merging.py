"""Merged experts (Lory) and stochastic experts (THOR): closed forms, causality, gradients, hostile input."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from terramoe.errors import RoutingError
from terramoe.moe import All, LinearScorer, ModuleBank, MoELayer, RouteInput, Scores, StackedFFN, TopK, ZeroScorer
from terramoe.moe.executors import dense
from terramoe.moe.experts.activations import ACTIVATIONS
from terramoe.moe.merging import SegmentMergedFFN, merge_experts, merged, run_merged
from terramoe.moe.objectives import symmetric_kl
from terramoe.moe.stochastic import RandomExpertScorer, random_expert_layer, two_view_loss


def items(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_bank(experts=3, activation="gelu", **options):
    torch.manual_seed(0)
    return StackedFFN(experts, 4, 5, 3, activation, **options).double()


def make_lory(segment_length=3, selector=None):
    bank = make_bank()
    return SegmentMergedFFN(MoELayer(LinearScorer(4, 3), bank, selector=selector or All()), segment_length).double()


def make_linear(bank):
    """Make ReLU experts linear: a large offset keeps every unit on, and the output offset takes it back."""
    with torch.no_grad():
        bank.b_in_EH.fill_(100.0)
        bank.w_out_EHD.copy_(bank.w_out_EHD[:1].expand_as(bank.w_out_EHD).clone())
        bank.b_out_ED.copy_(-100 * bank.w_out_EHD.sum(1))
    return bank


# Merging


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_one_hot_weights_give_the_single_expert(activation, bias):
    bank, x = make_bank(activation=activation, bias=bias), items(3, 6, 4)
    y = run_merged(bank, x, torch.eye(3, dtype=torch.float64)[[2, 0, 1]])
    for row, expert in enumerate((2, 0, 1)):
        torch.testing.assert_close(y[row], bank.run(expert, x[row]), rtol=1e-12, atol=1e-14)


def test_merged_parameters_are_the_weighted_means():
    bank, weights = make_bank(), items(2, 3).softmax(-1)
    for got, stacked in zip(merge_experts(bank, weights), bank.weights(), strict=True):
        for s in range(2):
            torch.testing.assert_close(got[s], sum(w * p for w, p in zip(weights[s], stacked, strict=True)))


@given(logits=st.lists(st.floats(-5, 5), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_merge_of_linear_experts_is_the_mixture_of_their_outputs(logits):
    bank, x = make_linear(make_bank(activation="relu")), items(1, 6, 4)
    weights = torch.tensor([logits], dtype=torch.float64).softmax(-1)
    mixture = torch.einsum("e,etd->td", weights[0], bank.run_all(x[0]))
    torch.testing.assert_close(run_merged(bank, x, weights)[0], mixture, rtol=1e-9, atol=1e-9)


def test_merge_of_nonlinear_experts_is_not():
    bank, x, weights = make_bank(), items(1, 6, 4), torch.full((1, 3), 1 / 3, dtype=torch.float64)
    mixture = bank.run_all(x[0]).mean(0)
    assert (run_merged(bank, x, weights)[0] - mixture).abs().max() > 1e-3


def test_merge_gradcheck():
    bank, x, logits = make_bank(2), items(2, 3, 4).requires_grad_(), items(2, 2).requires_grad_()

    def run(x, logits, *parameters):
        values = dict(zip(dict(bank.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(_Runner(bank), {f"bank.{k}": v for k, v in values.items()}, (x, logits))

    assert torch.autograd.gradcheck(run, (x, logits, *bank.parameters()))


class _Runner(nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.bank = bank

    def forward(self, x, logits):
        return run_merged(self.bank, x, logits.softmax(-1))


def test_merging_needs_stacked_parameters_and_fitting_weights():
    with pytest.raises(RoutingError, match="ModuleBank are not stacked"):
        merge_experts(ModuleBank([nn.Linear(4, 3)]), torch.ones(1, 1))
    for shape in ((3,), (2, 4), (1, 2, 3)):
        with pytest.raises(RoutingError, match="expected"):
            merge_experts(make_bank(), torch.ones(shape, dtype=torch.float64))
    with pytest.raises(RoutingError, match="channels"):
        run_merged(make_bank(), items(1, 2, 5), torch.ones(1, 3, dtype=torch.float64))


# As an executor


class Shared(nn.Module):
    """Learned logits that all items share."""

    def __init__(self, num_experts):
        super().__init__()
        self.logits = nn.Parameter(items(num_experts))

    def forward(self, inp):
        return Scores(self.logits.expand(inp.x.shape[0], -1))


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 4), (1, 4)])
def test_merged_equals_the_executors_on_linear_experts_with_gradients(shape):
    bank, scorer = make_linear(make_bank(activation="relu")), Shared(3)
    mask = torch.arange(shape[0]) % 3 != 1
    results = []
    for executor in (dense, merged):
        x = items(*shape).requires_grad_()
        y, _ = MoELayer(scorer, bank, selector=All(), executor=executor)(x, mask=mask)
        grads = torch.autograd.grad((y * items(*y.shape, seed=2)).sum(), (x, scorer.logits))
        results.append((y, *grads))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_merged_is_one_feed_forward_with_the_weights_of_the_routing(k):
    bank, x = make_bank(), items(7, 4)
    y, routing = MoELayer(Shared(3), bank, selector=TopK(k), executor=merged)(x)
    torch.testing.assert_close(y, run_merged(bank, x[None], routing.dense()[:1])[0])


def test_merged_leaves_masked_items_at_zero_even_nan_and_all_of_them():
    bank, x = make_bank(), items(5, 4)
    x[2] = torch.nan
    layer = MoELayer(Shared(3), bank, selector=All(), executor=merged)
    mask = torch.arange(5) != 2
    y, _ = layer(x, mask=mask)
    assert (y[2] == 0).all()
    torch.testing.assert_close(y[mask], layer(x[mask])[0])
    assert (layer(x, mask=torch.zeros(5, dtype=torch.bool))[0] == 0).all()


def test_merged_refuses_weights_that_differ():
    layer = MoELayer(LinearScorer(4, 3).double(), make_bank(), selector=All(), executor=merged)
    with pytest.raises(RoutingError, match="different weights"):
        layer(items(5, 4))
    layer(items(1, 4).expand(5, 4))


@pytest.mark.parametrize(("difference", "refused"), [(2**-52, False), (1e-6, True), (math.nan, True)])
def test_merged_takes_weights_that_differ_by_rounding_alone(difference, refused):
    bank, x = make_bank(), items(5, 4)
    routing = MoELayer(Shared(3), bank, selector=All()).route(RouteInput(x))
    nearly = dataclasses.replace(routing, weight=routing.weight * (1 + difference * (routing.item == 4).double()))
    assert not torch.equal(nearly.weight, routing.weight)
    if refused:
        with pytest.raises(RoutingError, match="different weights"):
            merged(x, nearly, bank)
    else:
        torch.testing.assert_close(merged(x, nearly, bank), merged(x, routing, bank), rtol=0, atol=0)


# Lory


@pytest.mark.parametrize("length", [1, 3, 7, 9])
def test_segments_are_merged_by_the_mean_of_the_one_before(length):
    lory, x = make_lory(), items(2, length, 4)
    y, routing = lory(x)
    bank, linear = lory.layer.bank, lory.layer.scorer.linear
    parts = x.split(3, dim=1)
    assert routing.num_items == 2 * len(parts)
    for b in range(2):
        for s, part in enumerate(parts):
            weights = linear(parts[max(s - 1, 0)][b].mean(0)).softmax(-1)
            torch.testing.assert_close(routing.dense()[b * len(parts) + s], weights)
            torch.testing.assert_close(y[b, 3 * s : 3 * s + 3], run_merged(bank, part[b : b + 1], weights[None])[0])


def test_no_item_depends_on_later_segments_nor_on_its_segment_mates():
    lory, x = make_lory(), items(1, 9, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: lory(x)[0][0], x)[:, :, 0].abs().amax((1, 3))  # (9, 9)
    for i in range(9):
        for j in range(9):
            sees = i == j or (i // 3 > 0 and j // 3 == i // 3 - 1)
            assert (jacobian[i, j] > 0) == sees, (i, j)


@given(start=st.integers(3, 9), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_changing_later_items_changes_no_earlier_output(start, seed):
    lory, x = make_lory(), items(2, 10, 4)
    changed = x.clone()
    changed[:, start:] = 10 * items(2, 10 - start, 4, seed=seed)
    torch.testing.assert_close(lory(changed)[0][:, :start], lory(x)[0][:, :start], rtol=1e-12, atol=1e-14)


def test_first_segments_teach_the_router_nothing_and_the_experts_something():
    lory = make_lory()
    y, _ = lory(items(2, 3, 4))
    y.square().sum().backward()
    assert lory.layer.scorer.linear.weight.grad is None or (lory.layer.scorer.linear.weight.grad == 0).all()
    assert (lory.layer.bank.w_in_EDH.grad != 0).any()
    y, _ = lory(items(2, 6, 4))
    y.square().sum().backward()
    assert (lory.layer.scorer.linear.weight.grad != 0).any()


def test_lory_gradcheck_beyond_the_first_segment():
    lory, first, x = make_lory(2), items(1, 2, 4), items(1, 3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: lory(torch.cat([first, x], 1))[0], (x,))


def test_a_prompt_merges_once_for_the_whole_sequence():
    lory, prompt, x = make_lory(), items(2, 5, 4), items(2, 7, 4, seed=3)
    routing = lory.route_whole(prompt)
    y, used = lory(x, routing)
    assert used is routing
    weights = lory.layer.scorer.linear(prompt.mean(1)).softmax(-1)
    torch.testing.assert_close(y, run_merged(lory.layer.bank, x, weights))


def test_lory_replays_its_own_routing():
    lory, x = make_lory(), items(2, 7, 4)
    y, routing = lory(x)
    torch.testing.assert_close(lory(x, routing)[0], y, rtol=0, atol=0)
    with pytest.raises(RoutingError, match="4 rows"):
        lory(x, lory(x[:, :6])[1])


def test_masked_items_count_in_no_mean():
    lory, x = make_lory(), items(2, 7, 4)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 1] = mask[1, 5:] = False
    x[~mask] = torch.nan
    y, routing = lory(x, mask=mask)
    assert (y[~mask] == 0).all()
    assert y.isfinite().all()
    mean = (x[0, 0] + x[0, 2]) / 2
    torch.testing.assert_close(routing.dense()[1], lory.layer.scorer.linear(mean).softmax(-1))


def test_one_expert_is_that_expert_and_top_one_is_the_scaled_expert():
    torch.manual_seed(0)
    bank, x = StackedFFN(1, 4, 5).double(), items(2, 7, 4)
    y, _ = SegmentMergedFFN(MoELayer(ZeroScorer(1), bank, selector=All()), 3)(x)
    torch.testing.assert_close(y, bank.run(0, x))
    lory = make_lory(selector=TopK(1))
    y, routing = lory(x)
    assert (routing.dense() > 0).sum(-1).tolist() == [1] * 6
    torch.testing.assert_close(y, run_merged(lory.layer.bank, *_segments(x, routing)).reshape(2, 9, 3)[:, :7])


def _segments(x, routing):
    return nn.functional.pad(x, (0, 0, 0, 2)).reshape(6, 3, 4), routing.dense()


def test_lory_checkpointing_changes_neither_routing_nor_gradients():
    lory, x = make_lory(), items(2, 7, 4).requires_grad_()
    y, routing = lory(x)
    want = torch.autograd.grad(y.square().sum(), (x, *lory.parameters()))
    y, again = checkpoint(lory, x, use_reentrant=False)
    assert torch.equal(routing.dense(), again.dense())
    for got, grad in zip(torch.autograd.grad(y.square().sum(), (x, *lory.parameters())), want, strict=True):
        assert torch.equal(got, grad)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.zeros(3, 4), None, "expected"),
        (torch.zeros(2, 0, 4), None, "at least one item"),
        (torch.zeros(2, 3, 5), None, "channels"),
        (torch.zeros(2, 3, 4), torch.ones(3, 2, dtype=torch.bool), "mask"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3), "mask"),
        (torch.full((2, 3, 4), torch.nan), None, "NaN"),
    ],
)
def test_lory_refuses_what_it_cannot_route(x, mask, message):
    with pytest.raises(RoutingError, match=message):
        make_lory()(x.double(), mask=mask)


def test_lory_refuses_empty_segments():
    with pytest.raises(RoutingError, match="segments of 0"):
        make_lory(0)


# THOR


@pytest.mark.parametrize(("level", "distinct"), [("batch", 1), ("group", 4), ("item", 200)])
def test_draws_are_shared_at_the_level_asked_for(level, distinct):
    torch.manual_seed(0)
    scorer, group = RandomExpertScorer(1000, level, level), torch.arange(4).repeat(50)
    for training in (True, False):
        expert = scorer.train(training)(RouteInput(items(200, 4), group=group)).logits.argmax(-1)
        pairs = {(int(g), int(e)) for g, e in zip(group, expert, strict=True)}
        assert len(pairs) <= (distinct if level != "batch" else 4)
        assert len(set(expert.tolist())) >= 0.8 * distinct


def test_training_draws_differ_and_evaluation_repeats():
    layer, x = random_expert_layer(make_bank(3)), items(50, 4)
    torch.manual_seed(0)
    drawn = {int(layer(x)[1].expert[0]) for _ in range(40)}
    assert drawn == {0, 1, 2}
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(x)[1].expert, layer(x)[1].expert)
    assert torch.equal(torch.get_rng_state(), state)
    other = random_expert_layer(make_bank(3), seed=1).eval()
    assert not torch.equal(layer(x)[1].expert, other(x)[1].expert)


def test_expected_load_is_uniform():
    torch.manual_seed(0)
    layer, n = random_expert_layer(make_bank(4), "item"), 20_000
    load = layer.route(RouteInput(items(n, 4))).load().double()
    chi_squared = ((load - n / 4) ** 2 / (n / 4)).sum()
    assert chi_squared < 16.27  # 0.1 % point for 3 degrees of freedom


def test_the_drawn_expert_runs_alone_with_weight_one():
    torch.manual_seed(0)
    layer, x = random_expert_layer(make_bank(3)), items(6, 4)
    y, routing = layer(x)
    chosen = int(routing.expert[0])
    torch.testing.assert_close(y, layer.bank.run(chosen, x))
    y.square().sum().backward()
    grad = layer.bank.w_in_EDH.grad.abs().amax((1, 2))
    assert grad[chosen] > 0
    assert (grad[torch.arange(3) != chosen] == 0).all()
    assert float(routing.entropy()) == 0


def test_symmetric_kl_closed_form():
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.2, 0.8], dtype=torch.float64)
    kl = 0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8)
    reverse = 0.2 * math.log(0.2 / 0.5) + 0.8 * math.log(0.8 / 0.5)
    got = symmetric_kl(p.log() + 3, q.log() - 7)  # logits, so a constant does not count
    torch.testing.assert_close(float(got), (kl + reverse) / 2, rtol=1e-12, atol=0)
    maps = torch.stack([p, p], -1).log()[None], torch.stack([q, p], -1).log()[None]  # (1, C, 2 pixels)
    torch.testing.assert_close(float(symmetric_kl(*maps, class_dim=1)), (kl + reverse) / 4, rtol=1e-12, atol=0)
    mask = torch.tensor([[True, False]])
    torch.testing.assert_close(float(symmetric_kl(*maps, 1, mask)), (kl + reverse) / 2, rtol=1e-12, atol=0)
    assert float(symmetric_kl(*maps, 1, torch.zeros_like(mask))) == 0


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 50))
@settings(max_examples=40, deadline=None)
def test_symmetric_kl_is_symmetric_and_not_negative(seed, scale):
    first, second = scale * items(5, 4, seed=seed), scale * items(5, 4, seed=seed + 1)
    forth, back = symmetric_kl(first, second), symmetric_kl(second, first)
    assert forth >= 0
    torch.testing.assert_close(forth, back, rtol=1e-12, atol=0)
    assert float(symmetric_kl(first, first)) == 0
    kl = nn.functional.kl_div
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    both = kl(q, p, log_target=True, reduction="batchmean") + kl(p, q, log_target=True, reduction="batchmean")
    torch.testing.assert_close(forth, both / 2, rtol=1e-7, atol=1e-12)


def test_symmetric_kl_gradcheck_and_shapes():
    assert torch.autograd.gradcheck(symmetric_kl, (items(3, 4).requires_grad_(), items(3, 4, seed=2).requires_grad_()))
    with pytest.raises(RoutingError, match="same rows"):
        symmetric_kl(items(3, 4), items(3, 5))


def test_two_views_add_up_and_agree_when_there_is_one_expert():
    x, labels = items(6, 4), torch.arange(6) % 3

    def loss_fn(logits, batch):
        return nn.functional.cross_entropy(logits, batch[1])

    for experts in (1, 3):
        torch.manual_seed(0)
        layer = random_expert_layer(make_bank(experts), "item")
        views = two_view_loss(lambda batch, layer=layer: layer(batch[0])[0], (x, labels), loss_fn, 0.5)
        each = [loss_fn(view, (x, labels)) for view in (views.first, views.second)]
        torch.testing.assert_close(views.task, sum(each))
        torch.testing.assert_close(views.loss, views.task + 0.5 * symmetric_kl(views.first, views.second))
        assert (float(views.consistency.detach()) == 0) == (experts == 1)
        views.loss.backward()
        assert (layer.bank.w_in_EDH.grad != 0).any()


def test_thor_under_checkpointing_draws_the_same_expert_again():
    layer, x = random_expert_layer(make_bank(3), "item"), items(20, 4).requires_grad_()
    torch.manual_seed(5)
    want = torch.autograd.grad(layer(x)[0].square().sum(), (x, *layer.parameters()))
    torch.manual_seed(5)
    y, _ = checkpoint(layer, x, use_reentrant=False)
    torch.rand(3)  # what others draw in between does not matter
    for got, grad in zip(torch.autograd.grad(y.square().sum(), (x, *layer.parameters())), want, strict=True):
        assert torch.equal(got, grad)


def test_thor_refuses_unknown_levels_and_missing_groups():
    with pytest.raises(RoutingError, match="draws by 'sentence'"):
        RandomExpertScorer(3, "sentence")
    with pytest.raises(RoutingError, match="no groups"):
        random_expert_layer(make_bank(), "group")(items(3, 4))
