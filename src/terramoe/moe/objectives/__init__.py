"""Objectives: auxiliary losses as pure functions of a routing. Nothing is stored on modules."""

from collections.abc import Callable

from torch import Tensor

from terramoe.moe.objectives.balance import importance_cv2, load_cv2, smooth_load, squared_cv, switch_balance
from terramoe.moe.objectives.z import router_z
from terramoe.moe.routing import Routing

Objective = Callable[[Routing], Tensor]

OBJECTIVES: dict[str, Objective] = {
    "importance_cv2": importance_cv2,
    "load_cv2": load_cv2,
    "switch_balance": switch_balance,
    "router_z": router_z,
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "importance_cv2",
    "load_cv2",
    "router_z",
    "smooth_load",
    "squared_cv",
    "switch_balance",
]
