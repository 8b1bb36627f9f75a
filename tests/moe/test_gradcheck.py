"""Every part that has a gradient, against finite differences in float64. Parts are found by walking the modules.

The cases are in gradcheck_routers, _banks, _objectives and _layers; gradcheck_cases says how to make one.
"""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest
import torch
import torch.distributed as dist
from gradcheck_cases import CASES, leaf, learned, seeded, shaken
from torch import Tensor

from terramoe import moe
from terramoe.moe.experts.layout import Costs
from terramoe.moe.recipes import RECIPES

for _cases in ("routers", "banks", "objectives", "layers"):
    importlib.import_module(f"gradcheck_{_cases}")  # fills the table

# Modules of the routing core without cases here.
ELSEWHERE = {
    "recipes": "checked whole, below",
    "conversion": "makes new weights from old ones; it has its own tests",
    "placement": "plans on plain numbers",
    "in_place": "hands keys in and routings out; computes nothing",
    "statistics": "numbers for reports, without gradient",
}
# Selectors and controllers, told by what they must have.
WITHOUT_GRADIENT = {"needs": "chooses experts", "after_step": "changes a knob between steps"}
EXEMPT = {
    "scorers.ZeroScorer": "gives constants",
    "scorers.BoxScorer": "nothing is learned; its weights are checked by hand in test_loyola.py",
    "scorers.box_weights": "as BoxScorer",
    "scorers.axis_weights": "as BoxScorer",
    "scorers.check_axis": "checks numbers",
    "scorers.check_width": "checks numbers",
    "experts.Activation": "a record; its functions are checked through StackedFFN",
    "experts.get_activation": "a look-up by name",
    "experts.freeze_gates": "stops gradients",
    "experts.Bank": "abstract: its methods are checked through ModuleBank, which overrides run alone",
    "experts.lay_out": "integer bookkeeping",
    "experts.costs_of": "a look-up by type",
    "experts.round_up": "integers",
    "products.by_onednn": "a look-up by type",
    "products.linear": "says that it has no gradient; the two below and fused_ffn use it",
    "products.outer": "as linear",
    "products.few_by_many": "has a gradient of its own in float32 alone; checked in test_products.py",
    "products.many_by_few": "as few_by_many",
    "experts.core_shapes": "integers",
    "experts.tt_svd": "sets parameters, without gradient",
    "weighing.ones": "gives constants",
    "executors.get_executor": "a look-up by name",
    "executors.undo": "integer bookkeeping",
    "executors.flat_plan": "integer bookkeeping",
    "executors.hierarchical_plan": "integer bookkeeping",
    "executors.block_order": "integer bookkeeping",
    "executors.shard_bank": "copies parameters",
    "capacity.queue_place": "integer bookkeeping",
    "sorting.sort_pairs": "integer bookkeeping",
    "sorting.stable_order": "integer bookkeeping",
    "executors.combine_log_space": "checked in test_log_space.py",
    "experts.TokenBank": "checked in test_token_bank.py",
    "executors.log_space": "gathers rows for combine_log_space, which is checked",
    "executors.log_space_dense": "runs experts for combine_log_space, which is checked",
    "sorting.sum_rows": "says that it has no gradient; take_rows and combine_rows use it",
    "objectives.choice_share": "a count: no gradient, by design",
    "objectives.group_ids": "checks integers",
    "organisation.task_weights": "plain numbers",
    "organisation.disagreement_maps": "compares classes, without gradient",
    "organisation.extract_task": "copies parameters",
    "adapters.add_lora_experts": "puts LoRALinear into a model; that is checked",
    "adapters.merge_lora_experts": "copies parameters",
    "adapters.remove_lora_experts": "puts the layers back",
    "adapters.routed": "a context that collects routings",
    "stochastic.RandomExpertScorer": "gives constants",
    "selectors.ordered_top": "chooses experts",
    "selectors.pairs_from_choices": "integer bookkeeping",
    "selectors.pairs_from_mask": "integer bookkeeping",
    "controllers.Ramp": "plain numbers",
}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """A process group of one, for the executor that spreads experts over processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# Up to this many numbers each is moved by itself; more of them are moved along random directions, which is faster.
MANY = 80


def public_parts() -> set[str]:
    """``module.name`` of the routing core's public functions and classes that may have a gradient."""
    parts = set()
    for top in pkgutil.iter_modules(moe.__path__):
        if top.name not in ELSEWHERE:
            for module in modules_of(f"terramoe.moe.{top.name}"):
                parts |= {f"{top.name}.{name}" for name in vars(module) if may_have_gradient(module, name)}
    return parts


def modules_of(name: str) -> list[ModuleType]:
    top = importlib.import_module(name)
    inside = pkgutil.iter_modules(getattr(top, "__path__", []), f"{name}.")
    return [top, *(importlib.import_module(info.name) for info in inside)]


def may_have_gradient(module: ModuleType, name: str) -> bool:
    part = getattr(module, name)
    if name.startswith("_") or getattr(part, "__module__", None) != module.__name__:
        return False  # private, or imported from elsewhere
    if inspect.isclass(part):
        return not issubclass(part, tuple) and not any(hasattr(part, marker) for marker in WITHOUT_GRADIENT)
    return inspect.isfunction(part)


def test_every_public_part_has_a_case_or_a_reason():
    parts, known = public_parts(), {*CASES, *EXEMPT}
    assert sorted(parts - known) == [], "add a case, or an exemption with a reason"
    assert sorted(known - parts) == [], "these are gone"
    assert not set(CASES) & set(EXEMPT)


def check(name: str, label: str) -> None:
    run, inputs = CASES[name][label]()
    many = sum(tensor.numel() for tensor in inputs) > MANY
    assert torch.autograd.gradcheck(lambda *_: run(), tuple(inputs), fast_mode=many)
    outputs = run()
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    mixed = sum((y * torch.randn_like(y)).sum() for y in outputs)
    for grad in torch.autograd.grad(mixed, inputs):  # a gradient of zero everywhere would prove nothing
        assert grad.any()


@pytest.mark.parametrize(("name", "label"), [(name, label) for name, cases in CASES.items() for label in cases])
def test_gradients(name, label):
    check(name, label)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_gradients_of_the_fused_bank_in_blocks_that_are_not_padded(monkeypatch, activation):
    monkeypatch.setattr("terramoe.moe.experts.layout.PLAIN", Costs(0, 1, 1, 1e9, 3))
    check("experts.fused_ffn", activation)


# Where a recipe's gradient is, on purpose, not that of its output.
ESTIMATED = {
    "lory": "the first segment's weights take no gradient; see the case of merging.SegmentMergedFFN",
    "tomoe": "binary masks, whose gradient is that of the soft ones (straight-through)",
}


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ESTIMATED])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_recipes(name, training):
    """Along one random direction of the items and all parameters: gradcheck would take minutes to say what is wrong."""
    module = shaken(RECIPES[name].build(4, 4, 3)).train(training)
    x = leaf(6, 4)
    inputs = [x, *learned(module)]
    output = seeded(lambda: RECIPES[name].call(module, x)[0])
    mix = torch.randn_like(output())
    grads = torch.autograd.grad((output() * mix).sum(), inputs, allow_unused=True)
    directions = [torch.randn_like(tensor) for tensor in inputs]
    expected = sum((g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None)
    assert expected != 0

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for tensor, direction in zip(inputs, directions, strict=True):
                tensor.add_(direction, alpha=step)
        return (output().detach() * mix).sum()

    ahead, behind = moved(1e-6), moved(-2e-6)
    torch.testing.assert_close((ahead - behind) / 2e-6, expected, rtol=1e-5, atol=1e-7)
