"""Bad input gives one error of ours, which names the part and the fix: wrong widths, k, capacity, NaN, keys, no items.

Parts are found by walking the modules, so that a new one without a case fails.
"""

import inspect

import pytest
import torch
from torch import nn

from terramoe.errors import RoutingError
from terramoe.moe import (
    EXECUTORS,
    All,
    FixedCapacity,
    LinearScorer,
    ModuleBank,
    MoELayer,
    RouteInput,
    StackedFFN,
    TopK,
    ZeroScorer,
    capacity,
    experts,
    links,
    scorers,
    selectors,
)
from terramoe.moe.executors import ExpertParallel, get_executor, shard_bank

T, D, E = 5, 6, 4
KEYS = {
    "task": torch.arange(T) % 2,
    "attributes": torch.ones(T, 3),
    "available": torch.ones(T, E, dtype=torch.bool),
}
SAME_WIDTH = "the width of its input"


def items(width=D):
    return torch.randn(T, width, generator=torch.Generator().manual_seed(0))


def layer(scorer=None, bank=None, **parts):
    torch.manual_seed(0)
    return MoELayer(scorer or LinearScorer(D, E), bank or StackedFFN(E, D, 3), **parts)


def linear():
    return LinearScorer(D, E)


def without(key):
    return {name: value for name, value in KEYS.items() if name != key}


# ------------------------------------------------------------------------- what a scorer, selector or bank is asked
def score(make, x=None, **keys):
    """Ask a scorer for items of the right width unless given."""
    return lambda: make().train()(RouteInput(items() if x is None else x, keys={**KEYS, **keys}))


def unkeyed(make, key):
    return lambda: make()(RouteInput(items(), keys=without(key)))


def choose(selector, **keys):
    """Ask a selector for 4 experts."""
    return lambda: selector(torch.rand(T, E), RouteInput(items(), keys={**KEYS, **keys}))


WIDE = items(D + 1)
SCORERS = {
    "LinearScorer": [(score(linear, WIDE), "LinearScorer", SAME_WIDTH)],
    "MLPScorer": [(score(lambda: scorers.MLPScorer(D, E), WIDE), "MLPScorer", SAME_WIDTH)],
    "CosineScorer": [(score(lambda: scorers.CosineScorer(D, E), WIDE), "CosineScorer", SAME_WIDTH)],
    "PrototypeScorer": [
        (score(lambda: scorers.PrototypeScorer(D, E), WIDE), "PrototypeScorer", SAME_WIDTH),
        (lambda: scorers.PrototypeScorer(D, E, temperature=0), "PrototypeScorer", "temperature above 0"),
    ],
    "GaussianScorer": [(score(lambda: scorers.GaussianScorer(D, E), WIDE), "GaussianScorer", SAME_WIDTH)],
    "HierarchicalScorer": [(score(lambda: scorers.HierarchicalScorer(D, 2, 2), WIDE), "LinearScorer", SAME_WIDTH)],
    "FrozenScorer": [(score(lambda: scorers.FrozenScorer(linear()), WIDE), "LinearScorer", SAME_WIDTH)],
    "FixedNoiseScorer": [(score(lambda: scorers.FixedNoiseScorer(linear(), 0.1), WIDE), "LinearScorer", SAME_WIDTH)],
    "GumbelScorer": [(score(lambda: scorers.GumbelScorer(linear()), WIDE), "LinearScorer", SAME_WIDTH)],
    "JitterScorer": [(score(lambda: scorers.JitterScorer(linear()), WIDE), "LinearScorer", SAME_WIDTH)],
    "NoisyScorer": [
        (score(lambda: scorers.NoisyScorer(LinearScorer(D + 1, E), D, E), WIDE), "NoisyScorer", SAME_WIDTH),
        (score(lambda: scorers.NoisyScorer(linear(), D, 1)), "NoisyScorer", "same number of experts"),
    ],
    "PerKeyScorer": [
        (unkeyed(lambda: scorers.PerKeyScorer("task", [linear()]), "task"), "PerKeyScorer", "keys={'task'"),
        (score(lambda: scorers.PerKeyScorer("task", [linear()])), "PerKeyScorer", "use 0 to 0"),
        (
            score(lambda: scorers.PerKeyScorer("task", [linear(), LinearScorer(D, E + 1)])),
            "PerKeyScorer",
            "as many experts",
        ),
        (lambda: scorers.PerKeyScorer("task", []), "PerKeyScorer", "one scorer per key value"),
    ],
    "EmbeddedKeyScorer": [
        (unkeyed(lambda: scorers.EmbeddedKeyScorer("task", 2, E), "task"), "EmbeddedKeyScorer", "keys={'task'"),
        (score(lambda: scorers.EmbeddedKeyScorer("task", 1, E)), "EmbeddedKeyScorer", "use 0 to 0"),
        (score(lambda: scorers.EmbeddedKeyScorer("task", 2, E, dim=D), WIDE), "EmbeddedKeyScorer", SAME_WIDTH),
    ],
    "AttributeScorer": [
        (
            unkeyed(lambda: scorers.AttributeScorer("attributes", 3, E), "attributes"),
            "AttributeScorer",
            "keys={'attributes'",
        ),
        (score(lambda: scorers.AttributeScorer("attributes", 4, E)), "AttributeScorer", "one row of attributes"),
    ],
    "BinaryCodeScorer": [
        (score(lambda: scorers.BinaryCodeScorer(E, 2, dim=D), WIDE), "BinaryCodeScorer", SAME_WIDTH),
        (lambda: scorers.BinaryCodeScorer(E, E + 1), "BinaryCodeScorer", "choose k in 1..E"),
    ],
}
SELECTORS = {
    "TopK": [(choose(TopK(k)), "selector TopK", f"k in 1..{E}") for k in (0, E + 1)],
    "RandomK": [(choose(selectors.RandomK(k)), "selector RandomK", f"k in 1..{E}") for k in (0, E + 1)],
    "Sinkhorn": [(choose(selectors.Sinkhorn(k)), "selector Sinkhorn", f"k in 1..{E}") for k in (0, E + 1)],
    "SampleFromTop": [
        (choose(selectors.SampleFromTop(k, pool)), "selector SampleFromTop", "1 <= k <= pool <= E")
        for k, pool in ((0, 2), (3, 2), (2, E + 1))
    ],
    "GroupLimited": [
        (choose(selectors.GroupLimited(*case)), "selector GroupLimited", "let groups divide the experts")
        for case in ((3, 2, 1), (1, 3, 1), (1, 2, 3), (1, 0, 1), (0, 2, 1))
    ],
    "TopOfEachGroup": [
        (choose(selectors.TopOfEachGroup(groups)), "selector TopOfEachGroup", "let groups divide E")
        for groups in (0, 3)
    ],
    "GroupedSoftmax": [
        (lambda groups=groups: selectors.GroupedSoftmax(groups)(torch.rand(T, E)), "link GroupedSoftmax", "divide E")
        for groups in (0, 3)
    ],
    "ExpertChoice": [(lambda: selectors.ExpertChoice(0.0), "selector ExpertChoice", "a value above 0")],
    "TopP": [(lambda p=p: selectors.TopP(p), "selector TopP", "0 < p <= 1") for p in (0.0, 1.1)],
    "Threshold": [(lambda tau=t: selectors.Threshold(tau), "selector Threshold", "0 <= tau <= 1") for t in (-0.1, 1.1)],
    "Support": [(lambda: selectors.Support(0), "selector Support", "at least 1")],
    "Available": [
        (
            lambda: selectors.Available(TopK(1))(torch.rand(T, E), RouteInput(items(), keys=without("available"))),
            "selector Available",
            "keys={'available'",
        ),
        (
            choose(selectors.Available(TopK(1)), available=torch.ones(T, E - 1, dtype=torch.bool)),
            "selector Available",
            "one bool per item and expert",
        ),
        (choose(selectors.Available(TopK(E + 1))), "selector TopK", f"k in 1..{E}"),
    ],
    "Table": [
        (
            lambda: selectors.Table("task", [0, 1])(torch.rand(T, E), RouteInput(items(), keys=without("task"))),
            "selector Table",
            "keys={'task'",
        ),
        (choose(selectors.Table("task", [0])), "selector Table", "use 0 to 0, or build a larger table"),
        (choose(selectors.Table("task", [0, E])), "selector Table", "the layer's number of experts"),
        (choose(selectors.Table("task", [0, -1])), "selector Table", "the layer's number of experts"),
    ],
    "HashedItem": [(choose(selectors.HashedItem(D + 1)), "selector HashedItem", SAME_WIDTH)],
}
CAPACITIES = {
    "FixedCapacity": [
        (lambda wrong=wrong: FixedCapacity(**wrong), "FixedCapacity", fix)
        for wrong, fix in (
            ({"factor": 0.0}, "finite factor above 0"),
            ({"factor": float("nan")}, "finite factor above 0"),
            ({"factor": float("inf")}, "finite factor above 0"),
            ({"minimum": 0}, "a minimum and a multiple of at least 1"),
            ({"multiple_of": 0}, "a minimum and a multiple of at least 1"),
            ({"order": "magic"}, "'position', 'priority' or 'random'"),
        )
    ],
    "AdaptiveCapacity": [(lambda: capacity.AdaptiveCapacity(0.0), "AdaptiveCapacity", "above 0, or None")],
}
EXEMPT = {
    "ZeroScorer": "looks at nothing",
    "Scores": "a record",
    "Pairs": "a record",
    "All": "takes every expert of any number of them",
    "Balanced": "has no setting, and assigns any scores",
    "RandomSecond": "a switch around another capacity",
    "RenormalisedAfterDrop": "a wrapper of another capacity",
    "Bank": "abstract",
    "ModuleBank": "its modules are the caller's, and a wrong width is their own error",
}
BANKS = {
    "StackedFFN": (lambda: StackedFFN(E, D, 3), (D + 1,), SAME_WIDTH),
    "AdapterBank": (lambda: experts.AdapterBank(E, D, 3), (D + 1,), SAME_WIDTH),
    "LoRABank": (lambda: experts.LoRABank(E, D, 3, 2), (D + 1,), SAME_WIDTH),
    "TTLoRABank": (lambda: experts.TTLoRABank(E, (2, 3), (2, 2), 2), (D + 1,), "choose in_shape with the width"),
    "ConvBank": (lambda: experts.ConvBank(E, D, 2), (3, 3, D + 1), "build the bank with their channels"),
    "ChannelBank": (lambda: experts.ChannelBank(D, E), (3, 3, D + 1), "build the bank with their channels"),
}
GATHERED = ("StackedFFN", "AdapterBank", "LoRABank")


def attend(x, num_items=T, num_experts=E):
    attention = experts.AttentionExperts(E, D, 2)
    routing = layer(ZeroScorer(num_experts), StackedFFN(num_experts, 1, 1)).route(RouteInput(torch.ones(num_items, 1)))
    return attention(x, routing)


SIZES = {
    "AttentionExperts": [
        (lambda: attend(torch.ones(1, T, D + 1)), "AttentionExperts", "sequences of tokens, channels last"),
        (lambda: attend(torch.ones(T, D)), "AttentionExperts", "sequences of tokens, channels last"),
        (lambda: attend(torch.ones(1, T, D), num_items=T + 1), "AttentionExperts", "route the flattened tokens"),
        (lambda: attend(torch.ones(1, T, D), num_experts=3), "AttentionExperts", "route the flattened tokens"),
        (lambda: experts.AttentionExperts(E, D, 0), "AttentionExperts", "at least 1"),
    ],
    "StackedFFN": [
        (lambda wrong=wrong: StackedFFN(*wrong), "StackedFFN", "at least 1")
        for wrong in ((0, D, 3), (E, 0, 3), (E, D, 0), (E, D, 3, 0))
    ]
    + [(lambda: StackedFFN(E, D, 3, activation="sine"), "StackedFFN", "use one of gelu")],
    "AdapterBank": [(lambda: experts.AdapterBank(E, D, 0), "AdapterBank", "at least 1")],
    "LoRABank": [
        (lambda: experts.LoRABank(E, D, D, 0), "LoRABank", "at least 1"),
        (lambda: experts.LoRABank(E, D, D, 2).merge([1.0]), "LoRABank.merge", "one weight per expert"),
    ],
    "TTLoRABank": [
        (lambda: experts.TTLoRABank(E, (), (2, 2), 2), "TTLoRABank", "at least one factor"),
        (lambda: experts.TTLoRABank(E, (D,), (D,), 2).merge([1.0]), "TTLoRABank.merge", "one weight per expert"),
    ],
    "ConvBank": [
        (lambda: experts.ConvBank(E, D, 0), "ConvBank", "at least 1"),
        (lambda: experts.ConvBank(E, D, 2, groups=4), "ConvBank", "divides both"),
        (lambda: experts.ConvBank(E, D, 2).merge(torch.ones(1)), "ConvBank.merge", "one weight per expert"),
    ],
    "ChannelBank": [
        (lambda: experts.ChannelBank(0, E), "ChannelBank", "at least 1"),
        (
            lambda: experts.ChannelBank(D, E).run_gated(torch.ones(T, 3, 3, D), torch.ones(T, E + 1)),
            "ChannelBank",
            "one gate per image",
        ),
    ],
    "ModuleBank": [(lambda: ModuleBank([]), "ModuleBank", "at least one module")],
}
LAYER = {
    "MoELayer": [
        (lambda: layer(LinearScorer(D, 3))(items()), "MoELayer", "with the same number of experts"),
        (lambda: layer()(WIDE), "LinearScorer", SAME_WIDTH),
        (lambda: layer(selector=TopK(E + 1))(items()), "selector TopK", f"k in 1..{E}"),
        (lambda: layer()(torch.ones(D)), "RouteInput.x", "items first and channels last"),
        (lambda: layer()(items(), mask=torch.ones(T + 1, dtype=torch.bool)), "RouteInput.mask", "one row per item"),
        (lambda: layer()(items(), group=torch.zeros(T - 1)), "RouteInput.group", "one row per item"),
        (lambda: layer()(items(), keys={"task": torch.zeros(2)}), "RouteInput.task", "one row per item"),
        (lambda: layer()(items()[:3], layer()(items())[1]), "MoELayer", "on the items that it was made for"),
        (
            lambda: layer()(items(), layer(LinearScorer(D, 3), StackedFFN(3, D, 3))(items())[1]),
            "MoELayer",
            "on a layer with as many experts",
        ),
        (lambda: layer(executor="magic"), "executor", "use one of auto"),
        (lambda: layer(link=links.Tempered(0.0)), "Tempered", "a value above 0"),
    ],
    "executors": [
        (lambda: get_executor("magic"), "executor", "use one of auto"),
        (lambda: ExpertParallel(E), "ExpertParallel", "init_process_group"),
        (lambda: shard_bank(StackedFFN(E, D, 3), 2, 2), "shard_bank", "0 <= rank < world"),
        (lambda: shard_bank(experts.LoRABank(E, D, D, 2), 0, 2), "shard_bank", "a StackedFFN or a ModuleBank"),
    ],
}
for _executor in EXECUTORS:  # with no item, and with each bank's wrong width where the router does not look
    LAYER["MoELayer"].append(
        (lambda x=_executor: layer(executor=x)(torch.empty(0, D)), "MoELayer", "pass at least one item and mask it")
    )
    for _name, (_make, _shape, _fix) in BANKS.items():
        if _executor != "gather" or _name in GATHERED:
            LAYER["executors"].append(
                (
                    lambda x=_executor, make=_make, shape=_shape: layer(ZeroScorer(E), make(), executor=x)(
                        torch.ones(T, *shape)
                    ),
                    _name,
                    _fix,
                )
            )
for _name in ("ModuleBank", "TTLoRABank", "ConvBank", "ChannelBank"):
    _make = BANKS[_name][0] if _name in BANKS else lambda: ModuleBank([nn.Linear(D, D)] * E)
    _x = torch.ones(T, *BANKS[_name][1][:-1], D) if _name in BANKS else items()
    LAYER["executors"].append(
        (lambda make=_make, x=_x: layer(bank=make(), executor="gather")(x), _name, "use the executor 'loop'")
    )

TABLES = (SCORERS, SELECTORS, CAPACITIES, SIZES, LAYER)
CASES = [
    pytest.param(*case, id=f"{name} {i}")
    for table in TABLES
    for name, cases in table.items()
    for i, case in enumerate(cases)
]


@pytest.mark.parametrize(("call", "where", "fix"), CASES)
def test_one_error_of_ours_names_the_part_and_the_fix(call, where, fix):
    with pytest.raises(RoutingError) as caught:
        call()
    assert caught.value.where == where
    assert fix in caught.value.fix
    assert caught.value.what
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_every_part_has_a_case_or_a_reason():
    public = [(module, name) for module in (scorers, selectors, experts) for name in module.__all__]
    public += [(capacity, name) for name, part in vars(capacity).items() if inspect.isclass(part)]
    parts = {
        name
        for module, name in public
        if inspect.isclass(part := getattr(module, name)) and part.__module__.startswith(module.__name__)
    }
    tested = {name for table in (SCORERS, SELECTORS, CAPACITIES, SIZES) for name in table}
    assert sorted(parts - tested - set(EXEMPT)) == [], "add a case, or an exemption with a reason"
    assert sorted((tested | set(EXEMPT)) - parts) == [], "these are gone"
    assert set(BANKS) | {"ModuleBank", "AttentionExperts"} == set(SIZES)


# --------------------------------------------------------------------------------------------------------- NaN items
ROUTED = {
    "linear": (linear, "LinearScorer"),
    "mlp": (lambda: scorers.MLPScorer(D, E), "MLPScorer"),
    "cosine": (lambda: scorers.CosineScorer(D, E), "CosineScorer"),
    "euclidean": (lambda: scorers.PrototypeScorer(D, E, metric="euclidean"), "PrototypeScorer"),
    "gaussian": (lambda: scorers.GaussianScorer(D, E), "GaussianScorer"),
    "hierarchical": (lambda: scorers.HierarchicalScorer(D, 2, 2), "HierarchicalScorer"),
    "binary code": (lambda: scorers.BinaryCodeScorer(E, 2, dim=D), "BinaryCodeScorer"),
    "noisy": (lambda: scorers.NoisyScorer(linear(), D, E).eval(), "NoisyScorer"),
    "embedded with item": (lambda: scorers.EmbeddedKeyScorer("task", 2, E, dim=D), "EmbeddedKeyScorer"),
    "per key": (lambda: scorers.PerKeyScorer("task", [linear(), linear()]), "PerKeyScorer"),
    # These do not look at the item, so that the layer must.
    "zero": (lambda: ZeroScorer(E), "MoELayer"),
    "embedded": (lambda: scorers.EmbeddedKeyScorer("task", 2, E), "MoELayer"),
    "attributes": (lambda: scorers.AttributeScorer("attributes", 3, E), "MoELayer"),
    "one code": (lambda: scorers.BinaryCodeScorer(E, 2), "MoELayer"),
}


def spoilt(x, item=2):
    x = x.clone()
    x[item].view(-1)[1] = torch.nan
    return x


@pytest.mark.parametrize(("make", "where"), ROUTED.values(), ids=ROUTED)
def test_a_nan_item_is_named_and_a_masked_one_is_not(make, where):
    module, mask = layer(make()), torch.arange(T) != 2
    with pytest.raises(RoutingError, match=r"1 of 5 items .*NaN.*, first item 2.*Fix: pass mask=") as caught:
        module(spoilt(items()), keys=KEYS)
    assert caught.value.where == where
    y, routing = module(spoilt(items()), mask=mask, keys=KEYS)
    clean, _ = module(items(), keys=KEYS)
    torch.testing.assert_close(y[mask], clean[mask])
    assert (y[2] == 0).all()
    assert 2 not in routing.item


@pytest.mark.parametrize(
    ("name", "executor"),
    [(name, x) for name in (*BANKS, "ModuleBank") for x in EXECUTORS if x != "gather" or name in GATHERED],
)
def test_no_bank_passes_on_a_masked_nan_item(name, executor):
    make, shape, _ = BANKS.get(name, (lambda: ModuleBank(nn.Linear(D, D) for _ in range(E)), (D + 1,), ""))
    module, mask = layer(bank=make(), selector=All(), executor=executor), torch.arange(T) != 2
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(T, *shape[:-1], D)
    with pytest.raises(RoutingError, match=r"Fix: pass mask="):
        module(spoilt(x))
    y, _ = module(spoilt(x), mask=mask)
    torch.testing.assert_close(y[mask], module(x)[0][mask])
    assert (y[2] == 0).all()


@pytest.mark.parametrize(
    "limit", [FixedCapacity(0.5), capacity.AdaptiveCapacity(), capacity.RenormalisedAfterDrop(FixedCapacity(0.5))]
)
def test_items_that_are_all_masked_are_no_error(limit):
    y, routing = layer(capacity=limit)(torch.full((T, D), torch.nan), mask=torch.zeros(T, dtype=torch.bool))
    assert (y == 0).all()
    assert routing.load().sum() == 0
