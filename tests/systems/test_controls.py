"""The controls of every system: no learned choice is left, and each costs what its name says."""

import dataclasses

import pytest
import torch

from terramoe.errors import ConfigError
from terramoe.evaluation import active_parameters, total_parameters
from terramoe.moe import MoELayer, summarise
from terramoe.systems import CONTROLS, SYSTEMS, build_control, system_class


def build(name, control):
    torch.manual_seed(0)
    cls = system_class(name)
    return build_control(cls, cls.tiny().config, control), cls.tiny_batch(2, seed=0)


def routers(system):
    return [p for layer in system.modules() if isinstance(layer, MoELayer) for p in layer.scorer.parameters()]


def has_router(name):
    return "task_gradient" not in system_class(name).exempt


def balanced(routings):
    """Statistics of the routings as if every expert were used alike."""
    return {
        layer: dataclasses.replace(numbers, load=(1 / len(numbers.load),) * len(numbers.load))
        for layer, numbers in summarise(routings).items()
    }


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("control", CONTROLS)
def test_no_choice_is_learned(name, control):
    routed, batch = build(name, "routed")
    system, _ = build(name, control)
    assert routers(routed) or not has_router(name)
    assert not routers(system)
    again = system(batch).routings
    for layer, routing in system(batch).routings.items():
        assert torch.equal(routing.expert, again[layer].expert)
        valid = int(routing.valid().sum())
        if control != "random":
            assert routing.expert.numel() == valid * routing.num_experts
        else:
            assert routing.expert.numel() == routed(batch).routings[layer].expert.numel()
        torch.testing.assert_close(routing.weight, torch.full_like(routing.weight, 1 / routing.num_experts))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_dense_twin_has_equal_active_size(name):
    (system, batch), (twin, _) = build(name, "routed"), build(name, "dense")
    ours = active_parameters(system, balanced(system(batch).routings))
    ratio = active_parameters(twin, summarise(twin(batch).routings)) / ours
    assert 0.97 < ratio < 1.03


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_wide_twin_has_equal_parameters(name):
    (system, _), (twin, _) = build(name, "routed"), build(name, "wide")
    without_router = total_parameters(system) - sum(p.numel() for p in routers(system))
    assert 0.97 < total_parameters(twin) / without_router < 1.03


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (3, 2), (6, 4)])
def test_scaling_changes_experts_and_choices(name, experts, top_k):
    cls = system_class(name)
    if not has_router(name) and top_k < experts:  # nobody is there to choose
        with pytest.raises(ConfigError):
            cls.scaled(cls.tiny().config, experts, top_k)
        return
    system = cls(cls.scaled(cls.tiny().config, experts, top_k))
    for routing in system(cls.tiny_batch(2, seed=0)).routings.values():
        assert routing.num_experts == experts
        assert routing.num_choices == top_k


def test_bad_input():
    with pytest.raises(ConfigError, match="no control 'magic'.*dense, wide, uniform, random"):
        build("mambamoe", "magic")
    cls = system_class("mambamoe")
    with pytest.raises(ConfigError, match="top_k"):
        cls.scaled(cls.tiny().config, 2, 3)
