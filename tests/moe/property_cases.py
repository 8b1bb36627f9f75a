"""Parts by name, and random cases of them: what the property catalogue P1 to P30 runs on.

Everything is drawn from a seed, in float64, so that an example is a handful of integers that Hypothesis can shrink.
"""

import copy
import os

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from terramoe.moe import EXECUTORS, MoELayer, RouteInput, links, weighing
from terramoe.moe.capacity import AdaptiveCapacity, FixedCapacity, RandomSecond, RenormalisedAfterDrop
from terramoe.moe.controllers import BiasedSelector, DroppingSelector, ReplaySelector
from terramoe.moe.experts import AdapterBank, Bank, ChannelBank, ConvBank, LoRABank, ModuleBank, StackedFFN, TTLoRABank
from terramoe.moe.scorers import (
    AttributeScorer,
    BinaryCodeScorer,
    CosineScorer,
    EmbeddedKeyScorer,
    FixedNoiseScorer,
    FrozenScorer,
    GaussianScorer,
    GumbelScorer,
    HierarchicalScorer,
    JitterScorer,
    LinearScorer,
    MLPScorer,
    NoisyScorer,
    PerKeyScorer,
    PrototypeScorer,
    Scores,
    ZeroScorer,
)
from terramoe.moe.selectors import (
    All,
    Available,
    Balanced,
    ExpertChoice,
    GroupLimited,
    HashedItem,
    Pairs,
    RandomK,
    SampleFromTop,
    Sinkhorn,
    Support,
    Table,
    Threshold,
    TopK,
    TopOfEachGroup,
    TopP,
)

DIM, EXPERTS = 6, 4
EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "20"))  # the seeded bugs run the catalogue with fewer
many = settings(max_examples=EXAMPLES, deadline=None)
few = settings(max_examples=max(EXAMPLES // 4, 2), deadline=None)
seeds = st.integers(0, 2**20)
counts = st.integers(1, 12)

SELECTORS = {
    "top1": TopK(1),
    "top2": TopK(2),
    "top3": TopK(3),
    "all": All(),
    "random": RandomK(2),
    "top-p": TopP(0.6),
    "threshold": Threshold(0.4),
    "support": Support(),
    "sparse support": Support(2, of_logits=True),
    "expert choice": ExpertChoice(2.0),
    "balanced": Balanced(),
    "sinkhorn": Sinkhorn(2),
    "table": Table.random("tile", 30, EXPERTS),
    "two of a table": Table("tile", [[v % EXPERTS, (v + 1) % EXPERTS] for v in range(30)]),
    "hashed": HashedItem(DIM),
    "group limited": GroupLimited(2, groups=2, limit=1),
    "top of each group": TopOfEachGroup(2),
    "sampled": SampleFromTop(2, pool=3),
    "available": Available(TopK(2)),
    "biased": BiasedSelector(TopK(2), EXPERTS),
    "dropping": DroppingSelector(TopK(2), EXPERTS).eval(),
    "replaying": ReplaySelector(TopK(2)),
}
FIXED_K = {
    "top1": 1,
    "top2": 2,
    "top3": 3,
    "all": EXPERTS,
    "random": 2,
    "balanced": 1,
    "sinkhorn": 2,
    "table": 1,
    "two of a table": 2,
    "hashed": 1,
    "group limited": 2,
    "top of each group": 2,
    "sampled": 2,
    "biased": 2,
    "dropping": 2,
    "replaying": 2,
}
BY_PLACE = ("random", "sampled")  # the draw goes by the item's place in the batch
BY_RULE = ("random", "sampled", "table", "two of a table", "hashed")  # experts' names matter, not their scores
BY_GROUP = ("group limited", "top of each group")  # experts' neighbours matter

SCORERS = {
    "zero": lambda: ZeroScorer(EXPERTS),
    "linear": lambda: LinearScorer(DIM, EXPERTS, bias=True),
    "mlp": lambda: MLPScorer(DIM, EXPERTS, hidden=6),
    "cosine": lambda: CosineScorer(DIM, EXPERTS, projected=6),
    "prototype": lambda: PrototypeScorer(DIM, EXPERTS),
    "euclidean": lambda: PrototypeScorer(DIM, EXPERTS, metric="euclidean"),
    "gaussian": lambda: GaussianScorer(DIM, EXPERTS),
    "hierarchical": lambda: HierarchicalScorer(DIM, 2, 2),
    "per key": lambda: PerKeyScorer("task", [LinearScorer(DIM, EXPERTS) for _ in range(3)]),
    "embedded": lambda: EmbeddedKeyScorer("task", 3, EXPERTS, dim=DIM),
    "attributes": lambda: AttributeScorer("attributes", 8, EXPERTS),
    "code": lambda: BinaryCodeScorer(EXPERTS, 2, dim=DIM),
    "frozen": lambda: FrozenScorer(LinearScorer(DIM, EXPERTS)),
    "noisy": lambda: NoisyScorer(LinearScorer(DIM, EXPERTS), DIM, EXPERTS),
    "fixed noise": lambda: FixedNoiseScorer(LinearScorer(DIM, EXPERTS), 0.5),
    "gumbel": lambda: GumbelScorer(LinearScorer(DIM, EXPERTS)),
    "jitter": lambda: JitterScorer(LinearScorer(DIM, EXPERTS), 0.1),
}
NOISY = ("noisy", "fixed noise", "gumbel", "jitter")

CAPACITIES = {
    "position": FixedCapacity(0.7),
    "priority": FixedCapacity(0.7, order="priority"),
    "random order": FixedCapacity(0.7, order="random"),
    "in pairs": FixedCapacity(0.4, multiple_of=2),
    "adaptive": AdaptiveCapacity(),
    "capped": AdaptiveCapacity(1.1, order="priority"),
    "random second": RandomSecond(FixedCapacity(0.7)),
    "renormalised": RenormalisedAfterDrop(FixedCapacity(0.7)),
}
WEIGHINGS = {
    "raw": weighing.raw,
    "renormalised": weighing.renormalised,
    "softmax of selected": weighing.softmax_selected,
    "ones": weighing.ones,
    "scaled": weighing.Scaled(weighing.renormalised, 2.5),
    "sigmoid": weighing.sigmoid_of_logit,
}


def _unlike_modules() -> ModuleBank:
    return ModuleBank(nn.Sequential(nn.Linear(DIM, h), nn.Tanh(), nn.Linear(h, 5)) for h in range(3, 3 + EXPERTS))


BANKS = {
    "ffn": lambda: StackedFFN(EXPERTS, DIM, 7, 5),
    "gated ffn": lambda: StackedFFN(EXPERTS, DIM, 7, 5, activation="swiglu", bias=False),
    "relu ffn": lambda: StackedFFN(EXPERTS, DIM, 7, 5, activation="relu"),
    "modules": _unlike_modules,
    "adapter": lambda: AdapterBank(EXPERTS, DIM, 3),
    "lora": lambda: LoRABank(EXPERTS, DIM, 5, 2),
    "wide lora": lambda: LoRABank(EXPERTS, DIM, 5, 60),  # too wide for the path without sorting
    "shared lora": lambda: LoRABank(EXPERTS, DIM, 5, 2, shared_a=True),
    "tt-lora": lambda: TTLoRABank(EXPERTS, (2, 3), (5,), 2),
    "conv": lambda: ConvBank(EXPERTS, DIM, 5),
    "channels": lambda: ChannelBank(DIM, EXPERTS),
}
IMAGES = ("conv", "channels")  # banks whose items are images


def gathers(bank: Bank) -> bool:
    """Whether the weights of single rows can be gathered, which the executor "gather" needs."""
    return type(bank).run_each is not Bank.run_each


RUNS = [(executor, bank) for executor in EXECUTORS for bank in BANKS if executor != "gather" or gathers(BANKS[bank]())]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randomised(module, seed):
    """The module in float64 with all parameters random, also those that start at zero."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return module


def random_items(count, seed, *inner):
    return torch.randn(count, *inner, DIM, generator=generator(seed), dtype=torch.float64)


def items_for(bank, count, seed):
    """Rows, or small images where the bank wants images."""
    return random_items(count, seed, 3, 2) if bank in IMAGES else random_items(count, seed)


def random_keys(count, seed):
    """Every key that a scorer or selector above asks for."""
    draw = generator(seed + 1)
    available = torch.rand(count, EXPERTS, generator=draw) > 0.3
    available[:, 0] |= ~available.any(1)
    return {
        "tile": torch.randint(30, (count,), generator=draw),
        "task": torch.randint(3, (count,), generator=draw),
        "attributes": torch.randn(count, 8, generator=draw, dtype=torch.float64),
        "available": available,
    }


def random_input(count, seed, *, masked=False, groups=0):
    """Items with keys; some masked, in some groups, when asked for."""
    draw = generator(seed + 2)
    mask = torch.rand(count, generator=draw) < 0.7 if masked else None
    group = torch.randint(groups, (count,), generator=draw) if groups else None
    return RouteInput(random_items(count, seed), mask, group, random_keys(count, seed))


def take(inp, rows):
    """The input of some items, or of all in another order."""
    mask, group = (None if t is None else t[rows] for t in (inp.mask, inp.group))
    return RouteInput(inp.x[rows], mask, group, {name: value[rows] for name, value in inp.keys.items()})


def linear_scorer(seed, experts=EXPERTS):
    return randomised(LinearScorer(DIM, experts, bias=True), seed)


def build(selector="top2", bank="ffn", seed=0, **parts):
    """A float64 layer of random parameters. ``selector`` and ``bank`` are names above or parts."""
    bank = randomised(BANKS[bank](), seed) if isinstance(bank, str) else bank
    selector = copy.deepcopy(SELECTORS[selector] if isinstance(selector, str) else selector)
    scorer = parts.pop("scorer", None) or linear_scorer(seed + 3, bank.num_experts)
    return MoELayer(scorer, bank, selector=selector, **parts).double()


class _Given(nn.Module):
    """A scorer whose logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, inp):
        return Scores(self.logits)


def route_scores(logits, selector=None, *, mask=None, group=None, keys=None, **parts):
    """The routing of given logits (T, E)."""
    bank = ModuleBank(nn.Identity() for _ in range(logits.shape[1]))
    layer = MoELayer(_Given(logits), bank, selector=selector, **parts)
    return layer.route(RouteInput(logits.new_zeros(logits.shape[0], 1), mask, group, keys or {}))


def random_logits(seed, items, experts=EXPERTS):
    return torch.randn(items, experts, generator=generator(seed), dtype=torch.float64)


def fixed_choices():
    """Choices that must not differ between processes: of tables, hashes of items, and the random control."""
    x = torch.linspace(-1, 1, 20 * DIM, dtype=torch.float64).mul(50).sin().view(20, DIM)
    inp = RouteInput(x, keys={"tile": torch.arange(20)})
    tables = Table.random("tile", 20, 4, seed=7), Table.balanced("tile", [float(v % 5) for v in range(20)], 4)
    parts = (*tables, HashedItem(DIM, seed=7), RandomK(2, seed=7))
    return [selector(torch.zeros(20, 4), inp).expert.tolist() for selector in parts]


def run_on(layer, inp, routing=None):
    """(y, routing) of a layer on an input."""
    return layer(inp.x, routing, mask=inp.mask, group=inp.group, keys=inp.keys)


def choose(selector, logits, inp):
    """Pairs by name or part, from logits."""
    selector = SELECTORS[selector] if isinstance(selector, str) else selector
    return selector(links.softmax(logits) if selector.needs == "probs" else logits, inp)


def pairs_of(routing):
    """The pairs of a record, as a weighing wants them."""
    return Pairs(routing.item, routing.expert, routing.rank, routing.fixed_k)


def used(pairs, items, experts=EXPERTS):
    """(T, E) bool of chosen pairs, failing when one stands twice."""
    cell = pairs.item * experts + pairs.expert
    assert cell.unique().numel() == cell.numel()
    return torch.zeros(items * experts, dtype=torch.bool).index_fill(0, cell, True).view(items, experts)


def mixture(x, routing, bank):
    """What a layer must give: for each kept row of the record the expert's output times the weight, summed by item."""
    outputs = torch.stack([bank.run(e, x) for e in range(bank.num_experts)])
    rows = routing.kept.nonzero().squeeze(1)
    item, expert = routing.item[rows], routing.expert[rows]
    weight = routing.weight[rows].reshape(-1, *[1] * (outputs.ndim - 2))
    return outputs.new_zeros(outputs.shape[1:]).index_add(0, item, weight * outputs[expert, item])


def parameters_of(bank, expert):
    """The part of every parameter that belongs to one expert alone, as (parameter, index)."""
    if isinstance(bank, ModuleBank):
        return [(p, ...) for p in bank.experts[expert].parameters()]
    return [(p, expert) for p in bank.parameters() if p.shape[0] == bank.num_experts]


def close(a, b, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def limit_of(part, pairs, experts=EXPERTS):
    """The capacity that a rule gives an expert for that many pairs, computed in whole numbers."""
    if isinstance(part, AdaptiveCapacity):
        part = FixedCapacity(experts if part.most is None else part.most)
    part = getattr(part, "inner", part)
    needed = max(part.minimum, -(-round(100 * part.factor) * pairs // (100 * experts)))
    return needed + -needed % part.multiple_of


def check_order(routing, order):
    """No pair is kept while one of lower rank at the same expert is dropped; under "priority" none of the same rank
    whose item has a greater largest probability; under "position" none of the same rank that stands earlier."""
    priority = routing.probs.amax(-1)
    for expert in range(routing.num_experts):
        mine = routing.expert == expert
        kept, dropped = mine & routing.kept, mine & ~routing.kept
        if not kept.any() or not dropped.any():
            continue
        last = int(routing.rank[kept].max())
        assert last <= int(routing.rank[dropped].min())
        kept, dropped = (routing.item[m & (routing.rank == last)] for m in (kept, dropped))
        if dropped.numel() and order == "priority":
            assert priority[kept].min() >= priority[dropped].max()
        elif dropped.numel() and order == "position":
            assert kept.max() < dropped.min()
