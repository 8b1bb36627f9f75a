"""The controls that a routed system is compared with: what the same money buys without a learned choice.

Each question has its control. Does routing help at all? ``dense``. Would the parameters help without routing? ``wide``.
Does it matter which expert? ``uniform`` and ``random``.
"""

from __future__ import annotations

from typing import Any

from terramoe.errors import ConfigError
from terramoe.moe import All, MoELayer, RandomK, ZeroScorer, links, weighing
from terramoe.systems.base import System

ROUTED = "routed"
CONTROLS: dict[str, str] = {
    "dense": "dense twin of equal active compute",
    "wide": "dense twin of equal parameters",
    "uniform": "the same experts, all of them with equal weights",
    "random": "the same experts, drawn at random",
}


def build_control(cls: type[System], config: Any, control: str) -> System:
    """A new system that has no learned choice, or for "routed" the system itself.

    Args:
        cls, config: the system in question.
        control: "routed" or a name of ``CONTROLS``.

    Raises:
        ConfigError: there is no such control.
    """
    if control == ROUTED:
        return cls(config)
    if control == "dense":
        return fix_routing(cls(cls.dense_twin(config, equal="compute")), "uniform")
    if control == "wide":
        return fix_routing(cls(cls.dense_twin(config, equal="parameters")), "uniform")
    if control in ("uniform", "random"):
        return fix_routing(cls(config), control)
    raise ConfigError(f"there is no control '{control}'", where="controls", fix=f"use one of {', '.join(CONTROLS)}")


def fix_routing(system: System, how: str) -> System:
    """Take the learned choice out of every routed layer of a system, in place; its experts stay.

    Args:
        how: "uniform" (every expert with weight 1/E) or "random" (as many experts as before, drawn by the item's
            position, with weights of 1/E; an item gets the same ones at every call).
    """
    for layer in system.modules():
        if isinstance(layer, MoELayer):
            experts = layer.num_experts
            chosen = getattr(layer.selector, "k", experts)
            layer.scorer = ZeroScorer(experts)
            layer.selector = All() if how == "uniform" else RandomK(chosen)
            layer.link, layer.weigh, layer.capacity = links.softmax, weighing.raw, None
    return system
