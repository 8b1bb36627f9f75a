"""Several tasks, one bank: each task has its own router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.executors.combine import combine
from terramoe.moe.experts import Bank
from terramoe.moe.layer import MoELayer
from terramoe.moe.organisation.masking import zero_masked
from terramoe.moe.routing import RouteInput, Routing
from terramoe.moe.scorers import Scores


class TaskGates(nn.Module):
    """A scorer that holds one scorer per task and asks the one that the key "task" names.

    In an ordinary ``MoELayer`` it gives per-task routers over one bank, for a batch of one task or of several (M3ViT,
    2022, arXiv 2210.14793: top-4 of 16 experts, raw softmax weights).

    Args:
        scorers: task name -> scorer; all over the same experts. Task i is the i-th of them.
    """

    def __init__(self, scorers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not scorers:
            raise RoutingError("no task", where="TaskGates", fix="give one scorer per task")
        self.scorers = nn.ModuleDict(scorers)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.scorers)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with key "task" (T,) int64 -> logits (T, E), each item's by its task's scorer."""
        task = inp.key("task", "TaskGates")
        if task.ndim != 1 or task.dtype != torch.int64:
            raise RoutingError(
                f"the key 'task' is {task.dtype} of shape {tuple(task.shape)}",
                where="TaskGates",
                fix="give one int64 per item",
            )
        if not torch.compiler.is_compiling() and ((task < 0) | (task >= len(self.scorers))).any():
            raise RoutingError(
                f"task ids {int(task.min())} to {int(task.max())}, but there are {len(self.scorers)} tasks",
                where="TaskGates",
                fix=f"number the tasks from 0: {', '.join(self.tasks)}",
            )
        scores = [scorer(inp) for scorer in self.scorers.values()]  # routers are small: ask all, then pick
        return Scores(*(_pick(parts, task) for parts in zip(*scores, strict=True)))


class MultiGate(nn.Module):
    """All tasks at once on the same items: every (item, expert) pair that any task chose is run once.

    With the selector ``All`` this is MMoE, ``f_k = h_k(sum_i softmax(W_k x)_i E_i(x))`` (Modeling Task Relationships
    in Multi-task Learning with Multi-gate Mixture-of-Experts, 2018, doi 10.1145/3219819.3220007); the heads h_k are
    the caller's. With one task it is the layer itself.

    Args:
        layer: its scorer is a ``TaskGates``; its executor is not used.
    """

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        if not isinstance(layer.scorer, TaskGates):
            raise RoutingError(
                f"the scorer is a {type(layer.scorer).__name__}", where="MultiGate", fix="use TaskGates as scorer"
            )
        self.layer = layer

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        group: Tensor | None = None,
        keys: Mapping[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> dict[str, tuple[Tensor, Routing]]:
        """Items (T, ..., D) -> for each task its output (T, ..., D_out) and its routing.

        ``tasks`` limits the work to some tasks; ``mask``, ``group`` and ``keys`` as for MoELayer. RoutingError for an
        unknown task, an empty batch, or NaN in an item that is not masked.
        """
        names = self.layer.scorer.tasks
        tasks = names if tasks is None else tuple(tasks)
        if not tasks or set(tasks) - set(names):
            raise RoutingError(f"tasks {tasks}", where="MultiGate", fix=f"use some of {', '.join(names)}")
        if x.shape[0] == 0:
            raise RoutingError("the batch is empty", where="MultiGate", fix="skip empty batches")
        x, routings = zero_masked(x, mask), {}
        for task in tasks:
            index = torch.full(x.shape[:1], names.index(task), device=x.device)
            routings[task] = self.layer.route(RouteInput(x, mask, group, {**(keys or {}), "task": index}))
        outputs = run_once(x, list(routings.values()), self.layer.bank)
        return {task: (y, routing) for y, (task, routing) in zip(outputs, routings.items(), strict=True)}


def run_once(x: Tensor, routings: Sequence[Routing], bank: Bank) -> list[Tensor]:
    """Items (T, ..., D) -> for each routing its output (T, ..., D_out); a pair in several routings is run once."""
    items = x.shape[0]
    pairs = [r.expert[r.kept] * items + r.item[r.kept] for r in routings]
    union, place = torch.cat(pairs).unique(return_inverse=True)  # sorted by expert, then by item
    counts = torch.bincount(union // items, minlength=bank.num_experts).tolist()
    y = bank.run_sorted(x[union % items], counts)
    places = place.split([p.numel() for p in pairs])
    return [combine(y[p], r.item[r.kept], r.weight[r.kept], items) for p, r in zip(places, routings, strict=True)]


def _pick(parts: Sequence[Tensor | None], task: Tensor) -> Tensor | None:
    """Row i of ``parts[task[i]]``: K tensors (T, E) -> (T, E); None where a scorer has no such part."""
    if any(part is None for part in parts):
        return None
    return torch.stack(list(parts))[task, torch.arange(task.shape[0], device=task.device)]
