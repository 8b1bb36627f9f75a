"""Token experts: tables of low rank, mixed per image."""

import math

import pytest
import torch

from terramoe.errors import RoutingError
from terramoe.moe import EXECUTORS, All, FixedCapacity, LinearScorer, MoELayer, RouteInput, TopK
from terramoe.moe.experts.tokens import TokenBank

RANKS = (1, 2, 4, 3)


def make_layer(executor="auto", selector=None, capacity=None):
    torch.manual_seed(0)
    bank = TokenBank(4, 5, 6, RANKS, std=1.0)
    return MoELayer(LinearScorer(7, 4), bank, selector=selector, capacity=capacity, executor=executor).double()


def run(executor, selector, capacity, mask):
    layer = make_layer(executor, selector, capacity)
    x = torch.randn(9, 3, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if mask is not None:
        x[~mask] = math.nan
    x.requires_grad_()
    routing = layer.route(RouteInput(x, mask))
    y = layer.executor(x, routing, layer.bank)
    (y * torch.arange(1.0, 7)).sum().backward()
    grads = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in layer.named_parameters()}
    return y.detach(), {**grads, "x": x.grad}, routing


@pytest.mark.parametrize(
    ("selector", "capacity"), [(TopK(1), None), (TopK(2), None), (All(), None), (TopK(2), FixedCapacity(0.6))]
)
@pytest.mark.parametrize("masked", [False, True])
def test_executors_agree_and_give_the_weighted_sum_of_tables(selector, capacity, masked):
    mask = torch.arange(9) % 4 != 1 if masked else None
    y_ref, grads_ref, routing = run("loop", selector, capacity, mask)
    bank = make_layer().bank
    tables = torch.stack([a @ b for a, b in zip(bank.a, bank.b, strict=True)]).detach()
    torch.testing.assert_close(y_ref, torch.einsum("te,emd->tmd", routing.dense().detach(), tables))
    for executor in EXECUTORS.keys() - {"loop"}:
        y, grads, _ = run(executor, selector, capacity, mask)
        torch.testing.assert_close(y, y_ref)
        for name, grad in grads_ref.items():
            torch.testing.assert_close(grads[name], grad, msg=lambda m, n=name, e=executor: f"{e}, {n}: {m}")


def test_each_expert_has_its_rank_and_count():
    bank = make_layer().bank
    assert [int(torch.linalg.matrix_rank(bank.table(e))) for e in range(4)] == list(RANKS)
    assert [bank.expert_parameters(e) for e in range(4)] == [11, 22, 44, 33]
    assert sum(bank.expert_parameters(e) for e in range(4)) == sum(p.numel() for p in bank.parameters())
    mixed = bank.mix(torch.tensor([[0.5, 0.5, 0, 0], [1, 0, 0, 0]]).double())
    assert [int(torch.linalg.matrix_rank(table)) for table in mixed] == [3, 1]


def test_tables_of_any_rank_start_with_the_same_spread():
    torch.manual_seed(0)
    bank = TokenBank(3, 200, 300, (4, 16, 64), std=0.02)
    for table in bank.tables():
        assert table.std().item() == pytest.approx(0.02, rel=0.25)


def test_weights_of_an_image_decide_its_table_alone():
    bank = make_layer().bank
    weights = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(bank.mix(weights)[2:3], bank.mix(weights[2:3]))
    torch.testing.assert_close(bank.mix(torch.eye(4).double()), bank.tables())


def test_the_router_and_every_chosen_table_learn():
    layer = make_layer(selector=All())
    y, _ = layer(torch.randn(3, 2, 7).double())
    y.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_one_rank_stands_for_all():
    assert TokenBank(3, 4, 5, 2).ranks == (2, 2, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TokenBank(2, 4, 5, (1, 2, 3)),
        lambda: TokenBank(0, 4, 5, ()),
        lambda: TokenBank(2, 4, 5, (1, 0)),
        lambda: TokenBank(2, 4, 5, 1).mix(torch.ones(3, 3)),
        lambda: TokenBank(2, 4, 5, 1).mix(torch.ones(2)),
    ],
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(RoutingError, match="Fix:"):
        wrong()


def test_gradients_of_the_mixed_tables():
    bank = TokenBank(3, 2, 4, (1, 2, 3)).double()
    parameters = list(bank.parameters())
    weight = torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, *_: bank.mix(w), (weight, *parameters))
    for gradient in torch.autograd.grad(bank.mix(weight).square().sum(), (weight, *parameters)):
        assert gradient.any()
