"""Cross-attention, fusion operators as experts, missing sensors."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from terramoe.errors import ConfigError, DataError, RoutingError
from terramoe.moe import EXECUTORS, All, FixedCapacity, LinearScorer, MoELayer, NoisyScorer, RouteInput, TopK
from terramoe.nets.cross_attention import BidirectionalCrossAttention, ClassAttention, CrossAttention
from terramoe.nets.fusion_operators import FUSIONS, PairScorer, fusion_bank, pool_pair
from terramoe.nets.missing import MissingEmbedding, modality_dropout, presence_code, presence_pattern


def randomised(module, seed=0):
    """The module in float64 with random parameters."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# cross-attention


def test_cross_attention_is_the_textbook_sum():
    part, x, context = randomised(CrossAttention(6, 2)), normal(2, 3, 6), normal(2, 5, 6, seed=2)
    query = part.query(part.query_norm(x))
    key, value = part.key_value(part.context_norm(context)).chunk(2, -1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        weights = (query[..., head] @ key[..., head].mT / math.sqrt(3)).softmax(-1)
        heads.append(weights @ value[..., head])
    torch.testing.assert_close(part(x, context), part.leave(torch.cat(heads, -1)))


def test_a_token_reads_all_tokens_of_the_other_set_and_no_order():
    """The attention of a released successor of Land-MoE uses the diagonal of its map only."""
    part, a, b = (
        randomised(BidirectionalCrossAttention(4, 2)),
        normal(1, 3, 4),
        normal(1, 3, 4, seed=2).requires_grad_(),
    )
    reached = torch.autograd.grad(part(a, b)[0][0, 0].sum(), b)[0].abs().sum(-1)
    assert (reached > 1e-8).all()
    torch.testing.assert_close(part(a, b.flip(1))[0], part(a, b)[0])


def test_the_two_directions_are_mirror_images():
    part, a, b = randomised(BidirectionalCrossAttention(4, 2)), normal(2, 3, 4), normal(2, 5, 4, seed=2)
    mirrored = BidirectionalCrossAttention(4, 2).double()
    mirrored.a_from_b.load_state_dict(part.b_from_a.state_dict())
    mirrored.b_from_a.load_state_dict(part.a_from_b.state_dict())
    for one, two in zip(part(a, b), reversed(mirrored(b, a)), strict=True):
        torch.testing.assert_close(one, two)


def test_both_directions_read_the_other_set_as_it_came():
    part, a, b = randomised(BidirectionalCrossAttention(4, 1)), normal(2, 3, 4), normal(2, 5, 4, seed=2)
    out_a, out_b = part(a, b)
    torch.testing.assert_close(out_a, a + part.a_from_b(a, b))
    torch.testing.assert_close(out_b, b + part.b_from_a(b, a))


def test_a_missing_sensor_leaves_the_other_as_it_is_and_masked_tokens_do_not_exist():
    part, a, b = randomised(BidirectionalCrossAttention(4, 2)), normal(2, 3, 4), normal(2, 5, 4, seed=2)
    a_valid = torch.tensor([[True, True, False], [True, True, True]])
    b_valid = torch.tensor([[True, False, True, True, False], [False] * 5])
    for value in (0.0, math.nan):
        hidden = torch.where(b_valid[..., None], b, value).requires_grad_()
        out_a, out_b = part(torch.where(a_valid[..., None], a, value), hidden, a_valid, b_valid)
        kept_a, kept_b = part(a[:1, a_valid[0]], b[:1, b_valid[0]])
        torch.testing.assert_close(out_a[0, a_valid[0]], kept_a[0])
        torch.testing.assert_close(out_b[0, b_valid[0]], kept_b[0])
        torch.testing.assert_close(out_a[1], a[1])
        assert (out_a[~a_valid] == 0).all()
        assert (out_b[~b_valid] == 0).all()
        grads = torch.autograd.grad(out_a.sum() + out_b.sum(), [hidden, *part.parameters()])
        assert all(grad.isfinite().all() for grad in grads)


def test_only_the_class_token_asks_and_all_tokens_get_the_answer():
    part, x = randomised(ClassAttention(4, 2)), normal(2, 5, 4)
    added = part(x) - x
    torch.testing.assert_close(added, added[:, :1].expand(-1, 5, -1))
    shuffled = x[:, [0, 3, 1, 4, 2]]
    torch.testing.assert_close(part(shuffled) - shuffled, added)  # the others are read, whatever their order
    assert (
        part(x * torch.tensor([1.0, 1, 1, 1, 2]).view(5, 1) + normal(5, 4, seed=3))[0, 0] - part(x)[0, 0]
    ).abs().max() > 1e-3


def test_masked_tokens_are_not_read_by_the_class_token():
    part, x = randomised(ClassAttention(4, 2)), normal(1, 5, 4)
    valid = torch.tensor([[True, True, False, True, False]])
    y = part(x.masked_fill(~valid[..., None], math.nan), valid)
    torch.testing.assert_close(y[:, valid[0]], part(x[:, valid[0]]))
    assert (y[~valid] == 0).all()


@pytest.mark.parametrize("make", [BidirectionalCrossAttention, ClassAttention])
def test_attention_has_the_gradient_of_finite_differences(make):
    part = randomised(make(4, 2))
    valid = torch.tensor([[True, True, False], [True, False, False]])
    inputs = [normal(2, 3, 4, seed=s).requires_grad_() for s in (1, 2)]
    run = (
        (lambda a, b, *_: part(a, b, valid, valid))
        if make is BidirectionalCrossAttention
        else lambda a, *_: part(a, valid)
    )
    torch.autograd.gradcheck(run, (*inputs, *part.parameters()))


# fusion operators

D = 8
PAIRS = {"vectors": (), "rows": (3,), "maps": (3, 2)}


def fusion_layer(executor, selector, capacity=None, seed=0):
    layer = MoELayer(
        PairScorer(LinearScorer(2 * D, 6)), fusion_bank(D, 5), selector=selector, capacity=capacity, executor=executor
    )
    return randomised(layer, seed)


def run_layer(executor, selector, capacity, inner, mask):
    layer = fusion_layer(executor, selector, capacity)
    x = normal(9, 2, *inner, D)
    if mask is not None:
        x[~mask] = math.nan
    x.requires_grad_()
    routing = layer.route(RouteInput(x, mask))
    y = layer.executor(x, routing, layer.bank)
    (y * torch.linspace(1, 2, 5, dtype=torch.float64)).sum().backward()
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in layer.named_parameters()}
    return y.detach(), {**grads, "x": x.grad}


@pytest.mark.parametrize("inner", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize(
    ("selector", "capacity"), [(TopK(1), None), (TopK(2), None), (All(), None), (TopK(2), FixedCapacity(0.6))]
)
@pytest.mark.parametrize("masked", [False, True])
def test_executors_agree_on_pairs(inner, selector, capacity, masked):
    mask = torch.arange(9) % 4 != 1 if masked else None
    y_ref, grads_ref = run_layer("loop", selector, capacity, inner, mask)
    assert y_ref.shape == (9, *inner, 5)
    assert y_ref.isfinite().all()
    for executor in EXECUTORS.keys() - {"loop", "gather"}:
        y, grads = run_layer(executor, selector, capacity, inner, mask)
        torch.testing.assert_close(y, y_ref, rtol=1e-9, atol=1e-9)
        for name, grad in grads_ref.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_a_layer_of_all_operators_is_their_weighted_sum():
    layer, pair = fusion_layer("auto", All()), normal(4, 2, 3, D)
    y, routing = layer(pair)
    expected = sum(
        weight.view(4, 1, 1) * operator(pair)
        for weight, operator in zip(routing.dense().T, layer.bank.experts, strict=True)
    )
    torch.testing.assert_close(y, expected)


def test_bare_operators_are_their_formulas():
    a, b = normal(4, 3, D), normal(4, 3, D, seed=2)
    bank = randomised(fusion_bank(D, 5))
    concat, total, product, gated, _, bilinear = bank.experts
    weight = concat.leave.weight
    torch.testing.assert_close(
        concat(torch.stack([a, b], 1)), a @ weight[:, :D].T + b @ weight[:, D:].T + concat.leave.bias
    )
    torch.testing.assert_close(total(torch.stack([a, b], 1)), total.leave(a + b))
    torch.testing.assert_close(product(torch.stack([a, b], 1)), product.leave(a * b))
    gate = torch.sigmoid(gated.gate(torch.cat([a, b], -1)))
    torch.testing.assert_close(gated(torch.stack([a, b], 1)), gated.leave(gate * a + (1 - gate) * b))
    full = torch.einsum("or,ri,rj->oij", bilinear.leave.weight, bilinear.enter_a.weight, bilinear.enter_b.weight)
    mixed = bilinear(torch.stack([a, b], 1)) - bilinear(torch.stack([a, b * 0], 1))
    mixed = mixed - bilinear(torch.stack([a * 0, b], 1)) + bilinear(torch.stack([a * 0, b * 0], 1))
    torch.testing.assert_close(mixed, torch.einsum("oij,...i,...j->...o", full, a, b))


@pytest.mark.parametrize("name", FUSIONS)
def test_operators_read_both_sensors_and_keep_places_apart(name):
    (operator,) = randomised(fusion_bank(D, 5, [name])).experts
    pair = normal(2, 2, 3, 4, D).requires_grad_()
    grad = torch.autograd.grad(operator(pair)[0, 1, 2].square().sum(), pair)[0].abs().sum(-1)
    assert (grad[0, :, 1, 2] > 1e-6).all()
    grad[0, :, 1, 2] = 0
    assert (grad == 0).all()


@pytest.mark.parametrize(
    ("name", "solves"),
    [("concat", False), ("sum", False), ("product", True), ("gated", True), ("attention", True), ("bilinear", True)],
)
def test_an_exclusive_or_of_two_sensors_needs_more_than_a_linear_fusion(name, solves):
    """Neither sensor, nor any linear map of both, tells the class; that is why a bank of operators is worth having."""
    torch.manual_seed(0)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)))
    sides = signs.repeat(30, 1)[..., None] * torch.randn(16) + 0.1 * torch.randn(120, 2, 16)
    label = (signs.prod(1) > 0).float().repeat(30)
    (operator,) = fusion_bank(16, 1, [name]).experts
    optimiser = torch.optim.Adam(operator.parameters(), 0.02)
    for _ in range(150):
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(operator(sides).squeeze(-1), label).backward()
        optimiser.step()
    accuracy = ((operator(sides).squeeze(-1) > 0) == (label > 0)).float().mean()
    assert accuracy > 0.95 if solves else accuracy < 0.8


def test_the_pair_scorer_tells_the_sensors_apart_where_a_plain_scorer_cannot():
    pair = normal(5, 2, 3, D)
    swapped = pair.flip(1)
    plain, both = randomised(LinearScorer(D, 6)), randomised(PairScorer(LinearScorer(2 * D, 6)))
    torch.testing.assert_close(plain(RouteInput(pair)).logits, plain(RouteInput(swapped)).logits)
    assert (both(RouteInput(pair)).logits - both(RouteInput(swapped)).logits).abs().max() > 0.1


def test_the_pair_scorer_averages_valid_pixels_only():
    scorer, pair = randomised(PairScorer(LinearScorer(2 * D, 6))), normal(2, 2, 3, 4, D)
    valid = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    dirty = torch.where(valid[:, None, ..., None], pair, math.nan)
    logits = scorer(RouteInput(dirty, keys={"valid": valid})).logits
    for one, two, keep in zip(logits, pair, valid, strict=True):
        torch.testing.assert_close(one, scorer.scorer.linear(two[:, keep].mean(1).flatten()))
    assert (pool_pair(dirty, valid & False) == 0).all()


def test_a_noisy_router_over_pairs_learns():
    torch.manual_seed(0)
    layer = MoELayer(PairScorer(NoisyScorer(LinearScorer(2 * D, 6), 2 * D, 6)), fusion_bank(D), selector=TopK(2))
    y, _ = layer(torch.randn(20, 2, D))
    assert y.shape == (20, D)
    y.square().sum().backward()
    assert sum(p.grad.abs().sum() for p in layer.scorer.parameters() if p.grad is not None) > 0


# missing sensors


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9))
def test_codes_are_one_hot_and_tell_patterns_apart(rows):
    available = torch.tensor(rows)
    code, pattern = presence_code(available), presence_pattern(available)
    assert code.shape == (len(rows), 7)
    assert torch.equal(code.sum(1), available.any(1).float())
    for row, one, number in zip(rows, code, pattern, strict=True):
        assert int(number) == sum(2**s for s, there in enumerate(row) if there)
        if number:
            assert int(one.argmax()) == number - 1


def test_the_embedding_is_a_row_per_pattern():
    part = MissingEmbedding(3, 4)
    available = torch.tensor(list(itertools.product([True, False], repeat=3)))
    y = part(available)
    for row, pattern in zip(y, presence_pattern(available), strict=True):
        expected = part.linear.bias + (part.linear.weight[:, pattern - 1] if pattern else 0)
        torch.testing.assert_close(row, expected)
    assert torch.cdist(y, y).fill_diagonal_(1).min() > 1e-4
    assert part(available.view(2, 4, 3)).shape == (2, 4, 4)


@settings(max_examples=50, deadline=None)
@given(
    sensors=st.integers(1, 6),
    rate=st.floats(0, 1),
    shape=st.one_of(st.integers(0, 20), st.lists(st.integers(0, 5), max_size=3)),
    seed=st.integers(0, 99),
)
def test_dropout_never_takes_all_sensors(sensors, rate, shape, seed):
    kept = modality_dropout(shape, sensors, rate, torch.Generator().manual_seed(seed))
    assert kept.shape == (*((shape,) if isinstance(shape, int) else shape), sensors)
    assert kept.dtype == torch.bool
    assert kept.any(-1).all()
    if rate == 0 or sensors == 1:
        assert kept.all()
    elif rate == 1:
        assert not kept.all(-1).any()
    assert torch.equal(kept, modality_dropout(shape, sensors, rate, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("sensors", [2, 3, 4])
def test_dropout_takes_every_proper_subset_alike(sensors):
    draws = 40_000
    kept = modality_dropout(draws, sensors, 0.7, torch.Generator().manual_seed(0))
    share = torch.bincount(presence_pattern(kept), minlength=2**sensors) / draws
    expected = torch.full((2**sensors,), 0.7 / (2**sensors - 2))
    expected[0], expected[-1] = 0, 0.3
    bound = 5 * (expected * (1 - expected) / draws).sqrt()
    assert ((share - expected).abs() <= bound).all()


def test_dropout_without_a_generator_follows_the_global_seed():
    torch.manual_seed(3)
    first = modality_dropout((50,), 3, 0.5)
    assert not torch.equal(first, modality_dropout((50,), 3, 0.5))
    torch.manual_seed(3)
    assert torch.equal(first, modality_dropout((50,), 3, 0.5))


# hostile input


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: CrossAttention(6, 4), ConfigError),
        (lambda: fusion_bank(8, names=["stack"]), ConfigError),
        (lambda: fusion_bank(6), ConfigError),
        (lambda: fusion_bank(4), ConfigError),
        (lambda: fusion_bank(8).experts[0](torch.zeros(3, 8)), RoutingError),
        (lambda: fusion_bank(8).experts[0](torch.zeros(3, 3, 8)), RoutingError),
        (lambda: PairScorer(LinearScorer(8, 4))(RouteInput(torch.zeros(3, 8))), RoutingError),
        (lambda: MissingEmbedding(13, 4), ConfigError),
        (lambda: MissingEmbedding(2, 0), ConfigError),
        (lambda: MissingEmbedding(2, 4)(torch.ones(5, 3).bool()), DataError),
        (lambda: presence_code(torch.ones(2, 0).bool()), ConfigError),
        (lambda: modality_dropout(3, 2, 1.5), ConfigError),
        (lambda: modality_dropout(3, 2, math.nan), ConfigError),
        (lambda: modality_dropout(3, 0, 0.5), ConfigError),
    ],
)
def test_impossible_settings_and_inputs_are_named(wrong, error):
    with pytest.raises(error, match="Fix:"):
        wrong()
