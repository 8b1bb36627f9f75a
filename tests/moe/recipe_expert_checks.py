"""What P1, P19, P21, P24, P25, P29 and P30 mean for a whole recipe: ``check_pNN(recipe, items, seed)``."""

import torch
from property_cases import close, pairs_of
from recipe_cases import DIM, EXPERTS, HIDDEN, call, items_of, keys_of, layers_of, make, only_layer
from torch import nn

from terramoe.moe import EXECUTORS, RouteInput
from terramoe.moe.executors import get_executor
from terramoe.moe.experts import Bank
from terramoe.moe.merging import merged
from terramoe.moe.organisation import MultiGate


def check_p01(recipe, items, seed):
    """Every executor gives the same output and gradients, in every routed layer."""
    results, used_by = {}, []
    for name in EXECUTORS:
        module = make(recipe, seed).train()
        layers = [layer for layer in layers_of(module) if isinstance(layer.bank, Bank)]
        if name == "gather" and any(type(layer.bank).run_each is Bank.run_each for layer in layers):
            continue
        for layer in layers:
            layer.executor = _counted(get_executor(name), used_by)
        x = items_of(items, seed).requires_grad_()
        y, routings = call(recipe, module, x, seed)
        if not used_by:  # the module has a way of its own; its bank and records must still give one result
            bank = only_layer(module).bank
            through = torch.cat([get_executor(name)(x, routing, bank) for routing in routings], dim=-1)
            if isinstance(module, MultiGate):
                close(y, through)
            y = through
        y.square().sum().backward()
        grads = [torch.zeros(1) if p.grad is None else p.grad for p in module.parameters()]
        results[name] = [y.detach(), x.grad, *grads]
    for name, result in results.items():
        for ours, expected in zip(result, results["loop"], strict=True):
            if ours.shape == expected.shape:
                close(ours, expected, rtol=1e-8, atol=1e-9)
            else:  # an expert that nobody chose has no gradient with one executor and zeros with another
                assert not ours.any(), name
                assert not expected.any(), name


def _counted(executor, calls):
    def run(x, routing, bank):
        calls.append(routing)
        return executor(x, routing, bank)

    return run


def check_p21(recipe, items, seed):
    """A layer that is given its own record does the same again, and so does a replaying selector."""
    module, x, calls = make(recipe, seed), items_of(items, seed), []
    for layer in layers_of(module):
        layer.executor = _counted(layer.executor, calls)
    y, routings = call(recipe, module, x)
    assert [id(r) for r in calls] == [id(r) for r in routings]
    h = x
    for layer, routing in zip(layers_of(module), routings, strict=True):
        out, same = layer(h, routing)
        assert same is routing
        h = h + out if len(routings) > 1 else out
    close(h, y, rtol=0, atol=0)
    if len(routings) == 1:
        layer.selector.pairs, layer.selector.num_items = pairs_of(routing), items
        assert torch.equal(layer.route(RouteInput(x)).dense(), routing.dense())


def check_p24(recipe, items, seed):
    """Experts that an item's output came from get a gradient, all others exactly none."""
    module = make(recipe, seed).requires_grad_()
    if hasattr(module, "levels"):
        return _ple_gradients(recipe, module, items, seed)
    y, routings = call(recipe, module, items_of(items, seed), seed)
    y.square().sum().backward()
    load = sum(routing.load() for routing in routings)
    banks = [p for p in module.modules() if isinstance(p, Bank)] or [module.attention]
    for bank in banks:
        for parameter in bank.parameters():
            if parameter.shape[0] == EXPERTS:
                for expert in range(EXPERTS):
                    assert bool(parameter.grad[expert].any()) == bool(load[expert] > 0)
    return None


def _ple_gradients(recipe, module, items, seed):
    """At the last level the loss of one task leaves the other tasks' own experts alone, and moves all else."""
    features, _ = module(items_of(items, seed))
    tasks = module.levels[-1].tasks
    features[tasks[0]].square().sum().backward()
    own = module.levels[-1].own
    for task in tasks:
        moved = [p.grad is not None and bool(p.grad.any()) for p in own[task].parameters()]
        assert all(moved) if task == tasks[0] else not any(moved)
    assert all(p.grad.any() for p in module.levels[0].own[tasks[1]].parameters())


def check_p25(recipe, items, seed):
    """E = 1 is that expert, and k = E the dense mixture; a shared expert is added to both."""
    x = items_of(items, seed)
    for experts in (1, EXPERTS):
        options = {"k": experts} if "k" in recipe.build.__code__.co_varnames else {}
        module = make(recipe, seed, experts=experts, **options)
        y, routings = call(recipe, module, x)
        bank = only_layer(module).bank
        outputs = torch.stack([bank.run(e, x) for e in range(experts)])
        parts = [torch.einsum("te,etd->td", r.logits.softmax(-1), outputs) for r in routings]
        shared = module.shared(x) if hasattr(module, "shared") else 0
        close(y, torch.cat(parts, dim=-1) + shared)


def check_p29(recipe, items, seed):
    """Dispatch sums to 1 over the items, combine over the slots, and every item reaches every output."""
    module, x = make(recipe, seed), items_of(items, seed)[None].requires_grad_()
    y, routing = module(x)
    close(routing.dispatch.sum(1), torch.ones_like(routing.dispatch[:, 0]))
    close(routing.combine.sum(2), torch.ones_like(routing.combine[..., 0]))
    y[0, 0].sum().backward()
    assert (x.grad.abs().sum(-1) > 0).all()


def check_p30(recipe, items, seed):
    """No item changes an earlier segment."""
    module, x = make(recipe, seed), items_of(items, seed)
    place = seed % items
    changed = x.clone()
    changed[place] += 1
    start = place // module.segment_length * module.segment_length
    assert torch.equal(call(recipe, module, changed)[0][:start], call(recipe, module, x)[0][:start])


def dense_network(seed, width, activation=nn.GELU):
    """What a conversion starts from: it makes its dense network first, so the same seed gives it again."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(DIM, width), activation(), nn.Linear(width, DIM)).double()


def _adds_nothing(recipe, items, seed):
    module, x = make(recipe, seed, moved=False), items_of(items, seed)
    close(call(recipe, module, x)[0], module.base(x))


def _upcycled(recipe, items, seed):
    x = items_of(items, seed)
    y, (routing,) = call(recipe, make(recipe, seed, moved=False), x)
    reached = (routing.dense().sum(1) > 0)[:, None]
    close(y, dense_network(seed, HIDDEN)(x) * reached)


def _nomic(recipe, items, seed):
    """With all experts the raw weights sum to 1, so that each block is the dense one."""
    x, h = items_of(items, seed), items_of(items, seed)
    torch.manual_seed(seed)
    for ffn in [nn.Sequential(nn.Linear(DIM, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM)).double() for _ in range(2)]:
        h = h + ffn(h)
    close(call(recipe, make(recipe, seed, moved=False, k=EXPERTS), x)[0], h)


def _moebert(recipe, items, seed):
    """Without shared neurons the experts' sum is the dense network."""
    x, module = items_of(items, seed), make(recipe, seed, moved=False, shared=0.0)
    y = call(recipe, module, x)[0]
    layer = only_layer(module)
    parts = [layer.bank.run(e, x) for e in range(EXPERTS)]
    table = keys_of(recipe, x)["token"]
    offset = y - torch.stack(parts)[layer.selector.table[table][:, 0], torch.arange(items)]
    close(offset, offset[:1].expand_as(offset))
    close(sum(parts) + offset, dense_network(seed, EXPERTS * HIDDEN)(x))


def _d2dmoe(recipe, items, seed):
    x = items_of(items, seed)
    y = call(recipe, make(recipe, seed, moved=False, tau=1.0), x)[0]
    close(y, dense_network(seed, EXPERTS * HIDDEN, nn.ReLU)(x))


def _tomoe(recipe, items, seed):
    """With every neuron open, whatever the router says."""
    x, module = items_of(items, seed), make(recipe, seed, moved=False)
    close(module.layer(x)[0], dense_network(seed, HIDDEN)(x))


def _attributes(recipe, items, seed):
    """Items of one attribute vector share their weights; merging is exact for experts that share their first layer."""
    layer, x = make(recipe, seed), items_of(items, seed)
    keys = {"attributes": torch.eye(8, dtype=torch.float64)[[seed % 8]].expand(items, -1)}
    with torch.no_grad():
        for parameter in (layer.bank.w_in_EDH, layer.bank.b_in_EH):
            parameter.copy_(parameter[:1].clone().expand_as(parameter))
    y, routing = layer(x, keys=keys)
    close(merged(x, routing, layer.bank), y)


def _lory(recipe, items, seed):
    """A sure gate gives that expert."""
    module, x = make(recipe, seed), items_of(items, seed)
    expert = seed % EXPERTS
    with torch.no_grad():
        module.layer.scorer.linear.weight.zero_()
        module.layer.scorer.linear.weight[expert] = 1e4 * x.mean(0) / x.mean(0).norm() ** 2
    module.segment_length = items
    close(call(recipe, module, x)[0], module.layer.bank.run(expert, x))


IDENTITIES = {
    "lora-experts": _adds_nothing,
    "tt-lora": _adds_nothing,
    "hmora": _adds_nothing,
    "upcycled": _upcycled,
    "upcycled-vision": _upcycled,
    "nomic-v2": _nomic,
    "moebert": _moebert,
    "d2dmoe": _d2dmoe,
    "tomoe": _tomoe,
    "attribute-routing": _attributes,
    "lory": _lory,
}


def check_p19(recipe, items, seed):
    """The identity that the method starts from or rests on, for each recipe its own."""
    assert recipe.name in IDENTITIES, f"{recipe.name} declares P19: say in IDENTITIES which identity it is"
    IDENTITIES[recipe.name](recipe, items, seed)
