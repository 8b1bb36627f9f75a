"""Customised gate control: experts of single tasks beside shared ones, over one or several levels.

Shapes: T items, D channels, m_k own experts of task k, m_s shared experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts import Bank, StackedFFN
from terramoe.moe.organisation.dense_gate import dense_routing
from terramoe.moe.organisation.masking import zero_masked
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import LinearScorer

SHARED = "shared"  # the key of the shared input, output and routing


class LevelOutput(NamedTuple):
    """What a level returns.

    Attributes:
        features: task -> (T, ..., D_out), and "shared" where the level has a shared gate.
        routings: the same names -> routing. A task's experts are its own, then the shared ones; those of the shared
            gate are all tasks' own in task order, then the shared ones.
    """

    features: dict[str, Tensor]
    routings: dict[str, Routing]


class CGCLevel(nn.Module):
    """One level: task k mixes its own and the shared experts with ``softmax(W_k x_k)``.

    Own experts read the task's input, shared experts the shared input. The shared gate sees all experts of all tasks,
    and feeds the next level's shared experts (Progressive Layered Extraction, 2020, doi 10.1145/3383313.3412236).

    Args:
        gates: task -> scorer over m_k + m_s experts. Their order is the order of the tasks.
        own: task -> its experts; a task without an entry has none (m_k = 0; for all tasks: MMoE).
        shared: the shared experts.
        shared_gate: scorer over all experts; None at the last level.
    """

    def __init__(
        self,
        gates: Mapping[str, nn.Module],
        own: Mapping[str, Bank],
        shared: Bank,
        shared_gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not gates or SHARED in gates or set(own) - set(gates):
            raise RoutingError(
                f"gates for {sorted(gates)}, own experts for {sorted(own)}",
                where="CGCLevel",
                fix=f"give each task a gate, and call none '{SHARED}'",
            )
        self.gates, self.own = nn.ModuleDict(gates), nn.ModuleDict(own)
        self.shared, self.shared_gate = shared, shared_gate

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.gates)

    def forward(
        self, features: Mapping[str, Tensor], *, mask: Tensor | None = None, keys: Mapping[str, Tensor] | None = None
    ) -> LevelOutput:
        """Inputs (T, ..., D) of each task and of "shared" -> outputs; masked items give 0.

        Raises:
            RoutingError: a missing input, a gate for another number of experts, NaN in an item that is not masked.
        """
        if {*self.tasks, SHARED} - set(features):
            raise RoutingError(
                f"inputs for {sorted(features)}", where="CGCLevel", fix=f"give {', '.join((*self.tasks, SHARED))}"
            )
        inputs = {name: RouteInput(zero_masked(x, mask), mask, keys=keys or {}) for name, x in features.items()}
        shared = [self.shared.run_all(inputs[SHARED].x)]
        own = {task: [bank.run_all(inputs[task].x)] for task, bank in self.own.items()}
        seen = {task: own.get(task, []) + shared for task in self.tasks}
        gates = dict(self.gates)
        if self.shared_gate is not None:
            seen[SHARED] = [part for task in self.tasks for part in own.get(task, [])] + shared
            gates[SHARED] = self.shared_gate
        features, routings = {}, {}
        for name, gate in gates.items():
            outputs = torch.cat(seen[name])  # (experts, T, ..., D_out)
            routings[name] = dense_routing(gate, inputs[name], outputs.shape[0], f"CGCLevel gate '{name}'")
            weight = routings[name].dense().to(outputs.dtype)
            features[name] = torch.einsum("te,et...->t...", weight, outputs)
        return LevelOutput(features, routings)


class ProgressiveExtraction(nn.Module):
    """PLE: levels one above the other (doi 10.1145/3383313.3412236); with one level it is CGC.

    At the last level no task sees the experts of another, so that the loss of one task does not move them; below, the
    shared gate mixes all.

    Args:
        levels: of the same tasks; each but the last with a shared gate, the last without.
    """

    def __init__(self, levels: Sequence[CGCLevel]) -> None:
        super().__init__()
        wanted = [True] * (len(levels) - 1) + [False]
        if not levels or [level.shared_gate is not None for level in levels] != wanted:
            raise RoutingError(
                f"{len(levels)} levels, shared gates at {[i for i, v in enumerate(levels) if v.shared_gate]}",
                where="ProgressiveExtraction",
                fix="give every level but the last a shared gate",
            )
        if len({level.tasks for level in levels}) > 1:
            raise RoutingError(
                "the levels have different tasks", where="ProgressiveExtraction", fix="use the same tasks in one order"
            )
        self.levels = nn.ModuleList(levels)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, keys: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], list[dict[str, Routing]]]:
        """Items (T, ..., D) -> task -> (T, ..., D_out), and each level's routings."""
        features = dict.fromkeys((*self.levels[0].tasks, SHARED), x)
        routings = []
        for level in self.levels:
            features, routing = level(features, mask=mask, keys=keys)
            routings.append(routing)
        return features, routings


def build_extraction(
    tasks: Sequence[str], dim: int, hidden: int, own_experts: int, shared_experts: int, levels: int = 2
) -> ProgressiveExtraction:
    """PLE of feed-forward experts of width ``hidden`` with linear gates; ``own_experts`` may be 0."""

    def build(last: bool) -> CGCLevel:
        gates = {task: LinearScorer(dim, own_experts + shared_experts) for task in tasks}
        own = {task: StackedFFN(own_experts, dim, hidden) for task in tasks if own_experts}
        shared_gate = None if last else LinearScorer(dim, len(tasks) * own_experts + shared_experts)
        return CGCLevel(gates, own, StackedFFN(shared_experts, dim, hidden), shared_gate)

    return ProgressiveExtraction([build(level == levels - 1) for level in range(levels)])


def task_weights(initial: Mapping[str, float], ratio: Mapping[str, float], step: int) -> dict[str, float]:
    """Loss weights ``initial * ratio ** step`` of the tasks at a training step (PLE, doi 10.1145/3383313.3412236)."""
    return {task: value * ratio[task] ** step for task, value in initial.items()}


def weighted_loss(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], masks: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Scalar: sum over the tasks of weight times the mean loss of the items in the task's own sample space.

    Args:
        losses: task -> (T,) loss of each item.
        weights: task -> weight.
        masks: task -> (T,) bool, items labelled for the task; a task without an entry counts all. A task without any
            labelled item adds 0.
    """
    total = torch.zeros(())
    for task, loss in losses.items():
        mask = None if masks is None else masks.get(task)
        mean = loss.mean() if mask is None else torch.where(mask, loss, 0.0).sum() / mask.sum().clamp_min(1)
        total = total.to(mean) + weights[task] * mean
    return total
