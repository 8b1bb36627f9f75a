"""Gradient cases of scorers, links, weighing and capacity."""

from collections.abc import Callable

import torch
from gradcheck_cases import (
    MASK,
    Case,
    D,
    E,
    T,
    case,
    leaf,
    learned,
    linear,
    of_values,
    route,
    seeded,
    shaken,
)
from torch import nn

from terramoe.moe import (
    FixedCapacity,
    LinearScorer,
    RouteInput,
    TopK,
    adapters,
    capacity,
    links,
    organisation,
    scorers,
    weighing,
)
from terramoe.moe.controllers import TemperedLink
from terramoe.moe.selectors import GroupedSoftmax, Support

KEYS = {"task": torch.arange(T) % 2, "attributes": torch.randn(T, 3, generator=torch.Generator().manual_seed(5))}

# The label "blind" marks a scorer that looks at no item.
SCORERS = {
    "scorers.LinearScorer": {"": lambda: LinearScorer(D, E, bias=True)},
    "scorers.MLPScorer": {"": lambda: scorers.MLPScorer(D, E, hidden=3)},
    "scorers.CosineScorer": {"": lambda: scorers.CosineScorer(D, E, projected=3)},
    "scorers.PrototypeScorer": {
        metric: lambda metric=metric: scorers.PrototypeScorer(D, E, metric=metric) for metric in ("dot", "euclidean")
    },
    "scorers.GaussianScorer": {"": lambda: scorers.GaussianScorer(D, E)},
    "scorers.HierarchicalScorer": {"": lambda: scorers.HierarchicalScorer(D, 2, 2)},
    "scorers.FrozenScorer": {"": lambda: scorers.FrozenScorer(linear())},
    "scorers.PerKeyScorer": {"": lambda: scorers.PerKeyScorer("task", [linear(), linear()])},
    "scorers.EmbeddedKeyScorer": {
        "blind": lambda: scorers.EmbeddedKeyScorer("task", 2, E, width=2),
        "with item": lambda: scorers.EmbeddedKeyScorer("task", 2, E, width=2, dim=D),
    },
    "scorers.AttributeScorer": {"blind": lambda: scorers.AttributeScorer("attributes", 3, E, width=3)},
    "scorers.BinaryCodeScorer": {
        "blind": lambda: scorers.BinaryCodeScorer(E, 2, gamma=6.0),  # wide: no step is at its end
        "with item": lambda: scorers.BinaryCodeScorer(E, 2, dim=D, gamma=20.0),
    },
    "scorers.NoisyScorer": {"": lambda: scorers.NoisyScorer(linear(), D, E)},
    "scorers.FixedNoiseScorer": {"": lambda: scorers.FixedNoiseScorer(linear(), 0.25)},
    "scorers.GumbelScorer": {"": lambda: scorers.GumbelScorer(linear())},
    "scorers.JitterScorer": {"": lambda: scorers.JitterScorer(linear(), 0.1)},
    "organisation.TaskGates": {"": lambda: organisation.TaskGates({"a": linear(), "b": linear()})},
    "organisation.TaskEmbeddingScorer": {
        "blind": lambda: organisation.TaskEmbeddingScorer(2, E, embedding=2),
        "with item": lambda: organisation.TaskEmbeddingScorer(2, E, embedding=2, dim=D),
    },
    "adapters.BlendScorer": {
        "": lambda: adapters.BlendScorer(linear(), organisation.TaskEmbeddingScorer(2, E, embedding=2), 1, 3)
    },
}


def scorer_case(make: Callable[[], nn.Module], sees_item: bool) -> Case:
    def build():
        scorer, x = shaken(make()).train(), leaf(T, D)

        def run():
            logits, clean, std = scorer(RouteInput(x, keys=KEYS))
            return tuple(part for part in (logits, clean, std) if part is not None and part.requires_grad)

        return seeded(run), [*learned(scorer), *([x] if sees_item else [])]

    return build


for _name, _makes in SCORERS.items():
    for _label, _make in _makes.items():
        case(_name, _label)(scorer_case(_make, _label != "blind"))


@case("scorers.smooth_step")
def smooth_step():
    t = torch.tensor([-0.7, -0.3, 0.05, 0.4, 0.8], dtype=torch.float64, requires_grad=True)
    return lambda: scorers.smooth_step(t), [t]


@case("scorers.checked_features")
def checked_features():
    x = leaf(T, 2, D)
    return lambda: scorers.checked_features(RouteInput(x), D, "here"), [x]


for _name, _link in {
    "softmax": links.softmax,
    "sigmoid": links.sigmoid,
    "relu": links.relu,
    "identity": links.identity,
    "Tempered": links.Tempered(0.6),
    "sparsemax": links.sparsemax,
}.items():
    case(f"links.{_name}")(of_values(_link, (T, E)))
case("selectors.GroupedSoftmax")(of_values(GroupedSoftmax(2), (T, E)))
case("controllers.TemperedLink")(of_values(TemperedLink(0.6), (T, E)))

PAIRS = {
    "top-2": lambda z: TopK(2)(z, RouteInput(z)),
    "ragged": lambda z: Support()(links.sparsemax(z), RouteInput(z, MASK)),
}
for _name, _weigh in {
    "raw": weighing.raw,
    "renormalised": weighing.renormalised,
    "softmax_selected": weighing.softmax_selected,
    "Scaled": weighing.Scaled(weighing.raw, 2.5),
    "sigmoid_of_logit": weighing.sigmoid_of_logit,
}.items():
    for _label, _pairs in PAIRS.items():

        @case(f"weighing.{_name}", _label)
        def weigh(weigh=_weigh, pairs=_pairs):
            z = leaf(T, E)
            return lambda: weigh(links.softmax(z), z, pairs(z.detach())), [z]


for _name, _capacity in {
    "FixedCapacity": FixedCapacity(0.7),
    "AdaptiveCapacity": capacity.AdaptiveCapacity(0.7),
    "RandomSecond": capacity.RandomSecond(FixedCapacity(2.0)),
    "RenormalisedAfterDrop": capacity.RenormalisedAfterDrop(FixedCapacity(0.7)),
}.items():

    @case(f"capacity.{_name}")
    def limited(limit=_capacity):
        z = leaf(T, E)
        return seeded(lambda: limit(route(z, weigh=weighing.renormalised)).dense()), [z]


@case("routing.RouteInput")
def features():
    x = leaf(T, 2, D)
    return lambda: RouteInput(x, MASK).features(), [x]


@case("routing.Routing")
def records():
    z = leaf(T, E)

    def run():
        r = capacity.FixedCapacity(0.7)(route(z, mask=MASK))
        return r.dense(), r.importance(), r.item_entropy(), r.entropy(), r.margin()

    return run, [z]
