"""Every recipe by existing: it runs, learns, agrees with the reference executor, and names parts that exist."""

import pytest
import torch

from terramoe.errors import RoutingError
from terramoe.moe import MoELayer, objectives
from terramoe.moe.recipes import RECIPES, get_recipe

DIM, EXPERTS, HIDDEN, ITEMS = 8, 4, 6, 12
WHOLE_BATCH = ("soft-moe", "lory", "attention-heads", "thor")  # their items are a sequence, or share a draw


def build(name, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return RECIPES[name].build(DIM, EXPERTS, HIDDEN, **options).to(dtype)


def items(dtype=torch.float32):
    return torch.randn(ITEMS, DIM, dtype=dtype, generator=torch.Generator().manual_seed(1))


def run(name, module, x):
    torch.manual_seed(2)
    return RECIPES[name].call(module, x)


@pytest.mark.parametrize("name", RECIPES)
def test_runs_and_every_parameter_that_may_learn_gets_a_gradient(name):
    module = build(name).train()
    x = items().requires_grad_()
    y, routings = run(name, module, x)
    assert y.shape[0] == ITEMS
    assert y.isfinite().all()
    assert all(r.load().sum() > 0 for r in routings)
    loss = (y * torch.linspace(-1, 1, y.shape[-1])).sum() + sum(r.probs.square().sum() for r in routings)
    loss.backward()
    assert x.grad.isfinite().all()
    learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
    unmoved = [n for n, p in learned.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not unmoved


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.routed])
def test_the_task_reaches_the_router(name):
    """A released router that gets no task gradient does not learn; weight 1 for a single expert does that."""
    module = build(name).train()
    with torch.no_grad():  # adapters and BASE start at zero output, where no router can matter yet
        for parameter in module.parameters():
            if parameter.requires_grad or not parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    y, routings = run(name, module, items())
    grads = torch.autograd.grad(y.square().sum(), [r.logits for r in routings], allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("name", RECIPES)
def test_evaluation_is_deterministic(name):
    """P23."""
    if name == "elastic":
        pytest.skip("draws by design; TopK is its selector in evaluation")
    options = {"random_second": False} if name == "gshard" else {}
    module = build(name, **options).eval()
    first, second = RECIPES[name].call(module, items())[0], RECIPES[name].call(module, items())[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("executor", ["grouped", "dense", "padded"])
def test_executors_agree(name, executor):
    """P1, in float64, values and gradients, over every routed layer of the recipe."""
    results = []
    for choice in ("loop", executor):
        module = build(name, torch.float64).train()
        for part in module.modules():
            if isinstance(part, MoELayer):
                part.executor = MoELayer(part.scorer, part.bank, executor=choice).executor
        x = items(torch.float64).requires_grad_()
        y, _ = run(name, module, x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, [p.grad for p in module.parameters()]))
    (y, gx, grads), (y2, gx2, grads2) = results
    torch.testing.assert_close(y2, y, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gx2, gx, rtol=1e-9, atol=1e-12)
    for one, other in zip(grads, grads2, strict=True):
        if one is None or other is None:  # the loop does not touch an expert that nobody chose
            assert all(g is None or not g.any() for g in (one, other))
        else:
            torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", RECIPES)
def test_state_round_trip(name):
    first, second = build(name), build(name)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    second.load_state_dict(first.state_dict(), strict=True)
    for one, other in zip(first.eval().parameters(), second.eval().parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_card_names_real_things(recipe):
    assert recipe.equation
    assert recipe.oracle
    assert 1990 < recipe.year < 2027
    assert recipe.source.startswith(("arXiv ", "DOI ", "ICLR "))
    for name in recipe.objectives:
        assert callable(getattr(objectives, name)), name
    assert all(p[0] == "P" and 1 <= int(p[1:]) <= 30 for p in recipe.invariants)


def test_an_unknown_recipe_is_our_error():
    with pytest.raises(RoutingError, match=r"no recipe 'magic'.*mixtral"):
        get_recipe("magic")
