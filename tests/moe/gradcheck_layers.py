"""Gradient cases of what is built of several parts: organisation, merging, soft, gates, adapters."""

import torch
from gradcheck_cases import (
    MASK,
    D,
    E,
    T,
    case,
    leaf,
    learned,
    linear,
    of_logits,
    of_module,
    of_values,
    route,
    seeded,
    shaken,
)
from torch import Tensor, nn

from terramoe.moe import (
    All,
    FixedCapacity,
    LinearScorer,
    MoELayer,
    RouteInput,
    StackedFFN,
    TopK,
    WindowGrid,
    adapters,
    experts,
    merging,
    organisation,
    output_gate,
    soft,
    stochastic,
)
from terramoe.moe.organisation import dense_gate, masking, multi_gate, task_subnetwork


def layer(**parts) -> MoELayer:
    return MoELayer(linear(), StackedFFN(E, D, 2), **parts)


def first(module: nn.Module, x: Tensor) -> Tensor:
    """The output without the routing."""
    return module(x, mask=MASK)[0]


def mixed_tasks(module: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(y for y, _ in module(x, mask=MASK).values())


class TinyModel(nn.Module):
    """Images -> features and logits, as ModelMixture wants them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(image).tanh()
        return features, self.head(features)


case("layer.MoELayer")(of_module(lambda: layer(capacity=FixedCapacity(0.7)), first, (T, D)))
EXTRACT = {
    f"{levels} levels": lambda levels=levels: organisation.build_extraction(["a", "b"], D, 2, 1, 1, levels)
    for levels in (1, 2)
}
for _name, _cases in {
    "CGCLevel": {
        "": of_module(
            lambda: organisation.CGCLevel({"a": LinearScorer(D, 3)}, {"a": StackedFFN(1, D, 2)}, StackedFFN(2, D, 2)),
            lambda m, x: m({"a": x, "shared": x.sin()}, mask=MASK).features["a"],
            (T, D),
        )
    },
    "ProgressiveExtraction": {
        label: of_module(make, lambda m, x: tuple(m(x, mask=MASK)[0][task] for task in "ab"), (T, D))
        for label, make in EXTRACT.items()
    },
    "FeatureGate": {
        f"{classes} classes": of_module(
            lambda classes=classes: organisation.FeatureGate([1, 2], classes, hidden=2),
            lambda m, x: m([x[:, :1], x[:, 1:, ::2, ::2]]),
            (2, 3, 4, 4),
        )
        for classes in (None, 2)
    },
    "ModelMixture": {
        "": of_module(
            lambda: organisation.ModelMixture(
                [TinyModel(), TinyModel()], organisation.FeatureGate([2, 2], hidden=2), nn.Conv2d(2, 2, 1)
            ),
            lambda m, x: m(x).logits,
            (1, 1, 3, 3),
        )
    },
    "MultiGate": {
        "": of_module(
            lambda: organisation.MultiGate(
                MoELayer(organisation.TaskGates({"a": linear(), "b": linear()}), StackedFFN(E, D, 2), selector=TopK(2))
            ),
            mixed_tasks,
            (T, D),
        )
    },
    "PreGatedStack": {
        "": of_module(lambda: organisation.PreGatedStack([layer(), layer()], [nn.LayerNorm(D)] * 2), first, (T, D))
    },
    "SigmoidGate": {"": of_module(lambda: organisation.SigmoidGate(D), lambda m, x: m(x), (T, D))},
    "SharedPlusRouted": {
        "": of_module(
            lambda: organisation.SharedPlusRouted(nn.Linear(D, D), layer(), organisation.SigmoidGate(D)), first, (T, D)
        )
    },
    "WeightedSum": {
        "": of_module(
            lambda: organisation.WeightedSum([nn.Linear(D, 2), nn.Linear(D, 2)], torch.tensor([0.3, 0.7])),
            lambda m, x: m(x),
            (T, D),
        )
    },
    "GatedLinear": {
        "": of_module(lambda: task_subnetwork.GatedLinear(nn.Linear(D, 4), nn.SiLU()), lambda m, x: m(x), (T, D))
    },
    "zero_masked": {"": of_values(lambda x: masking.zero_masked(x, MASK), (T, 2, D))},
    "weighted_loss": {
        "": of_values(
            lambda a, b: organisation.weighted_loss({"a": a, "b": b}, {"a": 0.3, "b": 2.0}, {"b": MASK}), (T,), (T,)
        )
    },
}.items():
    for _label, _make in _cases.items():
        case(f"organisation.{_name}", _label)(_make)


@case("organisation.build_extraction")
def shared_gate_of_the_first_level():
    module, x = shaken(EXTRACT["2 levels"]()), leaf(T, D)
    return lambda: module.levels[0](dict.fromkeys(("a", "b", "shared"), x)).features["shared"], [
        x,
        *learned(module.levels[0].shared_gate),
        *learned(module.levels[0].shared),
    ]


@case("organisation.dense_routing")
def dense_routing():
    scorer, x = shaken(linear()), leaf(T, D)
    return lambda: dense_gate.dense_routing(scorer, RouteInput(x, MASK), E, "here").dense(), [x, *learned(scorer)]


@case("organisation.run_once")
def run_once():
    bank, x, one, other = shaken(StackedFFN(E, D, 2)), leaf(T, D), leaf(T, E, seed=8), leaf(T, E, seed=9)
    return lambda: tuple(multi_gate.run_once(x, [route(one), route(other)], bank)), [x, one, other, *learned(bank)]


@case("merging.merge_experts")
def merge_experts():
    bank, weights = shaken(StackedFFN(E, D, 2)), leaf(2, E)
    return lambda: tuple(merging.merge_experts(bank, weights)), [weights, *learned(bank)]


@case("merging.run_merged")
def run_merged():
    bank, x, weights = shaken(StackedFFN(E, D, 2)), leaf(2, T, D), leaf(2, E)
    return lambda: merging.run_merged(bank, x, weights), [x, weights, *learned(bank)]


@case("merging.merged")
def merged():
    bank, x, z = shaken(StackedFFN(E, D, 2)), leaf(T, D), leaf(1, E)
    return lambda: merging.merged(x, route(z.expand(T, -1), mask=MASK, selector=All()), bank), [x, z, *learned(bank)]


@case("merging.shared_weights")
def shared_weights():
    z = leaf(1, E)
    return lambda: merging.shared_weights(route(z.expand(T, -1), mask=MASK)), [z]


@case("merging.SegmentMergedFFN")
def lory():
    module, start, x = (
        shaken(merging.SegmentMergedFFN(layer(selector=All()), 2)),
        leaf(1, 2, D).detach(),
        leaf(1, 3, D),
    )
    # The first segment's weights take no gradient, by design: it is held fixed, and its output is left out.
    return lambda: module(torch.cat([start, x], 1))[0][:, 2:], [x, *learned(module)]


@case("items.WindowGrid")
def windows():
    grid, x = WindowGrid(1, 3, 3, (2, 2)), leaf(1, 3, 3, 2)
    return lambda: (grid.split(x), grid.merge(grid.split(x).sin()), grid.to_pixels(grid.split(x).sum(1))), [x]


for _label, _mask in {"": None, "masked": MASK[None]}.items():

    @case("soft.SoftMoELayer", _label)
    def soft_moe(mask=_mask):
        module, x = shaken(soft.SoftMoELayer(D, StackedFFN(2, D, 2), 2)), leaf(1, T, D)
        return lambda: module(x, mask)[0], [x, *learned(module)]


@case("soft.SlotRouting")
def slots():
    dispatch, combine, x, y = leaf(1, T, 4), leaf(1, T, 4, seed=2), leaf(1, T, D), leaf(1, 4, D)

    def run():
        record = soft.SlotRouting(dispatch, combine, 2)
        return record.to_slots(x), record.from_slots(y), record.expert_weight()

    return run, [dispatch, combine, x, y]


@case("output_gate.OutputGate")
def output_gate_of_available():
    gate, outputs = shaken(output_gate.OutputGate(E, 2)), leaf(E, T, 2, 2)
    available = torch.tensor([True, True, False, True])
    return lambda: gate(outputs, available, MASK).dense(), [outputs, *learned(gate)]


case("output_gate.OutputGatedLayer")(
    of_module(
        lambda: output_gate.OutputGatedLayer(StackedFFN(E, D, 2), output_gate.OutputGate(E, D), frozen=False),
        first,
        (T, D),
    )
)
case("output_gate.gate_balance")(of_logits(lambda r: output_gate.gate_balance([r, r])))
case("adapters.LoRALinear")(
    of_module(
        lambda: adapters.LoRALinear(nn.Linear(D, 2), MoELayer(linear(), experts.LoRABank(E, D, 2, 2))),
        lambda m, x: m(x),
        (2, T, D),
    )
)


@case("stochastic.random_expert_layer")
def random_expert_layer():
    module, x = shaken(stochastic.random_expert_layer(StackedFFN(2, D, 2), training_level="item")).train(), leaf(T, D)
    return seeded(lambda: module(x)[0]), [x, *learned(module)]


@case("stochastic.two_view_loss")
def two_view_loss():
    module, x = shaken(stochastic.random_expert_layer(StackedFFN(2, D, 2))).train(), leaf(T, D)

    def run():
        views = stochastic.two_view_loss(lambda batch: module(batch)[0], x, lambda logits, _: logits.square().mean())
        return views.loss, views.task, views.consistency, views.first, views.second

    return seeded(run), [x, *learned(module)]
