"""Controllers: what changes a knob between steps, without a gradient.

A controller is a small object with ``after_step(step, routings)``. It is made with a reference to what it changes: a
selector's buffer, a layer's selector or capacity, a link's temperature, a table of loss weights.

- Call it once after each optimiser step, with the number of that step, counted from 0, and the routings that the
  layer it belongs to made in that step (one for each micro-batch; schedules look at none).
- A schedule sets its knob for step 0 when it is made, and for ``step + 1`` in ``after_step(step, ...)``; it depends
  on nothing else, so a resumed run calls ``after_step(last_step, ())`` once and goes on.
- What a controller learns lives in registered buffers of the part that it changes, and so in its state_dict.
"""

from collections.abc import Sequence
from typing import Protocol

from terramoe.moe.controllers.biased import BiasedSelector, DualAscent, LossFreeBias
from terramoe.moe.controllers.dropping import DroppingSelector, ExpertDropout
from terramoe.moe.controllers.pairs import PairCounter
from terramoe.moe.controllers.replay import RecordReplay, ReplaySelector
from terramoe.moe.controllers.schedules import (
    CapacitySchedule,
    KSchedule,
    LossWeightSchedule,
    Ramp,
    TemperatureSchedule,
)
from terramoe.moe.controllers.tempered import TemperedLink
from terramoe.moe.routing import Routing


class Controller(Protocol):
    """What a training loop needs of a controller."""

    def after_step(self, step: int, routings: Sequence[Routing]) -> None:
        """Change the knob, given the step that has just ended and its routings."""


__all__ = [
    "BiasedSelector",
    "CapacitySchedule",
    "Controller",
    "DroppingSelector",
    "DualAscent",
    "ExpertDropout",
    "KSchedule",
    "LossFreeBias",
    "LossWeightSchedule",
    "PairCounter",
    "Ramp",
    "RecordReplay",
    "ReplaySelector",
    "TemperatureSchedule",
    "TemperedLink",
]
