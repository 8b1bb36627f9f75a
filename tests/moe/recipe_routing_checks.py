"""What P2 to P16, P20, P22 and P23 mean for a whole recipe: ``check_pNN(recipe, items, seed)``."""

import math
from dataclasses import replace

import torch
from property_cases import check_order, close, generator, limit_of, pairs_of, route_scores, used
from recipe_cases import EXPERTS, call, fixed_experts, items_of, keys_of, layers_of, make, only_layer

from terramoe.moe import RouteInput, links, objectives, weighing
from terramoe.moe.selectors import ExpertChoice


def check_p02(recipe, items, seed):
    """Weights of an item sum to 1 before the drop, and the drop changes none that stays."""
    module = make(recipe, seed)
    _, dropped = call(recipe, module, items_of(items, seed), seed)
    for layer in layers_of(module):
        layer.capacity = None
    _, free = call(recipe, module, items_of(items, seed), seed)
    for before, after in zip(free, dropped, strict=True):
        close(before.dense().sum(1), torch.ones(items, dtype=torch.float64))
        close(after.dense(), torch.where(after.dense() > 0, before.dense(), 0))


def check_p03(recipe, items, seed):
    """Each item has the same number k >= 1 of distinct experts, ranked 0 .. k - 1."""
    for routing in call(recipe, make(recipe, seed), items_of(items, seed), seed)[1]:
        number = used(routing, routing.num_items, routing.num_experts).sum(1)
        assert number.unique().tolist() == [routing.num_choices]
        assert routing.rank.tolist() == sorted(list(range(routing.num_choices)) * routing.num_items)


def check_p04(recipe, items, seed):
    """Loads are equal: exactly C where experts choose, within 1 where the assignment is balanced."""
    module = make(recipe, seed)
    _, (routing,) = call(recipe, module, items_of(items, seed), seed)
    selector = only_layer(module).selector
    if isinstance(selector, ExpertChoice):
        assert routing.load().tolist() == [min(math.ceil(items * selector.per_item / EXPERTS), items)] * EXPERTS
    else:
        assert routing.load().max() - routing.load().min() <= 1
        assert routing.load().sum() == items


def check_p05(recipe, items, seed):
    """No expert computes more than its capacity, none drops while it has room, slots are unique, drops are counted."""
    module = make(recipe, seed)
    _, (routing,) = call(recipe, module, items_of(items, seed), seed)
    limit = limit_of(only_layer(module).capacity, routing.expert.numel())
    assert routing.load().tolist() == [min(limit, n) for n in routing.demand().tolist()]
    for expert, load in enumerate(routing.load().tolist()):
        assert sorted(routing.slot[routing.kept & (routing.expert == expert)].tolist()) == list(range(load))
    assert round(float(routing.dropped()) * routing.expert.numel()) == int((~routing.kept).sum())


def check_p06(recipe, items, seed):
    """Under the recipe's capacity, and a tight one of the same order, first choices go first and then priority."""
    layer = only_layer(make(recipe, seed))
    assert layer.capacity.order == "priority"
    for factor in (layer.capacity.factor, 0.4):
        layer.capacity = replace(layer.capacity, factor=factor, multiple_of=1)
        check_order(
            layer.route(RouteInput(items_of(items, seed), keys=keys_of(recipe, items_of(items, seed)))), "priority"
        )


def check_p07(recipe, items, seed):
    """Permuting the items permutes the outputs."""
    module, x = make(recipe, seed).eval(), items_of(items, seed)
    order = torch.randperm(items, generator=generator(seed))
    close(call(recipe, module, x[order])[0], call(recipe, module, x)[0][order])


def check_p08(recipe, items, seed):
    """Experts and router rows in another order: the same output."""
    module, x = make(recipe, seed).eval(), items_of(items, seed)
    y = call(recipe, module, x)[0]
    order = torch.randperm(EXPERTS, generator=generator(seed))
    layer = only_layer(module)
    with torch.no_grad():
        for parameter in [*layer.bank.parameters(), *layer.scorer.parameters()]:
            parameter.copy_(parameter[order])
    close(call(recipe, module, x)[0], y)


def check_p09(recipe, items, seed):
    """An item gets alone what it gets in a batch."""
    module, x = make(recipe, seed).eval(), items_of(items, seed)
    y = call(recipe, module, x)[0]
    close(torch.cat([call(recipe, module, row)[0] for row in x.split(1)]), y)


def check_p10(recipe, items, seed):
    """NaN under the mask: zero output and no load there, and elsewhere the result without these items."""
    module, x = make(recipe, seed), items_of(items, seed)
    mask = torch.rand(items, generator=generator(seed)) < 0.7
    mask[0] = True
    dirty = torch.where(mask[:, None], x, torch.nan)
    results = []
    for rows, valid in ((dirty, mask), (x[mask], None)):
        torch.manual_seed(seed)
        if hasattr(module, "attention"):  # its tokens are a sequence: others attend to them
            routing = module.router.route(RouteInput(rows, valid))
            y = module.attention(rows[None], routing, None if valid is None else valid[None])[0]
        else:
            y, routing = module(rows, mask=valid)
        results.append((y, routing.load()))
    (y, load), (expected, alone) = results
    close(y[mask], expected)
    assert not y[~mask].any()
    assert torch.equal(load, alone)


def _even(layer, items=3 * EXPERTS):
    """The record of a layer's parts for scores that treat all experts alike: row t is row 0 moved by t."""
    base = torch.linspace(1, -1, EXPERTS, dtype=torch.float64)
    logits = torch.stack([base.roll(t) for t in range(items)])
    routing = route_scores(logits, layer.selector, link=layer.link, weigh=layer.weigh)
    return replace(routing, clean_logits=logits, noise_std=torch.ones_like(logits))


def check_p11(recipe, items, seed):
    """The recipe's losses have their known values at balance: 1 for balance, 0 for cv^2, log^2 E for z."""
    even = _even(only_layer(make(recipe, seed)))
    zeros = replace(even, logits=torch.zeros_like(even.logits))
    assert recipe.objectives
    for name in recipe.objectives:
        value = getattr(objectives, name)(zeros if name == "router_z" else even)
        known = {"router_z": math.log(EXPERTS) ** 2, "importance_cv2": 0.0, "load_cv2": 0.0}.get(name, 1.0)
        close(value, torch.tensor(known, dtype=torch.float64))


def check_p12(recipe, items, seed):
    """The recipe's balance losses reach the probabilities, by E f_i / T, and nothing else of the record."""
    routing = only_layer(make(recipe, seed)).route(RouteInput(items_of(items, seed)))
    share = routing.demand().double() / routing.demand().sum()
    (name,) = (name for name in recipe.objectives if name.endswith("balance"))
    loss = getattr(objectives, name)(routing)
    probs, weight = torch.autograd.grad(loss, (routing.probs, routing.weight), allow_unused=True)
    close(probs, (EXPERTS * share / items).expand(items, -1))
    assert weight is None


def check_p13(recipe, items, seed):
    """A bias moves the choice; weights are those of the unbiased scores; it has no gradient; a constant is nothing."""
    layer, x = only_layer(make(recipe, seed)), items_of(items, seed)
    layer.capacity = None
    bias = layer.selector.bias
    assert not bias.requires_grad
    plain = layer.route(RouteInput(x))
    bias.copy_(0.3 * torch.randn(EXPERTS, generator=generator(seed), dtype=torch.float64))
    routing = layer.route(RouteInput(x))
    close(routing.weight, layer.weigh(layer.link(routing.logits), routing.logits, pairs_of(routing)))
    close(routing.probs, plain.probs)
    bias.add_(0.25)
    assert torch.equal(layer.route(RouteInput(x)).expert, routing.expert)
    bias.copy_(torch.tensor([0.0, 1e3, 0.0, 0.0]))
    assert layer.route(RouteInput(x)).demand()[1] == items


def check_p14(recipe, items, seed):
    """The rule of the recipe's selector: the shortest prefix that reaches p, or all with n >= (1 - tau) max n; and more
    p or tau means more experts."""
    layer = only_layer(make(recipe, seed))
    name = "p" if hasattr(layer.selector, "p") else "tau"
    value, x, chosen = getattr(layer.selector, name), items_of(items, seed), []
    for setting in (value, (1 + value) / 2):
        layer.selector = replace(layer.selector, **{name: setting})
        routing = layer.route(RouteInput(x))
        chosen.append(used(routing, items))
        ordered = routing.probs.sort(-1, descending=True).values
        reached = ordered.cumsum(-1) - ordered < setting if name == "p" else ordered >= (1 - setting) * ordered[:, :1]
        assert chosen[-1].sum(1).tolist() == reached.sum(1).tolist()
        worst_in = torch.where(chosen[-1], routing.probs, torch.inf).amin(1)
        assert (worst_in >= torch.where(chosen[-1], -torch.inf, routing.probs).amax(1)).all()
    assert (chosen[1] | ~chosen[0]).all()


def check_p15(recipe, items, seed):
    """Softmax over the chosen logits is the renormalised softmax."""
    module, x = make(recipe, seed), items_of(items, seed)
    y = call(recipe, module, x, seed)[0]
    assert only_layer(module).weigh is weighing.softmax_selected
    only_layer(module).weigh = weighing.renormalised
    close(call(recipe, module, x, seed)[0], y)


def check_p16(recipe, items, seed):
    """Chosen are the experts with a weight above 0 in sparsemax(z + bias), at most so many."""
    layer, x = only_layer(make(recipe, seed)), items_of(items, seed)
    layer.selector.bias.copy_(torch.randn(EXPERTS, generator=generator(seed)))
    routing = layer.route(RouteInput(x))
    p = links.sparsemax(routing.logits + layer.selector.bias)
    close(p.sum(-1), torch.ones(items, dtype=torch.float64))
    support = p >= p.topk(layer.selector.inner.most).values[:, -1:]
    assert torch.equal(used(routing, items), support & (p > 0))


def check_p20(recipe, items, seed):
    """The recipe's entropies and informations stay within their bounds."""
    bounds = {
        "local_entropy": (0, math.log(EXPERTS)),
        "global_entropy_hinge": (0, math.log(EXPERTS)),
        "gjs_divergence": (0, 1),
    }
    with torch.no_grad():
        _, routings = call(recipe, make(recipe, seed).train(), items_of(items, seed), seed)
    checked = [name for name in recipe.objectives if name in bounds]
    for name in checked:
        low, high = bounds[name]
        assert low - 1e-9 <= float(getattr(objectives, name)(routings[0])) <= high + 1e-9
    if "negative_mutual_information" in recipe.objectives:
        checked.append("negative_mutual_information")
        tasks = int(routings[0].keys["task"].max()) + 1
        value = float(objectives.negative_mutual_information(routings, "task"))
        assert -math.log(min(tasks, EXPERTS)) - 1e-9 <= value <= 1e-9
    assert checked


def check_p22(recipe, items, seed):
    """The choice does not depend on what was built or drawn before (other processes: see the test of P22)."""
    first = fixed_experts(recipe)
    torch.manual_seed(seed)
    torch.randn(items)
    assert fixed_experts(recipe) == first


def check_p23(recipe, items, seed):
    """Evaluation is the same to the last bit whatever the global generator holds; training is not."""
    module, x = make(recipe, seed).eval(), items_of(items, seed)
    first, second = (call(recipe, module, x, s)[0] for s in (seed, seed + 1))
    assert torch.equal(first, second)
    module.train()
    draws = [call(recipe, module, x, s)[1][0] for s in range(20)]
    assert any(not torch.equal(draw.logits, draws[0].logits) for draw in draws)
