"""Task-level routing: the task alone decides, so that one task's experts can be taken out as a small dense network."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from terramoe.errors import RoutingError
from terramoe.moe.experts import ModuleBank, StackedFFN
from terramoe.moe.layer import MoELayer
from terramoe.moe.merging import shared_weights
from terramoe.moe.routing import RouteInput
from terramoe.moe.scorers import Scores


class TaskEmbeddingScorer(nn.Module):
    """Logits of an item from the embedding of its task: ``E[task] W``, plus ``x V`` if items count too.

    Without ``dim`` all items of a task share their experts (Beyond Distillation: Task-level Mixture-of-Experts, 2021,
    arXiv 2110.03742). With ``dim`` the two are concatenated, which is the sum of two products.

    Args:
        num_tasks: tasks, numbered from 0.
        num_experts: E.
        embedding: channels of a task's vector.
        dim: channels D of an item that the logits read as well; None for the task alone.
    """

    def __init__(self, num_tasks: int, num_experts: int, embedding: int = 32, dim: int | None = None) -> None:
        super().__init__()
        self.num_tasks, self.num_experts = num_tasks, num_experts
        self.embedding = nn.Embedding(num_tasks, embedding)
        self.linear = nn.Linear(embedding, num_experts, bias=False)
        self.item_linear = None if dim is None else nn.Linear(dim, num_experts, bias=False)

    def forward(self, inp: RouteInput) -> Scores:
        """RouteInput with key "task" (T,) int64 -> logits (T, E)."""
        task = inp.key("task", "TaskEmbeddingScorer")
        if task.ndim != 1 or task.dtype != torch.int64:
            raise RoutingError(
                f"the key 'task' is {task.dtype} of shape {tuple(task.shape)}",
                where="TaskEmbeddingScorer",
                fix="give one int64 per item",
            )
        if not torch.compiler.is_compiling() and ((task < 0) | (task >= self.num_tasks)).any():
            raise RoutingError(
                f"task ids {int(task.min())} to {int(task.max())}, but there are {self.num_tasks} tasks",
                where="TaskEmbeddingScorer",
                fix="number the tasks from 0",
            )
        with torch.autocast(inp.x.device.type, enabled=False):
            dtype = torch.promote_types(self.linear.weight.dtype, torch.float32)
            # Per task, then looked up: all items of a task get the very same logits.
            per_task = self.embedding.weight.to(dtype) @ self.linear.weight.to(dtype).T
            logits = per_task[task]
            if self.item_linear is not None:
                features = inp.features()
                logits = logits + features @ self.item_linear.weight.to(features.dtype).T
            return Scores(logits)


class WeightedSum(nn.Module):
    """``sum_i weight_i * module_i(x)`` with fixed weights (k,)."""

    def __init__(self, modules: Iterable[nn.Module], weights: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.register_buffer("weights", weights.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(T, ..., D) -> (T, ..., D_out)."""
        return sum(weight.to(x.dtype) * part(x) for weight, part in zip(self.weights, self.parts, strict=True))


class GatedLinear(nn.Module):
    """A linear map and an activation that halves its width, as in the gated experts."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H)."""
        gate, up = self.linear(x).chunk(2, dim=-1)
        return self.activation(gate) * up


_ACTIVATIONS = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "geglu": nn.GELU,
    "swiglu": nn.SiLU,
    "reglu": nn.ReLU,
}


def extract_task(layer: MoELayer, task: int) -> nn.Module:
    """A dense module ``(T, ..., D) -> (T, ..., D_out)`` that equals the layer for items of one task.

    It holds copies of the task's experts only. k feed-forward experts with their weights are one feed-forward network
    of k times the width, its second matrix scaled; experts of other kinds become a ``WeightedSum``.

    Args:
        layer: its routing must depend on the key "task" alone, without capacity.
        task: which.

    Raises:
        RoutingError: the layer may drop items, or chooses by more than the task; a bank of another kind.
    """
    if layer.capacity is not None or layer.selector.couples_items:
        raise RoutingError(
            "what a task's items get depends on their batch",
            where="extract_task",
            fix="extract from a layer without capacity whose selector looks at one item at a time",
        )
    if not isinstance(layer.scorer, TaskEmbeddingScorer) or layer.scorer.item_linear is not None:
        raise RoutingError(
            "the router looks at more than the task", where="extract_task", fix="use TaskEmbeddingScorer without dim"
        )
    device = layer.scorer.linear.weight.device
    probes = torch.zeros(64, 1, device=device)  # several, to see a selector that goes by position
    with torch.no_grad():
        routing = layer.route(RouteInput(probes, keys={"task": torch.full((64,), task, device=device)}))
        weights = shared_weights(routing)
    chosen = routing.expert[routing.item == 0]
    weights = weights[chosen]
    if isinstance(layer.bank, ModuleBank):
        return WeightedSum([copy.deepcopy(layer.bank.experts[int(e)]) for e in chosen], weights)
    if isinstance(layer.bank, StackedFFN):
        return _joint_ffn(layer.bank, chosen, weights)
    raise RoutingError(
        f"cannot extract from a {type(layer.bank).__name__}",
        where="extract_task",
        fix="use a StackedFFN or a ModuleBank",
    )


@torch.no_grad()
def _joint_ffn(bank: StackedFFN, chosen: Tensor, weights: Tensor) -> nn.Sequential:
    """k experts side by side as one network of hidden width k x H."""
    w = bank.weights()
    weights = weights.to(w.w_out.dtype)[:, None, None]
    gated = bank.activation.gated
    halves = (2 if gated else 1, bank.hidden)
    w_in = w.w_in[chosen].unflatten(-1, halves).permute(1, 2, 0, 3).flatten(1)  # all gates first, then all ups
    b_in = None if w.b_in is None else w.b_in[chosen].unflatten(-1, halves).transpose(0, 1).flatten()
    w_out = (weights * w.w_out[chosen]).flatten(0, 1)
    b_out = None if w.b_out is None else (weights[..., 0] * w.b_out[chosen]).sum(0)
    first, activation = _linear(w_in, b_in), _ACTIVATIONS[bank.activation_name]()
    head = [GatedLinear(first, activation)] if gated else [first, activation]
    return nn.Sequential(*head, _linear(w_out, b_out))


def _linear(weight: Tensor, offset: Tensor | None) -> nn.Linear:
    """``x weight + offset`` as a module; weight (D, O)."""
    linear = nn.Linear(*weight.shape, bias=offset is not None, device=weight.device, dtype=weight.dtype)
    linear.weight.copy_(weight.T)
    if offset is not None:
        linear.bias.copy_(offset)
    return linear
